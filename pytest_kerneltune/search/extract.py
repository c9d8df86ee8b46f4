"""Finding what a language model's reply means as configs, in the whole text or while it is written."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from pytest_kerneltune.search.scanner import Container, Scanner

_REASONING = "think|thinking|thought|reasoning"
_END_OF_REASONING = re.compile(rf"</(?:{_REASONING})>", re.IGNORECASE)
_TAG = re.compile(rf"<(?P<end>/?)(?:{_REASONING})>", re.IGNORECASE)
_LONGEST_TAG = len("</reasoning>")


def extract_objects(text: str, names: Collection[str]) -> tuple[list[dict[str, Any]], int]:
    """The objects of ``text`` that are meant as configs of parameters ``names``, and how many more were malformed.

    Of several documents the last that holds configs under the key "configs" counts, else the last list of configs, else
    every loose object. What precedes the end of a reasoning block counts only if nothing follows it.
    """
    reasoning = list(_END_OF_REASONING.finditer(text))
    documents = Scanner(names).scan(text[reasoning[-1].end() :]) if reasoning else []
    documents = documents or Scanner(names).scan(text)
    ranked = [d for d in documents if d.found] or documents
    best = max((_rank(d) for d in ranked), default=0)
    chosen = [d for d in ranked if _rank(d) == best]
    if best > 0:
        chosen = chosen[-1:]
    return [config for d in chosen for config in d.found], sum(d.malformed for d in chosen)


def _rank(document: Container) -> int:
    return 2 if document.labelled else 0 if document.is_object else 1


class EarlyObjects:
    """The objects of a reply that can be told to be configs of parameters ``names`` while the reply is written.

    They are elements of a list under the key "configs", or of a list in no other bracket, outside a reasoning block.
    Which they are depends on the text alone, not on the pieces in which it comes.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._scanner = Scanner(names)
        self._start = self._tagged = 0
        self._in_reasoning = False

    def feed(self, text: str, ended: bool = False) -> list[dict[str, Any]]:
        """What has become certain now that the reply is known up to here; ``text`` begins with what was fed before."""
        end = len(text) if ended else _end_of_whole_tags(text)
        found: list[dict[str, Any]] = []
        while tag := _TAG.search(text, self._tagged, end):
            if not self._in_reasoning:
                found += self._scan(text, tag.start())
            self._tagged = tag.end()
            self._in_reasoning = not tag["end"]
            if tag["end"]:
                self._scanner, self._start = Scanner(self._names), tag.end()
        # A tag may begin in what was searched in vain, but not further back.
        self._tagged = max(self._tagged, end - _LONGEST_TAG)
        is_due = ended or end >= self._scanner.patience
        return found + self._scan(text, end, ended) if is_due else found

    def _scan(self, text: str, end: int, ended: bool = False) -> list[dict[str, Any]]:
        self._scanner.feed(text, self._start, end, ended)
        settled, self._scanner.settled = self._scanner.settled, []
        return [] if self._in_reasoning else settled


def _end_of_whole_tags(text: str) -> int:
    """Where ``text`` ends, less what may be the beginning of a tag."""
    opening = text.rfind("<", max(0, len(text) - _LONGEST_TAG))
    return len(text) if opening < 0 or ">" in text[opening:] else opening
