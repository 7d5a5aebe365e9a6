"""Texts that a peer has had a hand in, made fit for a log and for a terminal."""

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
