"""`process` and `command`: what is run in a server process for tests, and how it finds there what can be imported here."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from shmrpc.shm_gate import make_settings
from shmrpc.testing.faults import Faults
from shmrpc.testing.processes import ServerProcess


def process(
    *services: str | type,
    at: str | os.PathLike[str] | None = None,
    faults: Faults | None = None,
    loop: str = "auto",
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    start_timeout: float = 10.0,
    **options: Any,
) -> ServerProcess:
    """A server in a process of its own, as ``shmrpc serve`` runs it, with any setting. It ends with this process too.

    ::

        with shmrpc.testing.process("worker:Worker") as server:
            ...  # connect to server.address

    Args:
        *services: As ``module:attr``, or the classes themselves, which must be at the top of a module. What can be imported
            here can be imported there.
        at: The socket's path; None: in a temporary folder.
        faults: What goes wrong in the services, from the beginning: see `Faults`. Not `Faults.hold`.
        loop: The event loop: ``"auto"``, ``"uvloop"`` or ``"asyncio"``.
        env: Added to the environment.
        cwd: The working directory; None: this one.
        start_timeout: Seconds in which it must listen.
        **options: As for `shmrpc.serve`: settings, ``grace``, ``mode``; and ``log_level``, "info" unless said otherwise.

    Raises:
        ValueError: a class cannot be found again in another process, or a fault cannot be put there.
        TypeError: there is no such setting, or a service is an object of this process.
    """
    references = [_reference(one) for one in services]
    if not references:
        raise ValueError("name at least one service, like 'worker:Worker'")
    plan = {
        "services": references,
        "loop": loop,
        "log_level": options.pop("log_level", "info"),
        "options": _as_json(options),
        "faults": faults.to_json() if faults is not None else [],
    }

    def arguments(path: str) -> list[str]:
        return [sys.executable, "-m", "shmrpc.testing.host", json.dumps({**plan, "at": path})]

    return ServerProcess(
        " ".join(references),
        arguments,
        at=at,
        environment={"PYTHONPATH": _import_path(), **(env or {})},
        cwd=cwd,
        start_timeout=start_timeout,
    )


def command(
    *arguments: str,
    at: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    start_timeout: float = 10.0,
) -> ServerProcess:
    """A server that a program of yours starts: the command as it will be run in production.

    ::

        shmrpc.testing.command("shmrpc", "serve", "worker:Worker", "--at", "{path}", "--workers", "2")

    Args:
        *arguments: The program and its arguments; ``{path}`` in them is replaced by the socket's path. ``python`` and
            ``shmrpc`` are those of this interpreter.
        at: As for `process`.
        env: As for `process`.
        cwd: As for `process`.
        start_timeout: As for `process`.
    """
    programs = {"python": [sys.executable], "shmrpc": [sys.executable, "-m", "shmrpc"]}

    def filled(path: str) -> list[str]:
        program, *rest = (argument.replace("{path}", path) for argument in arguments)
        return [*programs.get(program, [program]), *rest]

    return ServerProcess(
        " ".join(arguments),
        filled,
        at=at,
        environment={"PYTHONPATH": _import_path(), **(env or {})},
        cwd=cwd,
        start_timeout=start_timeout,
    )


def _reference(service: str | type) -> str:
    if isinstance(service, str):
        return service
    if not isinstance(service, type):
        name = type(service).__name__
        raise TypeError(
            f"a process makes its service itself, and cannot be given this one: pass the class, {name}, or a text like "
            f"'worker:{name}', not {service!r}"
        )
    module, name = service.__module__, service.__qualname__
    if module == "__main__" or "<locals>" in name:
        raise ValueError(f"{module}.{name} cannot be imported in another process; put it at the top of a module")
    return f"{module}:{name}"


def _import_path() -> str:
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path)


def _as_json(options: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {name: options[name] for name in ("grace", "mode") if name in options}
    settings = {name: value for name, value in options.items() if name not in own}
    make_settings(settings)
    for name, value in settings.items():
        if isinstance(value, (set, frozenset)):
            settings[name] = sorted(value)
        elif hasattr(value, "__struct_fields__"):
            settings[name] = {part: getattr(value, part) for part in value.__struct_fields__}
    return {**own, **settings}
