"""From verdicts to what the user reads and which tests fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.errors import MissingBaseline, NothingMeasured, PerformanceRegression, WrongOutput
from pytest_kerneltune.gate import Verdict, VerdictKind
from pytest_kerneltune.record import Baseline, StoredSession
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.statistics import Interval
from pytest_kerneltune.trial import Status, Trial
from pytest_kerneltune.verdicts import Subject, broken, checked, failure, judged, unusable

SUBJECT = Subject("softmax", "pytest test_a.py --autotune=none", 2.0, {"block": 1})
BASELINE = Baseline({"block": 1}, {"method": "wall"}, (StoredSession(1.0, {}, {}, 0.01, 16),))
SLOWER = Verdict(VerdictKind.REGRESSED, "slower", change=Interval(1.0, 0.9, 1.1), threshold=0.03, blame="code")


def settings(**options: str) -> Settings:
    values = {"autotune": "none", **options}
    return Settings.from_sources(lambda _: None, lambda name: values.get(name), {}, Path.cwd())


def fails(kind: VerdictKind, missing: str | None = None, **options: str) -> bool:
    verdict = SLOWER if kind is VerdictKind.REGRESSED else Verdict(kind, "so it is")
    return judged(verdict, BASELINE, SUBJECT, settings(**options), missing).fails


def test_only_a_regression_fails_unless_told_otherwise() -> None:
    assert [kind for kind in VerdictKind if fails(kind)] == [VerdictKind.REGRESSED]


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (VerdictKind.NEW, "missing_baseline"),
        (VerdictKind.INCOMPARABLE, "incomparable_verdict"),
        (VerdictKind.NOISY, "noisy_verdict"),
        (VerdictKind.INVALID, "invalid_verdict"),
    ],
)
def test_each_uncertain_verdict_has_its_own_policy(kind: VerdictKind, option: str) -> None:
    options = {option: "fail"}
    assert [k for k in VerdictKind if fails(k, **options)] == [k for k in VerdictKind if k in (kind, "regressed")]


def test_a_missing_baseline_names_the_devices_that_have_some() -> None:
    new = Verdict(VerdictKind.NEW, "there is no baseline yet")
    subject = replace(SUBJECT, other_devices=["nvidia-a100", "nvidia-h100"])
    verdict = judged(new, None, subject, settings(missing_baseline="fail"))
    said = "there is no baseline yet; other devices have baselines of this file: nvidia-a100, nvidia-h100"
    assert verdict.summary == said
    assert said in verdict.details
    assert judged(new, None, SUBJECT, settings()).summary == "there is no baseline yet"


def test_a_marker_replaces_the_policy_for_missing_baselines() -> None:
    assert fails(VerdictKind.NEW, "fail")
    assert not fails(VerdictKind.NEW, "warn", missing_baseline="fail")


def test_what_becomes_the_baseline_does_not_fail() -> None:
    assert not fails(VerdictKind.REGRESSED, update_baselines="regressed")
    assert fails(VerdictKind.REGRESSED, update_baselines="new,improved")
    assert not fails(VerdictKind.NEW, missing_baseline="fail", update_baselines="new")
    assert not fails(VerdictKind.INCOMPARABLE, incomparable_verdict="fail", update_baselines="new")


def test_a_disturbed_measurement_is_never_a_baseline_so_it_fails_all_the_same() -> None:
    assert fails(VerdictKind.INVALID, invalid_verdict="fail", update_baselines="all")


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (VerdictKind.NEW, {"missing_baseline": "fail"}, "--update-baselines=new"),
        (VerdictKind.INCOMPARABLE, {"incomparable_verdict": "fail"}, "--update-baselines=new"),
        (VerdictKind.NOISY, {"noisy_verdict": "fail"}, "measure again"),
        (VerdictKind.INVALID, {"invalid_verdict": "fail"}, "without what disturbed it"),
        (VerdictKind.REGRESSED, {}, "--update-baselines=regressed"),
    ],
)
def test_a_failure_names_a_command(kind: VerdictKind, options: dict[str, str], words: str) -> None:
    verdict = SLOWER if kind is VerdictKind.REGRESSED else Verdict(kind, "so it is")
    error = failure(judged(verdict, BASELINE, SUBJECT, settings(**options)))
    assert str(error).startswith("softmax ")
    assert "pytest test_a.py --autotune=none" in str(error)
    assert words in str(error)


def test_each_reason_has_its_error() -> None:
    wrong = [Trial({"block": 1}, Status.WRONG, reason="output differs"), Trial({"block": 2}, Status.CRASH)]
    errors: list[Any] = [
        failure(judged(SLOWER, BASELINE, SUBJECT, settings())),
        failure(judged(Verdict(VerdictKind.NEW, "none"), None, SUBJECT, settings(), "fail")),
        failure(unusable("softmax", wrong)),
        failure(unusable("softmax", wrong[1:])),
        failure(broken("softmax", "no device\nsecond line")),
        failure(checked()),
    ]
    kinds = [PerformanceRegression, MissingBaseline, WrongOutput, NothingMeasured, NothingMeasured, type(None)]
    assert [type(error) for error in errors] == kinds


def test_only_some_of_many_failures_are_listed() -> None:
    trials = [Trial({"block": i}, Status.CRASH, reason="SIGSEGV") for i in range(20)]
    text = unusable("softmax", trials).details
    assert "all 20 configs tried failed" in text
    assert text.splitlines()[-1] == "  ... and 15 more"
    assert len(text.splitlines()) == 7
