"""``shmrpc call PATH method '{"json": "arguments"}'``: makes one call and prints its result as JSON."""

import argparse
import json
from typing import Any

import msgspec

from shmrpc.cli.common import UsageError, run_loop
from shmrpc.context import CallOptions


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds this command."""
    parser = commands.add_parser("call", help="make one call", description=__doc__)
    parser.add_argument("path", metavar="PATH", help="the server's socket")
    parser.add_argument("method", help="the method, as Service.method or just method where only one service has it")
    parser.add_argument(
        "arguments", nargs="?", default="{}", metavar="JSON", help="an object by parameter name, or an array"
    )
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds (default 30)")
    parser.add_argument("--metadata", action="append", default=[], metavar="KEY=VALUE")


def run(arguments: argparse.Namespace) -> int:
    """Makes the call."""
    try:
        given = json.loads(arguments.arguments)
    except ValueError as error:
        raise UsageError(f"the arguments are not JSON: {error}") from None
    if not isinstance(given, (dict, list)):
        raise UsageError("the arguments are a JSON object by parameter name, or an array by position")
    try:
        options = CallOptions().merged(arguments.timeout, dict(_pair(text) for text in arguments.metadata))
    except ValueError as error:
        raise UsageError(f"--timeout: {error}") from None
    print(run_loop(_call(arguments, given, options), "auto"))
    return 0


async def _call(arguments: argparse.Namespace, given: dict[str, Any] | list[Any], options: CallOptions) -> str:
    from shmrpc.shm_gate import make_caller

    caller = make_caller(arguments.path)
    await caller.open()
    try:
        result = await caller.call(arguments.method, given, options)
    finally:
        await caller.close()
    return msgspec.json.format(result, indent=2).decode()


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"--metadata is KEY=VALUE, not {text!r}")
    return key, value
