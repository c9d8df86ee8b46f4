"""Where compiled code goes: to a directory of its user alone, and never into a cache that others may write to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.commands import machine
from pytest_kerneltune.options import code_directory
from pytest_kerneltune.place import keep_code
from pytest_kerneltune.settings import Settings


def settings(root: Path, cache: str) -> Settings:
    return Settings.from_sources({"autotune_cache": cache}.get, lambda _: None, {}, root)


class Keeping:
    """The part of a kernel that is asked to keep its code."""

    def __init__(self) -> None:
        self.places: list[Path] = []

    def keep_code_in(self, directory: Path) -> None:
        self.places.append(directory)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg/pytest-kerneltune-code"),
        ({"XDG_CACHE_HOME": "xdg", "HOME": "/home/me"}, "/home/me/.cache/pytest-kerneltune-code"),
        ({"KERNELTUNE_CACHE_DIR": "/shared", "HOME": "/home/me"}, "/home/me/.cache/pytest-kerneltune-code"),
    ],
)
def test_the_directory_of_compiled_code_is_the_user_s_own(environment: Mapping[str, str], expected: str) -> None:
    assert code_directory(environment) == Path(expected)


def test_a_kernel_keeps_its_code_there_unless_the_cache_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    kernel = Keeping()
    keep_code(cast(Kernel, kernel), settings(tmp_path, "shared"))
    keep_code(cast(Kernel, kernel), settings(tmp_path, "off"))
    keep_code(cast(Kernel, object()), settings(tmp_path, "shared"))
    assert kernel.places == [tmp_path / "own" / "pytest-kerneltune-code"]


def test_the_doctor_tells_of_a_place_for_code_that_is_not_the_user_s_alone(tmp_path: Path) -> None:
    environment: dict[str, Any] = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    assert "code" not in [cache.name for cache in machine.caches(environment)]
    (tmp_path / "pytest-kerneltune-code").mkdir()
    (tmp_path / "pytest-kerneltune-code").chmod(0o777)
    (code,) = (cache for cache in machine.caches(environment) if cache.name == "code")
    assert "chmod 700" in code.problem
