"""What the orchestrator tells a child process to be, and what a client tells it back. Nothing here runs.

A job travels as JSON in the child's only argument; figures come back as one line of JSON on its stdout.
"""

import msgspec

from benchmarks.arrays.figures import ArrayPlan
from benchmarks.entrants import Entrant
from benchmarks.streams.figures import StreamPlan


class Plan(msgspec.Struct, frozen=True):
    """How long each phase lasts, in seconds, and how many calls are in flight in the throughput phases."""

    warm_up_s: float
    latency_s: float
    throughput_s: float
    idle_settle_s: float
    idle_s: float
    in_flight: tuple[int, ...] = (1, 16, 64, 256)
    wave: int = 64

    @property
    def calls_s(self) -> float:
        """How long the client makes calls, all phases together."""
        return 2 * self.warm_up_s + self.latency_s + (len(self.in_flight) + 1) * self.throughput_s


FULL = Plan(warm_up_s=0.2, latency_s=1.0, throughput_s=0.5, idle_settle_s=0.3, idle_s=2.0)
QUICK = Plan(warm_up_s=0.05, latency_s=0.1, throughput_s=0.05, idle_settle_s=0.1, idle_s=0.2)


class Serve(msgspec.Struct, frozen=True, tag=True):
    """Be the server at `path`, on CPU `cpu` if one is given."""

    entrant: Entrant
    path: str
    cpu: int | None


class Drive(msgspec.Struct, frozen=True, tag=True):
    """Be the client that measures, then keep the connection open and idle."""

    entrant: Entrant
    path: str
    cpu: int | None
    server_pid: int
    plan: Plan


class Hold(msgspec.Struct, frozen=True, tag=True):
    """Be a client that holds `connections` idle connections."""

    entrant: Entrant
    path: str
    cpu: int | None
    connections: int


class ServeArrays(msgspec.Struct, frozen=True, tag=True):
    """Be the server of the array benchmark at `path`."""

    entrant: Entrant
    path: str
    cpu: int | None


class DriveArrays(msgspec.Struct, frozen=True, tag=True):
    """Be the client that measures calls with arrays."""

    entrant: Entrant
    path: str
    cpu: int | None
    plan: ArrayPlan


class ServeFootprint(msgspec.Struct, frozen=True, tag=True):
    """Be the server whose memory and copies are looked at; the entrant is shmrpc."""

    entrant: Entrant
    path: str
    cpu: int | None


class DriveFootprint(msgspec.Struct, frozen=True, tag=True):
    """Be the client that looks at memory and copies, its own and the server's."""

    entrant: Entrant
    path: str
    cpu: int | None
    server_pid: int
    plan: ArrayPlan


class ServeStreams(msgspec.Struct, frozen=True, tag=True):
    """Be the server of the stream benchmark at `path`."""

    entrant: Entrant
    path: str
    cpu: int | None


class DriveStreams(msgspec.Struct, frozen=True, tag=True):
    """Be the client that measures streams."""

    entrant: Entrant
    path: str
    cpu: int | None
    server_pid: int
    plan: StreamPlan


Job = Serve | Drive | Hold | ServeArrays | DriveArrays | ServeFootprint | DriveFootprint | ServeStreams | DriveStreams


class Cpu(msgspec.Struct, frozen=True):
    """CPU time of each process per call, in microseconds."""

    client_us: float
    server_us: float

    @property
    def both_us(self) -> float:
        """The sum, which is what a call costs the machine."""
        return self.client_us + self.server_us


class Latency(msgspec.Struct, frozen=True):
    """Round trips of sequential calls, in microseconds."""

    p50_us: float
    p99_us: float
    p999_us: float
    samples: int
    cpu: Cpu


class Throughput(msgspec.Struct, frozen=True):
    """Calls completed per second with `in_flight` calls open."""

    in_flight: int
    calls_per_s: float
    cpu: Cpu


class Idle(msgspec.Struct, frozen=True):
    """What a connection without calls costs each process: CPU time and voluntary context switches."""

    client_cpu_ms_per_s: float
    server_cpu_ms_per_s: float
    client_wakeups_per_s: float
    server_wakeups_per_s: float


class Calls(msgspec.Struct, frozen=True):
    """What the measuring client reports: calls one at a time, several in flight, and in waves."""

    latency: Latency
    throughput: list[Throughput]
    wave: Throughput


class Figures(msgspec.Struct, frozen=True):
    """All that is measured of one entrant in one round."""

    calls: Calls
    idle: Idle
