"""Where a server listens: what a client is told when nobody does, and what a server does not replace."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from life_api import Keeper, Life
from life_processes import inode, kill, serving

import shmrpc
from shmrpc.shm import address
from shmrpc.shm.address import MAX_PATH_BYTES


async def refusal(path: str) -> str:
    with pytest.raises(shmrpc.ConnectFailed) as caught:
        async with shmrpc.connect(Life, path):
            raise AssertionError("connected to nobody")
    assert not caught.value.maybe_executed
    return str(caught.value)


def make_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def read(path: str) -> str:
    return Path(path).read_text()


# What a client is told


async def test_no_server_at_the_path_is_said_with_the_path(path: str) -> None:
    assert await refusal(path) == f"no server at {path}: No such file or directory"


async def test_a_file_is_said_to_be_no_socket(path: str) -> None:
    write(path, "")
    assert await refusal(path) == f"no server at {path}: it is a file, not a socket"


async def test_a_directory_is_said_to_be_one(folder: Path) -> None:
    assert await refusal(str(folder)) == f"no server at {folder}: it is a directory"


async def test_a_stale_socket_is_said_to_be_stale(path: str) -> None:
    make_stale(path)
    assert await refusal(path) == f"no server at {path}: the socket is stale, nobody listens"


async def test_the_socket_of_a_killed_server_is_stale(path: str) -> None:
    with serving(path) as server:
        kill(server)
        assert "stale" in await refusal(path)


async def test_a_datagram_socket_is_not_connected_to(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        assert await refusal(path) == f"no server at {path}: Protocol wrong type for socket"


async def test_a_client_that_waits_finds_a_server_that_comes_later(path: str) -> None:
    make_stale(path)

    async def add() -> int:
        async with shmrpc.connect(Life, path, wait=20) as life:
            return await life.add(1)

    adding = asyncio.create_task(add())
    await asyncio.sleep(0)  # it has tried once, and found nobody
    async with shmrpc.Server(Keeper(), at=path):
        assert await adding == 2


# Addresses


@pytest.mark.parametrize("length", [MAX_PATH_BYTES + 1, 4000])
def test_a_path_that_is_too_long_is_refused_with_its_length(length: int) -> None:
    path = "/" + "x" * (length - 1)
    with pytest.raises(shmrpc.BadAddress, match=f"it has {length} bytes, allowed are 1 to 107"):
        shmrpc.connect(Life, path)


async def test_a_server_cannot_be_at_a_path_that_is_too_long() -> None:
    with pytest.raises(shmrpc.BadAddress, match="it has 108 bytes"):
        async with shmrpc.Server(Keeper(), at="/" + "x" * 107):
            pass


def test_bytes_count_not_characters() -> None:
    with pytest.raises(shmrpc.BadAddress, match="it has 121 bytes"):
        address.path_of("/" + "ä" * 60)


async def test_the_longest_path_works_though_a_temporary_name_beside_it_would_not(folder: Path) -> None:
    path = str(folder / ("x" * (MAX_PATH_BYTES - len(str(folder)) - 1)))
    assert len(path) == MAX_PATH_BYTES
    async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path) as life:
        assert await life.add(2, 3) == 5


@pytest.mark.parametrize("bad", ["", "tcp://localhost:1", "shm://relative", "shm://", "grpc:///x", "a\0b"])
def test_what_is_no_address_is_refused_before_anything_is_tried(bad: str) -> None:
    with pytest.raises(shmrpc.BadAddress):
        shmrpc.connect(Life, bad)


def test_a_path_and_its_address_are_the_same() -> None:
    assert address.path_of("shm:///run/app.sock") == address.path_of("/run/app.sock") == "/run/app.sock"
    assert address.path_of(Path("app.sock")) == "app.sock"


# Listening


async def test_a_stale_socket_is_replaced(path: str) -> None:
    make_stale(path)
    async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path) as life:
        assert await life.add(1) == 2
    assert inode(path) == 0


async def test_a_file_is_not_replaced(path: str) -> None:
    write(path, "precious")
    with pytest.raises(shmrpc.BadAddress, match="it exists and is not a socket"):
        async with shmrpc.Server(Keeper(), at=path):
            pass
    assert read(path) == "precious"


async def test_a_server_that_listens_is_not_replaced(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path):
        with pytest.raises(shmrpc.BadAddress, match="a server listens there already"):
            async with shmrpc.Server(Keeper(), at=path):
                pass
        async with shmrpc.connect(Life, path) as life:
            assert await life.add(1) == 2


@pytest.mark.parametrize("between", ["missing", "file"])
async def test_a_folder_that_is_none_is_an_address_that_cannot_be_served(folder: Path, between: str) -> None:
    (folder / "file").touch()
    with pytest.raises(shmrpc.BadAddress, match=r"cannot serve at .*: (No such file|Not a directory)"):
        async with shmrpc.Server(Keeper(), at=folder / between / "x.sock"):
            pass


async def test_what_a_killed_server_left_half_done_is_in_nobodys_way(path: str) -> None:
    make_stale(f"{path}.{os.getpid()}.new")  # killed between bind and rename, with the pid that this process has now
    async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path) as life:
        assert await life.add(1) == 2
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_the_socket_has_the_permissions_that_were_asked_for(path: str, mode: int) -> None:
    async with shmrpc.Server(Keeper(), at=path, mode=mode):
        assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_only_the_own_socket_is_unlinked(path: str) -> None:
    make_stale(path)
    address.unlink_own(path, os.stat(path).st_ino + 1)
    assert inode(path) != 0
    address.unlink_own(path, os.stat(path).st_ino)
    assert inode(path) == 0
    address.unlink_own(path, 1)


# Inherited sockets


def listening(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    return sock


async def test_an_inherited_socket_is_served_and_its_path_left_alone(path: str) -> None:
    sock = listening(path)
    async with shmrpc.Server(Keeper(), at=path, fd=sock.detach()), shmrpc.connect(Life, path) as life:
        assert await life.add(1) == 2
    assert inode(path) != 0


def _not_listening() -> int:
    return socket.socket(socket.AF_UNIX).detach()


def _other_family() -> int:
    sock = socket.socket(socket.AF_INET)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock.detach()


@pytest.mark.parametrize("make", [_not_listening, _other_family, lambda: os.open("/dev/null", os.O_RDONLY)])
async def test_an_inherited_fd_that_cannot_be_served_is_refused(path: str, make: object) -> None:
    assert callable(make)
    fd = make()
    with pytest.raises(shmrpc.BadAddress, match=f"fd {fd} is not a listening Unix stream socket"):
        async with shmrpc.Server(Keeper(), at=path, fd=fd):
            pass
    os.close(fd)


def test_a_closed_fd_is_refused_by_the_command_line(path: str) -> None:
    command = [sys.executable, "-m", "shmrpc", "serve", "life_api:Keeper", "--at", path, "--fd", "99"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "fd 99 is not a listening Unix stream socket" in done.stderr


async def test_what_servers_left_that_were_killed_before_they_listened_is_removed_by_a_later_one(path: str) -> None:
    left, fresh, other = f"{path}.12345.new", f"{path}.12346.new", f"{path}.2"
    for stale in (left, fresh, other):
        make_stale(stale)
    os.utime(left, (0, 0))
    os.utime(other, (0, 0))
    write(f"{path}.notes.new", "no socket")
    os.utime(f"{path}.notes.new", (0, 0))
    async with shmrpc.Server(Keeper(), at=path):
        assert inode(left) == 0
        assert inode(fresh) != 0  # of one that may be about to listen
        assert inode(other) != 0
        assert read(f"{path}.notes.new") == "no socket"


async def test_a_server_that_goes_in_the_moment_in_which_the_next_one_looks_is_no_obstacle(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stale(path)
    lstat = os.lstat

    def go(name: str) -> os.stat_result:
        status = lstat(name)
        if name == path:
            monkeypatch.undo()
            os.unlink(path)
        return status

    monkeypatch.setattr(os, "lstat", go)
    async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path) as life:
        assert await life.add(1) == 2


# Where others may write too


@pytest.mark.parametrize("is_socket", [False, True], ids=["a file", "a socket"])
async def test_a_link_that_is_put_in_the_place_of_a_new_socket_gives_nobody_a_mode(
    folder: Path, path: str, monkeypatch: pytest.MonkeyPatch, *, is_socket: bool
) -> None:
    secret = folder / "secret"
    if is_socket:  # of another server
        make_stale(str(secret))
    else:
        write(str(secret), "")
    os.chmod(secret, 0o600)
    set_mode = address._set_mode

    def put_a_link(temporary: str, mode: int) -> None:
        os.unlink(temporary)
        os.symlink(secret, temporary)
        set_mode(temporary, mode)

    monkeypatch.setattr(address, "_set_mode", put_a_link)
    with pytest.raises(shmrpc.BadAddress, match=f"cannot serve at {path}: something else was put in its place"):
        async with shmrpc.Server(Keeper(), at=path, mode=0o666):
            raise AssertionError("served")
    assert stat.S_IMODE(os.stat(secret).st_mode) == 0o600


# Telling one server from the next


async def test_a_path_has_a_new_mark_when_another_server_listens_there_and_only_then(path: str) -> None:
    assert address.mark(path) is None
    with address.listen(path, 0o600, backlog=1):
        first = address.mark(path)
        assert first is not None
        connected = address.connect(path)
        assert connected is not None
        connected.close()
        assert address.mark(path) == first
    assert address.mark(path) == first  # it is stale, and the same
    with address.listen(path, 0o600, backlog=1):
        assert address.mark(path) not in (None, first)
