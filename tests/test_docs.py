"""The pages say what happens: their files are written, their commands are run, and what comes out is compared.

A Python block whose first line is ``# name.py`` is a file. A ``console`` block is a session in the folder of those files:
a line that begins with ``$`` is a command, and what follows is its output, in which ``...`` stands for anything. ``&``
starts a command in the background, ``kill %1`` ends the last of those and expects it to end well, ``kill %1 %2`` the last
two. Blocks are taken in the order of the page, so that a page may change a file as it goes on. Commands that are not to be
run are ``sh`` blocks.
"""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

import shmrpc
from shmrpc import buffers
from shmrpc.arrays import anything
from shmrpc.codec import MANY_HEAD_BYTES, ItemCodec, encode_into, head_of_many
from shmrpc.dtypes import MAX_AXES
from shmrpc.inlet import DEFAULT_WINDOW
from shmrpc.shm import borrowing, control, envelope, handshake, layout, protocol
from shmrpc.shm.arena import EXTENT_SHIFT
from shmrpc.shm.ring import pack_references
from shmrpc.shm.settings import MIN_MESSAGE, Settings

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(page for page in ROOT.glob("docs/**/*.md") if "_build" not in page.parts),
    *sorted(ROOT.glob("*.md")),
]
SPECIFICATION = (ROOT / "docs" / "specification.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
SECONDS = 60
"""How long a command of a page may take before it counts as hanging."""

PROGRAMS = {"python": [sys.executable], "shmrpc": [sys.executable, "-m", "shmrpc"]}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Block(NamedTuple):
    """One fenced block of a page."""

    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """Of a block that is a file."""
        named = re.match(r"# ([\w/]+\.py)\n", self.text)
        return named[1] if named and self.language == "python" else None

    def commands(self) -> Iterator[tuple[str, str]]:
        """Each command of a session with the output that the page promises."""
        assert self.text.startswith("$ "), f"a session begins with a command, not with {self.text!r}"
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def blocks_of(page: Path) -> list[Block]:
    fences = re.findall(r"^```([\w{}-]*)[^\n]*\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in fences]


class Shell:
    """Runs a page's commands in a folder, much as a shell does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "background.log"
        self._jobs: list[tuple[str, subprocess.Popen[bytes]]] = []

    def run(self, command: str) -> str:
        """What a command prints; nothing for one that goes into the background or ends such a one."""
        if command in ("kill %1", "kill %1 %2"):
            for _ in range(command.count("%")):
                _, job = self._jobs.pop()
                job.terminate()
                assert job.wait(SECONDS) == 0, self._log.read_text()
            return ""
        words = shlex.split(command)
        background = words[-1] == "&"
        program = [*PROGRAMS[words[0]], *(words[1:-1] if background else words[1:])]
        if background:
            with self._log.open("ab") as log:
                job = subprocess.Popen(program, cwd=self._folder, stdout=log, stderr=log)
            self._jobs.append((command, job))
            return ""
        return subprocess.run(
            program,
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        ).stdout

    @property
    def running(self) -> list[str]:
        """The commands that are in the background."""
        return [command for command, _ in self._jobs]

    def kill_all(self) -> None:
        """Ends what a page, or a test that failed, left running."""
        for _, job in self._jobs:
            job.kill()
            job.wait()


@pytest.fixture
def shell(folder: Path) -> Iterator[Shell]:
    shell = Shell(folder)
    yield shell
    shell.kill_all()


def is_as_promised(promised: str, printed: str) -> bool:
    pattern = re.escape(promised).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, printed, flags=re.DOTALL) is not None


# The pages


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.language == "console" for block in blocks_of(page))],
    ids=name_of,
)
def test_the_code_of_a_page_does_what_the_page_says(page: Path, folder: Path, shell: Shell) -> None:
    for block in blocks_of(page):
        if block.file_name is not None:
            (folder / block.file_name).write_text(block.text)
        elif block.language == "console":
            for command, promised in block.commands():
                printed = shell.run(command)
                assert is_as_promised(promised, printed), f"$ {command}\n{printed}\n--- the page says\n{promised}"
    assert shell.running == []


def test_the_tutorial_and_the_readme_are_among_the_pages_that_are_run() -> None:
    run = {name_of(page) for page in PAGES if any(block.language == "console" for block in blocks_of(page))}
    assert {"README.md", "docs/quickstart.md"} <= run


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_of_a_page_can_be_compiled(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "python":
            compile(block.text, name_of(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_name_of_shmrpc_that_a_page_uses_exists(page: Path) -> None:
    code = "\n".join(block.text for block in blocks_of(page) if block.language == "python")
    used = set(re.findall(r"\bshmrpc\.([A-Za-z_]\w*)", code)) - {"shm", "errors", "context", "testing", "interceptors"}
    assert not [name for name in used if not hasattr(shmrpc, name)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_is_reached_from_the_front_page(page: Path) -> None:
    if page.is_relative_to(ROOT / "docs") and page.stem != "index":
        index = (page.parent / "index.md").read_text()
        assert re.search(rf"^(how-to/)?{re.escape(page.stem)}$", index, flags=re.MULTILINE)


# What the pages repeat of the code


def test_the_reference_has_every_public_name() -> None:
    documented = set(re.findall(r"^\.\. \w+:: shmrpc\.(\w+)$", REFERENCE, flags=re.MULTILINE))
    assert set(shmrpc.__all__) - {"__version__"} - documented == set()


def test_the_reference_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", REFERENCE, flags=re.MULTILINE))
    settings = Settings()
    defaults = {name: getattr(settings, name) for name in Settings.__struct_fields__}
    defaults["geometry"] = layout.Geometry()
    shown = {name: re.sub(r"frozenset\((.*)\)", r"\1", repr(value)) for name, value in defaults.items()}
    shown["geometry"] = "Geometry()"
    shown["allow_gids"] = "()"
    evaluated = {name: text if name == "geometry" else repr(eval(text, {})) for name, text in rows.items()}
    assert evaluated == shown


def imports_of(path: Path) -> Iterator[str]:
    """Every module of shmrpc that a file imports, at its top or later; without the leading ``shmrpc.``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else str(node.module) for name in below]
        else:
            continue
        yield from (layer_of(name) for name in names if name.split(".")[0] == "shmrpc")


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def layer_of(module: str) -> str:
    """The name under which CONTRIBUTING.md lists a module: its own, but that of the package for these of the top floor."""
    name = module.removeprefix("shmrpc").removeprefix(".") or "__init__"
    return package if (package := name.split(".")[0]) in ("cli", "testing") else name


def test_imports_point_downward_in_the_list_of_contributing() -> None:
    (listing,) = (block.text for block in blocks_of(ROOT / "CONTRIBUTING.md") if "shm_gate" in block.text)
    rows = [re.split(r"\s{2,}", line)[0].split() for line in listing.splitlines()]
    height = {name: -row for row, names in enumerate(rows) for name in names}
    sources = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("shmrpc/**/*.py")}
    modules = {path: layer_of(name.removesuffix(".__init__")) for path, name in sources.items()}
    packages = {"shm", "_native"}
    assert set(modules.values()) - packages == set(height)
    upward = [
        f"{name} imports {imported}"
        for path, name in modules.items()
        for imported in imports_of(path)
        if imported not in packages and name not in packages and height[imported] > height[name]
    ]
    assert upward == []


def specified(*names: str) -> dict[str, int]:
    """The numbers that rows of the specification's tables give to names, like ``| `tail` | `0x1000` |``."""
    rows = re.findall(r"^\| `([\w ]+)` \| `(0x[0-9a-f]+|\d+)` \|", SPECIFICATION, flags=re.MULTILINE)
    found = {name: int(number, 0) for name, number in rows}
    assert len(found) == len(rows), "a name has two numbers"
    return {name: found[name] for name in names}


def test_the_specification_has_the_offsets_of_the_cursor_words() -> None:
    assert specified("tail", "head", "release tail", "release head", "doorbell epoch", "room epoch") == {
        "tail": layout.CURSOR_TAIL,
        "head": layout.CURSOR_HEAD,
        "release tail": layout.CURSOR_RELEASE_TAIL,
        "release head": layout.CURSOR_RELEASE_HEAD,
        "doorbell epoch": layout.CURSOR_DOORBELL_EPOCH,
        "room epoch": layout.CURSOR_ROOM_EPOCH,
    }


def test_the_specification_has_the_numbers_of_the_record_kinds_and_flags() -> None:
    kinds = {name: number for number, name in envelope.KIND_NAMES.items()}
    assert specified("PAD", *kinds) == {"PAD": layout.KIND_PAD, **kinds}
    flags = ("IN_BLOCK", "HAS_METADATA", "AS_JSON", "HAS_BUFFERS", "MANY")
    assert specified(*flags) == {name: getattr(envelope, name) for name in flags}


def test_the_specification_lists_every_ordering_point_of_the_native_core() -> None:
    code = "\n".join(header.read_text() for header in (ROOT / "shmrpc" / "_native").glob("*.h"))
    labels = set(re.findall(r"/\* (\[[a-z-]+\])", code))
    assert labels == set(re.findall(r"^\| (\[[a-z-]+\])", SPECIFICATION, flags=re.MULTILINE))


def test_the_specification_has_the_default_geometry() -> None:
    names = layout.Geometry.__struct_fields__
    assert specified(*names) == {name: getattr(layout.Geometry(), name) for name in names}


def test_the_specification_has_the_limits_of_a_handshake_frame() -> None:
    assert specified("frame limit", "fds", "version", "smallest max_message") == {
        "frame limit": handshake.FRAME_LIMIT,
        "fds": handshake.FDS,
        "version": handshake.VERSION,
        "smallest max_message": MIN_MESSAGE,
    }


def test_the_specification_has_the_sizes_of_a_table_of_references() -> None:
    head = len(pack_references([], b""))
    assert specified("table head", "reference", "PEER_OWNED") == {
        "table head": head,
        "reference": len(pack_references([(0, 0, 0, 0)], b"")) - head,
        "PEER_OWNED": borrowing.PEER_OWNED,
    }


def test_the_specification_has_the_numbers_of_the_extension_that_stands_for_a_buffer() -> None:
    assert specified("extension code", "inline index", "most axes") == {
        "extension code": buffers.EXT_CODE,
        "inline index": int.from_bytes(buffers.INLINE, "little"),
        "most axes": MAX_AXES,
    }


def test_the_specification_has_the_numbers_of_a_stream() -> None:
    assert specified("many head", "window items", "window bytes") == {
        "many head": MANY_HEAD_BYTES,
        "window items": DEFAULT_WINDOW.items,
        "window bytes": DEFAULT_WINDOW.nbytes,
    }


@pytest.mark.parametrize(("title", "message"), [("Hello", handshake.Hello), ("Welcome", handshake.Welcome)])
def test_the_specification_has_the_keys_of_the_handshake(title: str, message: type[msgspec.Struct]) -> None:
    section = SPECIFICATION.partition(f"\n### {title}\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (\w[\w, ]*) \|", section, flags=re.MULTILINE)
    keys = [key for row in rows for key in row.split(", ")]
    assert sorted(keys) == sorted(["key", "type", *message.__struct_fields__])


def test_the_specification_has_the_limits_of_a_control_message() -> None:
    assert specified("control frame limit", "last extent", "most extents") == {
        "control frame limit": control.FRAME_LIMIT,
        "last extent": control.LAST_EXTENT,
        "most extents": control.MOST_EXTENTS,
    }


def test_the_specification_has_the_keys_of_every_control_message() -> None:
    section = SPECIFICATION.partition("\n## Control messages\n")[2].partition("\n## ")[0]
    tables = [re.findall(r"^\| (\w+) \|", table, flags=re.MULTILINE) for table in section.split("| key |")[1:]]
    messages = (control.Attach, control.Detach)
    assert tables == [["type", *message.__struct_fields__] for message in messages]
    assert re.findall(r'^\| type \| `"(\w+)"` \|', section, flags=re.MULTILINE) == [
        message.__struct_config__.tag for message in messages
    ]


def bytes_in_the_specification_after(sentence: str) -> bytes:
    """Those of the next block, in hexadecimal."""
    _, _, rest = SPECIFICATION.partition(sentence)
    return bytes.fromhex(rest.split("```text\n", 1)[1].split("```", 1)[0])


def test_the_table_of_references_in_the_specification_is_one() -> None:
    extent, granule, lease = 1, 3, 7
    table = pack_references([(extent << EXTENT_SHIFT | granule, lease, 0, 10_000)], b"")
    assert bytes_in_the_specification_after("\nA table with one reference") == table


def test_the_array_in_the_specification_is_one() -> None:
    array = np.array([1, 2, 3], np.uint8)
    encoded = msgspec.msgpack.encode(anything().pack(array, []))
    assert bytes_in_the_specification_after("\nAn array of three bytes, 1, 2 and 3, inline") == encoded


def test_the_message_of_many_items_in_the_specification_is_one() -> None:
    message = bytes_in_the_specification_after("\nThree integers, 1, 2 and 3, in one message")
    body = bytearray(head_of_many(3))
    for item in (1, 2, 3):
        encode_into(item, body, -1)
    assert message == bytes(body)
    assert ItemCodec(int).read(message, (), many=True) == [1, 2, 3]


STREAM_RECORDS = {"ARGUMENTS": protocol.Event.ITEMS, "END_OF_ARGUMENTS": protocol.Event.LAST_ITEM}


def test_the_specification_has_the_states_of_a_stream_of_arguments() -> None:
    section = SPECIFICATION.partition("\n### The order of records\n")[2]
    (header, _, *rows) = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    events = [STREAM_RECORDS[kind] for kind in header[1:]]
    outcomes = {None: "protocol error", protocol.Arguments.OPEN: "more items"}
    for state in protocol.Arguments:
        (said,) = [row[1:] for row in rows if row[0].partition(",")[0] == state.value]
        after = [protocol.step_arguments(state, event) for event in events]
        expected = [
            "ignored" if state is protocol.Arguments.ENDED else outcomes.get(one, one and one.value) for one in after
        ]
        assert said == expected


def test_the_pages_say_from_what_size_on_a_buffer_travels_in_shared_memory() -> None:
    pages = {name_of(page): page.read_text() for page in PAGES}
    said = {
        name: set(re.findall(r"(?:more\s+than|[Uu]p\s+to|over)\s+(8\d{3})\s+bytes", text))
        for name, text in pages.items()
    }
    assert {"docs/buffers.md", "docs/reference.md", "SECURITY.md"} <= {name for name in said if said[name]}
    assert set().union(*said.values()) == {str(buffers.INLINE_BYTES)}
