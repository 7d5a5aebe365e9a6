"""The guards that are ready-made. Processes under other uids are in `shm/test_shm_policy.py`."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from shmrpc import guards
from shmrpc.context import Call, Peer
from shmrpc.policy import Guard


def lets_pass(guard: Guard, *, uid: int = 0, gid: int = 0) -> Any:
    class Served:
        peer = Peer(1, uid, gid)

    return guard(Call(cast(Any, Served())))


def test_users_are_let_pass_by_their_uid() -> None:
    guard = guards.uids(33, 1000)
    assert lets_pass(guard, uid=33, gid=7) is True
    assert lets_pass(guard, uid=0, gid=33) is False


def test_users_are_let_pass_by_their_primary_gid() -> None:
    guard = guards.gids(33, 1000)
    assert lets_pass(guard, uid=7, gid=1000) is True
    assert lets_pass(guard, uid=33, gid=0) is False


def test_without_names_nobody_passes() -> None:
    assert lets_pass(guards.uids()) is False
    assert lets_pass(guards.gids()) is False


@pytest.mark.parametrize(("make", "what"), [(guards.uids, "uid"), (guards.gids, "gid")])
def test_what_nobody_could_have_is_refused(make: Callable[..., Guard], what: str) -> None:
    for wrong in ([1000], "root", None, 1.0, True):
        with pytest.raises(TypeError) as caught:
            make(0, wrong)
        assert str(caught.value) == (
            f"a {what} is a whole number of 0 or more, not {wrong!r}; "
            f"write {what}s(0, 1000), or {what}s(*…) for those of a list"
        )
    with pytest.raises(ValueError, match=f"a {what} is a whole number of 0 or more, not -1"):
        make(-1)
