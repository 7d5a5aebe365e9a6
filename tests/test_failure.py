"""How an error travels: what of it becomes data, what stays in the log, and what becomes of it at the other side."""

import logging
import os
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import pytest

import shmrpc
from shmrpc import Code, RpcError
from shmrpc.failure import Failure, declared_errors, error_of, failure_of


class Api(Protocol):
    async def method(self) -> None: ...


@dataclass(eq=False)
class BadShape(RpcError, code=Code.INVALID_ARGUMENT):
    shape: tuple[int, ...]
    volume: int = field(init=False)

    def __post_init__(self) -> None:
        self.volume = sum(self.shape)


@dataclass(eq=False)
class WithCodeField(RpcError, code=Code.ABORTED):
    code: str  # type: ignore[assignment]


@dataclass(eq=False)
class Holding(RpcError, code=Code.ABORTED):
    thing: Any


class Late(shmrpc.DeadlineExceeded):
    pass


class Away(shmrpc.Unavailable):
    pass


class WithConstructor(RpcError, code=Code.NOT_FOUND):
    def __init__(self, table: str, key: int) -> None:
        super().__init__(f"{table} has no {key}")


class Unspeakable(RpcError, code=Code.ABORTED):
    def __str__(self) -> str:
        raise ZeroDivisionError


def travel(error: BaseException, *, contract: type = Api, debug: bool = False, what: str = "failed") -> RpcError:
    """The error at the caller's side; its data goes through msgpack, as everywhere."""
    failure = failure_of(error, contract, "Api.method", what=what, debug=debug)
    return error_of(msgspec.msgpack.decode(msgspec.msgpack.encode(failure), type=Failure), contract)


def test_the_errors_of_a_contract_are_those_that_its_module_can_see() -> None:
    assert declared_errors(Api) == {
        cls.__name__: cls for cls in (BadShape, WithCodeField, Holding, Late, Away, WithConstructor, Unspeakable)
    }


def test_the_errors_of_a_contract_are_also_those_of_its_bases_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    extended = type("Extended", (Api,), {"__module__": "collections"})
    assert declared_errors(extended)["BadShape"] is BadShape


def test_a_contract_without_a_module_has_no_errors() -> None:
    assert declared_errors(type("Lost", (), {"__module__": "no.such.module"})) == {}


def test_a_declared_error_arrives_as_itself() -> None:
    error = travel(BadShape((1, 2)))
    assert isinstance(error, BadShape)
    assert (error.shape, error.volume, error.code) == ((1, 2), 3, Code.INVALID_ARGUMENT)


def test_a_declared_error_with_a_text_arrives_as_itself() -> None:
    for error in (WithConstructor("people", 7), Late("too late"), Away("gone")):
        arrived = travel(error)
        assert (type(arrived), str(arrived), arrived.code) == (type(error), str(error), error.code)


def test_an_undeclared_child_of_a_declared_error_arrives_as_its_parent() -> None:
    @dataclass(eq=False)
    class Worse(BadShape):
        secret: str = "swordfish"

    arrived = travel(Worse((1,)))
    assert type(arrived) is BadShape
    assert arrived.shape == (1,)


def test_an_undeclared_error_keeps_its_code_and_text_only() -> None:
    class Private(RpcError, code=Code.DATA_LOSS):
        pass

    arrived = travel(Private("two blocks are gone"))
    assert (type(arrived), arrived.code, str(arrived)) == (RpcError, Code.DATA_LOSS, "two blocks are gone")


def test_a_code_that_was_set_on_the_error_travels() -> None:
    for error in (BadShape((1,)), Late("late"), RpcError("text")):
        error.code = Code.OUT_OF_RANGE
        arrived = travel(error)
        assert arrived.code is Code.OUT_OF_RANGE


def test_a_field_that_is_called_code_is_not_taken_for_the_status() -> None:
    arrived = travel(WithCodeField("E42"))
    assert isinstance(arrived, WithCodeField)
    assert arrived.code == "E42"


def test_what_a_handler_raised_may_have_been_executed() -> None:
    for error in (shmrpc.Unavailable("out of order"), shmrpc.ConnectFailed("no database"), Away("gone")):
        arrived = travel(error)
        assert isinstance(arrived, shmrpc.Unavailable)
        assert arrived.maybe_executed


def test_a_refusal_before_the_handler_says_that_nothing_was_executed() -> None:
    arrived = error_of(Failure(Code.UNAVAILABLE, "not yet", maybe_executed=False), Api)
    assert isinstance(arrived, shmrpc.Unavailable)
    assert not arrived.maybe_executed


def test_any_other_exception_leaves_its_text_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    arrived = travel(ValueError("swordfish"))
    assert isinstance(arrived, shmrpc.Internal)
    assert str(arrived) == (
        f"Api.method: failed; the server's log has the reason under correlation id {arrived.correlation_id}"
    )
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("shmrpc.server", logging.ERROR)
    assert record.getMessage() == f"Api.method: failed, correlation id {arrived.correlation_id}"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "swordfish"


def test_in_debug_mode_the_text_travels() -> None:
    assert str(travel(ValueError("swordfish"), debug=True)).endswith(": ValueError: swordfish")


def test_what_went_wrong_is_said_in_public_words() -> None:
    assert "Api.method: its result cannot be encoded" in str(
        travel(TypeError("swordfish"), what="its result cannot be encoded")
    )


def test_an_error_whose_fields_cannot_be_encoded_is_internal(caplog: pytest.LogCaptureFixture) -> None:
    class Exploding:
        def __getattr__(self, name: str) -> Any:
            raise ZeroDivisionError

    for error in (Holding(object()), Holding(1 << 64), Holding(Exploding()), Holding("\ud800")):
        caplog.clear()
        arrived = travel(error)
        assert isinstance(arrived, shmrpc.Internal)
        assert "its error cannot be encoded" in str(arrived)
        assert f"the fields of {type(error).__name__} cannot be encoded" in caplog.text


def test_a_text_that_utf_8_cannot_carry_is_escaped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "shmrpc")  # what is logged has the text as it is, and reports of tests are UTF-8
    path = os.fsdecode(b"caf\xe9")
    assert str(travel(RpcError(path))) == "caf\\udce9"
    assert "caf\\udce9" in str(travel(ValueError(path), debug=True))


def test_an_error_that_cannot_say_its_text_still_arrives() -> None:
    arrived = travel(Unspeakable())
    assert isinstance(arrived, Unspeakable)
    assert arrived.args == ("Unspeakable (its text cannot be had: ZeroDivisionError)",)


@pytest.mark.parametrize(
    "fields",
    [b"", b"\xc1", msgspec.msgpack.encode({}), msgspec.msgpack.encode({"shape": "round"}), msgspec.msgpack.encode([1])],
)
def test_an_error_whose_fields_do_not_fit_is_a_mismatch_of_the_contracts(fields: bytes) -> None:
    arrived = error_of(Failure(Code.INVALID_ARGUMENT, "the text", "BadShape", fields), Api)
    assert isinstance(arrived, shmrpc.ContractMismatch)
    assert str(arrived).startswith("the text (the fields of BadShape do not fit: ")


def test_an_error_that_the_caller_does_not_know_keeps_its_code_and_text() -> None:
    arrived = error_of(Failure(Code.NOT_FOUND, "no such model", "NewError", b"\x80"), Api)
    assert (type(arrived), arrived.code, str(arrived)) == (RpcError, Code.NOT_FOUND, "no such model")


def test_a_peer_cannot_name_any_class_but_an_error_of_the_contract() -> None:
    for name in ("Api", "Failure", "RpcError", "os", "failure_of", "pytest"):
        arrived = error_of(Failure(Code.NOT_FOUND, "text", name, b"\x80"), Api)
        assert type(arrived) is RpcError


def test_a_failure_with_an_unknown_code_is_unknown() -> None:
    assert error_of(Failure(99, "text"), Api).code is Code.UNKNOWN
    assert error_of(Failure(99, "text", "Late"), Api).code is Code.FAILED_PRECONDITION
