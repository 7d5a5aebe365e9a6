"""The command line: `shmrpc serve` and `shmrpc call`, as processes."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from life_waiting import is_there, wait_until

import shmrpc
from shmrpc import cli

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parent)}
SHMRPC = (sys.executable, "-m", "shmrpc")
PATIENCE_SECONDS = 60.0


def until(path: str | Path, process: "subprocess.Popen[str]", *, there: bool = True) -> None:
    """Returns when there is something at a path, or not any more; a server is at its own exactly while it listens."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while os.path.exists(path) != there:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.002)


@contextmanager
def running(
    *arguments: str, pass_fds: tuple[int, ...] = (), own_group: bool = False, program: Sequence[str] = SHMRPC
) -> "Iterator[subprocess.Popen[str]]":
    """A command, in the folder of `cli_worker`; killed in the end if it still runs."""
    with subprocess.Popen(
        [*program, *arguments],
        cwd=HERE,
        env=ENVIRONMENT,
        pass_fds=pass_fds,
        process_group=0 if own_group else None,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def serving(
    path: str, *options: str, services: tuple[str, ...] = ("cli_worker:Worker",)
) -> "Iterator[subprocess.Popen[str]]":
    """``shmrpc serve``, when it listens; in the end it is stopped, unless it has ended."""
    with running("serve", *services, "--at", path, *options) as process:
        until(path, process)
        yield process
        stop(process)


def stop(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    """Stops a server; its exit status, and what it said."""
    if process.poll() is None:
        process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, said


def command(*arguments: str) -> tuple[int, str, str]:
    """A command that ends by itself: its exit status, output and errors."""
    done = subprocess.run(
        [*SHMRPC, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def call(path: str, *arguments: str) -> tuple[int, str, str]:
    """``shmrpc call``: its exit status, output and errors."""
    return command("call", path, *arguments)


def result(path: str, *arguments: str) -> object:
    """The result of a call that succeeds."""
    status, output, errors = call(path, *arguments)
    assert status == 0, errors
    return json.loads(output)


# call


def test_a_call_prints_its_result_as_json(path: str) -> None:
    with serving(path):
        assert call(path, "add", '{"left": 2, "right": 3}') == (0, "5\n", "")
        assert result(path, "add", '{"left": 2}') == 3
        assert result(path, "add", "[2, 5]") == 7
        assert result(path, "Worker.add", "[2]") == 3
        assert result(f"shm://{path}", "bytes") == "Ynl0ZXM="
        assert result(path, "metadata", "--metadata", "tenant=a", "--metadata", "x=y=z") == {"tenant": "a", "x": "y=z"}


def test_a_call_that_fails_says_why_and_exits_with_1(path: str) -> None:
    with serving(path):
        for arguments, text in (
            (
                ("add", '{"left": "x"}'),
                "INVALID_ARGUMENT: Worker.add: parameter 'left' takes int, got str \"x\"; it is add(left: int",
            ),
            (("add", '{"middle": 1}'), "INVALID_ARGUMENT: Worker.add has no parameter 'middle'"),
            (("add", "{}"), "INVALID_ARGUMENT: Worker.add: parameter 'left' is missing"),
            (("add", "[1, 2, 3]"), "INVALID_ARGUMENT: Worker.add takes 2 arguments, got 3; it is add(left: int"),
            (("refuse", '["no"]'), "ABORTED: Refused(reason='no')"),
            (("fail", '["swordfish"]'), "INTERNAL: Worker.fail: failed; the server's log has the reason"),
            (("subtract",), "UNIMPLEMENTED: there is no method 'subtract'; the server has\n  Worker.add(left: int"),
        ):
            status, output, errors = call(path, *arguments)
            assert (status, output) == (1, "")
            assert errors.startswith(f"shmrpc: {text}")
            assert "swordfish" not in errors


def test_a_call_ends_at_its_timeout(path: str, folder: Path) -> None:
    with serving(path):
        status, _, errors = call(path, "hold", json.dumps([str(folder / "a"), "/missing"]), "--timeout", "0.2")
        assert (status, errors) == (1, "shmrpc: DEADLINE_EXCEEDED: Worker.hold did not end before its deadline\n")


def test_a_call_to_nobody_says_so(path: str) -> None:
    status, _, errors = call(path, "add", "[1]")
    assert (status, errors) == (1, f"shmrpc: UNAVAILABLE: no server at {path}: No such file or directory\n")


def test_a_method_of_several_services_must_be_named_in_full(path: str) -> None:
    with serving(path, services=("cli_worker:Worker", "cli_worker:Other")):
        status, _, errors = call(path, "add", "[1]")
        assert status == 1
        assert "'add' is a method of several services" in errors
        assert result(path, "Other.add", "[1]") == 1
        assert result(path, "Worker.add", "[1]") == 2
        assert result(path, "greet") == "hello"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["add", "{"], "the arguments are not JSON"),
        (["add", "3"], "the arguments are a JSON object by parameter name, or an array by position"),
        (["add", "[1]", "--metadata", "tenant"], "--metadata is KEY=VALUE, not 'tenant'"),
        (["add", "[1]", "--timeout", "0"], "--timeout: a timeout is a positive number of seconds, not 0.0"),
    ],
)
def test_a_call_that_cannot_be_made_exits_with_2(
    path: str, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["call", path, *arguments]) == 2
    assert f"shmrpc: {text}" in capsys.readouterr().err


# serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_answers_what_runs_and_exits_with_0(
    path: str, folder: Path, number: signal.Signals
) -> None:
    started, gate = folder / "started", folder / "gate"
    with serving(path) as server, running("call", path, "hold", json.dumps([str(started), str(gate)])) as caller:
        until(started, server)
        server.send_signal(number)
        until(path, server, there=False)
        gate.touch()
        assert caller.communicate(timeout=PATIENCE_SECONDS) == ('"held"\n', "")
        assert server.communicate(timeout=PATIENCE_SECONDS) == ("", "")
        assert server.returncode == 0


def test_a_server_does_not_wait_for_calls_longer_than_its_grace_time(path: str, folder: Path) -> None:
    started = folder / "started"
    arguments = json.dumps([str(started), "/missing"])
    with serving(path, "--grace", "0.05") as server, running("call", path, "hold", arguments) as caller:
        until(started, server)
        assert stop(server) == (0, "")
        output, errors = caller.communicate(timeout=PATIENCE_SECONDS)
        assert (caller.returncode, output) == (1, "")
        assert errors.startswith("shmrpc: UNAVAILABLE: Worker.hold was cut off: the server stopped before it ended")


def test_a_handler_in_a_thread_cannot_keep_a_server_from_ending(path: str, folder: Path) -> None:
    started = folder / "started"
    arguments = json.dumps([str(started)])
    with serving(path, "--grace", "0.05") as server, running("call", path, "sleep_for_ever", arguments):
        until(started, server)
        status, said = stop(server)
        assert status == 0
        assert "a handler still runs" in said


def test_a_server_that_was_killed_leaves_a_path_that_its_successor_takes(path: str) -> None:
    with serving(path) as first:
        first.kill()
        first.wait()
    assert os.path.exists(path)
    with running("serve", "cli_worker:Worker", "--at", path) as second:
        while call(path, "add", "[1]")[:2] != (0, "2\n"):
            assert second.poll() is None
        assert stop(second) == (0, "")


def test_a_server_serves_an_object_or_one_inside_of_another(path: str) -> None:
    with serving(path, services=("cli_worker:made", "cli_worker:Nested.worker")):
        assert result(path, "measure") == 7
        assert result(path, "add", "[1]") == 2


@pytest.mark.parametrize(("loop", "module"), [("asyncio", "asyncio"), ("uvloop", "uvloop"), ("auto", "uvloop")])
def test_a_server_runs_on_the_loop_that_was_asked_for(path: str, loop: str, module: str) -> None:
    pytest.importorskip("uvloop")
    with serving(path, "--loop", loop):
        assert str(result(path, "loop")).startswith(module)


def test_the_options_of_a_server_reach_it(path: str) -> None:
    options = ("--mode", "660", "--debug", "--doorbell", "pipe", "--polling", "0.001", "--segment", "memfd")
    with serving(path, *options) as server:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        assert call(path, "fail", '["swordfish"]')[2].endswith(": ValueError: swordfish\n")
        status, said = stop(server)
    assert status == 0
    assert "ValueError: swordfish" in said, "an unexpected error is in the log"


def test_a_server_lets_in_whom_it_is_told_to(path: str) -> None:
    with serving(path, "--allow-uid", "12345"):
        status, _, errors = call(path, "add", "[1]")
        assert status == 1
        assert f"uid {os.getuid()} (gid {os.getgid()}) is not allowed; allowed are uids 12345" in errors
    for allowed in (("--allow-uid", "12345", "--allow-uid", str(os.getuid())), ("--allow-gid", str(os.getgid()))):
        with serving(path, *allowed):
            assert result(path, "add", "[1]") == 2


def test_workers_let_in_whom_they_are_told_to(path: str) -> None:
    options = ("--allow-uid", "12345", "--allow-gid", "54321", "--workers", "2")
    with running("serve", "cli_worker:Worker", "--at", path, *options) as server:
        until(path, server)
        assert "is not allowed; allowed are uids 12345 or gids 54321" in call(path, "add", "[1]")[2]
        assert stop(server)[0] == 0


def test_a_server_may_be_given_its_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()
        fd = listening.fileno()
        with running("serve", "cli_worker:Worker", "--at", path, "--fd", str(fd), pass_fds=(fd,)) as server:
            assert result(path, "add", "[1]") == 2
            assert stop(server) == (0, "")
    assert os.path.exists(path), "it belongs to whoever made it"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["cli_worker", "--at", "PATH"], "'cli_worker' is not module:attr, like worker:Worker"),
        ([":Worker", "--at", "PATH"], "':Worker' is not module:attr"),
        (["no_such_module:Worker", "--at", "PATH"], "there is no module 'no_such_module' here or on the import path"),
        (["cli_worker:Nobody", "--at", "PATH"], "module 'cli_worker' has no 'Nobody'"),
        (["cli_worker:NeedsArguments", "--at", "PATH"], "'cli_worker:NeedsArguments' cannot be made without arguments"),
        (["cli_worker:Asked", "--at", "PATH"], "'cli_worker:Asked' is a contract; name a class that implements it"),
        (
            ["cli_worker:Abstract", "--at", "PATH"],
            "'cli_worker:Abstract' is a contract; name a class that implements it",
        ),
        (["cli_worker:Unfinished", "--at", "PATH"], "'cli_worker:Unfinished' does not implement ask, tell"),
        (["cli_worker:os", "--at", "PATH"], "FAILED_PRECONDITION: module has no public methods"),
        (["cli_worker:Worker", "--at", "/missing/folder/a.sock"], "INVALID_ARGUMENT: cannot serve at /missing"),
        (["cli_worker:Worker", "--at", "http://here"], "INVALID_ARGUMENT: 'http://here' is not an address"),
        (["cli_worker:Worker", "--at", "PATH", "--fd", "99"], "INVALID_ARGUMENT: fd 99 is not a listening Unix"),
        (["cli_worker:Worker", "--at", "PATH", "--polling", "often"], "--polling is adaptive, never or a number"),
        (["cli_worker:Worker", "--at", "PATH", "--polling", "7"], "polling is 'adaptive', 'never' or seconds from 0"),
        (["cli_worker:Worker", "--at", "PATH", "--mode", "rw"], "--mode is octal, from 0 to 777, like 660, not 'rw'"),
        (
            ["cli_worker:Worker", "--at", "PATH", "--mode", "1660"],
            "--mode is octal, from 0 to 777, like 660, not '1660'",
        ),
        (["cli_worker:Worker", "--at", "PATH", "--mode", "-1", "--workers", "2"], "--mode is octal, from 0 to 777"),
        (["cli_worker:Worker", "--at", "PATH", "--workers", "0"], "--workers must be at least 1, not 0"),
        (
            ["cli_worker:Worker", "--at", "PATH", "--grace", "-1"],
            "--grace is a number of seconds of 0 or more, not -1.0",
        ),
    ],
)
def test_what_cannot_be_served_exits_with_2(
    path: str,
    arguments: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = [path if argument == "PATH" else argument for argument in arguments]
    assert cli.main(["serve", *arguments, "--loop", "asyncio"]) == 2
    assert f"shmrpc: {text}" in capsys.readouterr().err
    assert not os.path.exists(path)


def test_a_service_whose_constructor_fails_shows_where(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(TypeError, match="not on this machine"):
        cli.main(["serve", "cli_worker:FailsToStart", "--at", path])


# Output that nobody reads


def test_output_that_nobody_reads_any_more_ends_a_command_quietly(path: str) -> None:
    with serving(path, services=("introspection_api:Worker", "cli_worker:Worker")):
        for arguments in (
            ("list", path),
            ("list", path, "--json"),
            ("call", path, "Worker.pid"),
            ("call", path, "count", "[1000000]"),
            ("health", path),
        ):
            with running(*arguments) as process:
                assert process.stdout is not None
                assert process.stderr is not None
                process.stdout.close()
                assert process.wait(timeout=PATIENCE_SECONDS) == 128 + signal.SIGPIPE, arguments
                assert process.stderr.read() == ""


def test_head_takes_what_it_wants_of_a_stream(path: str) -> None:
    with serving(path, services=("introspection_api:Worker",)):
        script = f"set -o pipefail; {sys.executable} -m shmrpc call {path} count '[1000000]' | head -n 2"
        done = subprocess.run(
            ["bash", "-c", script],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGPIPE, "0\n1\n", "")


# serve --workers


def pids(path: str) -> set[int]:
    """The workers that have answered some calls."""
    return {int(str(result(path, "pid"))) for _ in range(4)}


@pytest.mark.parametrize("scheme", ["", "shm://"])
def test_several_workers_share_an_address(path: str, scheme: str) -> None:
    with running("serve", "cli_worker:Worker", "--at", scheme + path, "--workers", "2") as server:
        until(path, server)
        answered = pids(path)
        assert server.pid not in answered
        assert 1 <= len(answered) <= 2
        assert stop(server) == (0, "")
        assert not os.path.exists(path)
        for pid in answered:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_when_a_worker_dies_all_are_stopped_and_the_status_is_1(path: str) -> None:
    with running("serve", "cli_worker:Worker", "--at", path, "--workers", "2") as server:
        until(path, server)
        os.kill(min(pids(path)), signal.SIGKILL)
        _, said = server.communicate(timeout=PATIENCE_SECONDS)
        assert server.returncode == 1
        assert "a worker ended by itself, exit codes [" in said
        assert "-9" in said
    assert not os.path.exists(path)


def listening(supervisor: int) -> list[int]:
    """The workers that handle signals by now."""
    pids = []
    for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if b"--supervised" in Path(f"/proc/{pid}/cmdline").read_bytes() and caught >> (signal.SIGTERM - 1) & 1:
            pids.append(int(pid))
    return pids


@contextmanager
def two_workers_and_a_call(
    path: str, folder: Path
) -> "Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str], Path]]":
    """Two workers with their supervisor in a group of processes, a call under way at one, and the gate that it waits for."""
    started, gate = folder / "started", folder / "gate"
    with running(
        "serve", "cli_worker:Worker", "--at", path, "--workers", "2", "--grace", "1000", own_group=True
    ) as server:
        wait_until(lambda: len(listening(server.pid)) == 2, "both workers to listen")
        with running("call", path, "hold", json.dumps([str(started), str(gate)])) as caller:
            until(started, server)
            yield server, caller, gate


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["their supervisor", "all of them"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_that_are_told_to_stop_answer_what_runs(
    path: str, folder: Path, number: signal.Signals, send: Callable[[int, int], None]
) -> None:
    """Also where a terminal or systemd tells each of them, as their supervisor does."""
    with two_workers_and_a_call(path, folder) as (server, caller, gate):
        workers = listening(server.pid)
        send(server.pid, number)
        wait_until(lambda: not all(map(is_there, workers)), "the one that is idle to end")
        assert not os.path.exists(path)
        gate.touch()
        assert caller.communicate(timeout=PATIENCE_SECONDS) == ('"held"\n', "")
        assert server.communicate(timeout=PATIENCE_SECONDS) == ("", "")
        assert server.returncode == 0


def test_workers_that_are_told_twice_wait_for_nothing(path: str, folder: Path) -> None:
    with two_workers_and_a_call(path, folder) as (server, caller, _):
        server.terminate()
        until(path, server, there=False)
        server.terminate()
        output, errors = caller.communicate(timeout=PATIENCE_SECONDS)
        assert errors.startswith("shmrpc: UNAVAILABLE: Worker.hold was cut off: the server stopped before it ended")
        assert server.communicate(timeout=PATIENCE_SECONDS) == ("", "")
        assert (server.returncode, output) == (0, "")


def test_workers_whose_supervisor_was_killed_answer_what_runs_and_end(path: str, folder: Path) -> None:
    with two_workers_and_a_call(path, folder) as (server, caller, gate):
        workers = listening(server.pid)
        server.kill()
        wait_until(lambda: not all(map(is_there, workers)), "the one that is idle to end")
        gate.touch()
        assert caller.communicate(timeout=PATIENCE_SECONDS) == ('"held"\n', "")
        wait_until(lambda: not any(map(is_there, workers)), "the other to end")


def test_workers_that_are_stopped_while_they_start_end_too(path: str) -> None:
    for _ in range(3):
        with running("serve", "cli_worker:Worker", "--at", path, "--workers", "3") as server:
            until(path, server)
            assert stop(server)[0] == 0
        assert not os.path.exists(path)


AFTER_A_HELPER = """
import runpy, subprocess, sys

helper = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read(1)"], stdin=int(sys.argv.pop(1)))
print(helper.pid, flush=True)
runpy.run_module("shmrpc", run_name="__main__", alter_sys=True)
"""


def test_another_child_of_the_supervisor_may_end(path: str) -> None:
    """One that an entry point has started before it became the supervisor, say; the supervisor reaps it."""
    gate, told = os.pipe()
    arguments = (str(gate), "serve", "cli_worker:Worker", "--at", path, "--workers", "2")
    with running(*arguments, program=[sys.executable, "-c", AFTER_A_HELPER], pass_fds=(gate,)) as server:
        os.close(gate)
        assert server.stdout is not None
        helper = int(server.stdout.readline())
        until(path, server)
        assert is_there(helper)
        os.close(told)
        wait_until(lambda: not os.path.exists(f"/proc/{helper}"), "it to be reaped")
        assert result(path, "add", "[1]") == 2
        assert stop(server) == (0, "")


STOPPED_WHEN_ITS_SOCKET_APPEARS = """
import os, runpy, signal

rename = os.rename

def appear(*names):
    rename(*names)
    signal.raise_signal(signal.SIGTERM)

os.rename = appear
runpy.run_module("shmrpc", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_whoever_sees_that_it_listens_may_stop_it_in_the_same_moment(path: str, workers: str) -> None:
    command = [sys.executable, "-c", STOPPED_WHEN_ITS_SOCKET_APPEARS, "serve", "cli_worker:Worker", "--at", path]
    done = subprocess.run(
        [*command, "--workers", workers], cwd=HERE, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not os.path.exists(path)


def test_workers_may_be_given_their_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()
        fd = listening.fileno()
        arguments = ("serve", "cli_worker:Worker", "--at", path, "--fd", str(fd), "--workers", "2")
        with running(*arguments, pass_fds=(fd,)) as server:
            assert result(path, "add", "[1]") == 2
            assert stop(server) == (0, "")


def test_workers_that_cannot_start_say_so(path: str) -> None:
    with running("serve", "cli_worker:Nobody", "--at", path, "--workers", "2") as server:
        _, said = server.communicate(timeout=PATIENCE_SECONDS)
    assert server.returncode == 1
    assert "module 'cli_worker' has no 'Nobody'" in said
    assert not os.path.exists(path)


# The command itself


def test_it_says_its_version() -> None:
    done = subprocess.run([*SHMRPC, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"shmrpc {shmrpc.__version__}\n"


def test_without_a_command_it_says_what_there_is() -> None:
    done = subprocess.run(SHMRPC, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "COMMAND" in done.stderr


def test_the_script_that_is_installed_is_the_same_command() -> None:
    script = Path(sys.executable).with_name("shmrpc")
    if not script.exists():
        pytest.skip("shmrpc is not installed in this environment, only on its path")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"shmrpc {shmrpc.__version__}\n"


def test_uvloop_that_is_not_installed_is_said_to_be_so(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert cli.main(["serve", "cli_worker:Worker", "--at", path, "--loop", "uvloop"]) == 2
    assert "uvloop is not installed; choose --loop asyncio" in capsys.readouterr().err
