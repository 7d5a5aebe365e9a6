"""The model takes the steps that the code takes: what each function of the one does to shared words, against the other.

Of a C function this reads, in the order in which they stand: loads and stores of shared words, fences, and calls of
other functions that are modelled. Of a Python function: the calls that matter to the protocol. The functions of the model
are read the same way. So whoever moves, adds or drops a step in the code finds here that the model is to follow.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import model_endpoint
import model_rings
import model_wake
import pytest

from shmrpc.shm import channel, poller, session

NATIVE: Final = Path(channel.__file__).parents[1] / "_native"
SPECIFICATION: Final = Path(channel.__file__).parents[2] / "docs" / "specification.md"
Trace = list[str]


def functions_of(module: Any) -> dict[str, Callable[..., Any]]:
    return {
        name: each
        for name, each in vars(module).items()
        if inspect.isfunction(each) and each.__module__ == module.__name__
    }


MODELLED: Final = functions_of(model_wake) | functions_of(model_rings)
HEADERS: Final = {name: (NATIVE / f"{name}.h").read_text() for name in ("atomics", "wake", "ring")}


# ---- reading C ----


def body_of(source: str, function: str) -> str:
    """What stands between the braces of a C function."""
    found = re.search(rf"^[\w\s*]*\b{function}\([^;{{]*\)\n\{{\n(.*?)^\}}", source, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{function} is not there"
    return re.sub(r"/\*.*?\*/", "", found[1], flags=re.DOTALL)


STEP: Final = re.compile(
    r"shm_load_\w+\(\w+->(?P<load>\w+)\)|shm_store_\w+\(\w+->(?P<store>\w+),|(?P<fence>atomic_thread_fence)"
    r"|(?P<put>memcpy)\(\w+->ring|(?P<get>shm_ring_word)\(|(?P<call>shm_\w+|ring_for_room)\("
)


def steps_in_c(source: str, function: str, names: Iterable[str]) -> Trace:
    """What a C function does to shared words, and which of `names` it calls."""
    steps: Trace = []
    for found in STEP.finditer(body_of(source, function)):
        kind, what = str(found.lastgroup), found[str(found.lastgroup)]
        if kind == "call":
            if what in names:
                steps.append(what)
        else:
            steps.append({"fence": "fence", "put": "store ring", "get": "load ring"}.get(kind, f"{kind} {what}"))
    return without_repeats(steps)


def without_repeats(steps: Trace) -> Trace:
    """A record is written and read in several pieces, which are one step in the model."""
    return [step for step, before in zip(steps, ["", *steps], strict=False) if step != before or "ring" not in step]


# ---- reading Python ----


class Steps(ast.NodeVisitor):
    """The calls of a Python function, in the order in which they are made; a model's operations as what they do."""

    def __init__(self) -> None:
        self.found: Trace = []

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = node.func
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        if name in ("Load", "Store"):
            word = node.args[0]
            if isinstance(word, ast.Attribute):
                name = f"{name} {word.attr}"
            elif isinstance(word, ast.Call):  # place(…)
                self.found.pop()
                name = f"{name} ring"
        self.found.append(name)


def steps_in_python(function: Callable[..., Any], names: Mapping[str, str]) -> Trace:
    """The calls of a function that are in `names`, each by the name that it has there."""
    steps = Steps()
    steps.visit(ast.parse(inspect.cleandoc("\n" + inspect.getsource(function))))
    return [names[name] for name in steps.found if name in names]


WORDS: Final = (
    *("word", "ring", "tail_word", "head_word"),
    *("release_tail", "release_head"),
)
OPERATIONS: Final = {f"{op} {word}": f"{op.lower()} {word}" for op in ("Load", "Store") for word in WORDS} | {
    "Fence": "fence"
}


# ---- wake.h, ring.h ----


@pytest.mark.parametrize("name", [name for name in MODELLED if name.startswith("shm_")])
def test_a_function_of_the_headers_takes_these_steps(name: str) -> None:
    source = next(
        text for text in HEADERS.values() if re.search(rf"\b{name}\(.*\)\n\{{|\b{name}\([^;]*\n[^;]*\)\n\{{", text)
    )
    in_c = steps_in_c(source, name, MODELLED)
    assert steps_in_python(MODELLED[name], OPERATIONS | {each: each for each in MODELLED}) == in_c
    assert in_c or name == "shm_sleeper_armed"


def test_every_function_of_the_headers_that_touches_a_shared_word_is_in_the_model() -> None:
    source = HEADERS["wake"] + HEADERS["ring"]
    found = {
        name
        for name in re.findall(r"^static inline [\w\s*]*\b(shm_\w+)\(", source, re.MULTILINE)
        if steps_in_c(source, name, MODELLED)
    }
    assert found - {"shm_ring_word"} == {name for name in MODELLED if name.startswith("shm_")} - {
        "shm_sleeper_armed",
        "shm_fence_ringer",
        "shm_fence_sleeper",
    }


def test_what_total_store_order_cannot_show_is_in_the_code_all_the_same() -> None:
    """The model has no weaker memory: that positions are published with release and read with acquire is looked up."""
    accesses = re.findall(r"shm_(load|store)_(\w+)\(\w+->(\w+_word)\b", HEADERS["ring"])
    assert len(accesses) >= 10
    assert {(kind, order) for kind, order, _ in accesses} == {("load", "acquire"), ("store", "release")}


# ---- what composes them in C ----


@pytest.mark.parametrize(
    ("file", "function", "model"),
    [
        ("producer.c", "producer_publish", "producer_publish"),
        ("producer.c", "producer_want_room", "want_room"),
        ("producer.c", "producer_room_found", "room_found"),
        ("consumer.c", "take_chunk", "take_chunk"),
        ("consumer.c", "consumer_arm", "arm"),
        ("consumer.c", "consumer_disarm", "disarm"),
        ("release_types.c", "releaser_send_home", "releaser_send_home"),
        ("release_types.c", "reaper_take", "reaper_take"),
    ],
)
def test_a_function_of_the_extension_takes_these_steps(file: str, function: str, model: str) -> None:
    names = {name: name for name in MODELLED}
    in_c = steps_in_c((NATIVE / file).read_text(), function, [*names, "ring_for_room"])
    in_c = [step for step in in_c if not step.startswith("load")]  # of what it says in an error
    inlined = {"ready": "shm_consumer_ready", "disarm": "shm_sleeper_disarm", "Ring": "ring_for_room"}
    assert steps_in_python(getattr(model_endpoint, model), names | inlined) == in_c
    assert in_c


def test_the_parts_that_the_model_calls_by_their_own_names_are_those_of_the_extension() -> None:
    source = (NATIVE / "consumer.c").read_text()
    assert steps_in_c(source, "consumer_ready", MODELLED) == ["shm_consumer_ready"]
    assert steps_in_c(source, "consumer_published", MODELLED) == ["shm_consumer_published"]


# ---- what composes them in Python ----

CHANNEL: Final = channel.Channel
CALLS: Final[list[tuple[str, list[Callable[..., Any]], dict[str, str], dict[str, str]]]] = [
    # what the model calls it, the functions of the code, their calls, the model's calls
    (
        "flush",
        [CHANNEL.flush],
        {name: name.strip("_") for name in ("room_found", "_empty_outbox", "_tell_home", "want_room")},
        {name: name for name in ("room_found", "empty_outbox", "tell_home", "want_room")},
    ),
    (
        "empty_outbox",
        [CHANNEL._empty_outbox],
        {"_push": "push", "ring": "ring"},
        {"producer_publish": "push", "Ring": "ring"},
    ),
    (
        "send",
        [CHANNEL.send, CHANNEL.settle],
        {"_push": "push", "ring": "ring", "append": "queue", "flush": "flush"},
        {"producer_publish": "push", "Ring": "ring", "flush": "flush"},
    ),
    ("announce", [CHANNEL.announce], {"announce": "look", "ring": "ring"}, {"shm_announce": "look", "Ring": "ring"}),
    ("tell_home", [CHANNEL._tell_home], {"collect": "collect"}, {"collect": "collect"}),
    ("collect", [CHANNEL.collect], {"_take_home": "take"}, {"take_home": "take"}),
    (
        "take_home",
        [CHANNEL._take_home],
        {"take": "take", "published": "position", "take_home": "end"},
        {"reaper_take": "take", "shm_consumer_published": "position", "end_leases": "end"},
    ),
    ("dispatch", [CHANNEL.dispatch], {"dispatch": "take", "ring": "ring"}, {"take_chunk": "take", "Ring": "ring"}),
    (
        "on_records",
        [session.Session.on_records],
        {"dispatch": "dispatch", "flush": "flush"},
        {"dispatch": "dispatch", "flush": "flush"},
    ),
    (
        "on_doorbell",
        [poller.Poller._on_doorbell],
        {"clear": "clear", "disarm": "disarm", "on_rung": "on_rung"},
        {"clear": "clear", "disarm": "disarm", "on_rung": "on_rung"},
    ),
    (
        "look",
        [poller.Poller._look],
        {"ready": "ready", "on_records": "on_records", "arm": "arm"},
        {"ready": "ready", "on_records": "on_records", "arm": "arm"},
    ),
]


@pytest.mark.parametrize(("model", "code", "calls", "model_calls"), CALLS, ids=[each[0] for each in CALLS])
def test_a_function_of_the_channel_and_the_poller_takes_these_steps(
    model: str, code: list[Callable[..., Any]], calls: dict[str, str], model_calls: dict[str, str]
) -> None:
    in_code = [step for function in code for step in steps_in_python(function, calls) if step != "queue"]
    assert steps_in_python(getattr(model_endpoint, model), model_calls) == in_code
    assert in_code


# ---- the specification ----


def test_the_specification_lists_the_pairs_that_the_headers_have() -> None:
    table = SPECIFICATION.read_text().partition("## Ordering points")[2].partition("\n## ")[0]
    listed = set(re.findall(r"\[([a-z-]+)\]", table))
    labels = set(re.findall(r"/\* \[([a-z-]+)\]", HEADERS["wake"] + HEADERS["ring"]))
    assert labels == listed
    assert labels == {"tail", "head", "release-tail", "release-head", "sleeper", "ringer"}
