"""``shmrpc call PATH method '{"json": "arguments"}'``: makes one call and prints its result as JSON.

A result that is a stream is printed as it comes, one item a line. A parameter that is a stream is read from stdin, one
item a line. Ctrl-C cancels the call.
"""

import argparse
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shmrpc import contract
from shmrpc.cli import checking
from shmrpc.cli.common import UsageError, add_server, run_loop, settings_of, show
from shmrpc.cli.lines import stdin_lines
from shmrpc.context import CallOptions
from shmrpc.errors import InvalidArgument, Unimplemented
from shmrpc.introspection import DescribedContract, DescribedMethod, Introspection

if TYPE_CHECKING:
    from shmrpc.shm.caller import Caller, Target

UNARY_SECONDS: Final = 30.0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds this command."""
    parser = commands.add_parser("call", help="make one call", description=__doc__)
    add_server(parser)
    parser.add_argument("method", help="the method, as Service.method or just method where only one service has it")
    parser.add_argument(
        "arguments", nargs="?", default="{}", metavar="JSON", help="an object by parameter name, or an array"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help=f"seconds for the call (default {UNARY_SECONDS:.0f}; none for a result that is a stream)",
    )
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
    run_loop(_call(arguments, given, options), "auto")
    return 0


async def _call(arguments: argparse.Namespace, given: dict[str, Any] | list[Any], options: CallOptions) -> None:
    from shmrpc.shm_gate import make_caller

    caller = make_caller(arguments.path, settings_of(arguments))
    await caller.open()
    try:
        target = caller.find(arguments.method)
        described = await _describe(caller, target)
        properties = {} if described is None else described.arguments["properties"]
        defaults = {name: known["default"] for name, known in properties.items() if "default" in known}
        values = caller.arrange(target, given, defaults)
        if arguments.timeout is None and not target.gives_stream:
            options = options.merged(UNARY_SECONDS, None)
        if described is not None:
            by_name = {parameter.name: value for parameter, value in zip(target.parameters, values, strict=False)}
            _refuse(target, checking.why_unfit(by_name, described.arguments))
        items = _read_items(target, described) if target.takes_stream else None
        async with aclosing(caller.call(target, values, options, items)) as results:
            async for result in results:
                show((result if target.gives_stream else msgspec.json.format(result, indent=2)).decode())
    finally:
        await caller.close()


async def _describe(caller: "Caller", target: "Target") -> DescribedMethod | None:
    """What the server says of a method; None when it does not tell, and checks arguments itself."""
    options = CallOptions().merged(UNARY_SECONDS, None)
    ask = caller.transport.bind(contract.read(Introspection).methods["contracts"], options)
    try:
        services: list[DescribedContract] = await ask(target.service)
    except Unimplemented:
        return None
    methods = (method for service in services for method in service.methods)
    return next((method for method in methods if method.name == target.signature.name), None)


async def _read_items(target: "Target", described: DescribedMethod | None) -> AsyncIterator[bytes]:
    """The items for a parameter that is a stream, checked one by one."""
    number = 0
    async for line in stdin_lines():
        number += 1
        try:
            item = json.loads(line)
        except ValueError as error:
            raise InvalidArgument(f"{target.full_name}: item {number} on stdin is not JSON: {error}") from None
        if described is not None and described.items is not None:
            _refuse(target, checking.why_value_unfit(item, described.items, f"item {number} on stdin"))
        yield line


def _refuse(target: "Target", why: str | None) -> None:
    if why is not None:
        raise InvalidArgument(f"{target.full_name}: {why}; it is {target.signature}")


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"--metadata is KEY=VALUE, not {text!r}")
    return key, value
