"""Which CPU each process gets."""

import os
from pathlib import Path
from typing import Literal

import msgspec

Pinning = Literal["one", "two", "none"]


class Placement(msgspec.Struct, frozen=True):
    """The CPUs of client and server, None for the kernel's choice, and the same in words."""

    client_cpu: int | None
    server_cpu: int | None
    words: str

    @property
    def one_cpu(self) -> bool:
        """Whether both must share a CPU."""
        return self.client_cpu is not None and self.client_cpu == self.server_cpu


def usable_cpus() -> list[int]:
    """The CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def siblings(cpu: int) -> str:
    """The hardware threads on the core of `cpu`, as the kernel writes them; itself if it does not say."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def place(pinning: Pinning | None) -> Placement:
    """Choose the CPUs; None means a core each where there are two.

    Raises ValueError when there are fewer CPUs than asked for.
    """
    cpus = usable_cpus()
    if pinning == "none":
        return Placement(None, None, f"not pinned: the kernel places both on {len(cpus)} usable CPUs")
    if pinning == "two" and len(cpus) < 2:
        raise ValueError(f"--pin two needs two usable CPUs, there is only CPU {cpus[0]}")
    if pinning == "one" or len(cpus) < 2:
        return Placement(cpus[0], cpus[0], f"client and server share CPU {cpus[0]}")
    client = cpus[0]
    elsewhere = [cpu for cpu in cpus if siblings(cpu) != siblings(client)]
    if elsewhere:
        words = f"a core each: client on CPU {client}, server on CPU {elsewhere[0]}"
        return Placement(client, elsewhere[0], words)
    words = f"client on CPU {client}, server on CPU {cpus[1]}: hardware threads of one core"
    return Placement(client, cpus[1], words)
