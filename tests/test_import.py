"""The architecture: who may import whom, which module alone may touch what, and what `import shmrpc` brings along."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import shmrpc

PACKAGE = Path(shmrpc.__file__).parent

LAYERS = (
    # what a call is
    "errors buffers dtypes legible",
    "retry",
    "context arrays",
    "exporters single policy",
    "slots guards",
    "schema codec",
    "signature",
    "methods",
    "contract failure inlet json_schema health",
    "introspection",
    "built_in",
    "outlet streams",
    "transport admission",
    # what goes around a call
    "interceptors interceptors.call interceptors.buckets",
    "interceptors.chain interceptors.logging interceptors.otel interceptors.prometheus",
    "interceptors.passage",
    "interceptors.server",
    "dispatch repeating",
    "interceptors.client",
    "local_flows",
    "local_call",
    # how calls travel between two processes of a host
    "shm shm.disposal",
    "shm.layout shm.protocol shm.deadlines shm.address",
    "shm.segment shm.doorbell shm.slab shm.liveness shm.envelope",
    "shm.ring shm.frames shm.folders",
    "shm.arena",
    "shm.channel shm.poller shm.eager shm.control",
    "shm.settings",
    "shm.handshake shm.quota shm.extents",
    "shm.borrowing",
    "shm.placed",
    "shm.lending",
    "shm.memory",
    "shm.flows shm.incoming_call",
    "shm.matching shm.outgoing shm.incoming",
    "shm.session shm.streaming",
    "shm.calling",
    "shm.backward",
    "shm.meeting",
    "shm.link shm.listener",
    "shm.json_calls",
    "shm.caller shm.pool",
    # what users see
    "shm_gate",
    "loop_thread",
    "client server crossing facade",
    "local sharing",
    "blocking",
    "__init__",
    "cli.common cli.checking cli.lines",
    "cli.call cli.health cli.listing cli.serve",
    "cli",
    "testing.connections testing.holdings",
    "testing.faults",
    "testing.pairs testing.host",
    "testing.processes",
    "testing.commands",
    "testing testing.plugin",
    "__main__",
)
"""From the bottom up. A module imports from the layers below its own, not from its own nor from those above."""

LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer.split()}

CONFINED = {
    "shared memory": ({"mmap", "memfd_create", "shm_open", "posix_fallocate"}, {"shm.segment"}),
    "doorbells": ({"eventfd", "eventfd_read", "eventfd_write", "pipe", "pipe2", "pwritev"}, {"shm.doorbell"}),
    "the readiness of fds": (
        {"add_reader", "remove_reader", "add_writer", "remove_writer"},
        {"shm.poller", "shm.control", "shm.listener", "shm.liveness", "cli.serve"},
    ),
    "the queue of the event loop": (
        {"call_soon", "call_soon_threadsafe"},
        {
            "shm.poller",
            "shm.session",
            "shm.control",
            "shm.outgoing",
            "shm.incoming",
            "shm.lending",
            "outlet",
            "streams",
            "admission",
            "health",
            "cli.lines",
            "loop_thread",
        },
    ),
    "timers": ({"call_later", "call_at"}, {"shm.deadlines", "shm.listener", "shm.link", "shm.lending", "local"}),
    "signals": (
        {"signal", "add_signal_handler"},
        {"server", "cli.serve", "testing.connections", "testing.processes"},  # the last two kill and stop servers
    ),
    "the native core": ({"_native"}, {"shm.ring"}),
    "msgspec": (
        {"msgspec"},
        {
            "schema",  # reads types
            "signature",  # so are signatures
            "codec",  # codecs of arguments and results
            "slots",  # types and hooks of buffers in them
            "buffers",  # the extension that stands for a buffer
            "dtypes",  # structured element types
            "context",  # options are a Struct
            "json_schema",  # types as JSON Schema
            "introspection",  # what the built-in service gives
            "failure",  # errors as data, and the fields of declared ones
            "local",  # the result of a one-way call
            "cli.call",  # prints JSON
            "cli.listing",  # as cli.call
            "shm.envelope",  # what records say
            "shm.handshake",  # frames
            "shm.control",  # what the control socket says
            "shm.layout",  # geometry travels in the handshake
            "shm.settings",  # a frozen Struct
            "shm.incoming_call",  # calls are Structs, which are made faster than other classes
            "shm.calling",  # the result of a one-way call
        },
    ),
}
"""For each concern the names that belong to it, and the only modules that may use them."""

BANNED = {
    "pickle": "no pickle anywhere: a peer must not be able to run code",
    "marshal": "as pickle",
    "shelve": "as pickle",
    "multiprocessing": "its resource tracker deletes segments that live",
    "recv_fds": "it drops MSG_CMSG_CLOEXEC, and the fds leak into every child",
    "pack_into": "it writes zeros first, and the other side could read them",
    "get_event_loop": "the loop is the running one",
}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package, by its name in `LAYERS`, parsed."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = ast.parse(path.read_text())
    return found


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Full names of what a module imports, at its top, inside of functions and for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports_of(tree: ast.Module) -> Iterator[str]:
    """Modules of the package that a module imports, as `LAYERS` calls them."""
    for name in imports_of(tree):
        package, _, inner = name.partition(".")
        if package != "shmrpc":
            continue
        candidates = (inner, inner.rpartition(".")[0] or "__init__")
        yield next(candidate for candidate in candidates if candidate in modules() or candidate == "_native")


def names_in(tree: ast.Module) -> set[str]:
    """Every identifier that a module uses: names, attributes, and each part of what it imports."""
    names = {part for name in imports_of(tree) for part in name.split(".")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
    return names


# Who may import whom


def test_every_module_is_in_one_layer() -> None:
    assert sorted(LAYER_OF) == sorted(modules())
    assert sum(len(layer.split()) for layer in LAYERS) == len(LAYER_OF)


def test_a_module_imports_from_below_only() -> None:
    upward = [
        f"{name} imports {imported}"
        for name, tree in modules().items()
        for imported in own_imports_of(tree)
        if imported != "_native" and LAYER_OF[imported] >= LAYER_OF[name]
    ]
    assert upward == []


def test_nothing_above_the_gate_imports_the_transport_at_its_top() -> None:
    for name, tree in modules().items():
        if LAYER_OF[name] >= LAYER_OF["shm_gate"]:
            top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
            assert not [imported for imported in own_imports_of(top) if imported.startswith("shm.")], name


def test_what_a_call_is_does_not_know_the_event_loop() -> None:
    for name in " ".join(LAYERS[:2]).split():
        assert "asyncio" not in set(imports_of(modules()[name])), name


# Which module alone may touch what


@pytest.mark.parametrize("concern", CONFINED)
def test_a_concern_is_confined_to_its_modules(concern: str) -> None:
    names, allowed = CONFINED[concern]
    found = {name: used for name, tree in modules().items() if (used := names & names_in(tree))}
    assert set(found) <= allowed, f"{concern}: {found}"


@pytest.mark.parametrize(
    "concern", ["shared memory", "doorbells", "the readiness of fds", "msgspec", "the native core"]
)
def test_the_list_of_a_concerns_modules_is_not_longer_than_it_need_be(concern: str) -> None:
    names, allowed = CONFINED[concern]
    assert {name for name, tree in modules().items() if names & names_in(tree)} == allowed


def test_what_has_hurt_before_is_not_used() -> None:
    used = {module: [BANNED[name] for name in BANNED if name in names_in(tree)] for module, tree in modules().items()}
    assert {module: reasons for module, reasons in used.items() if reasons} == {}


def test_only_the_gate_asks_whether_the_native_core_is_there() -> None:
    asking = [
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value == "shmrpc._native"
    ]
    assert asking == ["shm_gate"]


def test_no_file_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {path.name: length for path, length in lengths.items() if length > 450}


# What `import shmrpc` brings along


def run_python(code: str) -> str:
    """The output of a Python process."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_brings_neither_the_transport_nor_optional_packages() -> None:
    brought = run_python("import sys, shmrpc; print(*sys.modules)").split()
    assert "shmrpc.client" in brought
    for name in (
        "numpy",
        "uvloop",
        "argparse",
        "grpc",
        "rich",
        "opentelemetry",
        "prometheus_client",
        "multiprocessing",
        "shmrpc.shm",
        "shmrpc._native",
    ):
        assert name not in brought
    assert not [name for name in brought if name.startswith("shmrpc.shm.")]


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    for name in shmrpc.__all__:
        member = getattr(shmrpc, name)
        assert name in ("__version__", "Metadata", "Buffer", "Interceptor") or member.__doc__, name


# A machine that cannot carry calls through shared memory

ON_SUCH_A_MACHINE = """
import asyncio, os, socket, sys, anyio.to_thread, anyio._backends._asyncio
{fake}
import shmrpc
from shmrpc import cli

class Echo:
    async def echo(self, text: str) -> str:
        return text

async def main():
    async with shmrpc.local(Echo, Echo()) as echo:
        assert await echo.echo("here") == "here"

asyncio.run(main())
for refused in (
    lambda: shmrpc.connect(Echo, "/tmp/never.sock"),
    lambda: shmrpc.connect(Echo, ["/tmp/never.sock", "/tmp/neither.sock"]),
    lambda: shmrpc.connect_sync(Echo, "/tmp/never.sock"),
    lambda: shmrpc.Server(Echo(), at="/tmp/never.sock"),
    lambda: asyncio.run(shmrpc.serve(Echo(), at="/tmp/never.sock")),
):
    try:
        refused()
    except shmrpc.UnsupportedPlatform as error:
        print(error)
sys.stderr = sys.stdout
print(cli.main(["serve", "os:Echo", "--at", "/tmp/never.sock", "--workers", "2"]))
print(cli.main(["call", "/tmp/never.sock", "echo"]))
"""


@pytest.mark.parametrize(
    ("fake", "missing"),
    [
        ("sys.platform = 'darwin'", "Linux"),
        ("del os.pidfd_open", "pidfd_open"),
        ("del socket.SO_PEERCRED", "SO_PEERCRED"),
        ("sys.modules['shmrpc._native'] = None", "the extension module shmrpc._native ("),
        ("sys.platform = 'freebsd14'; del os.pidfd_open", "Linux, pidfd_open"),
    ],
)
def test_a_machine_that_lacks_something_imports_the_package_and_is_told_what(fake: str, missing: str) -> None:
    lines = run_python(ON_SUCH_A_MACHINE.format(fake=fake)).splitlines()
    text = f"shared-memory transport needs {missing}"
    assert len([line for line in lines if line.startswith(text)]) == 5
    assert len([line for line in lines if line.startswith(f"shmrpc: UNIMPLEMENTED: {text}")]) == 2
    assert lines.count("2") == 2


def test_a_missing_extension_says_how_to_get_it() -> None:
    said = run_python(ON_SUCH_A_MACHINE.format(fake="sys.modules['shmrpc._native'] = None"))
    assert "reinstall with a C compiler at hand" in said
