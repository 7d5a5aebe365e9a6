"""Finds a client's methods in what a server offers, or says in full why it cannot."""

from typing import NamedTuple

from shmrpc.contract import Contract
from shmrpc.errors import ContractMismatch
from shmrpc.legible import one_line
from shmrpc.shm.handshake import LAST_METHOD, Offered


class Matched(NamedTuple):
    """Where a contract's methods are at one server."""

    numbers: dict[str, int]
    """The server's number for each method, by full name."""
    narrow: dict[str, tuple[int, int]]
    """Methods of which the server knows fewer parameters: its number, and how many."""


def match(
    contract: Contract | None, offered: list[Offered], path: str, caller: str = "client", other: str = "server"
) -> Matched:
    """Finds the methods of a contract; without one there is nothing to find. The texts call the two sides by these names.

    Raises:
        ContractMismatch: a method cannot work; says all that is wrong.
    """
    matched = Matched({}, {})
    if contract is None:
        return matched
    service = _find(contract, offered)
    if service is None:
        raise ContractMismatch(f"the {other} at {path} did not say that it serves {contract.name}")
    if wrong := _add(matched, contract, service, caller, other):
        raise ContractMismatch(f"{contract.name} at {path} is not what the {caller} expects:\n  " + "\n  ".join(wrong))
    return matched


def add_built_in(matched: Matched, contract: Contract, offered: list[Offered]) -> None:
    """Finds what there is of a contract that nobody may have asked for: methods that do not fit are left out."""
    if (service := _find(contract, offered)) is not None:
        _add(matched, contract, service)


def _find(contract: Contract, offered: list[Offered]) -> Offered | None:
    return next((one for one in offered if one.name == contract.name), None)


def _add(
    matched: Matched, contract: Contract, service: Offered, caller: str = "client", other: str = "server"
) -> list[str]:
    """Adds the methods that fit, and says what is wrong with the others."""
    wrong = []
    for offset, signature in enumerate(service.signatures or contract.signatures):
        method = contract.methods.get(signature.name)
        if method is None:
            continue
        if (why := method.signature.why_unfit(signature, caller, other)) is not None:
            wrong.append(one_line(f"{signature.name}: {why}; expected {method.signature}, the {other} has {signature}"))
        elif (number := service.first_method + offset) > LAST_METHOD:
            wrong.append(f"{method.name}: its number is {number}, the highest is {LAST_METHOD}")
        elif len(signature.parameters) < method.arity:
            matched.narrow[method.full_name] = number, len(signature.parameters)
        else:
            matched.numbers[method.full_name] = number
    return wrong
