"""How two processes meet: one exchange over a Unix stream socket, which agrees on everything and passes the fds.

The client sends `Hello` with its segment and its doorbell; the server answers `Welcome` with its own, or `Rejection`.
A frame of theirs has exactly the fds that it should, else all of them are closed and the peer is refused.
docs/specification.md is normative.
"""

import asyncio
import contextlib
import os
import socket
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec

from shmrpc.context import Peer
from shmrpc.errors import ConnectFailed, ContractMismatch, HandshakeError, RpcError
from shmrpc.inlet import DEFAULT_WINDOW, Window
from shmrpc.legible import one_line
from shmrpc.shm import disposal, doorbell, frames, liveness, segment
from shmrpc.shm.channel import Channel
from shmrpc.shm.layout import BadGeometry, Geometry
from shmrpc.shm.settings import MIN_MESSAGE, Settings
from shmrpc.signature import Signature

VERSION: Final = 1
"""The only version of the protocol so far; a hello offers a range."""
FEATURES: Final[tuple[str, ...]] = ()
"""What this implementation can beyond version 1, by name; the two sides use what both can. Nothing yet."""
FRAME_LIMIT: Final = 1 << 20
FDS: Final = 2
"""A hello and a welcome carry two fds each: the sender's segment, and the far end of its doorbell."""


LAST_METHOD: Final = (1 << 16) - 1
"""The highest number of a method: a record has so much room for it."""

Positive = Annotated[int, msgspec.Meta(gt=0)]


class Wanted(msgspec.Struct, frozen=True):
    """A contract that the client wants to use."""

    name: str
    digest: bytes


class Offered(msgspec.Struct, frozen=True):
    """A service as the server has it; `signatures` is empty when the client's digest is the server's."""

    name: str
    digest: bytes
    first_method: Annotated[int, msgspec.Meta(ge=0, le=LAST_METHOD)]
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
    max_extent_bytes: Annotated[int, msgspec.Meta(ge=0)]
    """What it accepts in extents, at once."""
    stream_window: tuple[Positive, Positive] = DEFAULT_WINDOW
    """What it accepts of a stream before it has read any: items, and bytes."""
    exposed: list[Offered] = []
    """Services of its own, in full, that the server's handlers may call."""
    max_in_flight: Positive = 1024
    """How many such calls it serves at once."""


class Welcome(msgspec.Struct, tag="welcome", frozen=True, kw_only=True):
    """The server's half."""

    version: int
    features: list[str]
    segment: segment.Kind
    doorbell: doorbell.Kind
    geometry: Geometry
    offered: list[Offered]
    max_message: Annotated[int, msgspec.Meta(ge=MIN_MESSAGE)]
    max_extent_bytes: Annotated[int, msgspec.Meta(ge=0)]
    max_in_flight: Annotated[int, msgspec.Meta(gt=0)]
    stream_window: tuple[Positive, Positive] = DEFAULT_WINDOW


class Rejection(msgspec.Struct, tag="rejection", frozen=True):
    """Why there will be no session."""

    code: str
    message: str


class Accepted(NamedTuple):
    """A finished handshake, on the client's side."""

    channel: Channel
    peer: Peer
    pidfd: int | None
    offered: list[Offered]
    max_in_flight: int
    max_message: int
    max_extent_bytes: int
    """The smaller one of both sides: bytes of extents in each direction."""
    peer_window: Window
    """What the peer accepts of a stream."""


class Answered(NamedTuple):
    """A finished handshake, on the server's side."""

    channel: Channel
    max_extent_bytes: int
    """The smaller one of both sides: bytes of extents in each direction."""
    peer_window: Window
    """What the peer accepts of a stream."""


_M = TypeVar("_M", Hello, "Welcome | Rejection")
_encode: Final = msgspec.msgpack.Encoder().encode


def digest_of(signatures: list[Signature]) -> bytes:
    """Sixteen bytes that are equal exactly when two contracts are described the same, method order included."""
    import hashlib

    return hashlib.blake2b(_encode(signatures), digest_size=16).digest()


# ---- frames -------------------------------------------------------------------------------------------------------


def new_frame() -> frames.Frame:
    """One that is to be received: a hello, or an answer to one."""
    return frames.Frame("handshake", longest=FRAME_LIMIT, most_fds=FDS)


def pack_frame(message: Hello | Welcome | Rejection) -> bytes:
    """One frame's bytes, without fds."""
    return frames.pack(_encode(message))


def _take_fds(frame: frames.Frame) -> list[int]:
    try:
        return frame.take_fds(FDS)
    except frames.BadFrame as error:
        raise HandshakeError(str(error)) from None


async def _receive(sock: socket.socket, frame: frames.Frame, decoder: msgspec.msgpack.Decoder[_M]) -> _M:
    try:
        return decoder.decode(await frame.receive(sock))
    except frames.BadFrame as error:
        raise HandshakeError(str(error)) from None
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
            kind = doorbell.choose(settings.doorbell, same_uid=peer.uid == os.geteuid())
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
            OSError: this process has no memory, or no fd.
        """
        segment_fd, doorbell_fd = fds
        try:
            self._check_kinds(theirs, sender)
            ringer = doorbell.open_ringer(doorbell_fd, theirs.doorbell)
        except (HandshakeError, doorbell.BadDoorbell, OSError) as error:
            disposal.put_away(segment_fd)
            if isinstance(error, HandshakeError):
                disposal.put_away(doorbell_fd)
            raise _refusal(error) from None
        try:
            limit = self._settings.max_segment_bytes
            far = segment.attach(segment_fd, theirs.geometry, theirs.segment, max_segment_bytes=limit)
        except (segment.BadSegment, BadGeometry, OSError) as error:
            ringer.close()
            raise _refusal(error) from None
        if self.segment.geometry.slab_bytes // 1024 > far.geometry.release_entries:
            ringer.close()
            far.close()
            raise HandshakeError("the peer's release ring has fewer entries than this side's slab has blocks")
        max_message = min(self._settings.max_message, theirs.max_message)
        return Channel(self.segment, far, self.doorbell, ringer, max_message)

    def _check_kinds(self, theirs: Hello | Welcome, sender: Peer) -> None:
        if theirs.doorbell == "eventfd" and sender.uid != os.geteuid() and self._settings.doorbell != "eventfd":
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


def _refusal(error: Exception) -> Exception:
    """What to say of the peer's fds; that this process is short of something is not the peer's doing."""
    short = isinstance(error, OSError) and error.errno in liveness.SHORTAGES
    return error if short else HandshakeError(str(error))


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


async def as_client(
    sock: socket.socket, wanted: list[Wanted], settings: Settings, exposed: list[Offered] | None = None
) -> Accepted:
    """The client's half of the handshake on a connected, non-blocking socket.

    Raises:
        HandshakeError: the server is not who it must be, refuses, or sends what cannot be used.
        ConnectFailed: the server has no fds or no memory for one more client.
        TimeoutError: it stalls.
        OSError: memory, fds or the socket fail.
    """
    listener = liveness.peer_of(sock)
    if (why := settings.why_refused(listener.uid, listener.gid)) is not None:
        raise HandshakeError(f"the server's {why}")
    nameless = listener.pid <= 0  # in another pid namespace: then so is whoever answers
    liveness.ask_for_senders(sock, pidfd=nameless)
    mine = Half(settings, listener)
    frame = new_frame()
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
                max_extent_bytes=settings.max_extent_bytes,
                stream_window=settings.stream_window,
                exposed=exposed or [],
                max_in_flight=settings.max_in_flight,
            )
            with contextlib.suppress(BrokenPipeError):  # the server refused before it heard us: its reason is waiting
                await frames.send(sock, pack_frame(hello), mine.fds)
            answer = await _receive(sock, frame, _answer)
        if isinstance(answer, Rejection):
            raise rejection_error(answer)
        agreed_version((answer.version, answer.version))
        # Who listens may be a parent, or a service manager; who answered is the process to watch.
        server = frame.sender or listener
        if (why := settings.why_refused(server.uid, server.gid)) is not None:
            raise HandshakeError(f"the server's {why}")
        pidfd = frame.take_sender_pidfd()
        if nameless:
            liveness.ask_for_senders_no_more(sock)
        if pidfd is None:
            pidfd = liveness.open_pidfd(server, sock if server == listener and not nameless else None)
        try:
            channel = mine.join(_take_fds(frame), answer, server)
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
    max_extent_bytes = min(settings.max_extent_bytes, answer.max_extent_bytes)
    max_message = channel.max_message
    return Accepted(
        channel,
        server,
        pidfd,
        answer.offered,
        answer.max_in_flight,
        max_message,
        max_extent_bytes,
        Window(*answer.stream_window),
    )


def rejection_error(rejection: Rejection) -> RpcError:
    """The error of a refused client."""
    causes: dict[str, type[RpcError]] = {"contract": ContractMismatch, "unavailable": ConnectFailed}
    cls = causes.get(rejection.code, HandshakeError)
    return cls(f"the server refused the connection: {one_line(rejection.message)}")


async def receive_hello(sock: socket.socket, frame: frames.Frame) -> Hello:
    """The server's first step: the client's hello; its fds stay in the frame."""
    hello = await _receive(sock, frame, _hello)
    agreed_version(hello.versions)
    return hello


class Joined(NamedTuple):
    """Both halves, at the server, of which the client does not know yet."""

    mine: Half
    channel: Channel


def join_client(hello: Hello, frame: frames.Frame, peer: Peer, settings: Settings) -> Joined:
    """The server's second step: makes the channel.

    Raises:
        HandshakeError: the client's fds are not what it declared.
        OSError: memory or fds fail.
    """
    mine = Half(settings, peer)
    try:
        return Joined(mine, mine.join(_take_fds(frame), hello, peer))
    except BaseException:
        mine.close()
        raise


async def answer_hello(
    sock: socket.socket, hello: Hello, joined: Joined, offered: list[Offered], settings: Settings
) -> Answered:
    """The server's last step: sends the welcome.

    Raises:
        OSError: the socket fails.
    """
    mine, channel = joined
    welcome = Welcome(
        version=VERSION,
        features=agreed_features(hello.features),
        segment=mine.segment.kind,
        doorbell=mine.doorbell.kind,
        geometry=settings.geometry,
        offered=offered,
        max_message=settings.max_message,
        max_extent_bytes=settings.max_extent_bytes,
        max_in_flight=settings.max_in_flight,
        stream_window=settings.stream_window,
    )
    try:
        await frames.send(sock, pack_frame(welcome), mine.fds)
    except BaseException:
        channel.close()
        raise
    mine.sent()
    return Answered(channel, min(settings.max_extent_bytes, hello.max_extent_bytes), Window(*hello.stream_window))
