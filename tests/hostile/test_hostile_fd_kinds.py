"""Fds of the wrong kind, from a folder to a userfaultfd: refused, neither mapped nor read, and closed."""

import pytest
from hostile_fds import NO_EVENTFD, NO_PIPE, NO_SEGMENT
from hostile_halves import MakeFd, Refuse, both, declares, doorbell, segment, sends, victims

pytestmark = pytest.mark.counted("bad inputs tried")


def _kinds(kinds: dict[str, MakeFd]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", kinds.values(), ids=kinds)


@victims
@_kinds(NO_SEGMENT)
async def test_a_segment_cannot_be(
    path: str, must_refuse: Refuse, make: MakeFd, caplog: pytest.LogCaptureFixture
) -> None:
    why = "the peer's segment (is '.*', not shared memory|lacks the seals|must be open for|has .* bytes, it declared)"
    await must_refuse(path, caplog, sends(make, doorbell), why)


@victims
@_kinds(NO_EVENTFD)
async def test_an_eventfd_cannot_be(
    path: str, must_refuse: Refuse, make: MakeFd, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(path, caplog, sends(segment, make), r"the peer's doorbell is '.*', it declared an eventfd")


@victims
@_kinds(NO_PIPE)
async def test_a_pipe_cannot_be(path: str, must_refuse: Refuse, make: MakeFd, caplog: pytest.LogCaptureFixture) -> None:
    why = r"the peer's doorbell (is '.*', it declared a pipe|cannot be rung: it is not the writing end of a pipe)"
    await must_refuse(path, caplog, both(declares(doorbell="pipe"), sends(segment, make)), why)


@victims
async def test_fds_cannot_come_the_wrong_way_round(
    path: str, must_refuse: Refuse, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(
        path, caplog, sends(doorbell, segment), "the peer's doorbell is '/memfd:.*', it declared an eventfd"
    )


@victims
async def test_a_doorbell_cannot_be_sent_twice(
    path: str, must_refuse: Refuse, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(path, caplog, sends(doorbell, doorbell), r"the peer's segment is 'anon_inode:\[eventfd\]'")


@victims
async def test_memory_that_cannot_be_sealed_is_not_taken_for_what_can(
    path: str, must_refuse: Refuse, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(path, caplog, declares(segment="posix"), "POSIX shared memory, which cannot be sealed")
