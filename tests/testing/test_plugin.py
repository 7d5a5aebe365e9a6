"""The plugin for pytest, in runs of pytest of its own: with pytest-asyncio, with anyio's plugin, with neither."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import shmrpc.testing
from shmrpc.testing import plugin

HERE = Path(__file__).parent
ASYNCIO = ("-p", "no:anyio", "-o", "asyncio_default_fixture_loop_scope=function")
ANYIO = ("-p", "no:asyncio")
CONFTEST = 'pytest_plugins = ["shmrpc.testing.plugin"]\n'


class Run:
    """Runs pytest on the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.write("conftest.py", CONFTEST)

    def write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)

    def __call__(self, *options: str, passed: int = 0, failed: int = 0, errors: int = 0) -> str:
        """The output of a run that must end with so many."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
        arguments = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-W", "error", "--rootdir", ".", *options]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *arguments],
            cwd=self._folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        numbers = ((failed, f"{failed} failed"), (passed, f"{passed} passed"), (errors, f"{errors} error"))
        summary = done.stdout.splitlines()[-1]
        assert all(text in summary for number, text in numbers if number), done.stdout + done.stderr
        assert all(word in summary or not number for number, word in ((failed, "failed"), (errors, "error"))), summary
        assert ("failed" in summary) == bool(failed), done.stdout
        return done.stdout


@pytest.fixture
def run(folder: Path) -> Run:
    return Run(folder)


ASYNC_TESTS = """
import asyncio

import pytest

import shmrpc
import shmrpc.testing
from faulty_api import Shop, ShopService
{before}

@pytest.fixture
async def shop(shmrpc_server):
    async with shmrpc.connect(Shop, shmrpc_server(ShopService).address) as shop:
        yield shop

@pytest.fixture
async def near():
    async with shmrpc.testing.pair(Shop, ShopService()) as near:
        yield near

@pytest.mark.usefixtures("shmrpc_no_leaks")
async def test_calls(shop, near):
    assert await shop.pid() != await near.pid()

async def test_death(shmrpc_server, shmrpc_no_leaks):
    server = shmrpc_server("faulty_api:ShopService")
    async with shmrpc.connect(Shop, server.address, reconnect_timeout=0) as shop:
        await shop.add(1)
        server.kill()
        with pytest.raises(shmrpc.Unavailable):
            await shop.add(1)

async def test_address(shmrpc_path):
    async with shmrpc.Server(ShopService(), at=shmrpc_path), shmrpc.connect(Shop, shmrpc_path) as shop:
        assert await shop.add(1) == 2
"""

ON_ASYNCIO = """
pytestmark = pytest.mark.anyio

@pytest.fixture(params=[("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    return request.param
"""


def test_it_works_with_pytest_asyncio(run: Run) -> None:
    run.write("test_it.py", ASYNC_TESTS.format(before=""))
    run(*ASYNCIO, "-o", "asyncio_mode=auto", passed=3)


def test_it_works_with_pytest_asyncio_in_strict_mode(run: Run) -> None:
    text = ASYNC_TESTS.format(before="import pytest_asyncio\npytestmark = pytest.mark.asyncio")
    run.write("test_it.py", text.replace("@pytest.fixture\nasync", "@pytest_asyncio.fixture\nasync"))
    run(*ASYNCIO, "-o", "asyncio_mode=strict", passed=3)


def test_it_works_with_anyios_plugin_on_asyncio(run: Run) -> None:
    run.write("test_it.py", ASYNC_TESTS.format(before=ON_ASYNCIO))
    run(*ANYIO, passed=6)


def test_on_trio_it_is_said_what_to_do(run: Run) -> None:
    if find_spec("trio") is None:  # not of the extra: it makes hypothesis warn, and a warning is an error here
        pytest.skip("trio is not installed")
    run.write("test_it.py", ASYNC_TESTS.format(before="pytestmark = pytest.mark.anyio"))
    said = run(*ANYIO, "-k", "trio", failed=2, errors=1)
    assert "WrongLoop: no asyncio event loop runs here, and shmrpc needs one; trio has none" in said
    assert "when the fixture anyio_backend gives 'asyncio'" in said


def test_a_test_that_fails_shows_the_logs_of_its_servers(run: Run) -> None:
    run.write(
        "test_it.py",
        "import shmrpc, shmrpc.testing, asyncio\n"
        "from faulty_api import Shop\n"
        "def test_it(shmrpc_server):\n"
        "    server = shmrpc_server('faulty_api:ShopService', at=None)\n"
        "    also = shmrpc_server(shmrpc.testing.command('shmrpc', 'serve', 'faulty_api:ShopService', '--at', '{path}'))\n"
        "    async def main():\n"
        "        async with shmrpc.connect(Shop, server.address, timeout=0.2) as shop:\n"
        "            await shop.wait()\n"
        "    asyncio.run(main())\n",
    )
    said = run(*ANYIO, failed=1)
    assert "log of <ServerProcess faulty_api:ShopService at" in said
    assert "log of <ServerProcess shmrpc serve faulty_api:ShopService --at {path} at" in said
    assert "\nwaiting\n" in said


def test_a_server_that_does_not_start_fails_the_test_with_its_log(run: Run) -> None:
    run.write("test_it.py", "def test_it(shmrpc_server): shmrpc_server('faulty_api:Nobody')\n")
    assert "UsageError: module 'faulty_api' has no 'Nobody'" in run(*ANYIO, failed=1)


def test_a_test_that_failed_is_not_blamed_for_what_its_traceback_keeps(run: Run) -> None:
    run.write(
        "test_it.py",
        "import os\n"
        "def test_it(shmrpc_no_leaks):\n"
        "    os.open(os.devnull, os.O_RDONLY)\n"
        "    assert False, 'the reason'\n",
    )
    assert "left behind" not in run(*ANYIO, failed=1)


LEAKS = """
import os, threading, pytest

@pytest.fixture(scope="module")
def wide():
    fd = os.open(os.devnull, os.O_RDONLY)
    yield fd
    os.close(fd)

@pytest.fixture
def narrow():
    return os.open(os.devnull, os.O_RDONLY)

def test_in_order(wide):
    os.close(os.dup(wide))

def test_test_leaks():
    os.open(os.devnull, os.O_RDONLY)

def test_fixture_leaks(narrow):
    pass

def test_thread_leaks(wide):
    threading.Thread(target=threading.Event().wait, daemon=True, name="forgotten").start()
"""


def test_what_tests_and_their_fixtures_leave_behind_fails_them(run: Run) -> None:
    run.write("test_it.py", LEAKS)
    run(*ANYIO, passed=4)
    said = run(*ANYIO, "-o", "usefixtures=shmrpc_no_leaks", passed=4, errors=3)
    assert "the test left behind: thread forgotten" in said
    assert said.count("/dev/null") >= 2
    assert "ERROR test_it.py::test_in_order" not in said


def test_the_check_must_be_named_before_the_test_begins(run: Run) -> None:
    run.write("test_it.py", "def test_it(request): request.getfixturevalue('shmrpc_no_leaks')\n")
    assert "shmrpc_no_leaks must be named by the test" in run(*ANYIO, failed=1)


@pytest.mark.parametrize("module", ["shmrpc.testing.plugin"])
def test_no_run_of_pytest_loads_it_unasked(folder: Path, module: str) -> None:
    code = f"import sys, pytest; pytest.main(['-q', '.']); sys.exit({module!r} in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, capture_output=True)


def test_every_name_and_every_fixture_is_in_the_reference() -> None:
    reference = (HERE.parents[1] / "docs" / "reference.md").read_text()
    documented = set(re.findall(r"^\.\. \w+:: shmrpc\.testing\.(?:plugin\.)?(\w+)$", reference, flags=re.MULTILINE))
    fixtures = {name for name in vars(plugin) if name.startswith("shmrpc_")}
    assert documented == {*shmrpc.testing.__all__, *fixtures}
