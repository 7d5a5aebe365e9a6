"""Texts that others have had a hand in: a peer's, made fit for a log and for a terminal, and names that are misspelt."""

import difflib
from collections.abc import Iterable
from typing import Final

LONGEST: Final = 1000
"""Characters."""


def one_line(text: object) -> str:
    """One line without control characters, which could forge a line of a log or steer a terminal; cut when it is long."""
    line = str(text)
    if len(line) > LONGEST:
        line = f"{line[:LONGEST]}… ({len(line)} characters)"
    if line.isprintable():
        return line
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in line
    )


def meant(name: str, known: Iterable[str]) -> str:
    """What follows in a text that says of a name that there is none: the one that may have been meant, then anything."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ";"
