"""Every search of the table keeps the contract of searches, at both sizes, with and without a language model."""

from __future__ import annotations

import json

import pytest

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.search import SEARCHES, Context, Effort, Search, create, search_class
from pytest_kerneltune.testing import ScriptedModel, SearchContract

REPLIES = (
    json.dumps({"configs": [{"tile": 4, "unroll": True}, {"x": 1, "y": 993}, {"p3": 1}, {"no such name": 1}, 5]}),
    json.dumps({"configs": [{"tile": 2}, {"tile": 1, "stages": 2, "loads": ["last", ""]}, {"p4": 1}, {"x": 2}]}),
    "I would rather not.",
    LLMError("out of quota"),
)
ROWS = [
    pytest.param((name, effort, asks), id=f"{name}-{effort}{'-model' if asks else ''}")
    for name in SEARCHES
    for effort in (Effort.QUICK, Effort.FULL)
    for asks in ([False, True] if getattr(search_class(name), "uses_model", False) else [False])
]


class TestSearches(SearchContract):
    @pytest.fixture(params=ROWS)
    def search(self, request: pytest.FixtureRequest) -> Search:
        name, effort, asks = request.param
        return create(name, effort, Context(model=ScriptedModel(REPLIES) if asks else None))
