"""``shmrpc call PATH method '{"json": "arguments"}'``: makes one call and prints its result as JSON."""

import argparse
import json
from typing import TYPE_CHECKING, Any

import msgspec

from shmrpc import contract
from shmrpc.cli import checking
from shmrpc.cli.common import UsageError, run_loop
from shmrpc.context import CallOptions
from shmrpc.errors import InvalidArgument, Unimplemented
from shmrpc.introspection import DescribedContract, Introspection

if TYPE_CHECKING:
    from shmrpc.shm.caller import Caller, Target


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
        target = caller.find(arguments.method)
        values = caller.arrange(target, given)
        await _check(caller, target, values, options)
        result = await caller.call(target, values, options)
    finally:
        await caller.close()
    return msgspec.json.format(result, indent=2).decode()


async def _check(caller: "Caller", target: "Target", values: list[Any], options: CallOptions) -> None:
    """Says what is wrong with the arguments, in words, if the server can tell what they should be.

    Raises:
        InvalidArgument: they do not fit.
    """
    ask = caller.transport.bind(contract.read(Introspection).methods["contracts"], options)
    try:
        described: list[DescribedContract] = await ask(target.service)
    except Unimplemented:  # a server that does not tell: it checks them itself
        return
    for method in (method for one in described for method in one.methods if method.name == target.signature.name):
        by_name = {parameter.name: value for parameter, value in zip(method.parameters, values, strict=False)}
        if (why := checking.why_unfit(by_name, method.arguments)) is not None:
            raise InvalidArgument(f"{target.full_name}: {why}; it is {target.signature}")


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"--metadata is KEY=VALUE, not {text!r}")
    return key, value
