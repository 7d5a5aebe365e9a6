"""The images example: its worker, its front end, its rival and the demo that compares them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from rich.console import Console

import shmrpc
from examples import harness
from examples.images import demo, front, operations, rival
from examples.images.api import BadImage, Edges, Histogram, Images, Pixels, Resized
from examples.images.check import InProcess, difference
from examples.images.load import OPERATIONS, Comparison, Sample, Timing, compare
from examples.images.pictures import GRAY, PHOTOGRAPHS, decode, path_of
from examples.images.worker import Worker


def noise(rows: int, columns: int, channels: int = 3) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (rows, columns, channels), np.uint8)


# The worker, called through the framework


@pytest.fixture
async def images() -> AsyncIterator[Images]:
    async with shmrpc.local(Images, Worker()) as images:
        yield images


async def test_the_worker_computes_what_this_process_computes(images: Images) -> None:
    image, in_process = noise(40, 50), InProcess()
    assert difference(await images.resize(image, 9, 11), await in_process.resize(image, 9, 11)) is None
    assert difference(await images.histogram(image), await in_process.histogram(image)) is None
    assert difference(await images.edges(image), await in_process.edges(image)) is None


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 4), (4, 5, 1), (2, 4, 5, 3), ()])
async def test_what_has_not_three_channels_is_a_bad_image(images: Images, shape: tuple[int, ...]) -> None:
    for call in (images.resize(np.zeros(shape, np.uint8), 1, 1), images.edges(np.zeros(shape, np.uint8))):
        with pytest.raises(BadImage) as caught:
            await call
        assert caught.value.shape == shape
        assert caught.value.reason == "a picture has rows, columns and 3 channels"


async def test_nothing_is_a_bad_image(images: Images) -> None:
    with pytest.raises(BadImage, match="at least one pixel"):
        await images.histogram(np.zeros((0, 5, 3), np.uint8))


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (-1, 5), (11, 5), (5, 21)])
async def test_a_size_that_is_no_shrinking_is_a_bad_image(images: Images, rows: int, columns: int) -> None:
    with pytest.raises(BadImage) as caught:
        await images.resize(noise(10, 20), rows, columns)
    assert caught.value.reason == f"it cannot be shrunk to {rows} rows and {columns} columns"


async def test_the_contract_itself_refuses_other_elements(images: Images) -> None:
    with pytest.raises(shmrpc.InvalidArgument, match="image"):
        await images.histogram(np.zeros((4, 5, 3), np.float64))


async def test_neither_the_picture_nor_the_edges_are_copied(folder: Path) -> None:
    class Keeping(Worker):
        async def edges(self, image: Pixels) -> Edges:
            self.image, self.result = image, await super().edges(image)
            return self.result

    worker, address = Keeping(), str(folder / "images.sock")
    async with shmrpc.Server(worker, at=address), shmrpc.connect(Images, address) as images:
        image = front.share(noise(100, 120), images)
        edges = await images.edges(image)
        image[1, 2, 0] ^= 255
        assert worker.image[1, 2, 0] == image[1, 2, 0]
        worker.result.magnitude[3, 4] = 12345
        assert edges.magnitude[3, 4] == 12345
        assert not edges.magnitude.flags.writeable
        del worker.image, worker.result


# The front end


async def test_the_front_end_writes_three_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address, out = str(folder / "images.sock"), folder / "new" / "out"
    async with shmrpc.Server(Worker(), at=address):
        assert await front.develop_file(address, path_of("coffee.png"), out) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [out / f"coffee-{kind}.png" for kind in ("small", "histogram", "edges")]
    assert [decode(path).shape for path in printed] == [(160, 240, 3), (128, 256, 3), (400, 600)]


async def test_the_front_end_says_why_a_picture_was_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = str(folder / "images.sock")
    async with shmrpc.Server(Worker(), at=address):
        assert await front.develop_file(address, path_of(GRAY), folder / "out") == 1
    assert "3 channels, this has the shape (512, 512)" in capsys.readouterr().out
    assert not (folder / "out").exists()


# The check


@pytest.mark.parametrize(
    ("got", "told"),
    [
        (Edges(np.zeros((2, 2), np.float32), 1.0, 99), None),
        (Edges(np.zeros((2, 2), np.float32), 2.0, 0), "strongest is 2.0, expected 1.0"),
        (Edges(np.zeros((2, 3), np.float32), 1.0, 0), "magnitude: got float32 of shape (2, 3)"),
        (Edges(np.eye(2, dtype=np.float32), 1.0, 0), "magnitude: 4 of 16 bytes differ"),
        (Edges(-np.zeros((2, 2), np.float32), 1.0, 0), "magnitude: 4 of 16 bytes differ"),
        (Histogram(np.zeros((3, 256), np.int64), 0), "got a Histogram, expected a Edges"),
    ],
)
def test_a_result_that_differs_in_one_bit_is_noticed(got: Edges | Histogram, told: str | None) -> None:
    found = difference(got, Edges(np.zeros((2, 2), np.float32), 1.0, 0))
    assert found is told is None or (found is not None and told is not None and found.startswith(told))


class Careless(Worker):
    """Gives away a picture with one wrong bit."""

    async def resize(self, image: Pixels, rows: int, columns: int) -> Resized:
        result = await super().resize(image, rows, columns)
        result.pixels[-1, -1, -1] ^= 1
        return result


def no_stages(_name: str, _steps: int) -> Callable[[int], None]:
    return harness.ignore_progress


async def test_a_worker_that_is_wrong_in_one_bit_is_noticed(tmp_path: Path) -> None:
    name = PHOTOGRAPHS[0]
    async with shmrpc.local(Images, Careless()) as careless:
        developed = {name: await front.develop(careless, decode(path_of(name)))}
    outcome = demo.Outcome(developed, 0.1, BadImage((512, 512), ""), [], [])
    report = await demo.check_and_write(outcome, tmp_path, no_stages)
    assert report.differences == [f"{name}: pixels: 1 of 115,200 bytes differ"]
    assert report.checked == 4


async def test_a_wrong_answer_is_noticed_while_it_is_timed(images: Images) -> None:
    async with shmrpc.local(Images, Careless()) as careless:
        _, differences = await compare(OPERATIONS[0], noise(200, 60), careless, images, calls=2)
    assert differences == ["resize of (200, 60, 3): pixels: 1 of 23,040 bytes differ"] * 2


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (None, f"{GRAY} has no channels, and should have been a BadImage"),
        (BadImage((512,), ""), "the BadImage says the shape (512,), the picture has (512, 512)"),
    ],
)
async def test_a_gray_picture_that_is_not_refused_as_it_should_be_is_noticed(
    tmp_path: Path, refusal: BadImage | None, told: str
) -> None:
    outcome = demo.Outcome({}, 0.1, refusal, [], [])
    assert (await demo.check_and_write(outcome, tmp_path, no_stages)).differences == [told]


async def test_the_clock_tells_the_computation_from_the_transport(images: Images) -> None:
    comparison, found = await compare(OPERATIONS[2], noise(50, 60), images, images, calls=3)
    assert found == []
    assert (comparison.method, comparison.shape, comparison.nbytes) == ("edges", (50, 60, 3), 9000)
    for timing in (comparison.shmrpc, comparison.rival):
        assert timing.calls == 3
        assert 0 < timing.transport_us < timing.call_ms * 1000
        assert 0 < timing.transport_share < 1


# The rival


@pytest.fixture
async def rival_images(folder: Path) -> AsyncIterator[Images]:
    address = folder / "rival.sock"
    server = await asyncio.get_running_loop().create_unix_server(lambda: rival.Session(InProcess()), str(address))
    async with server, rival.connect(address, wait_s=10.0) as client:
        yield client


async def test_the_rival_gives_the_same_results(rival_images: Images) -> None:
    in_process = InProcess()
    for image in (noise(700, 800), noise(1, 1)):
        for operation in OPERATIONS:
            assert difference(await operation.ask(rival_images, image), await operation.ask(in_process, image)) is None


async def test_the_rival_passes_a_refusal_on(rival_images: Images) -> None:
    with pytest.raises(BadImage, match="3 channels") as caught:
        await rival_images.edges(np.zeros((4, 5), np.uint8))
    assert caught.value.shape == (4, 5)


def test_the_rival_cuts_messages_wherever_the_bytes_were_cut() -> None:
    class Collector(rival.Messages):
        def message_received(self, head: rival.Head, body: npt.NDArray[np.uint8]) -> None:
            messages.append((head, bytes(body)))

    messages: list[tuple[rival.Head, bytes]] = []
    sent = [
        (rival.Head(3, 1, rival.RESIZE, (1, 1, 3), (1, 1)), b"one"),
        (rival.Head(0, 2, rival.BAD_IMAGE, (4,)), b""),
        (rival.Head(5, 3, rival.EDGES, (5,), (0, 0), 99, 0.5), b"three"),
    ]
    stream = b"".join(head.pack() + body for head, body in sent)
    for most in range(1, len(stream) + 1):
        messages.clear()
        collector, rest = Collector(), stream
        while rest:
            room = collector.get_buffer(-1)
            size = min(most, len(room), len(rest))
            room[:size] = rest[:size]
            rest = rest[size:]
            collector.buffer_updated(size)
        assert messages == sent


# The demo, as a process with two workers


def start_demo(temporary: Path, *options: str) -> subprocess.Popen[str]:
    """Start the demo with `temporary` as the place for whatever it makes."""
    return subprocess.Popen(
        [sys.executable, "-m", "examples.images", "--quick", "--plain", *options],
        cwd=harness.ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_that_mention(text: str) -> list[str]:
    """Command lines of the running processes that have this text in them."""
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile
            continue
        if text in command:
            found.append(command)
    return found


def test_the_demo_writes_pictures_checks_them_and_shows_the_comparison(folder: Path) -> None:
    out = folder / "out"
    with start_demo(folder, "--out", str(out)) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert f"Wrote 6 pictures, with the worker gone, into {out}" in output
    assert "Checked 37 answers against this process, bit for bit: 0 differ." in output
    rows = [line.split()[:4] for line in output.splitlines() if line.rstrip().endswith("%")]
    assert rows == [[operation.method, "300", "x", "451"] for operation in OPERATIONS]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}-{kind}.png" for name in ("chelsea", "coffee") for kind in ("small", "histogram", "edges")
    )
    expected = np.empty((160, 240, 3), np.uint8)
    operations.resize(decode(path_of("chelsea.png")), expected)
    assert np.array_equal(decode(out / "chelsea-small.png"), expected)
    assert list(folder.iterdir()) == [out]
    assert processes_that_mention(str(folder)) == []


def test_without_a_folder_the_demo_makes_one(folder: Path) -> None:
    with start_demo(folder) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    (made,) = folder.iterdir()
    assert f"into {made}" in output
    for path in made.iterdir():
        with Image.open(path) as picture:
            picture.verify()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(folder: Path, number: signal.Signals) -> None:
    with start_demo(folder) as process:
        assert process.stdout is not None
        assert any("Developing" in line for line in process.stdout)  # both workers are connected now
        assert processes_that_mention(str(folder))
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    assert list(folder.iterdir()) == []
    assert processes_that_mention(str(folder)) == []


def test_a_difference_makes_the_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ours, theirs = Timing([Sample(2_000_000, 1_900_000)]), Timing([Sample(3_000_000, 1_500_000)])
    comparison = Comparison("edges", (10, 20, 3), 600, ours, theirs, compute_ms=1.5, share_us=7.0)
    outcome = demo.Outcome({}, 0.1, BadImage((512, 512), ""), [comparison], [])
    report = demo.Report(outcome, 2, ["chelsea.png: pixels: 1 of 9 bytes differ"], [], tmp_path)
    monkeypatch.setattr(demo, "demonstrate", lambda *_: report)
    monkeypatch.setattr(sys, "argv", ["demo"])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert demo.main() == 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    output = capsys.readouterr().out
    assert "chelsea.png: pixels: 1 of 9 bytes differ" in output
    cells = next(line for line in output.splitlines() if line.startswith("edges")).split()
    assert " ".join(cells) == "edges 10 x 20 0.0 1 1.50 7 2.00 3.00 100 1,500 15.0x 5% 50%"


def test_a_worker_that_fails_to_start_ends_the_demo() -> None:
    with (
        pytest.raises(RuntimeError, match="no_such_module ended with status"),
        harness.running("no_such_module"),
    ):
        pass


def test_a_demo_that_is_stopped_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(_console: Console) -> int:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert harness.run_demo(stopped, plain=True) == 130
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert capsys.readouterr().out == "Stopped.\n"
