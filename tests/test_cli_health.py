"""`shmrpc health`: whether a server can do its work."""

import os
import signal

import pytest
from test_cli import PATIENCE_SECONDS, command, running, serving, stop

from shmrpc import cli

VISION = ("introspection_api:Worker",)


def test_the_exit_status_says_whether_a_server_can_do_its_work(path: str) -> None:
    with serving(path, services=VISION):
        assert command("health", path) == (0, "SERVING\n", "")
        assert command("health", path, "Vision") == (0, "SERVING\n", "")
        for state in ("NOT_SERVING", "UNKNOWN"):
            command("call", path, "warm_up", f'["{state}"]')
            assert command("health", path) == (1, f"{state}\n", "")
            assert command("health", path, "Vision") == (1, f"{state}\n", "")


def test_a_service_that_is_not_there_is_unknown(path: str) -> None:
    with serving(path, services=VISION):
        for options in ((), ("--watch",)):
            assert command("health", path, "Taste", *options) == (
                1,
                "SERVICE_UNKNOWN\n",
                "shmrpc: there is no service 'Taste'; there is Vision\n",
            )


def test_a_server_that_is_not_there_is_not_healthy(path: str) -> None:
    status, output, errors = command("health", path)
    assert (status, output) == (1, "")
    assert errors == f"shmrpc: UNAVAILABLE: no server at {path}: No such file or directory\n"


def test_a_server_that_is_still_starting_can_be_waited_for(path: str) -> None:
    with running("health", path, "--wait", str(PATIENCE_SECONDS)) as asking, serving(path, services=VISION):
        assert asking.communicate(timeout=PATIENCE_SECONDS) == ("SERVING\n", "")
        assert asking.returncode == 0


def test_a_server_that_hangs_is_not_healthy(path: str) -> None:
    with serving(path, services=VISION) as server:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            status, output, errors = command("health", path, "--timeout", "0.2")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert (status, output) == (1, "")
        assert "did not finish the handshake within 0.2 s" in errors


@pytest.mark.parametrize("seconds", ["-1", "nan"])
def test_a_time_to_wait_that_is_none_exits_with_2(path: str, seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", path, "--wait", seconds]) == 2
    shown = float(seconds)
    assert capsys.readouterr().err == f"shmrpc: --wait is a number of seconds of 0 or more, not {shown}\n"


def test_a_watch_prints_each_change_until_the_server_drains(path: str) -> None:
    with serving(path, services=VISION) as server, running("health", path, "--watch") as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "SERVING\n"
        command("call", path, "warm_up", '["UNKNOWN"]')
        assert watch.stdout.readline() == "UNKNOWN\n"
        command("call", path, "warm_up", '["SERVING"]')
        assert watch.stdout.readline() == "SERVING\n"
        assert stop(server) == (0, "")
        output, errors = watch.communicate(timeout=PATIENCE_SECONDS)
        assert (watch.returncode, output, errors) == (1, "NOT_SERVING\n", "")


def test_a_watch_ends_by_ctrl_c(path: str) -> None:
    with serving(path, services=VISION) as server, running("health", path, "--watch") as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "SERVING\n"
        watch.send_signal(signal.SIGINT)
        assert watch.communicate(timeout=PATIENCE_SECONDS) == ("", "")
        assert watch.returncode == 130
        assert stop(server) == (0, "")


def test_a_watch_of_a_server_that_is_killed_says_so(path: str) -> None:
    with serving(path, services=VISION) as server, running("health", path, "--watch") as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "SERVING\n"
        server.kill()
        output, errors = watch.communicate(timeout=PATIENCE_SECONDS)
        assert (watch.returncode, output) == (1, "")
        assert errors.startswith("shmrpc: UNAVAILABLE: ")


@pytest.mark.parametrize("timeout", ["0", "-1"])
def test_a_timeout_that_is_none_is_refused(path: str, timeout: str) -> None:
    status, output, errors = command("health", path, "--timeout", timeout)
    assert (status, output) == (2, "")
    assert errors.startswith("shmrpc: --timeout: a timeout is a positive number of seconds")
