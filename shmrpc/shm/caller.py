"""Calls without the contract: by name, with JSON, from what the server says of itself. For the command line."""

import difflib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, NamedTuple

from shmrpc.context import CallOptions
from shmrpc.errors import InvalidArgument, Unimplemented
from shmrpc.introspection import RESERVED
from shmrpc.legible import meant
from shmrpc.shm.handshake import Offered
from shmrpc.shm.json_calls import JsonCalls, JsonItems, JsonMethod
from shmrpc.shm.link import Link
from shmrpc.signature import Parameter, Signature
from shmrpc.transport import Transport


class Target(NamedTuple):
    """A method of the server."""

    service: str
    number: int
    signature: Signature

    @property
    def full_name(self) -> str:
        """Like ``"Vision.classify"``."""
        return f"{self.service}.{self.signature.name}"

    @property
    def parameters(self) -> list[Parameter]:
        """Those that travel with the request: without one that is a stream."""
        return [parameter for parameter in self.signature.parameters if parameter.type[0] != "stream"]

    @property
    def takes_stream(self) -> bool:
        """Whether a parameter is a stream."""
        return len(self.parameters) < len(self.signature.parameters)

    @property
    def gives_stream(self) -> bool:
        """Whether the result is a stream."""
        return bool(self.signature.result[0] == "stream")


class Caller:
    """One connection to a server whose contracts are not at hand."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._calls = JsonCalls(link)

    @property
    def transport(self) -> Transport:
        """What stubs of the built-in contract can call over."""
        return self._link

    async def open(self) -> None:
        """Connects. Raises what `Link.open` raises."""
        await self._link.open()

    async def close(self) -> None:
        """Ends the connection."""
        await self._link.close()

    @property
    def offered(self) -> list[Offered]:
        """The services of the server, with all their methods."""
        return self._link.offered

    def find(self, name: str) -> Target:
        """The method with a name: in full, or short where only one service has it. Built-in ones have full names only.

        Raises:
            Unimplemented: there is no such method, or more than one.
        """
        known = [
            Target(service.name, service.first_method + offset, signature)
            for service in self.offered
            for offset, signature in enumerate(service.signatures)
        ]
        own = [target for target in known if not target.service.startswith(RESERVED)]
        found = [target for target in known if name == target.full_name]
        found = found or [target for target in own if name == target.signature.name]
        if len(found) == 1:
            return found[0]
        listing = "\n  ".join(f"{target.service}.{target.signature}" for target in own)
        if found:
            raise Unimplemented(f"{name!r} is a method of several services; the server has\n  {listing}")
        near = _near(name, known, own)
        hint = f" did you mean {near}?" if near else ""
        raise Unimplemented(f"there is no method {name!r};{hint} the server has\n  {listing}")

    @staticmethod
    def arrange(target: Target, given: dict[str, Any] | list[Any], defaults: Mapping[str, Any]) -> list[Any]:
        """Arguments by position, without a stream, from those by name or by position.

        Args:
            target: What `find` gave.
            given: They, as values of JSON.
            defaults: What is known of the parameters' defaults, for those between given ones.

        Raises:
            InvalidArgument: one is missing, unknown, or too many.
        """
        full_name, signature = target.full_name, target.signature
        names = [parameter.name for parameter in target.parameters]
        if isinstance(given, list):
            if len(given) > len(names):
                raise InvalidArgument(f"{full_name} takes {len(names)} arguments, got {len(given)}; it is {signature}")
            given = dict(zip(names, given, strict=False))
        if unknown := [name for name in given if name not in names]:
            if unknown[0] in [parameter.name for parameter in signature.parameters]:
                raise InvalidArgument(f"{full_name}: parameter {unknown[0]!r} is a stream, and is read from stdin")
            hint = meant(unknown[0], names)
            raise InvalidArgument(f"{full_name} has no parameter {unknown[0]!r}{hint} it is {signature}")
        values = []
        for position, parameter in enumerate(target.parameters):
            if parameter.name in given:
                values.append(given[parameter.name])
                continue
            if not parameter.has_default:
                raise InvalidArgument(f"{full_name}: parameter {parameter.name!r} is missing; it is {signature}")
            if not any(later in given for later in names[position:]):
                break
            if parameter.name not in defaults:
                raise InvalidArgument(
                    f"{full_name}: parameter {parameter.name!r} must be given, since a later one is; it is {signature}"
                )
            values.append(defaults[parameter.name])
        return values

    async def call(
        self, target: Target, values: list[Any], options: CallOptions, items: AsyncIterator[bytes] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Makes one call and gives its result, or each item of it, as JSON.

        Args:
            target: What `find` gave.
            values: What `arrange` gave.
            options: How to call.
            items: The JSON text of each item of a parameter that is a stream.
        """
        codec = JsonItems() if target.takes_stream else None
        method = JsonMethod(target.full_name, target.number, target.gives_stream, codec)
        payload = json.dumps(values).encode()
        if not target.gives_stream:
            yield await self._calls.call(method, payload, options, items)
            return
        stream = self._calls.stream(method, payload, options, items)
        try:
            async for item in stream:
                yield item
        finally:
            await stream.aclose()


def _near(name: str, known: list[Target], own: list[Target]) -> str:
    """The full name that may have been meant, or nothing."""
    if "." in name:
        names = {target.full_name.lower(): target.full_name for target in known}
    else:
        names = {target.signature.name.lower(): target.full_name for target in own}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return names[near[0]] if near else ""
