"""Texts of peers in a log: one line each, whatever they say."""

import logging

import pytest

from shmrpc.legible import LONGEST, one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("all is well", "all is well"),
        ("größer als 漢字 🙂", "größer als 漢字 🙂"),
        ("two\nlines", r"two\nlines"),
        ("\r\x1b[2Jclean", r"\r\x1b[2Jclean"),
        ("\u2028\u202e\x85\x00\x7f", r"\u2028\u202e\x85\x00\x7f"),
        ("\ud800", r"\ud800"),
        (ValueError("two\nlines"), r"two\nlines"),
        ("", ""),
    ],
)
def test_what_could_end_a_line_or_steer_a_terminal_is_escaped(text: object, line: str) -> None:
    assert one_line(text) == line


def test_what_is_long_is_cut_and_says_so() -> None:
    assert one_line("x" * LONGEST) == "x" * LONGEST
    assert one_line("x" * 5000) == "x" * LONGEST + "… (5000 characters)"


def test_a_handler_of_logs_can_write_it(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("shmrpc").warning("%s", one_line("a\nb\ud800"))
    assert len(caplog.text.splitlines()) == 1
    caplog.text.encode()
