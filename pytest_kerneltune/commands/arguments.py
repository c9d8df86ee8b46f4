"""How commands read their arguments."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from fnmatch import fnmatchcase


def at_least(least: int) -> Callable[[str], int]:
    """For argparse: reads a whole number of at least ``least``."""

    def number(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < least:
            raise ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number


def matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` is ``name``, or means it with * and ?; brackets, which kernels' names have, are brackets."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))
