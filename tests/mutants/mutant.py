"""What it takes to remove a guard."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A guard that is taken away."""

    guard: str
    """What it guards against, or holds, in a few words."""
    file: str
    """Under the root of the project."""
    old: str
    """The guard: occurs once in the file."""
    new: str
    """What stands there without it."""
    test: str
    """What fails then: a file of tests, or one of its tests, as pytest names it."""
    words: str = ""
    """Of a file, only the tests that these words choose (``-k``)."""

    @property
    def native(self) -> bool:
        """Whether the extension must be built again; the programs of ``tests/native`` are built by their tests."""
        return self.file.startswith("shmrpc/_native") and not self.test.startswith("tests/native")
