"""``shmrpc list PATH``: what a server serves, as Python signatures."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from shmrpc.cli.common import add_server, check_timeout, run_loop, settings_of, show
from shmrpc.client import connect
from shmrpc.introspection import (
    RESERVED,
    DescribedContract,
    DescribedField,
    DescribedMethod,
    DescribedType,
    Introspection,
)
from shmrpc.signature import ParameterKind, marked

WIDTH: Final = 100
"""Columns that a signature may take before it is broken into lines."""
LONGEST_DEFAULT: Final = 30


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds this command."""
    parser = commands.add_parser("list", help="show what a server serves", description=__doc__)
    add_server(parser)
    parser.add_argument("service", nargs="?", default="", metavar="SERVICE", help="this service only")
    parser.add_argument("--json", action="store_true", help="everything that is known, with JSON Schema, as JSON")
    parser.add_argument("--all", action="store_true", help="also what is built into every server")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds (default 30)")


def run(arguments: argparse.Namespace) -> int:
    """Shows the contracts; 1 when the one that was asked for is not there."""
    check_timeout(arguments.timeout)
    contracts, names = run_loop(_fetch(arguments), "auto")
    if arguments.service and not contracts:
        print(f"shmrpc: there is no service {arguments.service!r}; there is {', '.join(names)}", file=sys.stderr)
        return 1
    if arguments.json:
        show(msgspec.json.format(msgspec.json.encode(contracts), indent=2).decode())
    else:
        show("\n\n\n".join(render(contract) for contract in contracts))
    return 0


async def _fetch(arguments: argparse.Namespace) -> tuple[list[DescribedContract], list[str]]:
    async with connect(Introspection, arguments.path, timeout=arguments.timeout, **settings_of(arguments)) as server:
        known = await server.contracts()
    names = [contract.name for contract in known if not contract.name.startswith(RESERVED)]
    if arguments.service:
        return [contract for contract in known if contract.name == arguments.service], names
    return [contract for contract in known if arguments.all or contract.name in names], names


# As Python


def render(contract: DescribedContract) -> str:
    """A contract as Python source: the types that it names, then a class with a signature for each method."""
    blocks = [_render_type(type_) for type_ in contract.types]
    apart = "\n\n" if any(method.doc for method in contract.methods) else "\n"
    methods = apart.join(_render_method(method) for method in contract.methods)
    # No name of a class has a dot: built-in services are shown under the last part of theirs.
    head = f"class {contract.name.removeprefix(RESERVED)}:\n"
    blocks.append(head + (f'    """{_first_line(contract.doc)}"""\n\n' if contract.doc else "") + methods)
    return "\n\n\n".join(blocks)


def _render_type(type_: DescribedType) -> str:
    if type_.values:
        return f"{type_.name} = Literal[{', '.join(map(repr, type_.values))}]"
    fields = [f"    {_render_field(field, '...')}" for field in type_.fields]
    return "\n".join([f"class {type_.name}:", *(fields or ["    ..."])])


def _render_method(method: DescribedMethod) -> str:
    decorators = ["    @oneway\n"] if method.kind == "one-way" else []
    if method.policy:
        decorators.append(f"    @method({', '.join(f'{name}={value!r}' for name, value in method.policy.items())})\n")
    given = method.arguments.get("properties", {})
    texts: list[tuple[str, ParameterKind]] = [
        (_render_field(p, _default(given.get(p.name, {}))), p.kind) for p in method.parameters
    ]
    parameters = ["self", *marked(texts)]
    verb = "def" if method.kind in ("server stream", "both") else "async def"
    head = f"    {verb} {method.name}({', '.join(parameters)}) -> {method.returns}:"
    if len(head) > WIDTH:
        lines = "".join(f"        {parameter},\n" for parameter in parameters)
        head = f"    {verb} {method.name}(\n{lines}    ) -> {method.returns}:"
    body = f'\n        """{_first_line(method.doc)}"""' if method.doc else " ..."
    return f"{''.join(decorators)}{head}{body}"


def _render_field(field: DescribedField, default: str) -> str:
    return f"{field.name}: {field.annotation}" + (f" = {default}" if field.has_default else "")


def _default(described: dict[str, Any]) -> str:
    """A default as Python writes it, where that is short."""
    value = described.get("default", ...)
    if value is ... or "$ref" in described or isinstance(value, dict) or len(repr(value)) > LONGEST_DEFAULT:
        return "..."
    return repr(value)


def _first_line(doc: str) -> str:
    line = next(_lines(doc), "")
    return line.replace("\\", "\\\\").replace('"""', "'''") + (" " if line.endswith('"') else "")


def _lines(doc: str) -> Iterator[str]:
    return (line.strip() for line in doc.splitlines() if line.strip())
