"""What one server takes of its wire format, found out by asking.

Compatible servers differ in the fields they know. A request starts out with all parts; a part that the server's error
names is replaced by its next form, in the end left out, in this request and all later ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_kerneltune.llm.bodies import CACHE, STREAM, Body, Part, merged
from pytest_kerneltune.llm.providers import Ask, Format
from pytest_kerneltune.search import Message
from pytest_kerneltune.search.dialogue import Request

# An error that names no field; those about a model or a prompt are not about fields.
_UNNAMED = re.compile(
    r"^(?!.*\b(model|prompt)\b)"
    r".*(un(known|supported|recogni|expected)|extra|not (permitted|allowed|supported)|additional)",
    re.IGNORECASE | re.DOTALL,
)
_SETTINGS = {"temperature": "temperature", "effort": "reasoning effort", "cap": "a limit of output tokens"}
"""What a user may have set, by the part that it is."""

_OF_OUR_OWN_ACCORD = ("schema", CACHE, "store", STREAM)


@dataclass(frozen=True)
class Draft:
    """A request's ``body``, and the ``parts`` that it is made of, by the number of the ``forms`` that were refused."""

    body: Body
    parts: Sequence[Part]
    forms: Mapping[str, int]

    def blamed(self, complaint: str) -> Part | None:
        """The part that an error means, if there is another form of it to try or it can be left out."""
        left = [part for part in self.parts if self.forms.get(part.name, 0) < len(part.forms)]
        meant = [part for part in self.parts if re.search(part.words, complaint, re.IGNORECASE)]
        if not meant and _UNNAMED.search(complaint):
            return next((part for name in _OF_OUR_OWN_ACCORD for part in left if part.name == name), None)
        return next((part for part in meant if part in left), None)


class Dialect:
    """Drafts requests to one server, from several threads at once."""

    def __init__(self, form: Format, ask: Ask) -> None:
        self._format, self._ask = form, ask
        self._refused: dict[str, int] = {}
        self._news: dict[str, None] = {}

    def draft(self, messages: Sequence[Message]) -> Draft:
        """The request that the server has not refused any part of, so far."""
        parts, forms = self._parts(messages), dict(self._refused)
        chosen = (form for part in parts for form in part.forms[forms.get(part.name, 0) :][:1])
        return Draft(self._body(messages, chosen), parts, forms)

    def deciding(self, messages: Sequence[Message]) -> Body:
        """The body as first sent, without what has no say in the answer."""
        parts = self._parts(messages)
        return self._body(messages, (part.forms[0] for part in parts if part.name not in (STREAM, CACHE)))

    def learn(self, draft: Draft, complaint: str) -> bool:
        """Take note of what a server says against a draft; False if that is no reason to try another one."""
        part = draft.blamed(complaint) if complaint else None
        if part is not None:
            self._refused[part.name] = draft.forms.get(part.name, 0) + 1
            if part.name in _SETTINGS and self._refused[part.name] == len(part.forms):
                self._news[_SETTINGS[part.name]] = None
        return part is not None

    def news(self) -> str:
        """Which of the user's settings have been left out since it was last asked; empty or "; asked without ..."."""
        names, self._news = self._news, {}
        return f"; asked without {' and '.join(names)}, which the server refuses" if names else ""

    def _parts(self, messages: Sequence[Message]) -> list[Part]:
        schema = messages.schema if isinstance(messages, Request) else None
        return list(self._format.parts(messages, self._ask, schema))

    def _body(self, messages: Sequence[Message], forms: Iterable[Body]) -> Body:
        body = self._format.body(messages, self._ask)
        for form in forms:
            body = merged(body, form)
        return body
