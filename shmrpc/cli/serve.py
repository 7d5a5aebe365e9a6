"""``shmrpc serve module:attr [module:attr …] --at PATH``: serves until SIGTERM or SIGINT, then drains."""

import argparse
import asyncio
import importlib
import inspect
import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from time import monotonic
from types import FrameType
from typing import Any, Final

from shmrpc.cli.common import UsageError, check_wait, run_loop
from shmrpc.contract import contracts_of, is_protocol
from shmrpc.server import DRAIN_SECONDS, Server, check_mode, serve
from shmrpc.shm_gate import make_settings

log: Final = logging.getLogger("shmrpc.server")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds this command."""
    parser = commands.add_parser("serve", help="serve a class or an object of a module", description=__doc__)
    parser.add_argument(
        "services",
        nargs="+",
        metavar="module:attr",
        help="a class, which is made without arguments, or an object",
    )
    parser.add_argument("--at", required=True, metavar="PATH", help="the socket's path")
    parser.add_argument("--mode", default="600", metavar="OCTAL", help="the socket's permission bits (default 600)")
    parser.add_argument(
        "--fd", type=int, metavar="N", help="use this inherited listening socket; --at says where it is"
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that share the socket (default 1)"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=DRAIN_SECONDS,
        metavar="S",
        help="seconds that calls get to end on stop",
    )
    parser.add_argument(
        "--polling", default="adaptive", metavar="P", help="adaptive, never, or seconds (default adaptive)"
    )
    parser.add_argument("--doorbell", default="auto", choices=("auto", "eventfd", "pipe"))
    parser.add_argument("--segment", default="auto", choices=("auto", "memfd", "posix"))
    for credential in ("uid", "gid"):
        parser.add_argument(
            f"--allow-{credential}",
            type=int,
            action="append",
            metavar="N",
            help=f"let in clients with this {credential}; may be repeated (default: uids own and root)",
        )
    parser.add_argument("--loop", default="auto", choices=("auto", "uvloop", "asyncio"))
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)  # one of several workers
    parser.add_argument("--debug", action="store_true", help="send the text of unexpected errors to the caller")
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))


def run(arguments: argparse.Namespace) -> int:
    """Serves. Returns 0 after a graceful stop."""
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if arguments.workers < 1:
        raise UsageError(f"--workers must be at least 1, not {arguments.workers}")
    check_wait("--grace", arguments.grace)
    mode = _mode(arguments.mode)
    settings: dict[str, Any] = {
        "polling": _polling(arguments.polling),
        "doorbell": arguments.doorbell,
        "segment": arguments.segment,
        "debug": arguments.debug,
        "allow_uids": arguments.allow_uid,
        "allow_gids": arguments.allow_gid or (),
    }
    try:
        make_settings(settings)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if arguments.workers > 1:
        return _run_workers(arguments, mode)
    sys.path.insert(0, os.getcwd())
    services = [load(reference) for reference in arguments.services]
    settings |= {"at": arguments.at, "mode": mode, "fd": arguments.fd, "grace": arguments.grace}
    run_loop((_serve_supervised if arguments.supervised else serve)(*services, **settings), arguments.loop)
    _leave_threads()
    return 0


def _leave_threads() -> None:
    """A handler in a thread cannot be cancelled: one that still runs after the grace time ends with the process."""
    until = monotonic() + 1.0
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, until - monotonic()))
            if thread.is_alive():
                log.warning("a handler still runs in %s; it ends with the process", thread.name)
                logging.shutdown()
                sys.stdout.flush()
                os._exit(0)


def load(reference: str) -> object:
    """The service that ``module:attr`` names: an instance if it is a class, else what is there.

    Raises:
        UsageError: there is none.
    """
    module_name, separator, attribute = reference.partition(":")
    if not separator or not module_name or not attribute:
        raise UsageError(f"{reference!r} is not module:attr, like worker:Worker")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise  # the module is there, and an import inside it fails: the traceback says where
        raise UsageError(f"there is no module {error.name!r} here or on the import path") from None
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise UsageError(f"module {module_name!r} has no {attribute!r}") from None
    if not isinstance(found, type):
        return found
    if is_protocol(found) or (inspect.isabstract(found) and contracts_of(found) == [found]):
        raise UsageError(f"{reference!r} is a contract; name a class that implements it")
    if inspect.isabstract(found):
        lacking: frozenset[str] = vars(found)["__abstractmethods__"]
        raise UsageError(f"{reference!r} does not implement {', '.join(sorted(lacking))}")
    try:
        return found()
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # from inside its constructor: the traceback says where
        raise UsageError(f"{reference!r} cannot be made without arguments: {error}") from None


def _polling(text: str) -> str | float:
    if text in ("adaptive", "never"):
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--polling is adaptive, never or a number of seconds, not {text!r}") from None


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
        check_mode(mode)
    except ValueError:
        raise UsageError(f"--mode is octal, from 0 to 777, like 660, not {text!r}") from None
    return mode


async def _serve_supervised(*services: object, **options: Any) -> None:
    """What a worker does: serves until a signal comes, or its supervisor has gone, then drains.

    That nothing more is waited for is only its supervisor's to say, by a byte on stdin: a terminal, or systemd, signals it
    as well as the supervisor, which passes the signal on.
    """
    server = Server(*services, **options)
    loop = asyncio.get_running_loop()
    draining: set[asyncio.Task[bool]] = set()

    def drain(grace: float | None = None) -> None:
        draining.add(loop.create_task(server.drain(grace)))

    def hear() -> None:
        if os.read(sys.stdin.fileno(), 1):
            drain(0)
        else:
            loop.remove_reader(sys.stdin.fileno())
            drain()

    def begin_to_listen() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, drain)
        loop.add_reader(sys.stdin.fileno(), hear)

    server._before_listening = begin_to_listen  # whoever sees that it listens may also stop it
    async with server:
        await server.wait_closed()


def _run_workers(arguments: argparse.Namespace, mode: int) -> int:
    """Listens once and starts that many processes on the socket; stops them all when one ends or a signal comes."""
    from shmrpc.shm import address

    path = address.path_of(arguments.at)
    inode: int | None = None
    told: dict[subprocess.Popen[bytes], int] = {}  # how often each worker
    asked = 0

    def pass_on() -> None:
        for process in list(told):
            while told[process] < asked:
                told[process] += 1
                if told[process] == 1:
                    process.send_signal(signal.SIGTERM)
                else:
                    _end_now(process)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if inode is not None:
            address.unlink_own(path, inode)
        pass_on()

    # Before it listens: whoever sees that it does may also stop it.
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if arguments.fd is None:
            sock = address.listen(path, mode, backlog=256)
            inode = os.lstat(path).st_ino
        else:
            sock = address.inherit(arguments.fd)
        with sock:
            command = [sys.executable, "-m", "shmrpc", *_worker_arguments(arguments, sock.fileno())]
            for _ in range(arguments.workers):
                process = subprocess.Popen(command, pass_fds=(sock.fileno(),), stdin=subprocess.PIPE, bufsize=0)
                told[process] = 0
                pass_on()  # what came meanwhile
        _wait_for_first({process.pid for process in told})
        early = not asked
        asked = max(asked, 1)
        pass_on()
        codes = [process.wait() for process in told]
    finally:
        for process in told:
            if process.poll() is None:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        if inode is not None:
            address.unlink_own(path, inode)
        for number, handler in previous.items():
            signal.signal(number, handler)
    if early:
        print(f"shmrpc: a worker ended by itself, exit codes {codes}; all were stopped", file=sys.stderr)
    return 1 if early or any(code not in (0, -signal.SIGTERM) for code in codes) else 0


def _wait_for_first(workers: set[int]) -> None:
    """Returns when one of the workers has ended, for whatever reason. Other children may be what an entry point has left."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) is not None and ended.si_pid not in workers:
        os.waitpid(ended.si_pid, 0)  # nobody else is there to reap it


def _end_now(worker: "subprocess.Popen[bytes]") -> None:
    """Tells a worker not to wait for what still runs."""
    assert worker.stdin is not None
    with suppress(BrokenPipeError):  # it has ended
        worker.stdin.write(b"!")


def _worker_arguments(arguments: argparse.Namespace, fd: int) -> list[str]:
    passed = [
        "serve",
        *arguments.services,
        "--at",
        arguments.at,
        "--fd",
        str(fd),
        "--grace",
        str(arguments.grace),
        "--supervised",
    ]
    for name in ("polling", "doorbell", "segment", "loop", "log_level"):
        passed += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    for name in ("allow_uid", "allow_gid"):
        for credential in getattr(arguments, name) or ():
            passed += [f"--{name.replace('_', '-')}", str(credential)]
    return passed + (["--debug"] if arguments.debug else [])
