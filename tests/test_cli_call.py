"""`shmrpc call`: what is said before a call is made, and streams as JSON lines."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import ENVIRONMENT, PATIENCE_SECONDS, SHMRPC, command, running, serving, stop, until

VISION = ("introspection_api:Worker",)


@pytest.fixture
def vision(path: str) -> Iterator[str]:
    """Where a `Vision` is served."""
    with serving(path, services=VISION):
        yield path


def call(path: str, *arguments: str, given: str | None = None) -> tuple[int, str, str]:
    """``shmrpc call`` with something on stdin: its exit status, output and errors."""
    done = subprocess.run(
        [*SHMRPC, "call", path, *arguments],
        env=ENVIRONMENT,
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def refusal(path: str, *arguments: str, given: str | None = None) -> str:
    """What a call says that is not made."""
    status, output, errors = call(path, *arguments, given=given)
    assert (status, output) == (1, ""), errors
    return errors.removeprefix("shmrpc: INVALID_ARGUMENT: ").removesuffix("\n")


# Before a call is made


def test_arguments_that_do_not_fit_are_refused_in_words_before_they_are_sent(vision: str) -> None:
    teach = "; it is teach(label: Label, at: tuple[int, str], where: dict[str, list[Label]]) -> None"
    for arguments, text in (
        ({"label": {"score": 1}}, "parameter 'at' is missing"),
        (
            {"label": {"score": 1}, "at": [1, "x"], "where": {}},
            "parameter 'label' (Label) lacks 'name'; it has name, score, mask",
        ),
        (
            {"label": {"name": "x", "score": 3}, "at": [1, "x"], "where": {}},
            "parameter 'label'.score is at most 1, got 3",
        ),
        ({"label": {"name": "x"}, "at": [1], "where": {}}, "parameter 'at' takes exactly 2 items, got 1"),
        (
            {"label": {"name": "x"}, "at": [1, "x"], "where": {"a": 1}},
            "parameter 'where'['a'] takes list of Label, got int 1",
        ),
    ):
        assert refusal(vision, "teach", json.dumps(arguments)) == f"Vision.teach: {text}{teach}"
    text = refusal(vision, "classify", '{"image": "x"}')
    assert text.startswith(
        "Vision.classify: parameter 'image' takes NDArray[uint8] as nested lists, got str \"x\"; it is "
    )
    _, output, _ = call(vision, "shmrpc.Introspection.statistics")
    names = [method["name"] for method in json.loads(output)["methods"]]
    assert not [name for name in names if name.startswith("Vision.")], "none of these came to the server"


def test_a_parameter_that_is_misspelled_is_recognized(vision: str) -> None:
    text = refusal(vision, "teach", '{"lable": 1}')
    assert text.startswith("Vision.teach has no parameter 'lable'; did you mean 'label'? it is teach(")


def test_a_default_between_given_arguments_is_filled_in(vision: str) -> None:
    status, output, _ = call(vision, "classify", '{"image": [1], "mode": "good"}')
    assert (status, len(json.loads(output))) == (0, 3)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("clasify", "Vision.classify"),
        ("Classify", "Vision.classify"),
        ("Vison.classify", "Vision.classify"),
        ("vision.count", "Vision.count"),
        ("shmrpc.Introspection.healht", "shmrpc.Introspection.health"),
    ],
)
def test_a_method_that_is_misspelled_is_recognized(vision: str, name: str, meant: str) -> None:
    status, output, errors = call(vision, name)
    assert (status, output) == (1, "")
    assert f"there is no method {name!r}; did you mean {meant}" in errors
    assert "the server has\n  Vision.classify(image: NDArray[uint8]" in errors
    assert "shmrpc.Introspection.contracts(" not in errors, "what is built in is no help here"


def test_what_is_built_in_is_called_by_its_full_name_only(vision: str) -> None:
    assert call(vision, "shmrpc.Introspection.health") == (0, '"SERVING"\n', "")
    assert "there is no method 'statistics'; the server has" in call(vision, "statistics")[2]


# Streams


def test_a_result_that_is_a_stream_is_printed_one_item_a_line(vision: str) -> None:
    assert call(vision, "count", "[3]") == (0, "0\n1\n2\n", "")
    assert call(vision, "count", "[0]") == (0, "", "")
    status, output, _ = call(vision, "count", "[2000]")
    assert (status, output.split()) == (0, [str(number) for number in range(2000)])


def test_a_parameter_that_is_a_stream_is_read_from_stdin(vision: str) -> None:
    assert call(vision, "total", given="[1, 2]\n\n  [3]\n") == (0, "6\n", "")
    assert call(vision, "total", '{"start": 10}', given="[1]\n[2]") == (0, "13\n", "")
    assert call(vision, "total", given="") == (0, "0\n", "")
    many = "\n".join("[1]" for _ in range(2000))
    assert call(vision, "total", given=many) == (0, "2000\n", "")


def test_streams_go_both_ways(vision: str) -> None:
    assert call(vision, "negate", given="[[1, 2]]\n[3]\n") == (0, "[[254,253]]\n[252]\n", "")


def test_a_file_may_be_stdin(vision: str, folder: Path) -> None:
    (folder / "parts").write_text("[1]\n[2, 3]\n")
    with (folder / "parts").open() as parts:
        done = subprocess.run(
            [*SHMRPC, "call", vision, "total"],
            env=ENVIRONMENT,
            stdin=parts,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "6\n")


def test_items_are_sent_as_they_come(vision: str) -> None:
    with subprocess.Popen(
        [*SHMRPC, "call", vision, "negate"], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for item, negated in (("[1]\n", "[254]\n"), ("[2]\n", "[253]\n")):
            process.stdin.write(item)
            process.stdin.flush()
            assert process.stdout.readline() == negated
        process.stdin.close()
        assert process.wait(PATIENCE_SECONDS) == 0


def test_an_item_that_does_not_fit_is_refused_and_ends_the_call(vision: str) -> None:
    text = refusal(vision, "total", given='[1]\n[2, "x"]\n')
    assert text.startswith('Vision.total: item 2 on stdin[1] takes int, got str "x"; it is total(parts: ')
    assert refusal(vision, "total", given="[1]\n{").startswith("Vision.total: item 2 on stdin is not JSON: ")
    text = refusal(vision, "total", '{"parts": [[1]]}', given="")
    assert text == "Vision.total: parameter 'parts' is a stream, and is read from stdin"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_ctrl_c_cancels_the_call_on_the_server(path: str, folder: Path, loop: str) -> None:
    started, ended = folder / "started", folder / "ended"
    arguments = json.dumps([str(started), str(ended)])
    with serving(path, "--loop", loop, services=VISION) as server, running("call", path, "wait", arguments) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "0\n"
        until(started, server)
        caller.send_signal(signal.SIGINT)
        assert caller.communicate(timeout=PATIENCE_SECONDS) == ("", "")
        assert caller.returncode == 130
        until(ended, server)
        assert stop(server) == (0, "")


def test_ctrl_c_ends_a_call_that_waits_for_stdin(vision: str) -> None:
    read, write = os.pipe()
    try:
        with subprocess.Popen(
            [*SHMRPC, "call", vision, "negate"],
            env=ENVIRONMENT,
            stdin=read,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            os.write(write, b"[1]\n")
            assert process.stdout is not None
            assert process.stdout.readline() == "[254]\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=PATIENCE_SECONDS) == ("", "")
            assert process.returncode == 130
    finally:
        os.close(read)
        os.close(write)


def test_a_stream_has_no_timeout_unless_one_is_given(vision: str, folder: Path) -> None:
    arguments = json.dumps([str(folder / "started"), str(folder / "ended")])
    status, output, errors = call(vision, "wait", arguments, "--timeout", "0.3")
    assert (status, output) == (1, "0\n")
    assert errors.startswith("shmrpc: DEADLINE_EXCEEDED: Vision.wait")


def test_a_call_with_one_result_has_a_timeout_even_if_none_is_given(path: str, folder: Path) -> None:
    code = "import sys; from shmrpc.cli import call, main; call.UNARY_SECONDS = 1.0; sys.exit(main(sys.argv[1:]))"
    with serving(path):
        done = subprocess.run(
            [sys.executable, "-c", code, "call", path, "hold", json.dumps([str(folder / "started"), "/missing"])],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "shmrpc: DEADLINE_EXCEEDED: Worker.hold did not end before its deadline\n"


def test_the_result_of_a_call_that_fails_in_the_middle_is_what_came_before(path: str) -> None:
    with (
        serving(path, services=VISION) as server,
        running("call", path, "wait", '["/missing/a", "/missing/b"]') as caller,
    ):
        output, errors = caller.communicate(timeout=PATIENCE_SECONDS)
        assert (caller.returncode, output) == (1, "0\n")
        assert errors.startswith("shmrpc: INTERNAL: Vision.wait: failed; the server's log has the reason")
        stop(server)


def test_a_command_that_cannot_be_carried_out_ends_with_2(path: str) -> None:
    assert command("call", path, "count", "{", "--timeout", "1")[0] == 2
