"""Where a contract's methods are at a server, and what is left out of the built-in contract where it does not fit."""

import pytest
from life_api import METHODS, Life
from raw_peer import RawServer, hung_up, raw_listener

import shmrpc
from shmrpc import contract
from shmrpc.shm.handshake import Offered
from shmrpc.shm.matching import Matched, add_built_in, match
from shmrpc.signature import Parameter, Signature

BUILT_IN = contract.read(shmrpc.Introspection)
SIGNATURES = {signature.name: signature for signature in BUILT_IN.signatures}


def offered(*signatures: Signature, first: int = 5) -> list[Offered]:
    return [Offered("Life", b"", 0), Offered("shmrpc.Introspection", b"", first, list(signatures))]


def found(offered: list[Offered]) -> Matched:
    matched = match(None, offered, "/run/a.sock")
    add_built_in(matched, BUILT_IN, offered)
    return matched


def test_without_a_contract_only_what_is_built_in_is_found() -> None:
    assert found(offered()).numbers == {
        f"shmrpc.Introspection.{name}": 5 + index for index, name in enumerate(BUILT_IN.methods)
    }


def test_a_server_without_the_built_in_service_is_none_to_be_refused() -> None:
    assert found([Offered("Life", b"", 0)]) == ({}, {})


def test_methods_of_the_built_in_service_that_do_not_fit_are_left_out() -> None:
    other = Signature("health", [Parameter("service", ["str"], has_default=True)], ["int"])
    unknown = Signature("telepathy", [], ["str"])
    assert found(offered(unknown, other, SIGNATURES["statistics"])).numbers == {"shmrpc.Introspection.statistics": 7}


def test_a_method_that_knows_fewer_parameters_is_found_with_their_number() -> None:
    older = Signature("contracts", [], SIGNATURES["contracts"].result)
    assert found(offered(older)).narrow == {"shmrpc.Introspection.contracts": (5, 0)}


def test_a_contract_of_the_users_must_fit() -> None:
    wrong = Offered("Life", b"", 0, [Signature(METHODS[0], [], ["dict", ["str"], ["int"]])])
    with pytest.raises(shmrpc.ContractMismatch, match=r"Life at /run/a\.sock is not what the client expects"):
        match(contract.read(Life), [wrong], "/run/a.sock")
    with pytest.raises(shmrpc.ContractMismatch, match="did not say that it serves Life"):
        match(contract.read(Life), [], "/run/a.sock")


async def test_asking_a_server_that_does_not_tell_of_itself_says_so(path: str) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.channel = server.half.join(server.hello, server.client_fds)
        server.client_fds = []
        life, _ = server.welcome()["offered"]
        server.answer(offered=[life])
        await hung_up(server.sock)

    async with raw_listener(path, play), shmrpc.connect(Life, path) as life:
        with pytest.raises(shmrpc.Unimplemented, match=r"has no method shmrpc\.Introspection\.health; it is older"):
            await shmrpc.introspect(life).health()
