"""JSON that anybody may have written: bounded in size, depth and numbers, so that what was read can be worked with.

Refused, beside what is no JSON: NaN and infinity by name, whole numbers that no float can hold, more than ``MAX_BYTES``
or ``MAX_DEPTH``. What is read may still hold an infinity (1e999).
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, NoReturn

MAX_BYTES = 64 << 20
"""A larger document is neither read nor written: it is no cache entry or baseline of ours."""

MAX_DEPTH = 64
"""Lists and objects in each other."""

_MOST_NESTS = 1 << 21  # each takes fifty times its bytes in memory
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_EMPTY = re.compile(rb"\[\]|\{\}")
_AS_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * 300  # its digits, each as a zero


def parse(content: bytes) -> Any:
    """The value of a JSON document in UTF-8; raises ValueError that says what is wrong with it."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
    if content.count(b"[") + content.count(b"{") > _MOST_NESTS:
        raise ValueError("it holds too many lists and objects")
    try:
        value = json.loads(content.decode(), parse_constant=_refuse_constant)
        if not _is_harmless(content):
            _check(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MemoryError:
        raise ValueError("it does not fit into memory") from None
    return value


def line(value: Any) -> str:
    """``value`` as one line in ASCII with sorted keys, and its newline; raises ValueError that says why it has none."""
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False) + "\n"
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except TypeError as error:
        raise ValueError(str(error)) from error
    _check(value)
    if len(text) > MAX_BYTES:
        raise ValueError(f"it would be larger than {MAX_BYTES >> 20} MiB")
    return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_harmless(content: bytes) -> bool:
    """Whether ``content``, which is JSON, passes the check: told by its bytes alone, which takes a tenth of the time.

    Brackets in strings may make a shallow document look deep.
    """
    brackets = content.translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = _EMPTY.sub(b"", brackets)
    return not brackets and _LONG_NUMBER not in content.translate(_AS_ZEROS)


def _check(value: Any) -> None:
    """Raise ValueError for what is too deep, or has a whole number that no float can hold."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        numbers = [each for each in level if type(each) is int]
        if numbers and (max(numbers) > sys.float_info.max or min(numbers) < -sys.float_info.max):
            raise ValueError("it holds a whole number that is too large")
        nests = [each for each in level if isinstance(each, dict | list | tuple)]
        if not nests:
            return
        level = [inner for each in nests for inner in (each.values() if isinstance(each, dict) else each)]
    raise ValueError("it is nested too deeply")
