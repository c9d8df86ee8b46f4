"""The one reading of a threshold or a latency, wherever a user writes it: option, ini file or ``@tunable``."""

from __future__ import annotations

import re

from pytest_kerneltune.errors import UsageError

_PERCENTAGE = re.compile(r"(\d+\.?\d*|\.\d+)\s*%")
_LARGEST = 10.0
_LATENCY = re.compile(r"(\d+\.?\d*|\.\d+)\s*(ns|us|ms|s)")
_UNITS_MS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}


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


def parse_latency(value: object, name: str) -> float:
    """The milliseconds that a text such as "40us" means; raises UsageError, which calls the value ``name``."""
    match = _LATENCY.fullmatch(value.strip().replace("\u00b5s", "us")) if isinstance(value, str) else None
    if match and (latency := float(match[1]) * _UNITS_MS[match[2]]) > 0:
        return latency
    raise UsageError(f'{name}: {value!r} is not a latency; write a number with its unit, such as "40us" or "1.5ms"')
