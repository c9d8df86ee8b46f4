"""Shared by all tests: pytest's own test harness, and the gpu marker."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from pytest_kerneltune.gpu import cuda_available

    if reason := cuda_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
