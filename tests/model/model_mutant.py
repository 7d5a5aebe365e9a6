"""A mutant of the model: one rule of the protocol less, and where that must be noticed.

A mutant replaces functions of the model's modules while one exploration runs. Some are harmless, and are there for that
reason: so that it is known, and why.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple
from unittest import mock

from model_steps import Steps

Replacements = tuple[Callable[..., Any], ...]


class Mutant(NamedTuple):
    """One rule less."""

    what: str
    replaced: tuple[tuple[Any, Callable[..., Any]], ...]
    """Modules, and the function that replaces the one of the same name there."""
    caught: tuple[str, ...] = ()
    """The scenes that must fail."""
    harmless: tuple[str, ...] = ()
    """The scenes that must not: nothing is lost."""
    depth_first: bool = False

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model is this mutant meanwhile."""
        with ExitStack() as stack:
            for module, function in self.replaced:
                stack.enter_context(mock.patch.object(module, function.__name__, function))
            yield


MUTANTS: Final[list[Mutant]] = []


def mutant(
    what: str,
    *modules: Any,
    caught: tuple[str, ...] = (),
    harmless: tuple[str, ...] = (),
    depth_first: bool = False,
) -> Callable[[Callable[[], Replacements]], None]:
    """Enters a mutant: the decorated function gives the replacements, one for each module."""

    def enter(make: Callable[[], Replacements]) -> None:
        MUTANTS.append(Mutant(what, tuple(zip(modules, make(), strict=True)), caught, harmless, depth_first))

    return enter


def nothing(*_: Any) -> Steps[None]:
    """Takes no step."""
    yield from ()


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under another name."""

    def renamed(*arguments: Any) -> Any:
        return function(*arguments)

    renamed.__name__ = name
    return renamed
