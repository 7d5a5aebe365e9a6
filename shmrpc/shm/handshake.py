"""How two processes meet: one exchange over a Unix stream socket, which agrees on everything and passes the fds.

The client sends `Hello` with its segment and its doorbell; the server answers `Welcome` with its own, or `Rejection`.
Each frame is four bytes magic, a little-endian u32 length and a msgpack body; its fds ride on its first byte. A frame has
exactly the fds that it should, else all of them are closed and the peer is refused. docs/specification.md is normative.
"""

import array
import asyncio
import contextlib
import os
import socket
import struct
from typing import Annotated, Final, NamedTuple, TypeVar

import anyio
import msgspec

from shmrpc.context import Peer
from shmrpc.contract import Signature
from shmrpc.errors import HandshakeError
from shmrpc.shm import doorbell, liveness, segment
from shmrpc.shm.channel import Channel
from shmrpc.shm.layout import BadGeometry, Geometry
from shmrpc.shm.settings import MIN_MESSAGE, Settings

VERSION: Final = 1
"""The only version of the protocol so far; a hello offers a range."""
FEATURES: Final[tuple[str, ...]] = ()
"""What this implementation can beyond version 1, by name; the two sides use what both can. Nothing yet."""
FRAME_LIMIT: Final = 1 << 20
FDS: Final = 2
"""A hello and a welcome carry two fds each: the sender's segment, and the far end of its doorbell."""

_FRAME: Final = struct.Struct("<4sI")
_MAGIC: Final = b"SHMR"
_MOST_FDS: Final = 16  # that one recvmsg has room for; the kernel discards more


class Wanted(msgspec.Struct, frozen=True):
    """A contract that the client wants to use."""

    name: str
    digest: bytes


class Offered(msgspec.Struct, frozen=True):
    """A service as the server has it; `signatures` is empty when the client's digest is the server's."""

    name: str
    digest: bytes
    first_method: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    """The number of its first method; the others follow."""
    signatures: list[Signature] = []


class Hello(msgspec.Struct, tag="hello", frozen=True, kw_only=True):
    """The client's half."""

    versions: tuple[int, int]
    """Lowest and highest protocol version."""
    features: list[str]
    segment: segment.Kind
    doorbell: doorbell.Kind
    geometry: Geometry
    wanted: list[Wanted]
    """Empty: tell me all services."""
    max_message: Annotated[int, msgspec.Meta(ge=MIN_MESSAGE)]


class Welcome(msgspec.Struct, tag="welcome", frozen=True, kw_only=True):
    """The server's half."""

    version: int
    features: list[str]
    segment: segment.Kind
    doorbell: doorbell.Kind
    geometry: Geometry
    offered: list[Offered]
    max_message: Annotated[int, msgspec.Meta(ge=MIN_MESSAGE)]
    max_in_flight: Annotated[int, msgspec.Meta(gt=0)]


class Rejection(msgspec.Struct, tag="rejection", frozen=True):
    """Why there will be no session."""

    code: str
    message: str


class Accepted(NamedTuple):
    """A finished handshake."""

    channel: Channel
    peer: Peer
    pidfd: int | None
    offered: list[Offered]
    max_in_flight: int
    max_message: int


_M = TypeVar("_M", Hello, "Welcome | Rejection")
_encode: Final = msgspec.msgpack.Encoder().encode


def digest_of(signatures: list[Signature]) -> bytes:
    """Sixteen bytes that are equal exactly when two contracts are described the same, method order included."""
    import hashlib

    return hashlib.blake2b(_encode(signatures), digest_size=16).digest()


# ---- frames -------------------------------------------------------------------------------------------------------


def pack_frame(message: Hello | Welcome | Rejection) -> bytes:
    """One frame's bytes, without fds."""
    body = _encode(message)
    return _FRAME.pack(_MAGIC, len(body)) + body


async def send_frame(sock: socket.socket, message: Hello | Welcome | Rejection, fds: list[int]) -> None:
    """Sends one frame with its fds on its first byte."""
    frame = memoryview(pack_frame(message))
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    while frame:
        try:
            sent = sock.sendmsg([frame], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            continue
        frame = frame[sent:]
        ancillary = []


class Frame:
    """A frame that is being received; owns its fds until `take_fds`."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.sender: Peer | None = None
        self._fds: list[int] = []

    async def receive(self, sock: socket.socket) -> bytes:
        """The body of the next frame.

        Raises:
            HandshakeError: what came is no frame.
            ConnectionResetError: the peer hung up.
        """
        space = socket.CMSG_SPACE(_MOST_FDS * 4) + socket.CMSG_SPACE(liveness.UCRED_BYTES)
        need = _FRAME.size
        magic_seen = False
        while len(self.body) < need:
            try:
                # socket.recv_fds would drop the flag, and the fds would leak into every child of this process.
                chunk, ancillary, flags, _ = sock.recvmsg(need - len(self.body), space, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await anyio.wait_readable(sock)
                continue
            self._collect(ancillary)
            if len(self._fds) > FDS:  # at once: fds that come one by one must not fill this process's table
                raise HandshakeError(_wrong_number(len(self._fds), FDS))
            if flags & socket.MSG_CTRUNC:
                raise HandshakeError(f"the peer sent more than {_MOST_FDS} fds with its handshake")
            if not chunk:
                raise ConnectionResetError("the peer hung up in the handshake")
            self.body += chunk
            if not magic_seen and len(self.body) >= _FRAME.size:
                magic_seen = True
                magic, length = _FRAME.unpack(self.body[: _FRAME.size])
                if magic != _MAGIC:
                    raise HandshakeError(f"the peer does not speak shmrpc: it began with {bytes(self.body[:8])!r}")
                if length > FRAME_LIMIT:
                    raise HandshakeError(f"the peer's handshake has {length} bytes, the limit is {FRAME_LIMIT}")
                need += length
        return bytes(self.body[_FRAME.size :])

    def _collect(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, payload in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds.extend(fds)
            elif kind == socket.SCM_CREDENTIALS:
                self.sender = liveness.unpack_credentials(payload)

    def take_fds(self, expected: int) -> list[int]:
        """The fds, which are the caller's from now on.

        Raises:
            HandshakeError: their number is not the expected one; they are closed.
        """
        if len(self._fds) != expected:
            got = len(self._fds)
            self.close()
            raise HandshakeError(_wrong_number(got, expected))
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        """Closes the fds that nobody took."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def _wrong_number(got: int, expected: int) -> str:
    return f"the peer sent {got} fds with its handshake, expected are exactly {expected}"


def _decode(body: bytes, decoder: msgspec.msgpack.Decoder[_M]) -> _M:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise HandshakeError(f"the peer's handshake cannot be understood: {error}") from None


_hello: Final = msgspec.msgpack.Decoder(Hello)
_answer: Final[msgspec.msgpack.Decoder[Welcome | Rejection]] = msgspec.msgpack.Decoder(Welcome | Rejection)


# ---- the two halves -----------------------------------------------------------------------------------------------


class Half:
    """What one side brings: its segment and its doorbell, until the channel owns them."""

    def __init__(self, settings: Settings, peer: Peer) -> None:
        self._settings = settings
        self.segment: Final = segment.create(settings.geometry, settings.segment)
        try:
            kind = doorbell.choose(settings.doorbell, same_uid=peer.uid == os.getuid())
            self.doorbell: Final = doorbell.Doorbell(kind)
        except BaseException:
            self.segment.close()
            raise

    @property
    def fds(self) -> list[int]:
        """What travels."""
        return [self.segment.fd, self.doorbell.far_fd]

    def join(self, fds: list[int], theirs: Hello | Welcome, sender: Peer) -> Channel:
        """Checks the fds that the peer sent, which are closed on failure, and makes the channel of both halves.

        Raises:
            HandshakeError: the peer's segment or doorbell is not what it declared.
        """
        segment_fd, doorbell_fd = fds
        try:
            self._check_kinds(theirs, sender)
            ringer = doorbell.open_ringer(doorbell_fd, theirs.doorbell)
        except (HandshakeError, doorbell.BadDoorbell, OSError) as error:
            os.close(segment_fd)
            if isinstance(error, HandshakeError):
                os.close(doorbell_fd)
            raise HandshakeError(str(error)) from None
        try:
            limit = self._settings.max_segment_bytes
            far = segment.attach(segment_fd, theirs.geometry, theirs.segment, max_segment_bytes=limit)
        except (segment.BadSegment, BadGeometry, OSError) as error:
            ringer.close()
            raise HandshakeError(str(error)) from None
        if self.segment.geometry.slab_bytes // 1024 > far.geometry.release_entries:
            ringer.close()
            far.close()
            raise HandshakeError("the peer's release ring has fewer entries than this side's slab has blocks")
        max_message = min(self._settings.max_message, theirs.max_message)
        return Channel(self.segment, far, self.doorbell, ringer, max_message)

    def _check_kinds(self, theirs: Hello | Welcome, sender: Peer) -> None:
        if theirs.doorbell == "eventfd" and sender.uid != os.getuid() and self._settings.doorbell != "eventfd":
            raise HandshakeError(
                "the peer offers an eventfd, with which it could freeze this process, and it is of another uid; "
                "set doorbell='pipe' there"
            )
        if theirs.segment == "posix" and self.segment.kind != "posix":
            raise HandshakeError(
                "the peer offers POSIX shared memory, which cannot be sealed, and this side uses sealed memfds; "
                "where memfd is refused, set segment='posix' on both sides"
            )

    def sent(self) -> None:
        """The peer has the fds: closes this process's copies of what only travels."""
        self.segment.drop_fd()
        self.doorbell.drop_far_fd()

    def close(self) -> None:
        """Gives everything back; only while no channel has been made of it."""
        self.segment.close()
        self.doorbell.close()


def agreed_version(versions: tuple[int, int]) -> int:
    """The highest version that both sides speak.

    Raises:
        HandshakeError: there is none.
    """
    low, high = versions
    if not low <= VERSION <= high:
        raise HandshakeError(f"the peer speaks protocol versions {low} to {high}, this side speaks {VERSION}")
    return VERSION


def agreed_features(features: list[str]) -> list[str]:
    """What both sides can."""
    return [feature for feature in FEATURES if feature in features]


async def as_client(sock: socket.socket, wanted: list[Wanted], settings: Settings) -> Accepted:
    """The client's half of the handshake on a connected, non-blocking socket.

    Raises:
        HandshakeError: the server is not who it must be, refuses, or sends what cannot be used.
        TimeoutError: it stalls.
        OSError: memory, fds or the socket fail.
    """
    listener = liveness.peer_of(sock)
    if (why := settings.why_refused(listener.uid, listener.gid)) is not None:
        raise HandshakeError(f"the server's {why}")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    mine = Half(settings, listener)
    frame = Frame()
    try:
        async with asyncio.timeout(settings.handshake_timeout):
            hello = Hello(
                versions=(VERSION, VERSION),
                features=list(FEATURES),
                segment=mine.segment.kind,
                doorbell=mine.doorbell.kind,
                geometry=settings.geometry,
                wanted=wanted,
                max_message=settings.max_message,
            )
            with contextlib.suppress(BrokenPipeError):  # the server refused before it heard us: its reason is waiting
                await send_frame(sock, hello, mine.fds)
            answer = _decode(await frame.receive(sock), _answer)
        if isinstance(answer, Rejection):
            raise rejection_error(answer)
        agreed_version((answer.version, answer.version))
        # Who listens may be a parent, or a service manager; who answered is the process to watch.
        server = frame.sender or listener
        if (why := settings.why_refused(server.uid, server.gid)) is not None:
            raise HandshakeError(f"the server's {why}")
        pidfd = liveness.open_pidfd(server, sock if server == listener else None)
        try:
            channel = mine.join(frame.take_fds(FDS), answer, server)
            mine.sent()
        except BaseException:
            if pidfd is not None:
                os.close(pidfd)
            raise
    except BaseException:
        mine.close()
        raise
    finally:
        frame.close()
    max_message = channel.max_message
    return Accepted(channel, server, pidfd, answer.offered, answer.max_in_flight, max_message)


def rejection_error(rejection: Rejection) -> HandshakeError:
    """The error of a refused client."""
    from shmrpc.errors import ContractMismatch

    cls = ContractMismatch if rejection.code == "contract" else HandshakeError
    return cls(f"the server refused the connection: {rejection.message}")


async def receive_hello(sock: socket.socket, frame: Frame) -> Hello:
    """The server's first step: the client's hello; its fds stay in the frame."""
    hello = _decode(await frame.receive(sock), _hello)
    agreed_version(hello.versions)
    return hello


async def answer_hello(
    sock: socket.socket, hello: Hello, frame: Frame, peer: Peer, offered: list[Offered], settings: Settings
) -> Channel:
    """The server's second step: makes the channel and sends the welcome.

    Raises:
        HandshakeError: the client's fds are not what it declared.
        OSError: memory, fds or the socket fail.
    """
    mine = Half(settings, peer)
    try:
        channel = mine.join(frame.take_fds(FDS), hello, peer)
    except BaseException:
        mine.close()
        raise
    welcome = Welcome(
        version=VERSION,
        features=agreed_features(hello.features),
        segment=mine.segment.kind,
        doorbell=mine.doorbell.kind,
        geometry=settings.geometry,
        offered=offered,
        max_message=settings.max_message,
        max_in_flight=settings.max_in_flight,
    )
    try:
        await send_frame(sock, welcome, mine.fds)
    except BaseException:
        channel.close()
        raise
    mine.sent()
    return channel
