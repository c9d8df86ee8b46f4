"""Reading replies while they are written: what is measured, in which order, however the text comes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import chain, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.parameter import boolean, choice, integer, power_of_two
from pytest_kerneltune.search.port import StreamedReply
from pytest_kerneltune.search.reading import Answer, read
from pytest_kerneltune.search.replies import MAX_CHARACTERS, parse_reply
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import ReplyInPieces
from pytest_kerneltune.trial import Config

SPACE = ConfigSpace(
    {"TILE": power_of_two(1, 256, default=64), "UNROLL": integer(1, 8), "FUSE": boolean(), "MODE": choice("a}", "b", 1)}
)


def answered(text: str) -> Future[str]:
    future: Future[str] = Future()
    future.set_result(text)
    return future


def taken(
    future: Future[str], limit: int = 15, known: Collection[str] = frozenset()
) -> tuple[list[list[Config]], Answer]:
    """The batches of a reply, the last one included, and what it was in the end."""
    reading, batches = read(future, SPACE, known, limit), []
    while True:
        try:
            batches.append(list(next(reading)))
        except StopIteration as end:
            answer: Answer = end.value
            break
    if answer.left:
        batches.append(list(answer.left))
    assert all(batches)
    assert [c for batch in batches for c in batch] == list(answer.new)
    return batches, answer


def cut(text: str, places: Sequence[int]) -> list[str]:
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(bounds)]


def reply(*tiles: int) -> str:
    return json.dumps({"configs": [{"TILE": tile, "MODE": "b"} for tile in tiles]})


def tiles(batches: Sequence[Sequence[Config]]) -> list[list[int]]:
    return [[int(c["TILE"]) for c in batch] for batch in batches]


def test_configs_are_given_as_soon_as_they_are_complete_but_for_the_last_one() -> None:
    text = reply(1, 2, 4, 8)
    pieces = text.replace("}, ", "}, |").split("|")
    batches, answer = taken(ReplyInPieces(pieces))
    assert tiles(batches) == [[1], [2], [4], [8]]
    assert (answer.note, answer.counts) == ("4 proposed, 4 valid, 4 new", {"proposed": 4, "valid": 4, "new": 4})


def test_several_configs_in_one_piece_are_one_batch() -> None:
    text = reply(1, 2, 4, 8)
    assert tiles(taken(ReplyInPieces([text[:90], text[90:]]))[0]) == [[1, 2], [4], [8]]


def test_a_reply_that_is_not_streamed_is_one_batch() -> None:
    assert tiles(taken(answered(reply(1, 2, 4)))[0]) == [[1, 2, 4]]


@pytest.mark.parametrize("pieces", [0, 1, 7, 1000])
def test_no_more_configs_than_wanted_are_given_and_the_last_of_them_at_the_end(pieces: int) -> None:
    text = reply(1, 2, 4, 8, 16, 32)
    future = ReplyInPieces(cut(text, range(0, len(text), -(-len(text) // pieces)))) if pieces else answered(text)
    batches, answer = taken(future, limit=4)
    assert list(chain(*tiles(batches))) == [1, 2, 4, 8]
    assert answer.left
    assert answer.note == "6 proposed, 6 valid, 4 new; dropped: 2 x more than asked for"


def test_known_configs_are_not_given() -> None:
    known = {SPACE.key({**SPACE.default, "TILE": 2, "MODE": "b"})}
    for future in (answered(reply(1, 2, 4)), ReplyInPieces(list(reply(1, 2, 4)))):
        batches, answer = taken(future, known=known)
        assert list(chain(*tiles(batches))) == [1, 4]
        assert answer.note == "3 proposed, 3 valid, 2 new; dropped: 1 x measured before"


def test_a_value_that_may_go_on_is_not_taken() -> None:
    """The number 1 may become 16, and a config is complete only with its bracket."""
    reading = read(ReplyInPieces(['{"configs": [{"TILE": 1', '6}, {"TILE": 2', "}, ", "{}]}"]), SPACE, frozenset(), 9)
    assert tiles([next(reading)]) == [[16]]


@pytest.mark.parametrize(
    "draft", ["<think>{draft}</think>", "<think>hm\n{draft} or </think>\n", "<THINKING>{draft}</THINKING> So: "]
)
def test_nothing_in_a_reasoning_block_is_taken(draft: str) -> None:
    text = draft.format(draft=reply(1, 2, 4)) + reply(8, 16, 32)
    assert list(chain(*tiles(taken(ReplyInPieces(list(text)))[0]))) == [8, 16, 32]


def test_a_reasoning_block_without_an_end_holds_its_configs_back_to_the_end() -> None:
    text = f"<think>{reply(1, 2, 4)}"
    assert tiles(taken(ReplyInPieces(list(text)))[0]) == [[1, 2, 4]]


def test_what_was_measured_of_a_draft_counts_as_proposed() -> None:
    text = f"```json\n{reply(1, 2, 4)}\n```\nRather:\n```json\n{reply(8, 16)}\n```"
    for pieces in (list(text), [text]):
        batches, answer = taken(ReplyInPieces(pieces))
        assert list(chain(*tiles(batches))) == [1, 2, 4, 8, 16]
        assert answer.note == "5 proposed, 5 valid, 5 new"
    assert list(chain(*tiles(taken(answered(text))[0]))) == [8, 16]


def test_a_reply_that_breaks_off_is_read_as_far_as_it_came() -> None:
    text = reply(1, 2, 4)[:-20]
    for pieces in ([text], list(text)):
        batches, answer = taken(ReplyInPieces(pieces, LLMError("connection reset")))
        assert list(chain(*tiles(batches))) == [1, 2]
        assert answer.error == "connection reset"
        assert answer.note == (
            "3 proposed, 2 valid, 2 new; dropped: 1 x malformed or cut off; broke off: connection reset"
        )


def test_a_request_that_fails_gives_nothing_but_the_reason() -> None:
    for future in (Future[str](), StreamedReply()):
        future.set_exception(LLMError("no credit"))
        batches, answer = taken(future)
        assert (batches, answer.error, answer.counts) == ([], "no credit", {"proposed": 0, "valid": 0, "new": 0})


def test_the_result_counts_whatever_was_written() -> None:
    future = StreamedReply()
    future.write("something else ")
    reading = read(future, SPACE, frozenset(), 9)
    future.set_result(reply(1, 2))
    with pytest.raises(StopIteration) as end:
        next(reading)
    assert tiles([end.value.value.left]) == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "warns"),
    [
        (reply(1, 2, 4), False),
        ('{"configs": [{"TILE": "x"}, {"TILE": 1}]}', False),
        ('{"configs": [{"TILE": "x"}, {"TILE": 1}, {"SPEED": 9}]}', True),
        ("[{}, {}, {}]", True),
        ("no idea", False),
    ],
)
def test_more_than_half_that_cannot_be_used_is_a_warning(text: str, warns: bool) -> None:
    note = taken(answered(text))[1].note
    assert ("warning: more than half of the model's configs could not be used" in note) == warns


def test_configs_are_given_while_the_model_still_writes() -> None:
    future, text = StreamedReply(), reply(1, 2, 4, 8)
    reading = read(future, SPACE, frozenset(), 9)

    def write() -> None:
        for character in text[:-5]:
            future.write(character)

    writer = threading.Thread(target=write)
    writer.start()
    early = [*next(reading)]
    while len(early) < 2:
        early += next(reading)
    assert not future.done()
    writer.join()
    future.set_result(text)
    early += chain(*reading)
    assert tiles([early]) in ([[1, 2]], [[1, 2, 4]]), "what is left comes with the end"


AFTERMATHS = {
    "more configs": '{"TILE": 2, "UNROLL": 3}, ' * 400,
    "words": "and so on " * 1000,
    "another document": "x" * 6000 + reply(128, 256),
    "spaces": " " * MAX_CHARACTERS,
}


@pytest.mark.parametrize("aftermath", AFTERMATHS)
@pytest.mark.parametrize("before", ["", "Well, " * 1000])
def test_a_reply_that_goes_on_and_on_is_not_read_to_its_end(before: str, aftermath: str) -> None:
    text = before + reply(1, 2, 4, 8).removesuffix("]}") + ", " + AFTERMATHS[aftermath]
    expected = taken(ReplyInPieces([text]), limit=3)[1]
    assert list(chain(*tiles([expected.new]))) == [1, 2, 4]
    for step in (100, 1000, 5000):
        future = ReplyInPieces(cut(text, range(0, len(text), step)), LLMError("out of time"))
        answer = taken(future, limit=3)[1]
        assert (answer.new, answer.reply, answer.counts, answer.error) == (
            (expected.new, expected.reply, expected.counts, "")
        )
        assert not future.write("more")
    assert taken(answered(text), limit=3)[1].new == expected.new


def test_a_writer_that_is_told_to_stop_ends_the_round() -> None:
    future, text = StreamedReply(), reply(1, 2, 4, 8).removesuffix("]}") + ", "
    written: list[str] = []

    def write() -> None:
        piece = text
        while len(written) < 100_000 and future.write(piece):
            piece = "and so on "
            written.append(piece)
        future.set_result(text + "".join(written))

    writer = threading.Thread(target=write)
    writer.start()
    batches, answer = taken(future, limit=3)
    writer.join()
    assert list(chain(*tiles(batches))) == [1, 2, 4]
    assert answer.error == ""
    assert len(written) < 100_000


@pytest.mark.parametrize("rest", ["", " " * 3000, " and so on" * 300])
def test_a_usual_reply_is_read_to_its_end(rest: str) -> None:
    future = ReplyInPieces(list(reply(1, 2, 4, 8) + rest))
    taken(future, limit=3)
    assert future.write("more")


def test_a_long_reply_that_lacks_configs_is_read_to_its_end() -> None:
    future = ReplyInPieces(cut("Well, " * 2000 + reply(1, 2), range(0, 12_000, 100)))
    batches, _ = taken(future, limit=3)
    assert list(chain(*tiles(batches))) == [1, 2]
    assert future.write("more")


FRAGMENTS = [
    *('{"configs": [', '{"configs":', "[", "]", "{", "}", "},", ", ", "\n", '"', "'", "\\", "<think>", "</think>"),
    *('{"TILE": 32}', '{"TILE": 128, "UNROLL": 4}', '{"UNROLL": 1e0}', '{"UNROLL": 7,', '{"TILE": 1_6}', "]}"),
    *('{"MODE": "a}"}', '{"config": {"TILE": 4}, "why": "<think> } //"}', "{'FUSE': True}", "{FUSE: 1}", "// }\n"),
    *("/* } */", "/*", "# } ", "```json\n", "prose ", "1e", "-", "-.5", "tru", "e", "null", ":", "=", "dict(", ")"),
    *('"TILE"', '"configs"', "{}", "16", "</thinking>", "<thinking>", "<", ">", "“TILE”", '{"one": {"TILE": 2}}'),
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25), st.lists(st.integers(0, 999), max_size=12), st.integers(1, 6))
@example(['{"configs": [', "{'FUSE': True}", '{"UNROLL": 1e', "0}", "]}"], [30, 38], 5)
@settings(max_examples=400, deadline=None)
def test_the_pieces_do_not_matter(fragments: list[str], places: list[int], limit: int) -> None:
    text = "".join(fragments)
    whole = taken(ReplyInPieces([text] if text else []), limit)[1]
    for pieces in (cut(text, places), list(text)):
        answer = taken(ReplyInPieces(pieces), limit)[1]
        assert (answer.new, answer.reply, answer.counts) == (whole.new, whole.reply, whole.counts)
    assert len(whole.new) <= limit
    assert bool(whole.new) >= bool(whole.reply.configs)


CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "TILE": st.sampled_from([1, 32, "64", [128], 7.0, "huge", None]),
        "UNROLL": st.integers(-2, 12),
        "FUSE": st.booleans(),
        "MODE": st.sampled_from(["a}", "B", 1, {"TILE": 8}]),
        "why": st.text(max_size=8),
    },
)


@given(
    st.lists(CONFIGS, max_size=8),
    st.sampled_from(["{}", "```json\n{}\n```", "Well, [see] {{this}}: {} That's all.", "<think>no [{{}}]</think>{}"]),
    st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_a_plain_reply_is_measured_alike_whether_streamed_or_not(
    configs: list[object], around: str, limit: int
) -> None:
    for document in (json.dumps({"configs": configs}), json.dumps(configs), json.dumps({"configs": configs}, indent=1)):
        text = around.format(document)
        streamed, plain = taken(ReplyInPieces(list(text)), limit)[1], taken(answered(text), limit)[1]
        assert replace(streamed, left=plain.left) == plain
        assert list(plain.new) == list(parse_reply(text, SPACE).configs)[:limit]


@pytest.mark.parametrize(
    "unit", ['{"why": "x"}, ', "[", '"} ', "/* } ", "<think>", "} </think>", "a }", '{"TILE": 1},']
)
def test_a_long_reply_in_many_pieces_is_read_in_linear_time(unit: str) -> None:
    def seconds(size: int) -> float:
        text = '{"configs": [' + unit * (size // len(unit))
        started = time.process_time()
        taken(ReplyInPieces(cut(text, range(0, len(text), 100))))
        return time.process_time() - started

    small, large = MAX_CHARACTERS // 32, MAX_CHARACTERS // 4
    assert seconds(large) < 40 * seconds(small) + 2.0, "eight times the text took over forty times as long"
