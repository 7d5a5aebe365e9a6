"""The tree of errors: what its docstring says, how an error says what it is, and what an error of one's own may be."""

import copy
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

import shmrpc
from shmrpc import Code, RpcError, errors

SHIPPED = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, RpcError)]


@dataclass(eq=False)
class WithFields(RpcError, code=Code.NOT_FOUND):
    name: str
    sizes: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Gone(shmrpc.Unavailable):
    host: str


def rows_of_the_tree() -> Iterator[tuple[int, str, str, str, str | None]]:
    """Depth, class, text, other base, code: of each line of the tree in the module's docstring."""
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" │├└─").partition(" ")[0]
        if not line.startswith("    ") or not hasattr(errors, name):
            continue
        text, _, code = line.rstrip().rpartition(" ")
        also = text.partition("also a ")[2].split()
        yield (
            line.index(name) // 4,
            name,
            text,
            also[0] if also else "",
            code if code.isupper() and hasattr(Code, code) else None,
        )


def test_the_docstring_draws_the_tree_of_the_classes() -> None:
    drawn: dict[str, str] = {}
    parents: dict[int, str] = {}
    for depth, name, _, _, _ in rows_of_the_tree():
        parents[depth] = name
        drawn[name] = parents.get(depth - 1, "Exception")
    assert drawn == {cls.__name__: cls.__bases__[0].__name__ for cls in SHIPPED}


def test_the_docstring_names_the_other_base_of_each_error() -> None:
    drawn = {name: also for _, name, _, also, _ in rows_of_the_tree()}
    assert drawn == {cls.__name__: "".join(base.__name__ for base in cls.__bases__[1:]) for cls in SHIPPED}


def test_the_docstring_names_the_code_of_each_error_that_sets_one() -> None:
    drawn = {name: code for _, name, _, _, code in rows_of_the_tree() if code is not None}
    own = {cls.__name__: cls.code.name for cls in SHIPPED if "code" in vars(cls) and cls is not RpcError}
    assert drawn == own


def test_every_error_is_public() -> None:
    assert {cls.__name__ for cls in SHIPPED} | {"Code"} <= set(shmrpc.__all__)


def test_the_codes_are_grpcs() -> None:
    grpc = pytest.importorskip("grpc", reason="grpcio, of the extra 'bench', is not installed")
    assert {code.name: code.value for code in Code} == {status.name: status.value[0] for status in grpc.StatusCode}


def test_an_error_says_its_text() -> None:
    assert str(RpcError("no such model", code=Code.NOT_FOUND)) == "no such model"


def test_an_error_without_a_text_says_its_name() -> None:
    assert str(shmrpc.PermissionDenied()) == "PermissionDenied"


def test_an_error_with_fields_says_them() -> None:
    assert str(WithFields("model", [1, 2])) == "WithFields(name='model', sizes=[1, 2])"


def test_an_error_has_its_own_code_its_classes_or_its_bases() -> None:
    class Child(WithFields):
        pass

    assert RpcError("text").code is Code.UNKNOWN
    assert RpcError("text", code=Code.ABORTED).code is Code.ABORTED
    assert WithFields("x").code is Child("x").code is Code.NOT_FOUND


def test_no_error_has_the_code_ok() -> None:
    with pytest.raises(shmrpc.ContractError, match="Fine: an error cannot have code OK"):

        class Fine(RpcError, code=Code.OK):
            pass

    with pytest.raises(ValueError, match="cannot have code OK"):
        RpcError("fine", code=Code.OK)


class OfGrpc(Enum):
    """As `grpc.StatusCode` is."""

    NOT_FOUND = (5, "not found")


@pytest.mark.parametrize("code", [5, "NOT_FOUND", OfGrpc.NOT_FOUND])
def test_a_code_of_another_type_is_refused_with_the_one_that_was_meant(code: Any) -> None:
    text = f"code is a member of shmrpc.Code, not {code!r}; write Code.NOT_FOUND"
    with pytest.raises(TypeError) as caught:
        RpcError("no such model", code=code)
    assert str(caught.value) == text
    with pytest.raises(shmrpc.ContractError) as declared:
        type("Missing", (RpcError,), {}, code=code)
    assert str(declared.value) == f"Missing: {text}"


@pytest.mark.parametrize("code", [17, -1, "gone", object()])
def test_a_code_that_stands_for_none_is_refused(code: Any) -> None:
    with pytest.raises(TypeError) as caught:
        RpcError("", code=code)
    assert str(caught.value) == f"code is a member of shmrpc.Code, not {code!r}"


@pytest.mark.parametrize("code", [3, "NOT_FOUND", None])
def test_a_field_called_code_is_the_applications_affair(code: Any) -> None:
    @dataclass(eq=False)
    class Own(RpcError):
        code: Any

    assert Own(code).code == code


def test_unavailable_is_certainly_not_executed_unless_it_says_so() -> None:
    assert not shmrpc.ConnectionLost("gone").maybe_executed
    assert shmrpc.ConnectionLost("gone", maybe_executed=True).maybe_executed
    assert not Gone("here").maybe_executed


@pytest.mark.parametrize("cls", SHIPPED, ids=lambda cls: cls.__name__)
def test_a_shipped_error_survives_pickling_and_copying(cls: type[RpcError]) -> None:
    error = cls("text")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert (type(again), str(again), again.code) == (cls, "text", cls.code)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_keeps_what_was_set_on_it_when_it_is_pickled(protocol: int) -> None:
    lost = shmrpc.ConnectionLost("gone", maybe_executed=True)
    aborted = RpcError("text", code=Code.ABORTED)
    fields = WithFields(name="model", sizes=[1])
    fields.add_note("a note")
    lost, aborted, fields = pickle.loads(pickle.dumps((lost, aborted, fields), protocol))
    assert lost.maybe_executed
    assert aborted.code is Code.ABORTED
    assert (fields.name, fields.sizes, fields.__notes__) == ("model", [1], ["a note"])


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (Code.INVALID_ARGUMENT, shmrpc.InvalidArgument),
        (Code.DEADLINE_EXCEEDED, shmrpc.DeadlineExceeded),
        (Code.CANCELLED, shmrpc.Cancelled),
        (Code.RESOURCE_EXHAUSTED, shmrpc.ResourceExhausted),
        (Code.PERMISSION_DENIED, shmrpc.PermissionDenied),
        (Code.UNIMPLEMENTED, shmrpc.Unimplemented),
        (Code.INTERNAL, shmrpc.Internal),
        (Code.UNAVAILABLE, shmrpc.Unavailable),
        (Code.NOT_FOUND, RpcError),
        (Code.UNKNOWN, RpcError),
    ],
)
def test_the_error_of_a_received_status_has_the_class_of_its_code(code: Code, cls: type[RpcError]) -> None:
    error = errors.error_for(int(code), "text")
    assert (type(error), error.code, str(error)) == (cls, code, "text")


@pytest.mark.parametrize("code", [-1, 17, 1 << 40])
def test_a_status_that_nobody_knows_is_unknown_and_says_its_number(code: int) -> None:
    error = errors.error_for(code, "text")
    assert (error.code, str(error)) == (Code.UNKNOWN, f"text (unknown status code {code})")


def test_a_failure_with_the_status_ok_is_unknown() -> None:
    assert errors.error_for(0, "text").code is Code.UNKNOWN
