"""The operations that the demo times, and the clock.

Three services get the same calls, in turns: the worker over shmrpc, the same computation over a socket, and this
process itself. Every result is compared with that of this process; the comparison is not timed.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter_ns

from examples.images.api import Images, Pixels
from examples.images.check import InProcess, Result, difference
from examples.images.front import share, small_size


@dataclass(frozen=True)
class Operation:
    """One method of the contract, and how to ask for it."""

    method: str
    ask: Callable[[Images, Pixels], Awaitable[Result]]


OPERATIONS = (
    Operation("resize", lambda images, image: images.resize(image, *small_size(image))),
    Operation("histogram", lambda images, image: images.histogram(image)),
    Operation("edges", lambda images, image: images.edges(image)),
)


@dataclass(frozen=True)
class Sample:
    """One call."""

    call_ns: int
    """From the picture to the result in the caller's hands."""
    compute_ns: int
    """What of it was the computation, by the worker's own clock."""


class Timing:
    """What one service needed for the calls of one kind."""

    def __init__(self, samples: list[Sample]) -> None:
        self.calls = len(samples)
        self.call_ms = median(sample.call_ns for sample in samples) / 1e6
        """The median call."""
        self.transport_us = median(sample.call_ns - sample.compute_ns for sample in samples) / 1e3
        """The median of what a call took besides the computation."""
        self.transport_share = sum(sample.call_ns - sample.compute_ns for sample in samples) / sum(
            sample.call_ns for sample in samples
        )
        """What part of the time of all calls was not the computation."""


@dataclass(frozen=True)
class Comparison:
    """One operation on one picture."""

    method: str
    shape: tuple[int, ...]
    nbytes: int
    """Of the picture."""
    shmrpc: Timing
    rival: Timing
    compute_ms: float
    """The median of the computation in this process."""
    share_us: float
    """The median of writing the picture into shared memory, which is needed once for any number of calls."""


async def compare(
    operation: Operation, pixels: Pixels, shared: Images, rival: Images, *, calls: int
) -> tuple[Comparison, list[str]]:
    """Time one operation on one picture, and say how results differ.

    Args:
        operation: What to ask for.
        pixels: The picture, in ordinary memory.
        shared: The worker over shmrpc. The picture is written into shared memory before each call, and timed apart.
        rival: The worker over a socket.
        calls: How often to ask each.
    """
    in_process = InProcess()
    expected = await operation.ask(in_process, pixels)
    ours: list[Sample] = []
    theirs: list[Sample] = []
    here: list[Sample] = []
    shared_ns: list[int] = []
    found: list[str] = []

    async def ask(images: Images, image: Pixels, samples: list[Sample]) -> None:
        started_ns = perf_counter_ns()
        result = await operation.ask(images, image)
        samples.append(Sample(perf_counter_ns() - started_ns, result.compute_ns))
        if told := difference(result, expected):
            found.append(f"{operation.method} of {pixels.shape}: {told}")

    for _ in range(calls):
        started_ns = perf_counter_ns()
        image = share(pixels, shared)
        shared_ns.append(perf_counter_ns() - started_ns)
        await ask(shared, image, ours)
        await ask(rival, pixels, theirs)
        await ask(in_process, pixels, here)
    comparison = Comparison(
        operation.method,
        pixels.shape,
        pixels.nbytes,
        Timing(ours),
        Timing(theirs),
        compute_ms=median(sample.compute_ns for sample in here) / 1e6,
        share_us=median(shared_ns) / 1e3,
    )
    return comparison, found
