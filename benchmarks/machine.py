"""What the figures were measured on: processor, kernel, interpreter, library versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from benchmarks.placement import usable_cpus

LIBRARIES = ("shmrpc", "msgspec", "uvloop", "numpy", "grpcio", "pyzmq")


class Machine(msgspec.Struct, frozen=True):
    """The place of a measurement."""

    processor: str
    cpus: int
    usable_cpus: int
    kernel: str
    python: str
    libraries: dict[str, str]
    load_average: float

    @property
    def words(self) -> list[str]:
        """The same as lines to print."""
        libraries = ", ".join(f"{name} {number}" for name, number in self.libraries.items())
        return [
            f"{self.processor}, {self.cpus} CPUs ({self.usable_cpus} usable), {self.kernel}",
            f"{self.python}, {libraries}",
            f"load average before the run: {self.load_average:.2f}",
        ]


def processor() -> str:
    """The model name of the first CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def library_version(name: str) -> str:
    """The version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def describe() -> Machine:
    """The machine that this runs on."""
    return Machine(
        processor=processor(),
        cpus=os.cpu_count() or 1,
        usable_cpus=len(usable_cpus()),
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        libraries={name: library_version(name) for name in LIBRARIES},
        load_average=os.getloadavg()[0],
    )
