"""The streams of calls that stay in the process: outlet and inlet of each direction, joined without a wire between them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, Final

from shmrpc.buffers import Packed
from shmrpc.codec import ItemCodec
from shmrpc.inlet import DEFAULT_WINDOW, Inlet
from shmrpc.methods import Method
from shmrpc.outlet import Outlet, Pump

Receive = Callable[[Packed], tuple[bytes, Any]]
"""A payload and its buffers, as the other side gets them."""

LARGEST: Final = 8192
"""Bytes of a message with several items."""


class DirectSink:
    """Puts messages right into an inlet."""

    def __init__(self, inlet: Inlet, receive: Receive) -> None:
        self.largest: Final = LARGEST
        self.full: Final = False
        self._inlet = inlet
        self._receive = receive

    def send(self, payload: bytes, *, many: bool) -> None:
        """Passes a message without buffers."""
        self._inlet.put(payload, (), many=many)

    async def send_apart(self, packed: Packed, *, many: bool) -> None:
        """Passes a message with buffers."""
        payload, views = self._receive(packed)
        self._inlet.put(payload, views, many=many)

    async def room(self) -> None:
        """There always is."""


class Pipe:
    """One direction of one call."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        items: ItemCodec,
        read: Callable[..., list[Any]],
        receive: Receive,
        ready: deque[Any] | None = None,
        misfit: Callable[[Exception], Exception] | None = None,
    ) -> None:
        self.inlet: Final = Inlet(
            loop,
            lambda payload, views, many: read(payload, views, many=many),
            DEFAULT_WINDOW,
            self._grant,
            ready,
        )
        self.outlet: Final = Outlet(loop, items, DirectSink(self.inlet, receive), DEFAULT_WINDOW, misfit=misfit)

    def _grant(self, items: int, nbytes: int) -> None:
        self.outlet.grant(items, nbytes)


class LocalFlow:
    """The streams of one call, at its caller's side."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, method: Method, receive: Receive, ready: deque[Any] | None = None
    ) -> None:
        self._loop = loop
        self._name = method.full_name
        self.arguments: Final = (
            Pipe(loop, method.argument_items, method.read_argument_items, receive, misfit=method.item_misfit)
            if method.argument_items is not None
            else None
        )
        self.results: Final = (
            Pipe(loop, method.result_items, method.read_result_items, receive, ready)
            if method.result_items is not None
            else None
        )
        self.give_up: Callable[[], None] = _nothing
        """Tells the handler that nobody waits for it any more."""
        self.error: BaseException | None = None
        """What the caller's own stream raised."""
        self._pump: Pump | None = None

    @property
    def inlet(self) -> Inlet:
        """Where the results arrive."""
        assert self.results is not None
        return self.results.inlet

    @property
    def untouched(self) -> bool:
        """Never: there is no connection to be lost."""
        return False

    def pump(self, source: AsyncIterable[Any] | Iterable[Any]) -> None:
        """Begins to pass on the caller's stream."""
        assert self.arguments is not None
        inlet = self.arguments.inlet
        self._pump = Pump(
            self._loop,
            self._name,
            self.arguments.outlet,
            source,
            is_open=lambda: not inlet.ended,
            on_end=inlet.finish,
            on_error=self._fail,
        )

    def _fail(self, error: BaseException) -> None:
        if self.results is not None:
            self.results.inlet.finish(error)
        else:
            self.error = error
        self.give_up()

    def take_error(self) -> BaseException:
        """What the caller's own stream raised, once."""
        error, self.error = self.error, None
        assert error is not None
        return error

    def stop_pump(self) -> None:
        """Stops to pass on the caller's stream."""
        if self._pump is not None:
            self._pump.stop()

    def on_end(self) -> None:
        """The call has ended: the handler was told, or has returned."""
        self.give_up = _nothing
        self.stop_pump()

    def abandon(self) -> None:
        """Nobody reads the result any more. Idempotent."""
        self.inlet.finish(at_once=True)
        self.give_up()
        self.stop_pump()

    async def wait_closed(self) -> None:
        """Returns when the caller's stream is closed."""
        if self._pump is not None:
            await self._pump.wait_closed()


def _nothing() -> None:
    """Before the call has begun, and after it has ended."""
