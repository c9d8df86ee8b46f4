"""Reports: what they say about outcomes, and that they survive hostile ones."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.arrivals import Arrival, merged
from pytest_kerneltune.completeness import Coverage
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.gate import VerdictKind
from pytest_kerneltune.outcome import ModelSummary, Outcome, SearchSummary, StageSummary, VerdictSummary
from pytest_kerneltune.report import format as form
from pytest_kerneltune.report import jsonfile, markdown, terminal
from pytest_kerneltune.report.annotations import Failure, error_commands, workspace
from pytest_kerneltune.report.junit import properties
from pytest_kerneltune.report.logs import log_lines
from pytest_kerneltune.report.stages import stage_lines
from pytest_kerneltune.results import without_update
from pytest_kerneltune.search import DEFAULT_SEARCH
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.trial import Budget, Status, Trial

SEARCHED = SearchSummary(
    "search", "LFBOTreeSearch", "quick", attempts=93, failures={"compile error": 10, "wrong output": 2}, seconds=21.4
)
CACHED = SearchSummary("cache", "LFBOTreeSearch", "quick", attempts=93)
COMMAND = "pytest --autotune perf"


def outcome(name: str = "softmax[n1024]", verdict: str = "ok", **fields: Any) -> Outcome:
    """A kernel that was timed at 43.8 us; ``change``, ``fails`` and the like go to its verdict."""
    judged = {key: fields.pop(key) for key in list(fields) if key in VerdictSummary.__dataclass_fields__}
    plain: dict[str, Any] = {
        "file": "perf/test_softmax.py",
        "kind": "triton",
        "device": "NVIDIA H200",
        "clock": "cuda",
        "fingerprint": "ab" * 32,
        "config": {"ROWS": 4, "num_warps": 8},
        "latency_ms": 0.0438,
        "reference_ms": 0.0657,
        "search": SEARCHED,
        "verdict": VerdictSummary(verdict, **{"summary": f"reason of {name}", **judged}),
    }
    return Outcome(name=name, **{**plain, **fields})


REGRESSED = outcome(
    "slow[n1]",
    "regressed",
    change=(0.062, 0.056, 0.069),
    fails=True,
    previous_ms=0.0412,
    blame="code",
    basis="base",
    against="abc1234def",
)
CHECKED = outcome("plain", "checked", latency_ms=None, reference_ms=None, search=SearchSummary("default"))


def texts(lines: list[terminal.Line]) -> list[str]:
    return [line.text for line in lines]


def summary(*outcomes: Outcome, **options: Any) -> list[str]:
    return texts(terminal.summary_lines(outcomes, **{"width": 140, "command": COMMAND, **options}))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (41.4, "41 s"), (125, "2 min 5 s"), (3900, "1 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert form.duration(seconds) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0.0412, "41.2 us"), (1.25, "1.25 ms"), (2500.0, "2.5 s"), (None, ""), (math.inf, "")],
)
def test_latencies(ms: float | None, text: str) -> None:
    assert form.latency(ms) == text


@pytest.mark.parametrize(
    ("search", "text"),
    [
        (SEARCHED, "93 configs, 12 failed, 21 s"),
        (SearchSummary("search", attempts=1, seconds=0.25), "1 config, 0.2 s"),
        (CACHED, "cache hit"),
        (SearchSummary("baseline"), "baseline"),
        (SearchSummary("default"), "default"),
        (SearchSummary("none"), ""),
    ],
)
def test_where_a_config_comes_from(search: SearchSummary, text: str) -> None:
    assert form.found_by(search) == text


def test_every_kind_of_verdict_has_its_place_in_the_order() -> None:
    assert set(form.WORST_FIRST) == {*VerdictKind, "wrong", "failed", "checked"}


def test_worst_comes_first_and_within_a_kind_the_slowest() -> None:
    outcomes = [outcome(f"k-{kind}", kind) for kind in reversed(form.WORST_FIRST)]
    outcomes += [outcome("slower", change=(0.02, 0.01, 0.03)), outcome("faster", change=(-0.02, -0.03, -0.01))]
    names = [o.name for o in form.worst_first(outcomes)]
    assert [name for name in names if name.startswith("k-")] == [f"k-{kind}" for kind in form.WORST_FIRST]
    assert names.index("slower") < names.index("k-ok") < names.index("faster") < names.index("k-improved")


def test_names_that_two_files_share_are_told_apart() -> None:
    here, there, other = outcome("k"), outcome("k", file="perf/test_b.py"), outcome("unique")
    assert list(form.labels([here, there, other]).values()) == [
        "perf/test_softmax.py::k",
        "perf/test_b.py::k",
        "unique",
    ]


def test_the_row_of_a_regression_says_everything() -> None:
    header, row = summary(REGRESSED)[:2]
    assert header.split() == [
        "verdict",
        "kernel",
        "latency",
        "baseline",
        "change",
        "interval",
        "blame",
        "compared",
        "speedup",
        "config",
        "from",
    ]
    for cell in (
        "regressed",
        "slow[n1]",
        "43.8 us",
        "41.2 us",
        "+6.2%",
        "[+5.6%, +6.9%]",
        "code",
        "vs abc1234",
        "1.50x",
        "93 co",
    ):
        assert cell in row


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"basis": "base", "against": "the base commit 0123456789ab"}, "vs 0123456"),
        ({"basis": "base"}, ""),
        ({"basis": "baseline"}, "stored"),
        ({"basis": "baseline", "young": 3}, "3 sessions"),
        ({"basis": "baseline", "young": 1}, "1 session"),
        ({"basis": "alone", "young": 1}, "weak"),
        ({}, ""),
    ],
)
def test_what_a_kernel_was_compared_with(fields: dict[str, Any], text: str) -> None:
    assert form.compared_with(outcome(**fields)) == text


def test_what_all_kernels_were_compared_with_goes_without_saying() -> None:
    stored = outcome("a", basis="baseline", previous_ms=0.04)
    assert "compared" not in summary(stored, outcome("b", "new"))[0]
    lines = summary(stored, outcome("b", basis="baseline", young=2))
    assert "compared" in lines[0]
    assert "stored" in lines[1]
    assert "2 sessions" in lines[2]


def test_remarks_on_verdicts_name_their_kernels() -> None:
    young = [outcome(f"k{i}", remarks=("young baseline: 2 of 5 sessions",)) for i in range(5)]
    weak = outcome("z", remarks=("weak:\n no yardstick",))
    lines = summary(*young, weak)
    assert "k0, k1, k2 and 2 more: young baseline: 2 of 5 sessions" in lines
    assert "z: weak: no yardstick" in lines
    assert "z: weak: no yardstick" in markdown.step_summary([weak])


def test_columns_that_nothing_fills_are_left_out() -> None:
    header = summary(outcome(reference_ms=None, search=CACHED))[0]
    assert header.split() == ["verdict", "kernel", "latency", "config", "from"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_fits_the_terminal(width: int) -> None:
    long = outcome("a_rather_long_name_of_a_kernel" * 3 + "[batch64-heads16]", change=(0.0, 0.0, 0.0), previous_ms=1.0)
    table = [
        line for line in summary(REGRESSED, long, width=width) if line.startswith(("verdict", "regressed  ", "ok"))
    ]
    assert len(table) == 3
    assert max(map(len, table)) <= width
    assert table[2].split()[1].startswith("a_rather")
    assert table[2].split()[1].endswith("16]")
    assert "+6.2%" in table[1]


def test_a_wide_terminal_shows_names_in_full() -> None:
    name = "kernel_" + "x" * 80
    assert any(name in line for line in summary(outcome(name), width=250))


def test_a_plain_run_shows_no_table() -> None:
    assert summary(CHECKED, seconds=0.5) == ["kerneltune: 1 checked in 0.5 s"]


def test_no_kernels_no_lines() -> None:
    assert summary() == []


def test_the_last_line_counts_kernels_by_verdict() -> None:
    ok = [outcome(f"ok{i}") for i in range(3)]
    assert summary(REGRESSED, *ok, seconds=41.2)[-1] == "kerneltune: 3 ok, 1 regressed in 41 s"


@pytest.mark.parametrize("kind", ["wrong", "failed", "invalid", "noisy", "incomparable", "new"])
def test_what_needs_action_is_listed_with_its_reason(kind: str) -> None:
    assert f"{kind} k: why it is so" in summary(outcome("k", kind, summary="why\n it is so"))


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("regressed", f"{COMMAND} --update-baselines=regressed"),
        ("improved", f"{COMMAND} --update-baselines=improved"),
        ("new", f"{COMMAND} --update-baselines=new"),
        ("incomparable", f"{COMMAND} --update-baselines=new"),
        ("noisy", COMMAND),
        ("invalid", COMMAND),
    ],
)
def test_what_to_do_is_said_once_with_the_command(kind: str, command: str) -> None:
    lines = [line for line in summary(outcome("a", kind), outcome("b", kind)) if line.startswith(f"{kind}: ")]
    assert len(lines) == 1
    assert lines[0].endswith(f": {command}")


@pytest.mark.parametrize("kind", ["regressed", "improved", "new", "incomparable"])
def test_beside_another_commit_no_baseline_needs_to_be_written(kind: str) -> None:
    lines = summary(outcome("k", kind, basis="base", against="the base commit 0123456789ab"), beside=True)
    assert not any("--update-baselines" in line for line in lines)
    assert any("merge it" in line for line in lines) is (kind == "regressed")
    assert any(COMMAND in line for line in summary(outcome("k", "noisy"), beside=True))


def test_a_baseline_that_was_just_written_needs_no_action() -> None:
    fresh = outcome("fresh", "new")
    assert not any("--update-baselines" in line for line in summary(fresh, updated={fresh.id}))
    assert any("--update-baselines" in line for line in summary(fresh, outcome("b", "new"), updated={fresh.id}))


@pytest.mark.parametrize(
    "given",
    [["--update-baselines=new", "perf"], ["perf", "--update-baselines", "new"], ["--update-baselines", "perf"]],
)
def test_what_to_do_does_not_repeat_which_baselines_were_written(given: list[str]) -> None:
    assert without_update(["-x", *given, "--autotune"]) == ["-x", "perf", "--autotune"]


def test_many_kernels_of_a_kind_are_listed_in_part_and_counted() -> None:
    lines = summary(*(outcome(f"k{i:02}", "new", latency_ms=None) for i in range(25)))
    assert sum(line.startswith("new k") for line in lines) == 10
    assert "new: 15 more kernels" in lines


def test_a_language_models_account_is_a_line_of_its_own() -> None:
    model = ModelSummary("anthropic big", 3, 1, 1, 12_345, None, 4.2, 30, 28, 25, 10, 6, True)
    asked = outcome("a", search=SearchSummary("search", model=model))
    assert [line.text for line in stage_lines([asked, outcome("b")])] == [
        (
            "a: anthropic big: 3 calls, 1 answered from earlier replies, 1 failed, 12,345 tokens in, 4.2 s; "
            "30 configs proposed, 28 valid, 25 new; 6 of the 10 fastest, the tuned config is its own"
        )
    ]
    silent = outcome("a", search=SearchSummary("search", model=ModelSummary("anthropic big", 1, failed=1, seconds=2.0)))
    assert stage_lines([silent])[0].text == "a: anthropic big: 1 call, 1 failed, 2.0 s; no configs proposed"
    assert Outcome.from_json(json.loads(json.dumps(asked.to_json()))) == asked


def test_a_remark_is_said_once() -> None:
    said = SearchSummary("search", messages=("language model skipped: no key", "language model skipped: no key"))
    lines = summary(
        outcome("a", search=said), outcome("b", search=said), outcome("c", warnings=("cache: \x1b[2J full",))
    )
    assert lines.count("language model skipped: no key (2 kernels)") == 1
    assert "cache: [2J full" in " ".join(" ".join(lines).split())
    assert "\x1b" not in "".join(lines)


def test_colours_follow_the_verdict() -> None:
    lines = terminal.summary_lines(
        [REGRESSED, outcome("n", "new"), outcome("g", "improved"), outcome("b", "new", fails=True)]
    )
    shown = {line.text.split()[1]: dict(line.markup) for line in lines[1:5]}
    assert shown == {"slow[n1]": {"red": True}, "n": {"yellow": True}, "b": {"red": True}, "g": {"green": True}}
    assert lines[-1].markup == {"bold": True, "red": True}
    assert terminal.summary_lines([CHECKED])[-1].markup == {"bold": True, "green": True}


def settings(option: Mapping[str, object], environ: Mapping[str, str] = {}) -> Settings:
    return Settings.from_sources({"autotune_cache": "off", **option}.get, lambda _: None, environ, Path("/project"))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({}, ["run once", "--autotune"]),
        ({"autotune": "none"}, ["no search", "threshold 3%", "cache off"]),
        (
            {"autotune": "RandomSearch", "autotune_seed": "7", "autotune_budget": "2m", "autotune_configs": "40"},
            ["RandomSearch", "effort quick", "seed 7", "at most 2 min 0 s or 40 configs a kernel"],
        ),
        ({"autotune": "RandomSearch", "autotune_target": "40us"}, ["seed 0, until 40 us;"]),
        ({"autotune": "none", "update_baselines": "new,improved"}, ["baselines written: improved, new"]),
        ({"autotune": "none", "against": "origin/main"}, ["threshold 3%; against origin/main; cache off"]),
    ],
)
def test_the_header_says_what_the_run_does(option: dict[str, object], words: list[str]) -> None:
    line = terminal.header_line(settings(option))
    assert line.startswith("kerneltune: ")
    assert "\n" not in line
    for word in words:
        assert word in line


def test_the_header_holds_no_secret() -> None:
    assert "sk-" not in terminal.header_line(settings({"autotune": "default"}, {"KERNELTUNE_LLM_API_KEY": "sk-1"}))


@pytest.mark.parametrize(
    ("best", "budget", "text"),
    [
        (0.0412, Budget(), "softmax: generation 2, 45 configs, 6 failed, best 41.2 us, 12 s"),
        (0.0412, Budget(60, 100), "softmax: generation 2, 45 of 100 configs, 6 failed, best 41.2 us, 12 of 60 s"),
        (math.inf, Budget(seconds=60), "softmax: generation 2, 45 configs, 6 failed, 12 of 60 s"),
        (None, Budget(), "softmax: generation 2, 45 configs, 6 failed, 12 s"),
    ],
)
def test_progress(best: float | None, budget: Budget, text: str) -> None:
    assert terminal.progress_line("softmax", "generation 2", 45, 6, best, 12.3, budget) == text


def test_progress_before_anything_is_known() -> None:
    assert terminal.progress_line("softmax", "", 0, 0, None, 0.0, Budget()) == "softmax: 0 configs, 0.0 s"


def test_updates_show_old_and_new() -> None:
    at = "perf/__kerneltune__/nvidia-h200/test_softmax.json"
    lines = terminal.update_lines(
        [
            outcome("first", "new", baseline_file=at),
            outcome("softmax", "improved", change=(-0.034, -0.039, -0.03), previous_ms=0.0453, baseline_file=at),
            outcome("z", "incomparable", previous_ms=0.1, baseline_file=at),
        ]
    )
    assert [" ".join(line.split()) for line in texts(lines)] == [
        f"first new: 43.8 us {at}",
        f"softmax 45.3 us -> 43.8 us (-3.4% [-3.9%, -3.0%]) {at}",
        f"z 100 us -> 43.8 us (not comparable) {at}",
        "reason of z",
    ]
    assert terminal.update_lines([]) == []


FAILED_TRIAL = Trial({"ROWS": 16}, Status.COMPILE_ERROR, reason="too big", log="ptxas: \udcff error\n", stage="random")


def report(*outcomes: Outcome, **run: object) -> dict[str, Any]:
    return jsonfile.document(outcomes, run)


def test_the_json_report_holds_every_trial_and_stage() -> None:
    stages = (StageSummary("random", 2, 1, 0.0438, "a note"),)
    trials = (FAILED_TRIAL.to_json(), Trial({"ROWS": 4}, latency_ms=0.0438, samples_ms=(0.04, 0.05)).to_json())
    told = report(outcome(trials=trials, search=SearchSummary("search", stages=stages)), command=["pytest"])
    read = json.loads(json.dumps(told, allow_nan=False))
    assert read == told
    assert (read["schema"], read["run"], read["counts"]) == (1, {"command": ["pytest"]}, {"ok": 1})
    kernel = read["kernels"][0]
    assert [Trial.from_json(trial) for trial in kernel["trials"]] == [Trial.from_json(trial) for trial in trials]
    assert kernel["search"]["stages"][0]["note"] == "a note"
    assert (kernel["id"], kernel["speedup"]) == ("perf/test_softmax.py::softmax[n1024]", pytest.approx(1.5))


def test_the_json_report_is_worst_first() -> None:
    assert [kernel["name"] for kernel in report(outcome(), REGRESSED)["kernels"]] == ["slow[n1]", "softmax[n1024]"]


def test_an_outcome_can_be_read_back_from_the_json_report() -> None:
    told = json.loads(json.dumps(report(REGRESSED)))["kernels"][0]
    del told["id"], told["speedup"]
    assert Outcome.from_json(told) == REGRESSED


def test_the_json_report_is_strict() -> None:
    odd = outcome(latency_ms=math.nan, config={"a": (1, 2), "b": {3}, "c": Path("/x")}, change=(math.inf, 0.0, 1.0))
    kernel = json.loads(json.dumps(report(odd), allow_nan=False))["kernels"][0]
    assert (kernel["latency_ms"], kernel["verdict"]["change"]) == (None, [None, 0.0, 1.0])
    assert kernel["config"] == {"a": [1, 2], "b": [3], "c": "/x"}


def test_the_facts_of_a_run() -> None:
    environ = {"KERNELTUNE_LLM_API_KEY": "sk-1", "KERNELTUNE_LLM_MODEL": "large", "OPENAI_API_KEY": "sk-2"}
    started = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    facts = jsonfile.run_facts(settings({"autotune": "default"}, environ), ["pytest", "-q"], started, 4.5)
    told = report(**facts)["run"]
    assert (told["command"], told["seconds"]) == (["pytest", "-q"], 4.5)
    assert told["started"] == "2026-01-02T03:04:05+00:00"
    assert told["settings"]["autotune"] == DEFAULT_SEARCH
    assert (told["settings"]["llm_model"], told["settings"]["root"]) == ("large", "/project")
    assert told["versions"]["pytest"] == pytest.__version__
    assert "sk-" not in json.dumps(told)


def test_the_json_report_is_written_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    trial = FAILED_TRIAL.to_json()
    jsonfile.write(path, report(outcome(trials=(trial,))))
    assert json.loads(path.read_text(encoding="utf-8"))["kernels"][0]["trials"] == [trial]


def test_a_report_that_cannot_be_written_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe")
    for path, named in ((tmp_path / "file" / "report.json", "file"), (tmp_path / "pipe", "pipe")):
        with pytest.raises(StoreError, match=str(tmp_path / named)):
            jsonfile.write(path, report())
    assert (tmp_path / "pipe").is_fifo()


def test_the_step_summary_has_a_row_for_each_kernel_and_the_failures_in_full() -> None:
    wrong = outcome("bad", "wrong", fails=True, details="max error <0.5>\n\nat [3]", latency_ms=None)
    lines = markdown.step_summary([outcome(), REGRESSED, wrong]).splitlines()
    assert lines[0] == "### Kernels: 1 ok, 1 wrong, 1 regressed"
    rows = [line for line in lines if line.startswith("| :")]
    assert [row.split("|")[2].strip() for row in rows] == [
        f"<code>{name}</code>" for name in ("slow[n1]", "bad", "softmax[n1024]")
    ]
    assert (
        "| 43.8 us | 41.2 us | +6.2% [+5.6%, +6.9%] | code | vs abc1234 | 1.50x | 93 configs, 12 failed, 21 s |"
        in rows[0]
    )
    assert "<pre>max error &lt;0.5&gt;" in lines
    assert "" not in lines[lines.index("<pre>max error &lt;0.5&gt;") : lines.index("at [3]</pre>")]


def test_a_name_cannot_break_the_table() -> None:
    row = next(line for line in markdown.step_summary([outcome("a|b`c`<i>\nd")]).splitlines() if line.startswith("| :"))
    assert row.count("|") == 10
    assert "<code>a&#124;b`c`&lt;i&gt; d</code>" in row


def test_no_kernels_no_step_summary() -> None:
    assert markdown.step_summary([]) == ""


def test_a_step_summary_stays_below_the_limit_and_keeps_the_worst() -> None:
    many = [outcome(f"k{i}", "new", details="é" * 30_000) for i in range(60)]
    text = markdown.step_summary([*many, REGRESSED])
    assert 500_000 < len(text.encode()) <= markdown.LIMIT < 1 << 20
    assert text.index("slow[n1]") < text.index("k0")
    assert text.splitlines()[-1].startswith("... and ")
    assert text.count("<details>") == text.count("</details>")


def test_annotations_name_the_line_and_are_no_more_than_github_shows(tmp_path: Path) -> None:
    worst = Failure(outcome("a,b:c", "regressed", fails=True, change=(0.5, 0.4, 0.6), details="50%\nmore"), "t.py", 7)
    others = [Failure(outcome(f"k{i}", "regressed", fails=True), "t.py", i) for i in range(20)]
    commands = error_commands([*others, worst], tmp_path / "perf", tmp_path)
    assert len(commands) == 10
    assert commands[0] == "::error file=perf/t.py,line=7,title=a%2Cb%3Ac regressed::50%25%0Amore"
    assert error_commands([worst], tmp_path, tmp_path / "elsewhere")[0].startswith("::error file=t.py,line=7,")
    assert workspace({"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": "/w"}) == Path("/w")
    assert workspace({"GITHUB_WORKSPACE": "/w"}) is None


def test_scalars_for_junit() -> None:
    found = properties(REGRESSED)
    assert found["kerneltune.slow[n1].change_low_pct"] == 5.6
    assert (found["kerneltune.slow[n1].basis"], found["kerneltune.slow[n1].against"]) == ("base", "abc1234def")
    assert all(isinstance(value, str | float) for value in found.values())
    assert set(properties(CHECKED)) == {"kerneltune.plain.verdict"}


def arrival(kind: str, *, worker: str = "", repeated: bool = False, rerun: bool = False, name: str = "k") -> Arrival:
    return Arrival(outcome(name, kind, fails=kind == "regressed", is_rerun=rerun), worker, repeated)


@pytest.mark.parametrize(
    ("arrived", "kind"),
    [
        ([arrival("ok"), arrival("regressed")], "regressed"),
        ([arrival("regressed", repeated=True), arrival("ok", rerun=True)], "ok"),
        ([arrival("regressed", repeated=True)], "regressed"),
        ([arrival("regressed"), arrival("ok", rerun=True)], "regressed"),
        ([arrival("noisy"), arrival("ok", rerun=True)], "ok"),
        ([arrival("noisy", worker="gw0"), arrival("ok", worker="gw1", rerun=True)], "noisy"),
    ],
    ids=["worst", "passed on a retry", "retry lost", "failed for good", "measured again", "another worker"],
)
def test_one_outcome_a_kernel(arrived: list[Arrival], kind: str) -> None:
    assert [o.verdict.kind for o in merged(arrived)] == [kind]


def test_files_that_ran_completely() -> None:
    coverage = Coverage()
    coverage.left_out = ["p/test_b.py::test_2"]
    tests = ["p/test_a.py::test_1", "p/test_a.py::test_2", "p/test_b.py::test_1", "q/test_c.py::T::test_1"]
    root = Path("/root")
    coverage.collected(tests, ["/root/p", "/root/q"], root, is_whole=True, ignores=False)
    there = Coverage()
    there.read(coverage.to_text())
    for test in tests:
        there.reported(test, "call", "rerun")
        there.reported(test, "call", "passed")
    assert there.complete() == {"p/test_a.py", "q/test_c.py", "q/conftest.py"}
    there.reported(tests[0], "teardown", "failed")
    assert there.complete() == {"q/test_c.py", "q/conftest.py"}
    coverage.collected(tests, ["/root"], root, is_whole=False, ignores=False)
    assert coverage.complete() == set()


def test_what_a_kernel_printed_moves_no_cursor() -> None:
    trial = {"config": {"n": 1}, "status": "crash", "reason": "\x1b[2Jgone", "log": "one\ttwo\x1b[31m\nthree"}
    lines = [line.text for line in log_lines([outcome(trials=(trial,))])]
    assert lines[1:] == ["  n=1: crash:  [2Jgone", "    | one two [31m", "    | three"]
