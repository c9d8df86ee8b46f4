"""Recorded replies: found by the question, on any machine; recorded by several processes at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_kerneltune.disk.leases import LEASE_S
from pytest_kerneltune.disk.strictjson import MAX_BYTES
from pytest_kerneltune.errors import LLMError, LLMUnavailable
from pytest_kerneltune.llm import LanguageModel, LLMOptions, connect
from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.llm.recorded import RecordedReplies, request_id
from pytest_kerneltune.llm.recording import Recorder, add_exchange
from pytest_kerneltune.llm.source import Write, ignore
from pytest_kerneltune.parameter import integer, power_of_two
from pytest_kerneltune.search import Message, Subject
from pytest_kerneltune.search.dialogue import first_request
from pytest_kerneltune.search.guided import LLMGuidedSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Trial

SPACE = ConfigSpace({"TILE": power_of_two(1, 64), "UNROLL": integer(1, 8)})
HELLO = [Message("user", "Hello.")]
EXAMPLES = Path(__file__).parent.parent / "examples" / "llm_replies.json"


def question(hardware: tuple[str, ...] = ("H200",), count: int = 15) -> list[Message]:
    return first_request(Subject("softmax[n1024]", "triton", hardware=hardware), SPACE, count)


def test_a_recorded_reply_is_found_on_any_machine(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    digest = add_exchange(file, question(), "the reply", "claude-opus-5-5")
    assert digest == request_id(question(()))
    replies = RecordedReplies(file)
    assert replies.ask(question(("RTX 4090", "128 SMs"))).text == "the reply"
    assert replies.label == "recorded replies (claude-opus-5-5) from replies.json"


def test_the_file_says_what_was_asked_and_by_whom(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "replies.json"
    add_exchange(file, question(), "first", "m1")
    add_exchange(file, question(count=3), "second", "m2", "other name")
    document = json.loads(file.read_text())
    assert document["schema"] == 1
    assert [(e["kernel"], e["model"], e["reply"]) for e in document["exchanges"]] == [
        ("softmax[n1024]", "m1", "first"),
        ("other name", "m2", "second"),
    ]
    assert document["exchanges"][0]["messages"][1]["content"] == question()[1].content
    assert sorted(p.name for p in file.parent.iterdir()) == ["replies.json"]


def test_recording_again_replaces_the_reply(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    add_exchange(file, question(), "old", "m")
    add_exchange(file, question(("another GPU",)), "new", "m")
    assert RecordedReplies(file).ask(question()).text == "new"
    assert len(json.loads(file.read_text())["exchanges"]) == 1


def miss(file: Path, messages: Sequence[Message]) -> str:
    with pytest.raises(LLMError) as failure:
        RecordedReplies(file).ask(messages)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_a_miss_names_the_file_the_kernel_the_request_and_the_way_out(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    add_exchange(file, question(), "r", "m")
    text = miss(file, question(count=14))
    assert "softmax[n1024]" in text
    assert "replies.json" in text
    assert request_id(question(count=14))[:12] in text
    assert text.endswith(f"; record again: run once with KERNELTUNE_LLM_RECORD={file} and a model to ask")


def sections(**bodies: str) -> list[Message]:
    """A question about softmax with these sections."""
    bodies = {"Kernel": "Name: softmax", **bodies}
    user = "\n\n".join(f"## {title.replace('_', ' ')}\n{body}" for title, body in bodies.items())
    return [Message("system", "## Role\nTune."), Message("user", user)]


def test_a_miss_names_the_sections_that_differ_from_the_nearest_reply(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    add_exchange(file, sections(Inputs="x", Configuration_space="TILE", Task="Propose 3."), "far", "m")
    add_exchange(file, sections(Inputs="x", Configuration_space="TILE", Task="Propose 15."), "near", "m")
    asked = sections(Inputs="x", Configuration_space="WIDTH", Hardware="new", Task="Propose 15.")
    assert "the prompt's section Configuration space differs from what was recorded;" in miss(file, asked)
    asked = sections(Configuration_space="TILE", Strategy="Think.", Task="Propose 15.")
    assert "the prompt's sections Strategy and Inputs differ from what was recorded;" in miss(file, asked)
    asked = [Message("system", "Hello."), Message("user", "## Kernel\nName: softmax\n\n## Task\nNone.")]
    differing = "the first lines, Task, Role, Inputs and 1 more"
    assert f"the prompt's sections {differing} differ from what was recorded;" in miss(file, asked)


def test_a_later_round_than_was_recorded_ends_the_conversation(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    second = [*question(), Message("assistant", "first"), Message("user", "## Task\nMore.")]
    add_exchange(file, question(), "first", "m")
    model = connect(LLMOptions(replies=file))
    assert [model.submit(m).result(5) for m in (question(), second)] == ["first", '{"configs": []}']
    third = [*second, Message("assistant", "second"), Message("user", "## Task\nMore.")]
    assert model.submit(third).result(5) == '{"configs": []}'
    assert [c.outcome for c in model.calls] == ["replayed", *["the recording ends here"] * 2]
    model.close()


def test_a_later_round_whose_beginning_is_not_recorded_is_a_miss(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    second = [*question(), Message("assistant", "first"), Message("user", "## Task\nMore.")]
    add_exchange(file, second, "second", "m")
    other = [*question(), Message("assistant", "other"), second[-1]]
    assert "the prompt's section the quoted reply differs" in miss(file, other)
    add_exchange(file, question(), "first", "m")
    document = json.loads(file.read_text())
    document["exchanges"] = [{**document["exchanges"][1], "request": "by another rule"}]
    file.write_text(json.dumps(document))
    assert "the recorded conversation ends earlier;" in miss(file, second)


def test_a_reply_that_was_cut_off_says_so_when_it_is_replayed(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    recorder = Recorder(file, "m")
    recorder.record(HELLO, Answer("half", remark="cut off (length); raise it"))
    recorder.record(question(), Answer("whole", remark="ok; asked without temperature"))
    replies = RecordedReplies(file)
    assert replies.ask(HELLO) == Answer("half", remark="replayed; cut off (length); raise it")
    assert replies.ask(question()) == Answer("whole", remark="replayed")


def test_a_miss_for_an_unknown_kernel_lists_those_that_are_known(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    Recorder(file, "m")
    assert "it holds no replies" in miss(file, question())
    for name in "fedcba":
        add_exchange(file, [Message("user", name)], "r", "m", name)
    assert "it holds replies for a, b, c, d and 2 more;" in miss(file, question())
    document = json.loads(file.read_text())
    for exchange in document["exchanges"]:
        del exchange["messages"], exchange["kernel"]
    file.write_text(json.dumps(document))
    assert "it holds replies for this kernel;" in miss(file, question())
    assert "it holds replies for this kernel;" in miss(file, HELLO)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        (b"", "is not JSON"),
        (b"{", "is not JSON .*line 1 column 2"),
        (b"[" * 200_000, "is not JSON .*deep"),
        (b"[]", "not a file of recorded replies"),
        (b'{"schema": 2, "exchanges": []}', "schema 1"),
        (b'{"schema": 1, "exchanges": [{"request": "x"}]}', "not a file of recorded replies"),
        (b'{"schema": 1, "exchanges": [], "cost": NaN}', "is not JSON .*NaN"),
        (b'{"schema": 1, "exchanges": [], "cost": 1' + b"0" * 5000 + b"}", "is not JSON"),
        ('{"schema": 1, "exchanges": []}'.encode("utf-16"), "is not JSON"),
        (b'{"schema": 1, "exchanges": [], "name": "\xed\xa0\x80"}', "is not JSON"),
    ],
)
def test_a_file_that_is_no_good_makes_the_model_unavailable(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    file = tmp_path / "replies.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(LLMUnavailable, match=f"{complaint}.*; name a file") as failure:
        connect(LLMOptions(replies=file))
    assert f"{file} (KERNELTUNE_LLM_REPLIES)" in str(failure.value)
    if content is not None:
        with pytest.raises(LLMUnavailable, match=f"{complaint}.*; it is left as it is") as failure:
            Recorder(file, "m")
        assert f"{file} (KERNELTUNE_LLM_RECORD)" in str(failure.value)
        assert file.read_bytes() == content
        assert list(tmp_path.iterdir()) == [file]


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (os.mkfifo, "is not a file"),
        (os.mkdir, "is not a file"),
        (endless, "is not a file"),
        (sparse, "is not JSON .it is larger than 64 MiB"),
    ],
)
def test_what_is_no_file_or_too_large_is_told_at_once(
    tmp_path: Path, make: Callable[[Path], object], complaint: str
) -> None:
    file = tmp_path / "replies.json"
    make(file)
    before = file.lstat()
    with pytest.raises(LLMUnavailable, match=f"{file}.*REPLIES. {complaint}"):
        RecordedReplies(file)
    with pytest.raises(LLMUnavailable, match=f"{file}.*RECORD. {complaint}"):
        Recorder(file, "m")
    assert (file.lstat().st_mode, file.lstat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_connect_replays_through_the_port(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    add_exchange(file, question(), '{"configs": []}', "m")
    model = connect(LLMOptions(provider="recorded", replies=str(file)))
    assert model.submit(question()).result(5) == '{"configs": []}'
    with pytest.raises(LLMError, match="holds no recorded reply"):
        model.submit([Message("user", "hello")]).result(5)
    assert model.calls[0].outcome == "replayed"
    assert "this kernel" in model.calls[1].outcome
    model.close()


def converse(submit: object, hardware: str, slowdown: float, seed: int) -> tuple[list[str], int]:
    """Stages and number of a whole conversation's trials, on a machine with latencies of its own."""
    search = LLMGuidedSearch(submit, Subject("k", "c", hardware=(hardware,)), rounds=3, min_gain=0.0)  # type: ignore[arg-type]
    proposals = search.propose(SPACE, random.Random(seed))
    batch, stages, count = next(proposals), [], 0
    try:
        while True:
            stages.append(getattr(batch, "stage", ""))
            count += len(batch)
            batch = proposals.send([Trial(c, latency_ms=slowdown / (c["TILE"] * c["UNROLL"])) for c in batch])
    except StopIteration:
        return stages, count


def test_a_whole_conversation_replays_on_another_machine(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    replies = [
        '{"configs": [{"TILE": 32}]}',
        '{"configs": [{"TILE": 64, "UNROLL": 2}]}',
        '{"configs": [{"UNROLL": 8}]}',
    ]
    spoken = iter(replies)

    def recording(messages: Sequence[Message]) -> Future[str]:
        future: Future[str] = Future()
        future.set_result(next(spoken))
        add_exchange(file, messages, future.result(), "m")
        return future

    recorded = converse(recording, "H200", 1.0, 3)
    model = connect(LLMOptions(replies=file))
    assert converse(model.submit, "laptop", 17.0, 3) == recorded
    assert [c.outcome for c in model.calls] == ["replayed"] * len(model.calls)
    model.close()


# Recording


@dataclass
class Echo:
    """Answers with the question, at a price; an exception is raised."""

    error: Exception | None = None

    def ask(self, messages: Sequence[Message], deadline: float | None = None, write: Write = ignore) -> Answer:
        if self.error is not None:
            raise self.error
        return Answer(messages[-1].content, 11, 4)

    def close(self) -> None:
        """Nothing is open."""


def test_what_is_recorded_is_replayed_and_costs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    model = LanguageModel("openai gpt", Echo(), record=Recorder(file, "openai gpt").record)
    first = model.submit(question()).result(5)
    model.submit(HELLO).result(5)
    assert [call.outcome for call in model.calls] == ["ok", "ok"]
    model.close()
    replayed = connect(LLMOptions(replies=file))
    assert replayed.label == "recorded replies (openai gpt) from replies.json"
    assert replayed.submit(question(("another GPU",))).result(5) == first
    (call,) = replayed.calls
    assert (call.tokens_in, call.tokens_out, call.outcome, call.cached) == (None, None, "replayed", False)
    assert json.loads(file.read_text())["exchanges"][0]["tokens_in"] == 11
    replayed.close()


def test_what_failed_is_not_recorded(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    model = LanguageModel("m", Echo(LLMError("no credit")), record=Recorder(file, "m").record)
    with pytest.raises(LLMError, match="no credit"):
        model.submit(HELLO).result(5)
    assert json.loads(file.read_text()) == {"schema": 1, "exchanges": []}
    model.close()


def test_a_file_of_replies_is_extended(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    shutil.copy(EXAMPLES, file)
    before = json.loads(EXAMPLES.read_text())["exchanges"]
    recorder = Recorder(file, "m")
    assert file.read_bytes() == EXAMPLES.read_bytes()
    recorder.record(HELLO, Answer("\ud800 \u2192"))
    after = json.loads(file.read_text())["exchanges"]
    assert after[:-1] == before
    assert "tokens_in" not in after[-1]
    assert RecordedReplies(file).ask(HELLO).text == "\ud800 \u2192"


def test_a_link_is_followed_and_the_mode_is_kept(tmp_path: Path) -> None:
    file, link = tmp_path / "replies.json", tmp_path / "link.json"
    Recorder(file, "m")
    file.chmod(0o640)
    link.symlink_to(file)
    Recorder(link, "m").record(HELLO, Answer("reply"))
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert RecordedReplies(file).ask(HELLO).text == "reply"


def test_a_file_that_cannot_be_written_to_is_found_out_at_once(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine")
    places = {
        tmp_path: "is not a file",
        in_the_way / "below.json": "cannot be written to: ",
        Path("/proc/nowhere/replies.json"): "cannot be written to: ",
        in_the_way: "is not JSON",
    }
    for place, complaint in places.items():
        with pytest.raises(LLMUnavailable, match=f"no reply can be recorded.*KERNELTUNE_LLM_RECORD.* {complaint}"):
            Recorder(place, "m")
    assert in_the_way.read_text() == "mine"


OTHER_USER = """
import os, sys
from pathlib import Path
from filelock import SoftFileLease  # which only root may be able to read
from pytest_kerneltune.errors import LLMUnavailable
from pytest_kerneltune.llm.recorded import RecordedReplies
from pytest_kerneltune.llm.recording import Recorder

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for make in (RecordedReplies, lambda path: Recorder(path, "m")):
    for path in map(Path, sys.argv[1:]):
        try:
            make(path)
            print("ok")
        except LLMUnavailable as error:
            print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_file_of_somebody_else_is_not_replaced() -> None:
    with tempfile.TemporaryDirectory() as made:  # below nothing that only root may enter
        folder, readable = Path(made), Path(made, "readable.json")
        hidden, new = folder / "hidden.json", folder / "new.json"
        folder.chmod(0o777)
        for file, mode in ((readable, 0o444), (hidden, 0o600)):
            Recorder(file, "m")
            file.chmod(mode)
        command = [sys.executable, "-c", OTHER_USER, *map(str, (readable, hidden, new))]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
        folder.chmod(0o755)
        new.unlink()
        lines += subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()[4:]
        assert lines[0] == "ok"
        assert "hidden.json (KERNELTUNE_LLM_REPLIES) cannot be read: Permission denied; " in lines[1]
        assert "new.json (KERNELTUNE_LLM_REPLIES) cannot be read: No such file" in lines[2]
        assert lines[3].endswith("readable.json (KERNELTUNE_LLM_RECORD) is read-only")
        assert "hidden.json (KERNELTUNE_LLM_RECORD) cannot be read: Permission denied; " in lines[4]
        assert lines[5] == "ok"
        assert "new.json (KERNELTUNE_LLM_RECORD) cannot be written to: " in lines[7]
        assert lines[7].endswith("Permission denied")


def test_a_reply_is_not_lost_where_recording_fails_later(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    model = LanguageModel("m", Echo(), record=Recorder(file, "m").record)
    file.write_text("somebody else's")
    assert model.submit(HELLO).result(5) == "Hello."
    (call,) = model.calls
    assert call.answered
    assert call.outcome.startswith("ok; not recorded: ")
    assert "is not JSON" in call.outcome
    assert file.read_text() == "somebody else's"
    assert model.submit(question()).result(5)
    assert model.calls[1].outcome == "ok"  # said once
    model.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.llm.recording import Recorder
from pytest_kerneltune.search import Message

recorder = Recorder(Path(sys.argv[1]), "m")
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for number, size in enumerate((10, 20_000, 20_000, 10)):
    print(recorder.record([Message("user", str(number))], Answer("x" * size)).remark)
"""


def test_a_full_disk_costs_what_no_longer_fits_and_is_told_once(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    command = [sys.executable, "-c", FULL_DISK, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    told = f"ok; not recorded: the file {file} (KERNELTUNE_LLM_RECORD) cannot be written to: File too large"
    assert done.stdout.splitlines() == ["ok", told, "ok", "ok"]
    assert [e["messages"][0]["content"] for e in json.loads(file.read_text())["exchanges"]] == ["0", "3"]
    assert list(tmp_path.iterdir()) == [file]


HOLDER = """
import sys, time
from pathlib import Path
from pytest_kerneltune.disk import leases

lease = leases.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_who_waits_for_a_killed_process_does_not_wait_long(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    Recorder(file, "m")
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        recording = threading.Thread(target=add_exchange, args=(file, HELLO, "after all", "m"))
        recording.start()
        recording.join(0.3)
        assert recording.is_alive()
        holder.kill()
        recording.join(LEASE_S / 2)
        assert not recording.is_alive()
    assert RecordedReplies(file).ask(HELLO).text == "after all"
    assert list(tmp_path.iterdir()) == [file]


WRITER = """
import sys
from pathlib import Path
from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.llm.recording import Recorder
from pytest_kerneltune.search import Message

file, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
recorder = Recorder(file, name)
for number in range(count):
    answer = recorder.record([Message("user", f"{name} {number}")], Answer(f"{name} {number} " + "x" * 50_000))
    print(number if answer.remark == "ok" else answer.remark, flush=True)
"""


def writer(file: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(file), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_record_at_once_and_one_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    count = 12
    others = [writer(file, name, count) for name in ("a", "b")]
    with writer(file, "victim", 10_000) as victim:
        assert victim.stdout is not None
        acknowledged = [victim.stdout.readline() for _ in range(3)]
        victim.kill()
        acknowledged += victim.stdout.readlines()
    for other in others:
        output, _ = other.communicate(timeout=60)
        assert output.split() == [str(n) for n in range(count)]
    expected = {f"{name} {n}" for name in ("a", "b") for n in range(count)}
    expected |= {f"victim {int(line)}" for line in acknowledged if line.endswith("\n")}
    recorded = {e["messages"][0]["content"]: e for e in json.loads(file.read_text())["exchanges"]}
    assert expected <= set(recorded)
    assert len(set(recorded) - expected) <= 1  # the victim may die between writing and saying so
    assert all(e["reply"] == f"{said} " + "x" * 50_000 for said, e in recorded.items())
    Recorder(file, "m").record(HELLO, Answer("after all"))
    assert len(json.loads(file.read_text())["exchanges"]) == len(recorded) + 1
    left = [path for path in tmp_path.iterdir() if path != file]
    assert len(left) <= 1  # what the victim was writing, for an hour
    for path in left:
        os.utime(path, (0, 0))
    add_exchange(file, HELLO, "again", "m")
    assert list(tmp_path.iterdir()) == [file]
