"""Texts that may be anybody's, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` with line breaks and what a terminal would obey escaped, as in pytest's test ids."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
