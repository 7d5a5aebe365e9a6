"""`empty`, `buffer` and `leases`: memory that is born where the other side can read it, and who holds it.

What is written into such memory is sent by reference. Any other array is copied into it once when it is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeVar, overload

from shmrpc.buffers import Buffer
from shmrpc.client import Stub, open_stub
from shmrpc.context import Lease, running
from shmrpc.server import Server

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

S = TypeVar("S", bound="np.generic")
Shape = SupportsIndex | tuple[SupportsIndex, ...]
Order = Literal["C", "F"]


@overload
def empty(shape: Shape, dtype: type[S] | np.dtype[S], *, to: object = None, order: Order = "C") -> npt.NDArray[S]: ...
@overload
def empty(shape: Shape, dtype: npt.DTypeLike = ..., *, to: object = None, order: Order = "C") -> npt.NDArray[Any]: ...
def empty(shape: Any, dtype: Any = float, *, to: object = None, order: Order = "C") -> Any:
    """A writable array whose memory the other side can read: passing it, or a contiguous part of it, copies nothing.

    ::

        image = shmrpc.empty((512, 512, 3), np.uint8, to=vision)   # at a client: to the server of a stub
        image = shmrpc.empty((512, 512, 3), np.uint8)              # in a handler: back to its caller

    Its contents are undefined, and may be what an earlier message held. The memory is free again when neither this process
    nor a receiver sees it any more. While a receiver keeps it, writing into it changes what the receiver reads.

    Args:
        shape: Sizes of the axes.
        dtype: The type of an element; not object.
        to: The stub that it will be passed to; None: the caller of the running handler. For every other receiver it is
            memory like any other, and passing it copies it once. So it is when there is no connection, or no room in its
            memory just now: this never waits; passing the array does.
        order: ``"C"``: rows first, ``"F"``: columns first.

    Raises:
        ResourceExhausted: it is larger than anything that can be passed there.
        Closed: the stub is closed.
        TypeError: `to` is no stub, or the elements cannot travel.
        RuntimeError: no handler is running here, and no stub was given.
    """
    from shmrpc.arrays import array_over, nbytes_of

    sizes, element, nbytes = nbytes_of(shape, dtype)
    return array_over(_allocate(nbytes, to), sizes, element, order)


def buffer(nbytes: int, *, to: object = None) -> memoryview:
    """The same as bytes: a writable memoryview of format ``B``.

    Args:
        nbytes: How many.
        to: As for `empty`.

    Raises:
        ValueError: `nbytes` is negative.
        ResourceExhausted, Closed, TypeError, RuntimeError: as `empty`.
    """
    if nbytes < 0:
        raise ValueError(f"nbytes is {nbytes}, it cannot be negative")
    return memoryview(_allocate(nbytes, to))


def _allocate(nbytes: int, to: object) -> Buffer:
    if to is not None:
        return open_stub(to)[1].allocate(nbytes)
    served = running.get(None)
    if served is None:
        raise RuntimeError("no handler is running here: say to=stub, the stub that the memory will be passed to")
    return served.allocate(nbytes)


def leases(stub_or_server: object) -> list[Lease]:
    """Who holds how much of this process's memory since when, by method; the largest first.

    At a client: what the server has not released of the arguments. At a server: what the clients have not released of the
    results. Arrays that were made with `empty` or `buffer`, and still are somewhere in this process, have no method. To be
    called in the thread of the event loop.

    Raises:
        TypeError: this is neither a stub nor a server.
    """
    if isinstance(stub_or_server, Server):
        return stub_or_server.leases()
    if isinstance(stub_or_server, Stub):
        return open_stub(stub_or_server)[1].leases()
    raise TypeError(f"expected a stub or a Server, not {type(stub_or_server).__name__}")
