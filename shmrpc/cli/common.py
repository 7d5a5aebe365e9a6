"""What the commands share: the event loop that they run on, options, and their own kind of error."""

import argparse
import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from shmrpc.context import check_seconds, timeout_to_ns

T = TypeVar("T")


class UsageError(Exception):
    """What the user asked for cannot be done; the text says why and what can."""


class NobodyReads(Exception):
    """Whoever read standard output has gone, as ``head`` does when it has enough."""


def show(text: str) -> None:
    """Prints a line, or lines, at once.

    Raises:
        NobodyReads: nobody takes it.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # the interpreter flushes what is left, when it ends
        os.close(nowhere)
        raise NobodyReads from None


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds the server that a command asks, and whom it may be of."""
    parser.add_argument("path", metavar="PATH", help="the server's socket")
    parser.add_argument(
        "--allow-uid",
        type=int,
        action="append",
        metavar="N",
        help="ask a server with this uid; may be repeated (default: uids own and root)",
    )
    parser.add_argument(
        "--trust-folder", action="store_true", help="also if others may write the folder of the socket, or own it"
    )


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of a connection that `add_server` has asked for."""
    return {"allow_uids": arguments.allow_uid, "trust_folder": arguments.trust_folder}


def check_timeout(seconds: float) -> None:
    """Refuses a ``--timeout`` that is none.

    Raises:
        UsageError: it is not a positive number of seconds.
    """
    try:
        timeout_to_ns(seconds)
    except ValueError as error:
        raise UsageError(f"--timeout: {error}") from None


def check_wait(option: str, seconds: float) -> None:
    """Refuses a time to wait that is none, where it may be 0.

    Raises:
        UsageError: it is not a number of seconds.
    """
    try:
        check_seconds(option, seconds)
    except ValueError:
        raise UsageError(f"{option} is a number of seconds of 0 or more, not {seconds}") from None


def run_loop(main: Coroutine[Any, Any, T], loop: str) -> T:
    """Runs a coroutine on ``"uvloop"``, on ``"asyncio"``, or with ``"auto"`` on uvloop where it is installed."""
    factory = None
    if loop != "asyncio":
        try:
            import uvloop
        except ImportError:
            if loop == "uvloop":
                main.close()
                raise UsageError("uvloop is not installed; choose --loop asyncio") from None
        else:
            factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
