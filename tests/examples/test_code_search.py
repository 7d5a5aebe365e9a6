"""The code search example: its index, its worker, its rival and the demo that compares them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import shmrpc
from examples import harness
from examples.code_search import demo, rival
from examples.code_search.api import BadQuery, CodeSearch, Hit, Statistics, UnreadableSource
from examples.code_search.check import Answers, Scan
from examples.code_search.front import ask, ignore_progress, index_files
from examples.code_search.index import Document, Index, words_of
from examples.code_search.load import Stopwatch, Timing, workloads
from examples.code_search.sources import library_files, read_source
from examples.code_search.worker import Worker

OWN_SOURCES = sorted(Path(demo.__file__).parent.glob("*.py"))


def index_of(**texts: str) -> Index:
    index = Index()
    for path, text in texts.items():
        index.add(Document.parse(path, text))
    return index


def paths_of(hits: list[Hit]) -> list[str]:
    return [hit.path for hit in hits]


# The index


def test_a_word_is_a_run_of_letters_digits_and_underscores() -> None:
    assert words_of("self._x2 = os.path('naïve', -1.5e3)") == [
        "self",
        "_x2",
        "os",
        "path",
        "naïve",
        "1",
        "5e3",
    ]


def test_a_hit_shows_the_first_line_that_has_the_word_and_how_often_the_file_has_it() -> None:
    index = index_of(a="import os\n\n    yield one  # yield\nyield two")
    assert index.word("yield", top=1) == [Hit("a", 3, "yield one  # yield", 3)]


def test_an_excerpt_is_cut_to_120_characters() -> None:
    assert index_of(a="\tword" + "." * 200).word("word", top=1)[0].excerpt == "word" + "." * 116


def test_upper_and_lower_case_differ() -> None:
    assert index_of(a="None none").count("none") == 1


def test_hits_come_by_score_and_then_by_path() -> None:
    index = index_of(d="x", b="x x", c="x x", a="x x x", e="y")
    assert paths_of(index.word("x", top=10)) == ["a", "b", "c", "d"]
    assert paths_of(index.word("x", top=2)) == ["a", "b"]


def test_the_order_of_indexing_does_not_change_the_answers() -> None:
    texts = {"a": "x y", "b": "y x", "c": "x y x"}
    forward, backward = index_of(**texts), index_of(**dict(reversed(texts.items())))
    assert forward.word("x", top=10) == backward.word("x", top=10)
    assert forward.prefix("x", top=10) == backward.prefix("x", top=10)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("os path join", 1),
        ("os.path.join(os.path.join)", 2),
        ("os  /  path -> join", 1),
        ("path os join", 0),
        ("os path to join", 0),
        ("os path\njoin", 0),
        ("macos path joins", 0),
    ],
)
def test_a_phrase_is_words_next_to_each_other_in_one_line(text: str, score: int) -> None:
    assert [hit.score for hit in index_of(a=text).phrase(["os", "path", "join"], top=1)] == [score] * (score > 0)


def test_phrases_may_overlap() -> None:
    assert index_of(a="no no no").phrase(["no", "no"], top=1) == [Hit("a", 1, "no no no", 2)]


def test_a_phrase_with_an_unknown_word_has_no_hit() -> None:
    assert index_of(a="one two").phrase(["two", "three"], top=1) == []


def test_a_prefix_finds_every_word_that_begins_with_it() -> None:
    index = index_of(a="open\nopened reopen", b="operate", c="op", d="close")
    assert index.prefix("ope", top=10) == [Hit("a", 1, "open", 2), Hit("b", 1, "operate", 1)]


def test_a_document_takes_the_place_of_the_one_that_had_its_path() -> None:
    index = index_of(a="old shared", b="shared")
    assert index.prefix("ol", top=1)
    index.add(Document.parse("a", "new\nshared"))
    assert index.word("old", top=1) == index.prefix("ol", top=1) == []
    assert index.count("old") == 0
    assert index.word("shared", top=10) == [Hit("a", 2, "shared", 1), Hit("b", 1, "shared", 1)]
    assert index.statistics() == Statistics(files=2, lines=3, words=3, distinct_words=2)


def test_discarding_an_unknown_path_changes_nothing() -> None:
    index = index_of(a="word")
    index.discard("b")
    assert index.statistics() == Statistics(files=1, lines=1, words=1, distinct_words=1)


def test_an_index_describes_itself() -> None:
    assert repr(index_of(a="x x", b="y")) == "<Index of 2 files, 2 distinct words>"


# The sources


def test_the_library_has_enough_files_and_they_come_in_a_fixed_order() -> None:
    files = library_files()
    assert len(files) > 500
    assert files == sorted(files)
    assert library_files(3) == files[:3]


def test_a_source_is_read_in_the_encoding_that_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "latin.py"
    path.write_bytes("# coding: latin-1\ncafé".encode("latin-1"))
    assert read_source(path) == "# coding: latin-1\ncafé"


@pytest.mark.parametrize("content", [b"caf\xe9", b"# coding: nonsense\ncaf\xe9"])
def test_what_does_not_decode_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.py"
    path.write_bytes(content)
    assert read_source(path).endswith("caf\N{REPLACEMENT CHARACTER}")


# The worker, called through the framework


@pytest.fixture
async def search() -> AsyncIterator[CodeSearch]:
    async with shmrpc.local(CodeSearch, Worker()) as search:
        yield search


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.py"
    path.write_text("import os\nprint(os.path.join('a', 'b'))\n")
    return path


async def test_the_worker_answers_from_the_files_it_indexed(search: CodeSearch, source: Path) -> None:
    size = Statistics(files=1, lines=3, words=8, distinct_words=7)
    assert await search.index([str(source)]) == size
    assert await search.statistics() == size
    assert await search.count("os") == 2
    assert await search.word("os", top=1) == [Hit(str(source), 1, "import os", 2)]
    assert await search.phrase("os.path") == [Hit(str(source), 2, "print(os.path.join('a', 'b'))", 1)]
    assert await search.prefix("pri") == [Hit(str(source), 2, "print(os.path.join('a', 'b'))", 1)]


async def test_an_unknown_word_has_no_hits(search: CodeSearch, source: Path) -> None:
    await search.index([str(source)])
    assert await search.count("absent") == 0
    assert await search.word("absent") == await search.phrase("absent") == await search.prefix("absent") == []


@pytest.mark.parametrize("query", ["", "two words", "os.path", " "])
async def test_what_is_not_one_word_is_a_bad_query(search: CodeSearch, query: str) -> None:
    for method in (search.word, search.prefix, search.count):
        with pytest.raises(BadQuery) as caught:
            await method(query)
        assert caught.value.query == query
        assert "one word is wanted" in caught.value.reason


async def test_a_phrase_without_words_is_a_bad_query(search: CodeSearch) -> None:
    with pytest.raises(BadQuery) as caught:
        await search.phrase("...")
    assert caught.value.reason == "a phrase needs at least one word"


async def test_a_prefix_of_one_character_is_a_bad_query(search: CodeSearch) -> None:
    with pytest.raises(BadQuery) as caught:
        await search.prefix("x")
    assert caught.value.reason == "a prefix needs at least 2 characters"


@pytest.mark.parametrize("top", [0, -1, 101])
async def test_asking_for_too_few_or_too_many_hits_is_a_bad_query(search: CodeSearch, top: int) -> None:
    for method in (search.word, search.phrase, search.prefix):
        with pytest.raises(BadQuery) as caught:
            await method("word", top)
        assert caught.value.reason == f"top is {top}, allowed is 1 to 100"


async def test_a_batch_with_an_unreadable_path_is_refused_whole(search: CodeSearch, source: Path) -> None:
    missing = str(source.with_name("missing.py"))
    with pytest.raises(UnreadableSource) as caught:
        await search.index([str(source), missing])
    assert (caught.value.path, caught.value.reason) == (missing, "No such file or directory")
    assert await search.statistics() == Statistics(0, 0, 0, 0)


async def test_files_are_indexed_in_batches_and_progress_is_told(search: CodeSearch) -> None:
    told: list[int] = []
    files = library_files(20)
    indexed = await index_files(search, files, told.append)
    assert indexed.files == sum(told) == 20
    assert len(told) == 2


# The front end


@pytest.mark.parametrize(
    ("question", "status", "line"),
    [
        ("class Worker", 0, f"{harness.ROOT / 'examples/code_search/worker.py'}:"),
        ("no such phrase anywhere", 1, f"words in {len(OWN_SOURCES)} files"),
        ("...", 2, "'...': a phrase needs at least one word"),
    ],
)
async def test_the_front_end_prints_the_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], question: str, status: int, line: str
) -> None:
    worker, address = Worker(), str(tmp_path / "search.sock")
    await index_files(worker, OWN_SOURCES)
    async with shmrpc.Server(worker, at=address):
        assert await ask(address, question, top=3) == status
    assert line in capsys.readouterr().out


# The check


async def answers_about_own_sources() -> Answers:
    scan = Scan()
    await scan.index([str(path) for path in OWN_SOURCES])
    return await Answers.of(scan, workloads(scan.lines, subjects=40, calls=10), ignore_progress)


async def test_the_worker_and_the_sources_agree(search: CodeSearch) -> None:
    await index_files(search, OWN_SOURCES)
    assert await (await answers_about_own_sources()).differences(search) == []


async def test_a_wrong_answer_is_noticed() -> None:
    class Forgetful(Worker):
        async def index(self, paths: list[str]) -> Statistics:
            return await super().index(paths[1:])

        async def word(self, word: str, top: int = 10) -> list[Hit]:
            return []

    worker = Forgetful()
    await index_files(worker, OWN_SOURCES)
    found = await (await answers_about_own_sources()).differences(worker)
    for method in ("statistics", "count", "word", "phrase", "prefix"):
        assert any(difference.startswith(f"{method}(") for difference in found)
    assert found[-1] == "word('two words') is [], but should be a BadQuery"


async def test_the_clock_counts_every_round(search: CodeSearch) -> None:
    load = workloads({"a": ["one two"]}, subjects=3, calls=10)[0]
    stopwatch = Stopwatch(load, search)
    await stopwatch.round()
    await stopwatch.round()
    timing = stopwatch.timing()
    assert 0 < timing.p50_us <= timing.p99_us
    assert timing.calls_per_s > 0


# The rival


@pytest.fixture
async def rival_search(tmp_path: Path) -> AsyncIterator[CodeSearch]:
    address, worker = tmp_path / "rival.sock", Worker()
    server = await asyncio.get_running_loop().create_unix_server(lambda: rival.Session(worker), str(address))
    async with server, rival.connect(address, wait_s=10.0) as client:
        yield client


async def test_the_rival_gives_the_same_answers(rival_search: CodeSearch) -> None:
    await index_files(rival_search, OWN_SOURCES)
    assert await (await answers_about_own_sources()).differences(rival_search) == []


async def test_the_rival_passes_errors_on(rival_search: CodeSearch) -> None:
    with pytest.raises(UnreadableSource) as caught:
        await rival_search.index(["/missing.py"])
    assert caught.value.path == "/missing.py"


def test_the_rival_cuts_frames_wherever_the_bytes_were_cut() -> None:
    class Collector(rival.Frames):
        def frame_received(self, call_id: int, kind: int, body: bytes) -> None:
            frames.append((call_id, kind, body))

    frames: list[tuple[int, int, bytes]] = []
    stream = b"".join(rival.HEADER.pack(len(body), 7, 2) + body for body in (b"one", b"", b"three"))
    for size in range(1, len(stream) + 1):
        frames.clear()
        collector = Collector()
        for start in range(0, len(stream), size):
            collector.data_received(stream[start : start + size])
        assert frames == [(7, 2, b"one"), (7, 2, b""), (7, 2, b"three")]


# The demo, as a process with two workers


def start_demo(temporary: Path) -> subprocess.Popen[str]:
    """Start the demo with `temporary` as the place for its sockets."""
    return subprocess.Popen(
        [sys.executable, "-m", "examples.code_search", "--quick", "--plain"],
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


def test_the_demo_checks_its_answers_and_shows_the_comparison(tmp_path: Path) -> None:
    with start_demo(tmp_path) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Indexed 150 files" in output
    assert "answers against the sources: 0 differ" in output
    rows = [line.split()[:2] for line in output.splitlines() if line.rstrip().endswith("x")]
    assert rows == [["count", "call"], ["word", "call"], ["phrase", "search"], ["prefix", "search"]]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with start_demo(tmp_path) as process:
        assert process.stdout is not None
        assert any("Indexing" in line for line in process.stdout)  # both workers are connected now
        assert processes_that_mention(str(tmp_path))
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
    assert processes_that_mention(str(tmp_path)) == []


def test_a_difference_makes_the_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = workloads({"a": ["one two"]}, subjects=1, calls=1)[0]
    timings = demo.Comparison(load, Timing(5.0, 9.0, 400_000.0), Timing(50.0, 90.0, 200_000.0))
    report = demo.Report(Statistics(1, 1, 2, 2), 0.1, 10, 2, ["count('one') is 0, the sources say 1"], [timings])
    monkeypatch.setattr(demo, "demonstrate", lambda *_: report)
    monkeypatch.setattr(sys, "argv", ["demo"])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert demo.main() == 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    output = capsys.readouterr().out
    assert "count('one') is 0, the sources say 1" in output
    assert "10.0x" in output
    assert "2.0x" in output
