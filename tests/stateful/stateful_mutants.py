"""Guards of shmrpc that are removed on purpose, in the client or in its servers: each must be caught by the machine."""

from collections.abc import Callable
from typing import Final, NamedTuple


class Mutant(NamedTuple):
    """What is changed on each side."""

    server: Callable[[], None]


MUTANTS: Final[dict[str, Mutant]] = {}
