"""What a process of `shmrpc.testing.process` runs: ``python -m shmrpc.testing.host PLAN``, where the plan is JSON.

It serves as ``shmrpc serve`` does, with settings and faults that the command line does not have, and ends when whoever
started it is gone.
"""

import json
import logging
import os
import sys
import threading
from typing import Any

from shmrpc.cli.common import UsageError, run_loop
from shmrpc.cli.serve import load
from shmrpc.errors import RpcError
from shmrpc.server import serve
from shmrpc.testing.connections import OWN_PROCESS
from shmrpc.testing.faults import Faults


def main(text: str) -> int:
    """Serves until SIGTERM. Returns the exit status."""
    plan = json.loads(text)
    os.environ[OWN_PROCESS] = str(os.getpid())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    logging.basicConfig(level=plan["log_level"].upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.path.insert(0, os.getcwd())
    try:
        services = [load(reference) for reference in plan["services"]]
        if plan["faults"]:
            services = [*Faults.from_json(plan["faults"]).wrap_all(services)]
        run_loop(serve(*services, at=plan["at"], **_settings(plan["options"])), plan["loop"])
    except (UsageError, RpcError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    if "geometry" in options:
        from shmrpc.shm.layout import Geometry

        options = {**options, "geometry": Geometry(**options["geometry"])}
    return options


def _end_with_the_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
