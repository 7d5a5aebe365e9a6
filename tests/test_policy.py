"""What is declared of a method, and which declaration counts."""

import functools
from collections.abc import Callable
from typing import Any, Protocol
from unittest.mock import Mock

import pytest

import shmrpc
from shmrpc.contract import read
from shmrpc.policy import UNDECLARED, Policy, is_oneway, of_handler, policy_of


def let_pass(call: shmrpc.Call) -> bool:
    return True


def refuse(call: shmrpc.Call) -> bool:
    return False


class Vault(Protocol):
    async def look(self) -> int: ...

    @shmrpc.method(timeout=1.5, idempotent=True, max_concurrency=4, guard=let_pass)
    async def read(self) -> int: ...

    @shmrpc.oneway
    async def note(self) -> None: ...


# What a contract declares


def test_a_contract_tells_the_policy_of_each_method() -> None:
    methods = read(Vault).methods
    assert methods["look"].policy == UNDECLARED
    assert methods["read"].policy == Policy(timeout=1.5, idempotent=True, max_concurrency=4, guard=let_pass)
    assert [name for name, method in methods.items() if method.oneway] == ["note"]


def test_declarations_may_be_stacked_and_the_outer_one_counts() -> None:
    @shmrpc.method(timeout=3.0)
    @shmrpc.method(timeout=1.0, idempotent=True)
    async def function() -> None: ...

    assert policy_of(function) == Policy(timeout=3.0, idempotent=True)


def test_a_declaration_survives_a_decorator_that_wraps() -> None:
    @shmrpc.oneway
    @shmrpc.method(max_concurrency=2)
    async def function() -> None: ...

    @functools.wraps(function)
    async def wrapper() -> None: ...

    assert policy_of(wrapper) == Policy(max_concurrency=2)
    assert is_oneway(wrapper)


def test_what_has_every_attribute_declares_nothing() -> None:
    anything = Mock()
    anything.configure_mock(__shmrpc_policy__=3, __shmrpc_oneway__="yes")
    assert policy_of(anything) == UNDECLARED
    assert not is_oneway(anything)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"timeout": 0}, "a timeout is a positive number of seconds, not 0"),
        ({"timeout": "soon"}, "a timeout is a positive number of seconds, not 'soon'"),
        ({"max_concurrency": 0}, "max_concurrency is a whole number of 1 or more, not 0"),
        ({"max_concurrency": 1.5}, "max_concurrency is a whole number of 1 or more, not 1.5"),
        ({"max_concurrency": True}, "max_concurrency is a whole number of 1 or more, not True"),
        ({"max_waiting": -1}, "max_waiting is a whole number of 0 or more, not -1"),
        ({"guard": "root"}, "a guard is called with the call, and 'root' cannot be called"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_the_name_of_the_method(values: dict[str, Any], text: str) -> None:
    async def function() -> None: ...

    with pytest.raises(shmrpc.ContractError, match=text) as caught:
        shmrpc.method(**values)(function)
    assert function.__qualname__ in str(caught.value)


# What a handler declares


def declaring(**values: Any) -> Callable[[], Any]:
    def handler() -> None: ...

    return shmrpc.method(**values)(handler)


def test_the_contract_counts_where_the_handler_declares_nothing() -> None:
    contracted = Policy(timeout=1.0, idempotent=True, max_concurrency=4, max_waiting=8, guard=refuse)
    assert of_handler(contracted, lambda: None, "Vault.read") == contracted


def test_the_handler_counts_field_by_field() -> None:
    contracted = Policy(timeout=1.0, max_concurrency=4, max_waiting=8, guard=refuse)
    assert of_handler(contracted, declaring(guard=let_pass, max_waiting=0), "Vault.read") == Policy(
        timeout=1.0, max_concurrency=4, max_waiting=0, guard=let_pass
    )


@pytest.mark.parametrize(("field", "value"), [("timeout", 2.0), ("idempotent", True)])
def test_a_handler_cannot_declare_what_its_callers_would_never_learn(field: str, value: object) -> None:
    with pytest.raises(
        shmrpc.ContractError, match=rf"Vault\.read: its handler declares {field}={value}.* in the contract"
    ):
        of_handler(UNDECLARED, declaring(**{field: value}), "Vault.read")
    same = Policy(**{field: value})  # type: ignore[arg-type]
    assert of_handler(same, declaring(**{field: value}), "Vault.read") == same


def test_a_limit_on_waiting_needs_something_to_wait_for() -> None:
    with pytest.raises(shmrpc.ContractError, match=r"Vault\.read: max_waiting is 3 and max_concurrency is not set"):
        of_handler(UNDECLARED, declaring(max_waiting=3), "Vault.read")
    assert of_handler(Policy(max_concurrency=1), declaring(max_waiting=3), "Vault.read").max_waiting == 3
