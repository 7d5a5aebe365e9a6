"""Where a server's socket is safe: nobody who is not trusted may put another one in its place."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from life_api import Keeper, Life
from life_processes import STRANGER, as_root

import shmrpc
from shmrpc.shm import folders
from shmrpc.shm.folders import why_unsafe
from shmrpc.shm.liveness import UNMAPPED

GROUP = 23456
"""A gid that is nobody's."""


def why(path: Path | str, *, uids: tuple[int, ...] = (), gids: tuple[int, ...] = ()) -> str | None:
    """With these uids and gids trusted, beside root's and one's own."""
    return why_unsafe(str(path), lambda uid, gid: uid in uids or gid in gids, frozenset(gids))


@pytest.fixture
def inner(folder: Path) -> Iterator[Path]:
    """A folder in a folder, both of them one's own, with a socket's place in it."""
    path = folder / "inner"
    path.mkdir(mode=0o755)
    (path / "test.sock").touch()
    yield path
    path.chmod(0o755)


def test_a_folder_of_ones_own_is_safe(inner: Path) -> None:
    assert why(inner / "test.sock") is None


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777, 0o1775, 0o3777])
def test_a_folder_that_nobody_else_may_write_is_safe_and_so_is_a_sticky_one(inner: Path, mode: int) -> None:
    inner.chmod(mode)
    assert why(inner / "test.sock") is None


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o703, 0o2777])
def test_a_folder_that_everybody_may_write_is_not(inner: Path, mode: int) -> None:
    inner.chmod(mode)
    assert why(inner / "test.sock") == f"everybody may write the folder {inner}"


def test_a_folder_above_counts_as_much(inner: Path) -> None:
    inner.parent.chmod(0o777)
    assert why(inner / "test.sock") == f"everybody may write the folder {inner.parent}"


def test_a_socket_that_is_not_there_yet_does_not_make_its_folder_safe(inner: Path) -> None:
    inner.chmod(0o777)
    assert why(inner / "later.sock") == f"everybody may write the folder {inner}"


def test_a_path_that_leads_nowhere_is_for_others_to_report(inner: Path) -> None:
    with pytest.raises(FileNotFoundError):
        why(inner / "none" / "test.sock")


def test_a_relative_path_is_looked_at_from_the_current_folder_on(inner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inner)
    assert why("test.sock") is None
    assert why("./../inner/./test.sock") is None
    inner.parent.chmod(0o777)
    assert why("test.sock") == f"everybody may write the folder {inner.parent}"


@as_root
def test_the_folder_belongs_to_root_to_oneself_or_to_somebody_who_is_trusted(inner: Path) -> None:
    os.chown(inner, STRANGER, STRANGER)
    assert why(inner / "test.sock") == f"the folder {inner} belongs to uid {STRANGER}"
    assert why(inner / "test.sock", uids=(STRANGER,)) is None
    assert why(inner / "test.sock", gids=(STRANGER,)) is None


@as_root
def test_so_does_each_folder_above(inner: Path) -> None:
    os.chown(inner.parent, STRANGER, STRANGER)
    assert why(inner / "test.sock") == f"the folder {inner.parent} belongs to uid {STRANGER}"


@as_root
def test_ones_own_uid_is_the_effective_one(inner: Path) -> None:
    os.chown(inner.parent, STRANGER, STRANGER)
    os.chown(inner, STRANGER, STRANGER)
    os.seteuid(STRANGER)
    try:
        assert why(inner / "test.sock") is None
    finally:
        os.seteuid(0)


@as_root
def test_an_owner_whom_nobody_knows_may_be_above_but_not_at_the_socket(inner: Path) -> None:
    os.chown(inner.parent, UNMAPPED, UNMAPPED)
    assert why(inner / "test.sock") is None
    os.chown(inner, UNMAPPED, UNMAPPED)
    assert why(inner / "test.sock") == f"the folder {inner} belongs to uid {UNMAPPED}"
    assert why(inner / "test.sock", uids=(UNMAPPED,)) is None


@as_root
def test_a_group_that_may_write_must_be_trusted_too(inner: Path) -> None:
    inner.chmod(0o775)
    assert why(inner / "test.sock") is None  # root's own group
    os.chown(inner, 0, GROUP)
    assert why(inner / "test.sock") == f"group {GROUP} may write the folder {inner}"
    assert why(inner / "test.sock", uids=(UNMAPPED,)) == f"group {GROUP} may write the folder {inner}"
    assert why(inner / "test.sock", gids=(GROUP,)) is None


@as_root
@pytest.mark.parametrize(
    ("user", "group", "members", "safe"),
    [
        ("ann", "ann", [], True),
        ("ann", "ann", ["ann"], True),
        ("ann", "ann", ["ann", "bob"], False),
        ("ann", "users", [], False),
    ],
)
def test_a_group_of_ones_own_has_nobody_else_in_it(
    inner: Path, monkeypatch: pytest.MonkeyPatch, user: str, group: str, members: list[str], safe: bool
) -> None:
    import grp
    import pwd

    os.chown(inner, 0, GROUP)
    inner.chmod(0o775)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd((user, "x", uid, GROUP, "", "/", "/bin/sh")))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((group, "x", gid, members)))
    assert (why(inner / "test.sock") is None) is safe


# Links


def test_a_link_is_followed_and_what_it_leads_to_counts(inner: Path) -> None:
    other = inner.parent / "other"
    other.mkdir(mode=0o755)
    (other / "link").symlink_to("../inner")
    (other / "absolute").symlink_to(inner)
    (other / "test.sock").symlink_to(inner / "test.sock")
    ways = (other / "link" / "test.sock", other / "absolute" / "test.sock", other / "test.sock")
    assert [why(way) for way in ways] == [None] * 3
    inner.chmod(0o777)
    assert [why(way) for way in ways] == [f"everybody may write the folder {inner}"] * 3
    inner.chmod(0o755)
    other.chmod(0o777)
    assert [why(way) for way in ways] == [f"everybody may write the folder {other}"] * 3


@as_root
def test_a_link_in_a_sticky_folder_must_be_of_somebody_who_is_trusted(inner: Path) -> None:
    inner.parent.chmod(0o1777)
    link = inner.parent / "link"
    link.symlink_to(inner / "test.sock")
    assert why(link) is None
    os.lchown(link, STRANGER, STRANGER)
    assert why(link) == f"the link {link} belongs to uid {STRANGER}"
    assert why(link, uids=(STRANGER,)) is None


def test_links_in_a_circle_are_not_followed_for_ever(inner: Path) -> None:
    (inner / "one").symlink_to("two")
    (inner / "two").symlink_to("one")
    assert why(inner / "one") == f"{inner / 'one'} leads through more than {folders._MOST_LINKS} links"


# Connecting


async def test_a_client_does_not_connect_where_others_could_put_another_server(inner: Path) -> None:
    path = str(inner / "test.sock")
    os.unlink(path)
    os.chmod(inner, 0o777)
    async with shmrpc.Server(Keeper(), at=path) as server:
        with pytest.raises(shmrpc.HandshakeError) as caught:
            async with shmrpc.connect(Life, path, wait=10):
                raise AssertionError("connected")
        assert str(caught.value) == (
            f"{path} is no safe place for a socket: everybody may write the folder {inner}, so others could put "
            "theirs there; change the owner or the mode (chmod go-w), or trust them (trust_folder)"
        )
        assert server.connections == 0
        async with shmrpc.connect(Life, path, trust_folder=True) as life:
            assert await life.add(1) == 2
        os.chmod(inner, 0o1777)
        async with shmrpc.connect(Life, path) as life:
            assert await life.add(1) == 2


async def test_a_way_that_cannot_be_looked_at_is_not_taken(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    monkeypatch.setattr(folders, "why_unsafe", fail)
    async with shmrpc.Server(Keeper(), at=path):
        with pytest.raises(shmrpc.HandshakeError, match=r"what leads there cannot be looked at \(File name too long\)"):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")


async def test_a_folder_that_is_opened_to_all_is_found_at_the_next_connection(inner: Path) -> None:
    path = str(inner / "test.sock")
    os.unlink(path)
    async with shmrpc.Server(Keeper(), at=path):
        async with shmrpc.connect(Life, path) as life:
            await life.add(1)
            os.chmod(inner, 0o777)
            await life.add(1)  # this connection was made before
    async with shmrpc.Server(Keeper(), at=path):
        with pytest.raises(shmrpc.HandshakeError, match="no safe place"):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
