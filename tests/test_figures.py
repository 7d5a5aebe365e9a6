"""The counts of what a test run has proven."""

from pathlib import Path

import pytest
from figures import BEGIN, END, Figures, put_into, table


def test_counts_of_several_runs_add_up_and_a_loss_of_none_is_a_row(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text('{"kills survived": 1200, "calls lost": 0}')
    other.write_text('{"kills survived": 34, "mutants made": 5, "fuzz seconds": 1000.6}')
    rows = table([one, other]).splitlines()
    assert rows[2:6] == [
        "| fuzz seconds | 1,001 |",
        "| kills survived | 1,234 |",
        "| mutants made | 5 |",
        "| calls lost | 0 |",
    ]


def test_a_count_that_has_no_row_is_a_mistake() -> None:
    figures = Figures(long=False)
    figures.add("fds lost", 0)
    assert figures.counts == {"fds lost": 0}
    with pytest.raises(AssertionError, match="there is no count 'fds found'"):
        figures.add("fds found")


def test_a_table_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for text in ("new", "newer"):
        put_into(page, text)
        assert page.read_text() == f"before\n{BEGIN}\n{text}\n{END}\nafter\n"
