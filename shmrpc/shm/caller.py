"""Calls without the contract: by name, with JSON, from what the server says of itself. For the command line."""

import json
from typing import Any

from shmrpc.context import CallOptions
from shmrpc.errors import InvalidArgument, Unimplemented
from shmrpc.shm.handshake import Offered
from shmrpc.shm.link import Link
from shmrpc.signature import Signature


class Caller:
    """One connection to a server whose contracts are not at hand."""

    def __init__(self, link: Link) -> None:
        self._link = link

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

    async def call(self, name: str, arguments: dict[str, Any] | list[Any], options: CallOptions) -> bytes:
        """Makes one call and gives the result as JSON.

        Raises:
            Unimplemented: no such method, or more than one.
            InvalidArgument: the arguments do not fit it.
        """
        full_name, number, signature = self._find(name)
        values = _positional(full_name, signature, arguments) if isinstance(arguments, dict) else arguments
        return await self._link.call_json(full_name, number, json.dumps(values).encode(), options)

    def _find(self, name: str) -> tuple[str, int, Signature]:
        known = [
            (f"{service.name}.{signature.name}", service.first_method + offset, signature)
            for service in self.offered
            for offset, signature in enumerate(service.signatures)
        ]
        found = [entry for entry in known if name in (entry[0], entry[2].name)]
        if len(found) == 1:
            return found[0]
        listing = "\n  ".join(f"{full_name.partition('.')[0]}.{signature}" for full_name, _, signature in known)
        problem = f"{name!r} is a method of several services" if found else f"there is no method {name!r}"
        raise Unimplemented(f"{problem}; the server has\n  {listing}")


def _positional(full_name: str, signature: Signature, given: dict[str, Any]) -> list[Any]:
    names = [parameter.name for parameter in signature.parameters]
    if unknown := [name for name in given if name not in names]:
        raise InvalidArgument(f"{full_name} has no parameter {unknown[0]!r}; it is {signature}")
    values = []
    for position, parameter in enumerate(signature.parameters):
        if parameter.name in given:
            values.append(given[parameter.name])
            continue
        if not parameter.has_default:
            raise InvalidArgument(f"{full_name}: parameter {parameter.name!r} is missing; it is {signature}")
        if any(later in given for later in names[position:]):
            raise InvalidArgument(
                f"{full_name}: parameter {parameter.name!r} must be given, since a later one is; it is {signature}"
            )
        break
    return values
