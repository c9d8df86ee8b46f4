"""The one reading of a threshold, wherever a user writes it: option, ini file or ``@tunable``."""

from __future__ import annotations

import re

from pytest_kerneltune.errors import UsageError

_PERCENTAGE = re.compile(r"(\d+\.?\d*|\.\d+)\s*%")
_LARGEST = 10.0


def parse_threshold(value: object, name: str) -> float:
    """The fraction that ``value`` means: 0.03 for "3%" or 0.03.

    A string is a percentage below 1000%, a float a fraction below 1. Raises UsageError, which calls the value
    ``name``, on everything else: 3 and "3" could mean 3% or 300%.
    """
    if isinstance(value, float) and 0.0 <= value < 1.0:
        return float(value)
    match = _PERCENTAGE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match and float(match[1]) / 100 < _LARGEST:
        return float(match[1]) / 100
    raise UsageError(f'{name}: {value!r} is not a threshold; write a percentage such as "3%", below {_LARGEST:.0%}')
