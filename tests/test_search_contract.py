"""Every search of the table keeps the contract of searches, at both sizes, with and without a language model."""

from __future__ import annotations

import json

import pytest

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.search import SEARCHES, Context, Effort, Search, create, search_class
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import SPACES, ScriptedModel, SearchContract

REPLIES = (
    json.dumps({"configs": [{"tile": 4, "unroll": True}, {"x": 1, "y": 993}, {"p3": 1}, {"no such name": 1}, 5]}),
    json.dumps({"configs": [{"tile": 2}, {"tile": 1, "stages": 2, "loads": ["last", ""]}, {"p4": 1}, {"x": 2}]}),
    "I would rather not.",
    LLMError("out of quota"),
)
ASKS = {name: bool(getattr(search_class(name), "uses_model", False)) for name in SEARCHES}


def made(name: str, effort: Effort, asks: bool) -> Search:
    return create(name, effort, Context(model=ScriptedModel(REPLIES) if asks else None))


class TestSearches(SearchContract):
    @pytest.fixture(params=SEARCHES)
    def search(self, request: pytest.FixtureRequest) -> Search:
        return made(request.param, Effort.QUICK, ASKS[request.param])


OTHERS = [
    *(pytest.param((name, Effort.FULL, ASKS[name]), id=f"{name}-full") for name in SEARCHES),
    *(pytest.param((name, Effort.QUICK, False), id=f"{name}-no model") for name in SEARCHES if ASKS[name]),
]


class TestOtherForms(SearchContract):
    """The full effort only makes searches larger, and without a model others are left: a few of the spaces tell."""

    @pytest.fixture(params=OTHERS)
    def search(self, request: pytest.FixtureRequest) -> Search:
        return made(*request.param)

    @pytest.fixture(params=["two configs", "every kind", "10^15 configs"])
    def space(self, request: pytest.FixtureRequest) -> ConfigSpace:
        return SPACES[request.param]()
