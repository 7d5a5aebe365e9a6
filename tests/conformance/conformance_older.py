"""An older version of a contract of `conformance_api`, as a server that was not updated has it."""

from typing import Protocol


class Versioned(Protocol):
    async def greet(self, name: str) -> str: ...


class OlderService(Versioned):
    async def greet(self, name: str) -> str:
        return f"hello, {name}"
