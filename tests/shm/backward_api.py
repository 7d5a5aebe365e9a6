"""Contracts for calls from a server to its client: what the client exposes, and what the server serves."""

from typing import Protocol


class Door(Protocol):
    async def knock(self, who: str) -> str: ...
    async def wait_outside(self) -> None: ...


class House(Protocol):
    async def visit(self) -> None: ...
