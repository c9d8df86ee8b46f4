"""Streamed replies, put together from bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

import pytest

from pytest_kerneltune.llm.answers import read_anthropic, read_chat, read_ollama, read_responses
from pytest_kerneltune.llm.streams import (
    Merge,
    ReplyStream,
    merge_anthropic,
    merge_chat,
    merge_ollama,
    merge_responses,
)

MERGES = [merge_responses, merge_anthropic, merge_chat, merge_ollama]


def delta(text: object) -> str:
    """A chunk of Chat Completions."""
    return json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False)


def fed(chunks: Iterable[bytes], merge: Merge = merge_chat) -> tuple[ReplyStream, list[str]]:
    """A stream that has taken all of ``chunks``, and the pieces it made of them."""
    stream = ReplyStream(merge)
    pieces = [stream.feed(chunk) for chunk in chunks]
    pieces.append(stream.finish())
    return stream, [piece for piece in pieces if piece]


FIRST, SECOND = "h\u00e9", "ll\u2028"
STREAM = (
    ": keep-alive\r\n\r\nevent: message\r\nid: 7\r\nretry: 10\r\n"
    f"data: {delta(FIRST)}\r\n\r\n"
    ": another comment\r\n"
    f"data:{delta(SECOND)}\n\n"
    f"data: {delta('o')}\r\r"
    'data: {"choices": [{"delta": {},\ndata: "finish_reason": "stop"}]}\n\n'
    'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}\n\n'
    "data: [DONE]\n\n"
).encode()


@pytest.mark.parametrize("seed", range(20))
def test_events_may_be_split_anywhere(seed: int) -> None:
    rng = random.Random(seed)
    cuts = sorted(rng.choices(range(len(STREAM)), k=rng.choice([0, 1, 5, 100, 1000])))
    stream, pieces = fed(STREAM[i:j] for i, j in zip([0, *cuts], [*cuts, len(STREAM)], strict=True))
    assert "".join(pieces) == stream.text == "h\u00e9ll\u2028o"
    assert stream.is_stream
    assert stream.over
    assert not stream.broken
    answer = read_chat(stream.whole)
    assert (answer.text, answer.tokens_in, answer.tokens_out, answer.remark) == (stream.text, 7, 3, "ok")


def test_a_piece_is_there_once_its_event_has_ended() -> None:
    stream = ReplyStream(merge_chat)
    event = f"data: {delta('a')}\n\n".encode()
    assert [stream.feed(bytes([byte])) for byte in event] == [""] * (len(event) - 1) + ["a"]


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeffdata: {delta('ab')}\n\n",
        f"data: {delta('a')}\ndata: {delta('b')}\n\n",
        f"data: {delta('a')}\n\ndata: not JSON\n\ndata: 3\n\ndata:\n\ndata: {delta('b')}",
        f"event: ping\nunknown: x\n\ndata: {delta('ab')}\n",
        f"data: {delta(None)}\n\ndata: {delta(7)}\n\ndata: {delta([{'type': 'text', 'text': 'ab'}])}\n\n",
    ],
    ids=["byte order mark", "no empty lines", "nonsense between", "other fields", "odd contents"],
)
def test_sloppy_streams_are_read(text: str) -> None:
    stream, _ = fed([text.encode()])
    assert stream.text == "ab"
    assert stream.broken


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("content", [b"", b"\n\n", b"<html>", b"data: \n\n", b"data: 3\n\n", b"plain"])
def test_what_is_no_reply_is_none(merge: Merge, content: bytes) -> None:
    stream, pieces = fed([content], merge)
    assert stream.whole is None
    assert (stream.is_stream, stream.broken, stream.over) == (False, False, False)
    assert pieces == []


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_whole_reply_stays_as_it_is(merge: Merge, encoding: str, indent: int | None) -> None:
    reply = {"status": "completed", "content": "h\u00e9llo", "choices": [{"message": {"content": "x"}}], "n": [1, {}]}
    content = json.dumps(reply, ensure_ascii=False, indent=indent).encode(encoding)
    stream, _ = fed([content[:9], content[9:]], merge)
    assert stream.whole == reply
    assert not stream.is_stream
    assert not stream.broken


@pytest.mark.parametrize("merge", MERGES)
def test_no_event_however_odd_breaks_the_reading(merge: Merge) -> None:
    odd: list[Any] = [None, 0, "x", [], [None], ["x"], {}, {"type": 7}, [{"type": "text", "text": 7}], [[]]]
    names = ["type", "delta", "content", "choices", "message", "usage", "response", "output", "content_block", "item"]
    kinds = ["response.output_text.delta", "response.completed", "error", "message_start", "content_block_start"]
    kinds += ["content_block_delta", "message_delta", "response.refusal.delta"]
    rng = random.Random(0)
    odd_events = [
        {name: rng.choice([*odd, *kinds] if name == "type" else odd) for name in rng.sample(names, 5)}
        for _ in range(300)
    ]
    for _ in range(300):
        stream, _ = fed(events(*rng.choices(odd_events, k=3)), merge)
        assert isinstance(stream.whole, dict)


@pytest.mark.parametrize("merge", MERGES)
def test_a_stream_of_comments_alone_is_broken(merge: Merge) -> None:
    for content in (b": ping\n\n", b"\n :\r\n: : ping : x\r\n\r\n", b": " * 10_000):
        stream, _ = fed([content], merge)
        assert (stream.whole, stream.broken) == (None, True)
    assert not fed([b": ping\n\nplain"], merge)[0].broken


def test_lines_of_json_end_with_the_done_one() -> None:
    lines = [
        {"message": {"content": "a", "thinking": "hm"}, "done": False},
        {"message": {"content": "b"}, "done": False},
    ]
    last = {"message": {"content": ""}, "done": True, "done_reason": "length", "prompt_eval_count": 7, "eval_count": 3}
    content = b"".join(json.dumps(line).encode() + b"\n" for line in [*lines, last])
    stream, pieces = fed([content[:20], content[20:]], merge_ollama)
    assert pieces == ["ab"]
    answer = read_ollama(stream.whole)
    assert (answer.text, answer.tokens_in, answer.tokens_out, answer.remark) == (
        "ab",
        7,
        3,
        "cut off (length); raise KERNELTUNE_LLM_MAX_OUTPUT_TOKENS",
    )
    cut, _ = fed([json.dumps(lines[0]).encode()], merge_ollama)
    assert (cut.text, cut.broken) == ("a", True)


def events(*items: dict[str, Any]) -> list[bytes]:
    return [f"data: {json.dumps(item)}\n\n".encode() for item in items]


def test_the_last_event_of_openai_counts_unless_it_leaves_the_text_out() -> None:
    piece = {"type": "response.output_text.delta", "delta": "streamed"}
    told = {"type": "message", "content": [{"type": "output_text", "text": "told"}]}
    for output, text in ([told], "told"), ([], "streamed"), ([{"type": "reasoning"}], "streamed"), (None, "streamed"):
        done = {"type": "response.completed", "response": {"status": "completed", "output": output}}
        stream, _ = fed(events(piece, done), merge_responses)
        assert read_responses(stream.whole).text == text


def test_refusals_are_collected() -> None:
    pieces = [{"type": "response.refusal.delta", "delta": text} for text in ("No", "pe.")]
    stream, texts = fed(events(*pieces), merge_responses)
    assert texts == []
    assert stream.whole["output"][0]["content"] == [{"type": "refusal", "refusal": "Nope."}]
    deltas = [{"choices": [{"delta": {"refusal": text}}]} for text in ("No", "pe.")]
    stream, texts = fed(events(*deltas))
    assert texts == []
    assert stream.whole["choices"][0]["message"]["refusal"] == "Nope."


def test_anthropic_counts_come_in_two_events() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 1, "cache_creation_input_tokens": 6}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}
    usage = {"output_tokens": 3, "input_tokens": None}
    end = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": usage}
    stream, _ = fed(events(start, text, end), merge_anthropic)
    answer = read_anthropic(stream.whole)
    assert (answer.text, answer.tokens_in, answer.tokens_out, answer.remark) == (
        "a",
        7,
        3,
        "cut off (max_tokens); raise KERNELTUNE_LLM_MAX_OUTPUT_TOKENS",
    )
    assert not stream.broken


def test_nothing_is_read_behind_the_end() -> None:
    stream, pieces = fed([f"data: {delta('a')}\n\ndata: [DONE]\n\ndata: {delta('b')}\n\n".encode()])
    assert pieces == ["a"]
    assert stream.text == "a"


def test_a_long_line_in_many_pieces_is_read_in_linear_time() -> None:
    content = f"data: {delta('x' * 4_000_000)}\n\n".encode()
    stream, _ = fed(content[i : i + 64] for i in range(0, len(content), 64))
    assert len(stream.text) == 4_000_000
