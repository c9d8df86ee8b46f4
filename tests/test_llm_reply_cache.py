"""Replies kept in a directory: who asks again gets the answer at once, and a directory in trouble costs nothing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.llm import LanguageModel, account
from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.llm.reply_cache import MAX_BYTES, CachedReplies
from pytest_kerneltune.llm.source import Write, ignore
from pytest_kerneltune.search import Message

HELLO = [Message("user", "Hello.")]
OTHER = [Message("user", "Hello!")]


class Source:
    """Answers with what it was given and remembers how often it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.closed = False

    def digest(self, messages: Sequence[Message]) -> str:
        return sha256(repr(messages).encode()).hexdigest()

    def ask(self, messages: Sequence[Message], deadline: float | None = None, write: Write = ignore) -> Answer:
        self.asked += 1
        if not self.answers:
            raise LLMError("no more answers")
        write("piece")
        return self.answers.pop(0)

    def close(self) -> None:
        self.closed = True


def files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if not p.is_dir())


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The file of the kept reply "first" to HELLO."""
    CachedReplies(Source(Answer("first", 7, 3)), tmp_path, "openai m").ask(HELLO)
    (path,) = files(tmp_path)
    return path


def test_an_answer_is_kept_for_who_asks_again(tmp_path: Path) -> None:
    source = Source(Answer("first", 7, 3), Answer("second"))
    cache = CachedReplies(source, tmp_path / "not" / "made yet")
    assert cache.ask(HELLO) == Answer("first", 7, 3)
    again = CachedReplies(source, tmp_path / "not" / "made yet")
    assert (again.ask(HELLO).text, source.asked) == ("first", 1)
    assert (again.ask(OTHER).text, source.asked) == ("second", 2)
    again.close()
    assert source.closed


def test_pieces_and_errors_of_the_source_pass_through(tmp_path: Path) -> None:
    pieces: list[str] = []
    cache = CachedReplies(Source(Answer("first")), tmp_path)
    cache.ask(HELLO, None, pieces.append)
    with pytest.raises(LLMError, match="no more answers"):
        cache.ask(OTHER)
    assert pieces == ["piece"]
    assert len(files(tmp_path)) == 1


def test_a_file_holds_the_reply_and_nothing_of_the_question(kept: Path, tmp_path: Path) -> None:
    digest = Source().digest(HELLO)
    assert kept.relative_to(tmp_path) == Path(digest[:2], f"{digest}.json")
    document = json.loads(kept.read_text())
    created = document.pop("created")
    assert created.startswith("20")
    assert document == {
        "schema": 1,
        "request": digest,
        "model": "openai m",
        "tokens_in": 7,
        "tokens_out": 3,
        "reply": "first",
    }


@pytest.mark.usefixtures("kept")
def test_a_kept_answer_is_a_call_that_cost_nothing(tmp_path: Path) -> None:
    model = LanguageModel("m", CachedReplies(Source(Answer("second", 5, 2)), tmp_path))
    assert [model.submit(m).result(5) for m in (HELLO, OTHER)] == ["first", "second"]
    hit, miss = sorted(model.calls, key=lambda call: not call.cached)
    assert (hit.seconds, hit.tokens_in, hit.tokens_out, hit.answered) == (0.0, None, None, True)
    assert hit.outcome == "from the reply cache"
    assert not miss.cached
    total = account(model.calls)
    assert (total.calls, total.answered, total.cached, total.tokens_in, total.tokens_out) == (2, 2, 1, 5, 2)
    assert total.seconds == miss.seconds
    model.close()


def test_what_was_cut_off_is_asked_for_again(tmp_path: Path) -> None:
    source = Source(Answer("half", remark="cut off (max_tokens)"), Answer("whole"))
    cache = CachedReplies(source, tmp_path)
    assert [cache.ask(HELLO).text for _ in range(3)] == ["half", "whole", "whole"]


@pytest.mark.parametrize("text", ["\ud800 alone", "\u2192 \U0001f600 \x00", "{}\r\n"])
def test_any_text_comes_back_as_it_was(tmp_path: Path, text: str) -> None:
    cache = CachedReplies(Source(Answer(text)), tmp_path)
    assert [cache.ask(HELLO).text for _ in range(2)] == [text, text]


def test_an_answer_with_a_remark_that_is_whole_is_kept(tmp_path: Path) -> None:
    cache = CachedReplies(Source(Answer("first", remark="ok; asked without temperature")), tmp_path)
    assert [cache.ask(HELLO).text for _ in range(2)] == ["first", "first"]


def test_a_port_forgets_what_was_kept_for_it_or_served_to_it(tmp_path: Path) -> None:
    source = Source(Answer("junk"), Answer("other"), Answer("second"), Answer("third"))
    for text in ("junk", "second", "third"):
        model = LanguageModel("m", CachedReplies(source, tmp_path))
        port, another = model.port(), model.port()
        assert port(HELLO).result(5) == text
        assert another(OTHER).result(5) == "other"
        port.forget()
        port.forget()
        assert len(files(tmp_path)) == 1
        model.close()
    with pytest.raises(LLMError, match="no more answers"):
        CachedReplies(source, tmp_path).ask(HELLO)


def test_forgetting_never_fails_and_touches_nothing_foreign(kept: Path, tmp_path: Path) -> None:
    without = LanguageModel("m", Source(Answer("text"))).port()
    without(HELLO).result(5)
    without.forget()
    port = LanguageModel("m", CachedReplies(Source(Answer("text")), tmp_path)).port()
    port.forget()
    assert kept.exists()
    port(HELLO).result(5)
    kept.write_text("mine")
    port.forget()
    assert kept.read_text() == "mine"
    kept.unlink()
    port.forget()
    kept.mkdir()
    port.forget()
    assert kept.is_dir()


def edited(**changes: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[" * 200_000,
        lambda _: "[]",
        lambda _: "null",
        lambda _: "\ud800",
        lambda text: text.replace('"first"', '"first", "cost": NaN'),
        lambda text: text.replace('"first"', '"first", "more": ' + "[" * 100_000),
        lambda text: text + " " * MAX_BYTES,
        edited(schema=2),
        edited(request="another"),
        edited(reply=""),
        edited(reply=["first"]),
    ],
)
def test_a_file_that_is_no_good_counts_as_absent(kept: Path, tmp_path: Path, spoil: Callable[[str], str]) -> None:
    kept.write_bytes(spoil(kept.read_text()).encode(errors="surrogatepass"))
    source = Source(Answer("second"))
    assert [CachedReplies(source, tmp_path).ask(HELLO).text for _ in range(2)] == ["second", "second"]
    assert source.asked == 1


def sparse(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(1 << 40)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def linked(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere.json")))


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("spoil", [sparse, endless, linked, piped])
def test_what_is_no_answer_is_neither_waited_for_nor_removed(
    kept: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(kept)
    before = kept.lstat()
    cache = CachedReplies(Source(), tmp_path)
    with pytest.raises(LLMError, match="no more answers"):
        cache.ask(HELLO)
    cache.forget(HELLO)
    assert (kept.lstat().st_mode, kept.lstat().st_ino) == (before.st_mode, before.st_ino)
    target = kept.with_name("elsewhere.json")
    content = target.read_bytes() if target.exists() else b""
    assert CachedReplies(Source(Answer("second")), tmp_path).ask(HELLO).text == "second"
    assert not target.exists() or target.read_bytes() == content  # a link may lead anywhere


OTHER_USER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_llm_reply_cache import HELLO, Answer, CachedReplies, Source

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print([CachedReplies(Source(Answer("mine")), Path(sys.argv[1]) / "replies").ask(HELLO).text for _ in range(2)])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize(("mode", "texts"), [(0o777, "first"), (0o1777, "first"), (0o755, "first"), (0o700, "mine")])
def test_who_may_use_a_cache_may_use_its_replies(mode: int, texts: str) -> None:
    with tempfile.TemporaryDirectory() as made:  # below nothing that only root may enter
        Path(made).chmod(0o755)
        root = Path(made, "cache")
        root.mkdir()
        root.chmod(mode)
        before = os.umask(0o077)
        try:
            CachedReplies(Source(Answer("first")), root / "replies").ask(HELLO)
        finally:
            os.umask(before)
        (file,) = files(root)
        below = 0o755 if mode == 0o1777 else mode
        modes = [path.stat().st_mode & 0o7777 for path in (root / "replies", file.parent, file)]
        assert modes == [below, below, below & 0o666]
        command = [sys.executable, "-c", OTHER_USER, str(root), str(Path(__file__).parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == repr([texts] * 2)


def conversation(number: int) -> list[Message]:
    return [Message("user", str(number))]


def test_the_longest_unused_answers_go(kept: Path, tmp_path: Path) -> None:
    answers = [Answer("x" * 10_000) for _ in range(12)]
    for number in range(9):
        CachedReplies(Source(answers.pop()), tmp_path).ask(conversation(number))
    garbled, foreign = tmp_path / "ff" / ("ff" + "0" * 62 + ".json"), kept.parent / "notes.txt"
    garbled.parent.mkdir(exist_ok=True)
    (tmp_path / "ee").mkdir(exist_ok=True)
    (tmp_path / "ee" / f"ee{'0' * 62}.json").mkdir()
    (tmp_path / "no folder").symlink_to(tmp_path)
    for path in (garbled, foreign, tmp_path / "00"):
        path.write_bytes(bytes(10_000))
        os.utime(path, (0, 0))
    old = kept.with_name(f".kerneltune-{'0' * 16}.tmp")
    old.write_text("left behind")
    os.utime(old, (0, 0))
    CachedReplies(Source(), tmp_path).ask(conversation(0))  # used again
    CachedReplies(Source(answers.pop()), tmp_path, limit=35_000).ask(conversation(9))
    held = []
    for number in range(10):
        try:
            held.append(CachedReplies(Source(), tmp_path).ask(conversation(number)).text and number)
        except LLMError:
            continue
    assert held == [0, 8, 9]
    assert garbled.exists()
    assert foreign.exists()
    assert not old.exists()
    assert not kept.exists()


def test_tokens_that_are_none_are_not_believed(kept: Path, tmp_path: Path) -> None:
    kept.write_text(edited(tokens_in="many", tokens_out=True)(kept.read_text()))
    answer = CachedReplies(Source(), tmp_path).ask(HELLO)
    assert (answer.text, answer.tokens_in, answer.tokens_out) == ("first", None, None)


def test_a_directory_or_a_pipe_in_the_place_of_a_file_is_left_alone(kept: Path, tmp_path: Path) -> None:
    kept.unlink()
    kept.mkdir()
    (kept / "foreign").write_text("mine")
    assert CachedReplies(Source(Answer("second")), tmp_path).ask(HELLO).text == "second"
    assert (kept / "foreign").read_text() == "mine"
    assert files(tmp_path) == [kept / "foreign"]
    (kept / "foreign").unlink()
    kept.rmdir()
    os.mkfifo(kept)
    assert CachedReplies(Source(Answer("second")), tmp_path).ask(HELLO).text == "second"


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("mine")
    CachedReplies(Source(Answer("first")), tmp_path).ask(HELLO)
    assert (tmp_path / "notes.json").read_text() == "mine"


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "read-only"
    directory.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    yield directory
    directory.chmod(stat.S_IRWXU)


def test_a_directory_that_cannot_be_written_to_costs_only_the_keeping(read_only: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine")
    for directory in (read_only, in_the_way, in_the_way / "below", Path("/proc/nowhere"), Path("/dev/full/x")):
        cache = CachedReplies(Source(Answer("first"), Answer("second")), directory)
        assert cache.ask(HELLO).text == "first"
    assert in_the_way.read_text() == "mine"


def test_an_enormous_reply_is_not_kept(tmp_path: Path) -> None:
    cache = CachedReplies(Source(Answer("x" * MAX_BYTES), Answer("second")), tmp_path)
    assert len(cache.ask(HELLO).text) == MAX_BYTES
    assert files(tmp_path) == []
    assert cache.ask(HELLO).text == "second"
