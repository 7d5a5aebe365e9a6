"""Which server the commands ask: of whom, and where."""

import os

import pytest
from test_cli import command, serving


@pytest.mark.parametrize("arguments", [("health",), ("list",), ("call", "pid")], ids=lambda arguments: arguments[0])
def test_a_command_asks_where_others_may_write_only_if_it_is_told_to(path: str, arguments: tuple[str, ...]) -> None:
    name, *more = arguments
    with serving(path):
        os.chmod(os.path.dirname(path), 0o777)
        status, output, errors = command(name, path, *more)
        assert (status, output) == (1, "")
        assert f"{path} is no safe place for a socket" in errors
        assert command(name, path, *more, "--trust-folder")[0] == 0
        refused = command(name, path, *more, "--trust-folder", "--allow-uid", str(os.getuid() + 1))
        assert refused[0] == 1
        assert f"uid {os.getuid()} " in refused[2]
        assert "is not allowed" in refused[2]
