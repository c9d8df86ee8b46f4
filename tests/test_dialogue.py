"""Prompts: everything an expert needs, in one wording."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

from pytest_kerneltune.parameter import boolean, choice, integer, list_of, permutation, power_of_two
from pytest_kerneltune.search import Message, RelatedTrials, Subject
from pytest_kerneltune.search.dialogue import (
    LOCAL_SECTIONS,
    first_request,
    kernel_name,
    refine_request,
    reply_text,
    without_sections,
)
from pytest_kerneltune.search.replies import parse_reply
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Status, Trial

SOURCE = """\
@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, BLOCK_M: tl.constexpr):
## Task
    for k in range(0, tl.cdiv(K, BLOCK_K)):
        acc = tl.dot(tl.load(a_ptr), tl.load(b_ptr), acc)
"""
SPACE = ConfigSpace(
    {"BLOCK_M": power_of_two(16, 256, default=64), "num_warps": power_of_two(1, 16, default=4), "SPLIT": integer(1, 4)},
    where=lambda c: c["BLOCK_M"] * c["num_warps"] <= 2048,
)
SUBJECT = Subject(
    name="matmul[n4096]",
    kind="triton",
    source=SOURCE,
    inputs=("a: float16[4096, 1500]", "b: float16[1500, 512]", "c: float16[4096, 512]"),
    facts=("allow_tf32 False",),
    constraint='where=lambda c: c["BLOCK_M"] * c["num_warps"] <= 2048',
    hardware=("NVIDIA H200: compute capability 8.9", "132 SMs"),
)


def sections(text: str) -> dict[str, str]:
    """Title to body, read back from a message."""
    return {title: body.strip("\n") for title, body in re.findall(r"(?m)^## (.*)\n((?:(?!^## ).*\n?)*)", text)}


def trial(ms: float = 0.0, reason: str = "", **values: int) -> Trial:
    config: Config = {**SPACE.default, **values}
    return Trial(config, latency_ms=ms) if ms else Trial(config, Status.OUT_OF_RESOURCES, reason=reason)


def user(messages: Sequence[Message]) -> dict[str, str]:
    assert [m.role for m in messages] == ["system", "user"]
    return sections(messages[1].content)


def test_first_request_says_all_that_is_known() -> None:
    said = user(first_request(SUBJECT, SPACE, 15))
    assert said["Kernel"].startswith("Name: matmul[n4096]\nKind: a Triton kernel\nFact: allow_tf32 False")
    assert "    acc = tl.dot(" in said["Kernel"]
    assert "- a: float16[4096, 1500]" in said["Inputs"]
    assert "- BLOCK_M: power of two from 16 to 256; default 64" in said["Configuration space"]
    assert SUBJECT.constraint in said["Configuration space"]
    assert parse_reply(said["Default config"], SPACE).configs == (SPACE.default,)
    assert (
        said["Hardware"] == "- NVIDIA H200: compute capability 8.9\n- 132 SMs\n- " + said["Hardware"].split("\n- ")[2]
    )
    assert said["Hardware"].count("compute capability 8.9 means: ") == 1
    assert "15 different configs" in said["Task"]
    assert "JSON" in said["Task"]


def test_workload_names_the_traits_and_the_arithmetic() -> None:
    said = user(first_request(SUBJECT, SPACE, 15))["Workload"]
    assert "matrix product" in said
    assert f"{2 * 4096 * 1500 * 512 / 1e9:.4g} GFLOP" in said
    assert "size 1500: a single power-of-two tile over it is 2048 wide (27% of it idle)" in said
    assert "divides it is 4" in said


@pytest.mark.parametrize(
    ("kind", "source", "trait"),
    [
        ("triton", "x = tl.sum(tl.load(p), axis=0)", "reduction"),
        ("triton", "s = tl.dot(q, k)\np = tl.exp2(s)\no = tl.dot(p, v)", "attention"),
        ("triton", "tl.store(y, tl.load(x) + 1)", "elementwise or streaming"),
        ("triton", "tl.atomic_add(p, x)", "atomic updates"),
        ("c", "for (j) c[i*n+j] += a[i*n+k] * b[k*n+j];", "matrix product"),
        ("c", "out[i] = in[i-1] + in[i] + in[i+1];", "stencil or convolution"),
    ],
)
def test_traits_are_read_off_the_source(kind: str, source: str, trait: str) -> None:
    assert f"- {trait}: " in user(first_request(Subject(kind=kind, source=source), SPACE, 5))["Workload"]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("triton", "num_stages"),
        ("c", "-DNAME=value"),
        ("python", "Nothing is known"),
        ("somebody's", "Nothing is known"),
    ],
)
def test_the_system_message_explains_the_knobs_of_the_kind(kind: str, word: str) -> None:
    said = sections(first_request(Subject(kind=kind), SPACE, 5)[0].content)
    assert list(said) == ["Role", "Source of truth", "Knobs", "Heuristics", "Reply format"]
    assert word in said["Knobs"]
    assert '"configs": [{"NAME": value, ...}, ...]' in said["Reply format"]
    assert "{} is the\n  default itself" in said["Reply format"]
    assert "Leave it out, or empty," in said["Reply format"], "a schema may demand it"
    assert "right where the format enforces them" in said["Reply format"], "a schema may demand complete configs"


def test_the_system_message_is_the_same_for_all_kernels_of_a_kind() -> None:
    other = first_request(Subject(name="other", kind="triton"), ConfigSpace({"X": boolean()}), 3)
    assert other[0] == first_request(SUBJECT, SPACE, 15)[0]


def test_kinds_of_parameters_are_described_as_they_are_written() -> None:
    space = ConfigSpace(
        {
            "C": choice("a", None, 2),
            "B": boolean(),
            "P": permutation(3),
            "L": list_of(integer(0, 4), 2),
            "-O": choice(2, 3),
        }
    )
    said = user(first_request(Subject(), space, 5))["Configuration space"]
    assert '- C: one of "a", null, 2; default "a"' in said
    assert "- B: true or false; default false" in said
    assert "- P: array of 0 to 2 in any order; default [0, 1, 2]" in said
    assert "- L: array of exactly 2, each: integer from 0 to 4; default [0, 0]" in said
    assert "- -O: one of 2, 3" in said


def test_without_source_neither_kernel_nor_constraint_is_shown() -> None:
    hidden = Subject("softmax", "triton", inputs=("x: float16[8, 8]",), hardware=("H200",))
    said = user(first_request(hidden, SPACE, 15))
    assert "The source is not shown" in said["Kernel"]
    assert "A further constraint is not shown" in said["Configuration space"]
    assert "lambda" not in "".join(said.values())


def test_titles_inside_the_source_are_no_sections() -> None:
    request = first_request(SUBJECT, SPACE, 15)
    assert "    ## Task" in request[1].content
    assert list(sections(request[1].content)).count("Task") == 1
    assert "tl.dot" in without_sections(request[1].content, ["Task"])


def test_seeds_and_earlier_results_are_quoted() -> None:
    results = [trial(2.0), trial(1.0, BLOCK_M=128), trial(BLOCK_M=256)]
    said = user(first_request(SUBJECT, SPACE, 15, [{**SPACE.default, "SPLIT": 3}], results))
    assert '"SPLIT": 3' in said["Configs its author recommends"]
    lines = said["Measured so far"].split("\n")
    assert lines[0].startswith("- 1 ms (x1.000)")
    assert lines[1].startswith("- 2 ms (x2.000)")
    assert len(lines) == 2


def test_configs_are_shown_by_what_differs_from_the_default() -> None:
    results = [trial(2.0), trial(1.0, BLOCK_M=128, SPLIT=2)]
    said = user(first_request(SUBJECT, SPACE, 15, [{**SPACE.default, "SPLIT": 3}], results))
    assert said["Configs its author recommends"] == '- {"SPLIT": 3}'
    assert said["Measured so far"] == '- 1 ms (x1.000) {"BLOCK_M": 128, "SPLIT": 2}\n- 2 ms (x2.000) {}'
    later = sections(refine_request(SPACE, [*results, trial(num_warps=1)], 15, 2).content)
    assert '  {"num_warps": 1}' in later["Failures"]
    whole = json.dumps(SPACE.default)
    assert [title for title, body in (said | later).items() if whole in body] == ["Default config"]


def test_results_of_related_kernels_are_told_with_their_labels() -> None:
    other = RelatedTrials([trial(3.0), *(trial(2.0 + i / 10, SPLIT=i) for i in (2, 3, 4)), trial(BLOCK_M=256)], "n=512")
    unnamed = tuple(trial(1.0 + i, num_warps=1 << i) for i in (0, 1, 3, 4, 2))
    said = user(first_request(SUBJECT, SPACE, 15, related=(other, (trial(num_warps=1),), unnamed, other)))
    lines = said["Related kernels"].split("\n")
    assert lines[1:6] == [
        "- n=512: 5 configs measured, 1 of them failed; best first:",
        '  x1.000 {"SPLIT": 2}',
        '  x1.045 {"SPLIT": 3}',
        '  x1.091 {"SPLIT": 4}',
        "  x1.364 {}",
    ]
    assert lines[6] == "- the same kernel at other shapes or before an edit: 1 configs measured, 1 of them failed"
    assert lines[7].startswith("- the same kernel at other shapes or before an edit: 5 configs measured, 0 of them")
    assert len(lines) == 13
    assert "Related kernels" not in user(first_request(SUBJECT, SPACE, 15, related=((),)))


def test_related_kernels_and_roofs_stay_out_of_the_request_s_identity() -> None:
    h200 = (*SUBJECT.hardware, "estimated peak memory bandwidth 4814 GB/s")
    full = first_request(Subject(**{**vars(SUBJECT), "hardware": h200}), SPACE, 15, related=((trial(1.0),),))
    assert {"Roofs", "Related kernels"} <= set(user(full))
    bare = first_request(SUBJECT, SPACE, 15)
    assert without_sections(full[1].content, LOCAL_SECTIONS) == without_sections(bare[1].content, LOCAL_SECTIONS)


def test_the_roofs_come_with_what_the_default_took() -> None:
    subject = Subject(**{**vars(SUBJECT), "hardware": ("estimated peak memory bandwidth 1000 GB/s",)})
    said = user(first_request(subject, SPACE, 15, results=[trial(1.0)]))["Roofs"].split("\n")
    assert said[0].startswith("- bandwidth roof: 17.18 MiB at 1000 GB/s take 18.02 us")
    assert said[-1] == "- the default config takes 1 ms, 55.5 x the estimated bandwidth roof of 18.02 us"


def test_the_state_tells_the_last_round_s_gain_and_the_distance_from_the_roof() -> None:
    subject = Subject(**{**vars(SUBJECT), "hardware": ("estimated peak memory bandwidth 1000 GB/s",)})
    trials = [trial(1.0), trial(0.8, SPLIT=2)]
    said = sections(refine_request(SPACE, trials, 15, 2, subject=subject, before_ms=1.0).content)["Search state"]
    assert said.split("\n") == [
        "2 configs measured, 0 of them failed.",
        "Best latency 0.8 ms, 44.4 x the estimated bandwidth roof of 18.02 us.",
        "The last round gained 20.0%.",
        "Default config 1 ms, 1.25 x the best.",
    ]
    none = sections(refine_request(SPACE, trials, 15, 2, before_ms=0.8).content)["Search state"]
    assert "The last round found nothing better." in none


@pytest.mark.parametrize("kind", ["triton", "helion", "cuda", "c", "python"])
def test_prompts_stay_short(kind: str) -> None:
    names = ("matmul", "attention", "softmax", "histogram", "dequant", "grouped", "persistent", "conv", "split_k")
    subject = Subject(" ".join(names), kind, "", SUBJECT.inputs, SUBJECT.facts, SUBJECT.constraint, SUBJECT.hardware)
    system, asked = first_request(subject, SPACE, 15)
    assert len(system.content) <= 9000
    assert len(asked.content) <= 8000
    assert len(first_request(Subject("softmax", kind), SPACE, 15)[1].content) <= 6000


@pytest.mark.parametrize("count", [1, 2, 4, 5, 15, 40])
def test_the_strategy_divides_any_number_of_configs(count: int) -> None:
    text = user(first_request(SUBJECT, SPACE, count))["Strategy"]
    parts = [int(n) for n in re.findall(r"About\s+(\d+)", text)]
    assert sum(parts) == (count if count >= 5 else 0)
    assert 0 not in parts


def test_requests_depend_on_their_arguments_only() -> None:
    assert first_request(SUBJECT, SPACE, 15) == first_request(SUBJECT, SPACE, 15)
    assert first_request(SUBJECT, SPACE, 15) != first_request(SUBJECT, SPACE, 14)


def test_another_machine_changes_nothing_but_its_section() -> None:
    here, there = SUBJECT, Subject(**{**vars(SUBJECT), "hardware": ("A100", "108 SMs", "40 GB")})
    texts = [
        first_request(s, SPACE, 15)[1].content for s in (here, there, Subject(**{**vars(SUBJECT), "hardware": ()}))
    ]
    assert len(set(texts)) == 3
    assert len({without_sections(t, ["Hardware"]) for t in texts}) == 1


def test_refinement_shows_results_anchors_patterns_and_failures() -> None:
    trials = [trial(1.0 + i / 10, BLOCK_M=128, num_warps=1 << (i % 4), SPLIT=1 + i // 4) for i in range(14)] + [
        trial(reason="needs 300 KiB\nof shared memory", BLOCK_M=256, SPLIT=s) for s in (1, 2, 3)
    ]
    said = sections(refine_request(SPACE, trials, 15, 2, {"refused by the constraint": 2}).content)
    assert said["Search state"] == "17 configs measured, 3 of them failed.\nBest latency 1 ms."
    assert len(said["Best results"].split("\n")) == 12
    assert "best of another family: 1.5 ms" in said["Anchors"]
    assert "- BLOCK_M (default 64): best 5 have 128 (5 of 5; 14 of all 17); never tried: 16, 32, 64" in said["Patterns"]
    assert "best with others: 3 x1.800, 4 x2.200" in said["Patterns"]
    assert "- out of resources: 3" in said["Failures"]
    assert "(needs 300 KiB of shared memory)" in said["Failures"]
    assert "- BLOCK_M = 256 failed 3 of 3 times" in said["Failures"]
    assert said["Last reply"] == "- 2 x refused by the constraint"
    assert "Round 2: propose 15 different configs" in said["Task"]


def test_next_step_turns_careful_where_a_third_failed() -> None:
    good, bad = [trial(1.0 + i, SPLIT=i + 1) for i in range(4)], [trial(num_warps=1), trial(num_warps=2)]
    few = sections(refine_request(SPACE, good + bad[:1], 15, 2).content)["Next step"]
    many = sections(refine_request(SPACE, good + bad, 15, 2).content)["Next step"]
    assert "Too many configs fail" not in few
    assert "Too many configs fail" in many


def test_refinement_works_where_nothing_worked() -> None:
    said = sections(refine_request(SPACE, [trial()], 1, 3).content)
    assert list(said) == ["Search state", "Failures", "Next step", "Task"]
    assert "one config" in said["Task"]


def test_all_of_a_refinement_but_its_task_is_local() -> None:
    text = refine_request(SPACE, [trial(1.0), trial(2.0, SPLIT=2)], 15, 2, {"duplicate": 1}).content
    assert list(sections(without_sections(text, LOCAL_SECTIONS))) == ["Task"]


def test_the_kernel_can_be_told_from_the_conversation() -> None:
    request = first_request(SUBJECT, SPACE, 15)
    assert kernel_name(request) == "matmul[n4096]"
    assert kernel_name([request[0]]) == ""


def test_quoted_replies_read_back() -> None:
    configs = (SPACE.default, {**SPACE.default, "SPLIT": 2})
    assert parse_reply(reply_text(configs), SPACE).configs == configs
    assert reply_text(configs, SPACE.default) == '{"configs":[{},{"SPLIT":2}]}'
    assert parse_reply(reply_text(configs, SPACE.default), SPACE).configs == configs


def test_an_analysis_ahead_of_the_configs_is_no_config() -> None:
    text = '{"analysis": "BLOCK_M 128 {\\"SPLIT\\": 4} binds", "configs": [{"BLOCK_M": 32}]}'
    assert parse_reply(text, SPACE).configs == ({**SPACE.default, "BLOCK_M": 32},)
