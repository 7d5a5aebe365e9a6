"""The program of a server process for tests. What it serves is in the tests of processes and commands."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def run(path: str, **plan: Any) -> subprocess.CompletedProcess[str]:
    """The host with a plan, whose standard input has ended."""
    whole = {
        "services": ["faulty_api:ShopService"],
        "loop": "asyncio",
        "log_level": "info",
        "options": {},
        "faults": [],
    }
    text = json.dumps({**whole, "at": path, **plan})
    command = [sys.executable, "-m", "shmrpc.testing.host", text]
    environment = {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )


def test_it_ends_when_its_input_does(path: str) -> None:
    assert run(path).returncode == 1


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ({"services": ["faulty_api:Nobody"]}, "UsageError: module 'faulty_api' has no 'Nobody'"),
        ({"at": "http://here"}, "BadAddress: 'http://here' is not an address"),
    ],
)
def test_what_cannot_be_served_is_said(path: str, plan: dict[str, Any], text: str) -> None:
    environment = {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    whole = {
        "services": ["faulty_api:ShopService"],
        "loop": "asyncio",
        "log_level": "info",
        "options": {},
        "faults": [],
    }
    command = [sys.executable, "-m", "shmrpc.testing.host", json.dumps({**whole, "at": path, **plan})]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as host:
        assert host.stdout is not None
        assert text in host.stdout.read()
        assert host.wait() == 2
