"""What the kernel has counted: CPU time and context switches of a process, CPU time of the machine. Linux."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

CPUCLOCK_SCHED = 2
"""The kernel's scheduler clock, in the low bits of a process's clock id."""


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, in ns; the clock id is that of clock_getcpuclockid(3)."""
    return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED)


def voluntary_switches(pid: int) -> int:
    """How often the threads of a process have gone to sleep: each time, something had to wake them."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


class MachineLoad(msgspec.Struct, frozen=True):
    """How much of the machine's CPU time others took meanwhile, in percent of all CPUs."""

    other_processes_percent: float
    hypervisor_percent: float


def _ticks() -> tuple[float, float, float]:
    """Busy, stolen and all seconds of all CPUs since boot."""
    with open("/proc/stat") as stat:
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    hertz = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq
    return busy / hertz, steal / hertz, (busy + idle + iowait + steal) / hertz


def watch_machine() -> Callable[[], MachineLoad]:
    """Start to watch; call what is returned for the load that came from elsewhere since.

    Processes of this benchmark count once they have been waited for.
    """
    busy, steal, total = _ticks()
    own = sum(os.times()[:4])

    def load() -> MachineLoad:
        busy_now, steal_now, total_now = _ticks()
        others = busy_now - busy - (sum(os.times()[:4]) - own)
        elapsed = max(total_now - total, 1e-9)
        return MachineLoad(100 * max(others, 0.0) / elapsed, 100 * (steal_now - steal) / elapsed)

    return load
