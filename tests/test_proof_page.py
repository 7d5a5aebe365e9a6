"""What SECURITY.md and the page on what is proven name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/proof.md", "docs/operations.md"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"tests/[\w/*.]*\w", (ROOT / page).read_text()))
    assert named or page == "docs/operations.md"
    assert [name for name in sorted(named) if not list(ROOT.glob(name))] == []
