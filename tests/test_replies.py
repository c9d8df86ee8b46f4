"""Reading replies: what models send, and what must come of it."""

from __future__ import annotations

import time

import pytest

from pytest_kerneltune.parameter import Parameter, boolean, choice, integer, list_of, permutation, power_of_two
from pytest_kerneltune.search.replies import MAX_CHARACTERS, parse_reply, reply_schema
from pytest_kerneltune.space import ConfigSpace

SPACE = ConfigSpace(
    {
        "TILE": power_of_two(16, 256, default=64),
        "UNROLL": integer(1, 8),
        "ORDER": choice("row", "col", None),
        "FUSE": boolean(),
        "LOOPS": permutation(3),
        "HINTS": list_of(integer(0, 4), 2),
    },
    where=lambda c: c["TILE"] * c["UNROLL"] <= 512,
)


def changes(text: str) -> list[dict[str, object]]:
    """The configs of a reply, each as what differs from the default."""
    default = SPACE.default
    return [{k: v for k, v in c.items() if v != default[k]} for c in parse_reply(text, SPACE).configs]


PLAIN = '{"configs": [{"TILE": 32}, {"TILE": 128, "UNROLL": 4}]}'
EXPECTED = [{"TILE": 32}, {"TILE": 128, "UNROLL": 4}]


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "\ufeff" + PLAIN,
        f"```json\n{PLAIN}\n```",
        f"Here's what I'd try:\n\n{PLAIN}\n\nThat's all [1], it's {{good}}.",
        f"As noted in [see below: here's why] and {{curly stuff that's prose}}:\n{PLAIN}",
        '```json\n{"configs": []}\n```\nRather:\n```json\n' + PLAIN + "\n```",
        f'<think>{{"configs": [{{"TILE": 256}}]}} no, smaller</think>\n{PLAIN}',
        f"first thoughts, the start of which was cut</think>{PLAIN}",
        f"Draft: {{'configs': [{{'TILE': 16}}]}}\nFinal: {PLAIN}",
        "{'configs': [{'TILE': 32}, {'TILE': 128, 'UNROLL': 4},]}",
        "{configs: [{TILE: 32}, // small\n {TILE: 128, /* more */ UNROLL: 4}, # end\n]}",
        '[{"TILE": 32}, {"TILE": 128, "UNROLL": 4}]',
        '{"TILE": 32}\n{"TILE": 128, "UNROLL": 4}\n',
        '{"configs": [{"TILE": 32}, {"TILE": 128, "UNROLL": 4}, {"TILE": 25',
        '{"configs": [{"TILE": 32}, {"TILE": 128, "UNROLL": 4}',
        '{"configs": [{"config": {"TILE": 32}, "why": "it\\"s small"}, {"config": {"TILE": 128, "UNROLL": 4}}]}',
        '{"answer": {"configs": {"one": {"TILE": 32}, "two": {"TILE": 128, "UNROLL": 4}}}}',
        '{"config_1": {"TILE": 32}, "config_2": {"TILE": 128, "UNROLL": 4}}',
        '{"TILE": 32}\n\n{"TILE": 128, "UNROLL": 4}',
        f'{{"best": {{"TILE": 16}}, "answer": {PLAIN}, "why": [{{"TILE": 64}}]}}',
        PLAIN[:-1] + ', "TILE": 256}',
        "```python\nconfigs = [\n    {'TILE': 32},\n    dict(TILE=128, UNROLL=4),\n]\nbest = configs[0]\n```",
        "[Config({'TILE': 32}), Config({'TILE': 128, 'UNROLL': 4})]",
        "{“configs”: [{“TILE”: 32}, {“TILE”: 128, “UNROLL”: 4}]}",
        '{"configs" = [{TILE = 32}, {TILE => 128, UNROLL => 4}]}',
        '{"configs": [null, {"TILE": 32}, "as I said", {"TILE": 128, "UNROLL": 4, "ORDER": null, "ORDER": "row"}]}',
        '{"configs": [{"TILE": 32 /* small */}, {"TILE": 128, # big\n "UNROLL": 4 // more\n}]}',
    ],
)
def test_the_shape_around_the_configs_does_not_matter(text: str) -> None:
    assert changes(text) == EXPECTED


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ('"TILE": "128"', {"TILE": 128}),
        ('"TILE": 128.0', {"TILE": 128}),
        ('"TILE": [128]', {"TILE": 128}),
        ('"TILE": 100', {"TILE": 128}),
        ('"TILE": 4096', {"TILE": 256}),
        ('"TILE": null', {}),
        ('"UNROLL": 3.4', {"UNROLL": 3}),
        ('"UNROLL": -5', {}),
        ('"FUSE": "true"', {"FUSE": True}),
        ('"FUSE": True', {"FUSE": True}),
        ('"FUSE": 1', {"FUSE": True}),
        ('"ORDER": "COL"', {"ORDER": "col"}),
        ('"ORDER": null', {"ORDER": None}),
        ('"ORDER": "None"', {"ORDER": None}),
        ('"LOOPS": ["2", 1.0, 0]', {"LOOPS": (2, 1, 0)}),
        ('"LOOPS": "[2, 1, 0]"', {"LOOPS": (2, 1, 0)}),
        ('"HINTS": (1, "2")', {"HINTS": (1, 2)}),
        ('"HINTS": [9, 0]', {"HINTS": (4, 0)}),
        ('"HINTS": "1, 2"', {"HINTS": (1, 2)}),
        ('"TILE": "32 elements"', {"TILE": 32}),
        ('"TILE": "128x"', {"TILE": 128}),
        ('"TILE": "32 # small"', {"TILE": 32}),
        ('"UNROLL": "4 (as the loop is short)"', {"UNROLL": 4}),
        ('"UNROLL": "4.0 // see above"', {"UNROLL": 4}),
        ('"TILE": "`32`"', {"TILE": 32}),
        ('"ORDER": "\'col\'"', {"ORDER": "col"}),
        ('"tile": 32, "Unroll ": 2', {"TILE": 32, "UNROLL": 2}),
        ('"TILE": 32, "tile": 16', {"TILE": 32}),
        ('"UNROLL": 99999999999999999999', {"UNROLL": 8}),
        ('"TILE": null, "UNROLL": null, "FUSE": null, "LOOPS": null, "HINTS": null', {}),
        ('"TILE": 32, "latency_ms": 0.001, "speedup": "9x", "note": "fastest \\u001b[31m"', {"TILE": 32}),
    ],
)
def test_values_of_one_meaning_are_repaired(values: str, expected: dict[str, object]) -> None:
    assert changes(f'{{"configs": [{{{values}}}]}}') == [expected]


@pytest.mark.parametrize(
    "values",
    [
        '"TILE": "big"',
        '"TILE": NaN',
        '"TILE": Infinity',
        '"TILE": 1e999',
        '"TILE": true',
        '"TILE": 0',
        '"TILE": [32, 64]',
        '"TILE": {"value": 64}',
        f'"TILE": {"9" * 5000}',
        '"TILE": 2**7',
        '"TILE": max(1, 2)',
        '"TILE": "2**7"',
        '"TILE": "32 or 64"',
        '"TILE": "32x64"',
        '"TILE": "-"',
        '"UNROLL": 1e400',
        '"UNROLL": ' + "[" * 20 + "1, 2" + "]" * 20,
        f'"HINTS": "{"[" * 50}1, 2{"]" * 50}"',
        f'"HINTS": "1, {"(" * 300}"',
        '"TILE": __import__("os").system("true")',
        '"FUSE": 2',
        '"ORDER": "diagonal"',
        '"LOOPS": [0, 0, 1]',
        '"HINTS": [1, 2, 3]',
        '"HINTS": 3',
    ],
)
def test_a_value_without_one_meaning_drops_its_config_only(values: str) -> None:
    reply = parse_reply(f'{{"configs": [{{{values}}}, {{"TILE": 32}}]}}', SPACE)
    assert [c["TILE"] for c in reply.configs] == [32]
    assert (reply.proposed, sum(reply.dropped.values())) == (2, 1)


def test_a_parameter_that_does_not_matter_gets_its_default() -> None:
    kinds: dict[str, Parameter] = {
        "PERSISTENT": boolean(),
        "WAVES": integer(1, 8, default=2, when={"PERSISTENT": True}),
        "GROUP": power_of_two(1, 8, when={"WAVES": (4, 8)}),
    }
    space = ConfigSpace(kinds, lambda c: c["PERSISTENT"] or (c["WAVES"], c["GROUP"]) == (2, 1))
    reply = parse_reply(
        '{"configs": [{"WAVES": 4, "GROUP": 8}, {"WAVES": 7}, {"PERSISTENT": true, "WAVES": 3, "GROUP": 4},'
        ' {"PERSISTENT": true, "WAVES": 4, "GROUP": 4}, {"WAVES": "many"}]}',
        space,
    )
    assert [tuple(c.values()) for c in reply.configs] == [(False, 2, 1), (True, 3, 1), (True, 4, 4)]
    assert reply.dropped == {"duplicate": 2}, "what WAVES would be makes no difference"


def test_a_misfit_of_a_parameter_that_matters_drops_the_config() -> None:
    space = ConfigSpace({"FAST": boolean(), "WAVES": integer(1, 8, default=2, when={"FAST": True})})
    reply = parse_reply('[{"FAST": true, "WAVES": "many"}, {"FAST": false, "WAVES": "many"}, {"WAVES": [1, 2]}]', space)
    assert [tuple(c.values()) for c in reply.configs] == [(False, 2)]
    assert reply.dropped == {"WAVES=many does not fit": 1, "duplicate": 1}


def test_a_constraint_that_fails_on_a_config_drops_it() -> None:
    space = ConfigSpace({"A": integer(0, 4, default=1)}, lambda c: 4 % c["A"] == 0)
    assert [c["A"] for c in parse_reply('[{"A": 0}, {"A": 2}, {"A": 3}]', space).configs] == [2]


def test_what_is_dropped_is_counted_by_reason() -> None:
    reply = parse_reply(
        '{"configs": [{"TILE": 32}, {"TILE": "32"}, {"TILE": 256, "UNROLL": 8}, {"ORDER": "up"}, {"SPEED": 1},'
        ' {"SPEED": 1, "TILE": 16}, {}, {"TILE": 64, "UN',
        SPACE,
    )
    assert [c["TILE"] for c in reply.configs] == [32, 16, 64]
    assert reply.configs[2] == SPACE.default
    assert reply.proposed == 8
    assert reply.dropped == {
        "malformed or cut off": 1,
        "duplicate": 1,
        "refused by the constraint": 1,
        "ORDER=up does not fit": 1,
        "unknown parameter SPEED": 2,
    }


def test_reasons_are_short_printable_and_few() -> None:
    bad = ", ".join(f'{{"TILE": "\\u001b[31m{i}{"x" * 100}"}}' for i in range(50))
    dropped = parse_reply(f'{{"configs": [{bad}]}}', SPACE).dropped
    assert all(len(reason) < 80 and reason.isprintable() for reason in dropped)
    assert len(dropped) <= 13
    assert sum(dropped.values()) == 50


def test_configs_are_complete_canonical_and_in_order() -> None:
    (config,) = parse_reply('{"configs": [{"HINTS": [1, 2], "TILE": 32}]}', SPACE).configs
    assert list(config) == SPACE.names
    assert config == SPACE.canonical(config)


@pytest.mark.parametrize(
    "text", ["", "no", "null", "[]", "{}", '{"configs": []}', "I cannot help with that.", "[1, 2]"]
)
def test_a_reply_without_configs_is_empty(text: str) -> None:
    reply = parse_reply(text, SPACE)
    assert (reply.configs, reply.proposed, dict(reply.dropped)) == ((), 0, {})


@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "{",
        '{"a":',
        '"',
        "['",
        '{"a":"\\"',
        "9",
        "[9",
        '["\\\n',
        "[/*",
        "<think>",
        "[a",
        '{"TILE": 1},',
        "</think>[",
    ],
)
def test_hostile_text_is_read_in_linear_time(unit: str) -> None:
    some = unit * (MAX_CHARACTERS // (32 * len(unit)))
    started = time.process_time()
    parse_reply(some, SPACE)
    once = time.process_time() - started
    parse_reply(some * 8, SPACE)
    assert time.process_time() - started - once < 40 * once + 2.0, "eight times the text took over forty times as long"


def test_configs_before_an_abyss_are_kept() -> None:
    assert changes('{"configs": [{"TILE": 32}, {"HINTS": ' + "[" * 100_000) == [{"TILE": 32}]


def test_only_the_beginning_of_an_endless_reply_is_read() -> None:
    text = '[{"TILE": 32}, ' + " " * MAX_CHARACTERS + '{"TILE": 128}]'
    assert changes(text) == [{"TILE": 32}]


def test_schema_lists_every_parameter_and_its_values() -> None:
    schema = reply_schema(SPACE)
    assert schema is not None
    assert schema["required"] == list(schema["properties"]) == ["analysis", "configs"], "reasoning precedes the configs"
    assert schema["properties"]["analysis"] == {"type": "string"}
    config = schema["properties"]["configs"]["items"]
    assert config["required"] == SPACE.names
    assert config["additionalProperties"] is False
    assert config["properties"]["TILE"] == {"type": "integer", "enum": [16, 32, 64, 128, 256]}
    assert config["properties"]["ORDER"] == {
        "anyOf": [{"type": "string", "enum": ["row", "col"]}, {"type": "null", "enum": [None]}]
    }
    assert config["properties"]["HINTS"]["items"]["enum"] == [0, 1, 2, 3, 4]


def test_an_analysis_may_be_empty() -> None:
    assert changes('{"analysis": "", ' + PLAIN[1:]) == EXPECTED


def test_there_is_no_schema_for_values_it_cannot_say() -> None:
    assert reply_schema(ConfigSpace({"PAIR": choice((1, 2), (2, 1))})) is None
