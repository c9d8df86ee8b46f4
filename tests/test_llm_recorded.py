"""Recorded replies: found by the question, on any machine."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from pytest_kerneltune.errors import LLMError, LLMUnavailable
from pytest_kerneltune.llm import LLMOptions, connect
from pytest_kerneltune.llm.recorded import RecordedReplies, add_exchange, request_id
from pytest_kerneltune.parameter import integer, power_of_two
from pytest_kerneltune.search import Message, Subject
from pytest_kerneltune.search.dialogue import first_request
from pytest_kerneltune.search.guided import LLMGuidedSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Trial

SPACE = ConfigSpace({"TILE": power_of_two(1, 64), "UNROLL": integer(1, 8)})


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
    assert [p.name for p in file.parent.iterdir()] == ["replies.json"]


def test_recording_again_replaces_the_reply(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    add_exchange(file, question(), "old", "m")
    add_exchange(file, question(("another GPU",)), "new", "m")
    assert RecordedReplies(file).ask(question()).text == "new"
    assert len(json.loads(file.read_text())["exchanges"]) == 1


def test_a_miss_names_the_kernel_the_file_and_the_request(tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    add_exchange(file, question(), "r", "m")
    with pytest.raises(LLMError) as miss:
        RecordedReplies(file).ask(question(count=14))
    assert "softmax[n1024]" in str(miss.value)
    assert "replies.json" in str(miss.value)
    assert request_id(question(count=14))[:12] in str(miss.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "not a file of recorded replies"),
        ('{"schema": 2, "exchanges": []}', "schema 1"),
        ('{"schema": 1, "exchanges": [{"request": "x"}]}', "not a file of recorded replies"),
    ],
)
def test_a_file_that_is_no_good_makes_the_model_unavailable(
    tmp_path: Path, content: str | None, complaint: str
) -> None:
    file = tmp_path / "replies.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(LLMUnavailable, match=complaint):
        connect(LLMOptions(replies=file))


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
