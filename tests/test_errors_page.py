"""The error index: it has every class with its status, every knob that a text names, and only texts that the code has."""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest

import shmrpc
from shmrpc import errors
from shmrpc.shm.layout import Geometry
from shmrpc.shm.settings import Settings

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "errors.md").read_text()
SHIPPED = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, shmrpc.RpcError)]
CALLABLES = (shmrpc.connect, shmrpc.options, shmrpc.Server, shmrpc.method)
KNOBS = {
    *Settings.__struct_fields__,
    *Geometry.__struct_fields__,
    *(name for one in CALLABLES for name in inspect.signature(one).parameters),
}
"""What a word in parentheses at the end of a text may be."""


def section(name: str) -> str:
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def docstrings_of(tree: ast.Module) -> Iterator[int]:
    """The ids of the nodes that are strings standing alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)


def strings_of(node: ast.AST) -> list[str]:
    """What an expression of string literals can be; what is put into one shows as `…`."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=values):
            return ["".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in values)]
        case ast.IfExp(body=body, orelse=orelse):
            return strings_of(body) + strings_of(orelse)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [begun + ended for begun, ended in product(strings_of(left), strings_of(right))]
    return []


@cache
def texts_of_the_code() -> tuple[str, ...]:
    """Every string of the package that is no docstring."""
    found: list[str] = []
    for path in sorted((ROOT / "shmrpc").rglob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = set(docstrings_of(tree))
        for node in ast.walk(tree):
            if id(node) not in docstrings:
                found += strings_of(node)
    return tuple(found)


CODE = {"async with", "async def", "shmrpc call", "shmrpc serve --debug"}
"""What stands in the tables too, and is no text of an error."""


def texts_of_the_page() -> Iterator[str]:
    """What the tables quote."""
    for row in re.findall(r"^\| (.*) \|$", PAGE, flags=re.MULTILINE):
        yield from (text for text in re.findall(r"`([^`]+)`", row) if " " in text and text not in CODE)


def is_of_the_code(text: str) -> bool:
    """Whether the code can say a text: as a whole, or put together of parts, at a `…` or a semicolon."""
    parts = [part.strip(" :") for part in re.split("…|; ", text)]
    return says(text) or all(says(part) for part in parts)


def says(text: str) -> bool:
    pattern = re.escape(text.strip("…")).replace("…", ".*")
    return any(re.search(pattern, template, flags=re.DOTALL) for template in texts_of_the_code())


@pytest.mark.parametrize("cls", SHIPPED, ids=lambda cls: cls.__name__)
def test_every_error_has_its_section(cls: type[shmrpc.RpcError]) -> None:
    head = section(cls.__name__).strip().partition("\n")[0]
    also = [base.__name__ for base in cls.__bases__ if base.__module__ == "builtins" and base is not Exception]
    above = [base.__name__ for base in cls.__bases__ if base in SHIPPED and base is not shmrpc.RpcError]
    assert head.startswith(f"`{cls.code.name}`"), head
    for name in (*also, *above, *(name for name in vars(cls).get("__annotations__", {}) if name != "code")):
        assert f"`{name}`" in head


def test_no_section_is_of_a_class_that_there_is_not() -> None:
    names = re.findall(r"^## (\w+)$", PAGE, flags=re.MULTILINE)
    assert names == [cls.__name__ for cls in SHIPPED]


def test_the_tree_has_the_classes_in_the_order_of_the_sections() -> None:
    drawn = re.findall(r"^ +[│├└─ ]*(\w+) {2,}", errors.__doc__ or "", flags=re.MULTILINE)
    assert sorted(drawn) == sorted(cls.__name__ for cls in SHIPPED)


def test_every_knob_that_a_text_names_is_in_the_index() -> None:
    groups = [group for text in texts_of_the_code() for group in re.findall(r"\(([^()…]*)\)", text)]
    named = {word for group in groups for word in re.split(r"\W+", group) if word in KNOBS and "_" in word}
    assert {"max_message", "max_in_flight", "reconnect_timeout"} <= named
    shown = {word for group in re.findall(r"\(([^()]*)\)", PAGE) for word in re.split(r"\W+", group)}
    assert named - shown == set()


@pytest.mark.parametrize("text", sorted(set(texts_of_the_page())))
def test_every_text_of_the_index_is_one_of_the_code(text: str) -> None:
    assert is_of_the_code(text)


def test_a_text_that_the_code_does_not_have_is_found() -> None:
    assert not is_of_the_code("message is …, the limit is … (max_letter)")
    assert not is_of_the_code("the peer … fell asleep")
