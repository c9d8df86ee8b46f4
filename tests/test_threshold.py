"""Reading thresholds."""

from __future__ import annotations

import math

import pytest

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.threshold import parse_threshold


@pytest.mark.parametrize(
    ("value", "fraction"),
    [
        ("3%", 0.03),
        ("0.5 %", 0.005),
        (" 12.5% ", 0.125),
        (".5%", 0.005),
        ("150%", 1.5),
        ("0%", 0.0),
        (0.03, 0.03),
        (0.0, 0.0),
    ],
)
def test_percentages_and_fractions_are_read(value: object, fraction: float) -> None:
    assert parse_threshold(value, "threshold") == pytest.approx(fraction)


@pytest.mark.parametrize(
    "value",
    [3, 0, True, None, "3", "0.03", "", "%", "-3%", "+3%", "1000%", "nan%", "3%%", "1e1%", -0.1, 1.0, 3.0, math.nan],
)
def test_anything_else_is_refused_by_name_with_an_example(value: object) -> None:
    with pytest.raises(UsageError, match=r'^@tunable\(threshold=\): .*"3%"'):
        parse_threshold(value, "@tunable(threshold=)")
