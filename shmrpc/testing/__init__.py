"""For tests of services and of what calls them: real servers, faults on purpose, and checks that nothing is left behind.

Works with every test framework. For pytest, the plugin `shmrpc.testing.plugin` has fixtures.
"""

from shmrpc.testing.commands import command, process
from shmrpc.testing.connections import exhausted
from shmrpc.testing.faults import Fault, Faults
from shmrpc.testing.holdings import all_released, no_leaks
from shmrpc.testing.pairs import Pair, pair
from shmrpc.testing.processes import ServerProcess

__all__ = [
    "Fault",
    "Faults",
    "Pair",
    "ServerProcess",
    "all_released",
    "command",
    "exhausted",
    "no_leaks",
    "pair",
    "process",
]
