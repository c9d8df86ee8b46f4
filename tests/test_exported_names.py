"""The public names: listed, sorted, importable, and found in the modules that the package says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_kerneltune

SOURCE = Path(pytest_kerneltune.__file__)


def names_for_types() -> set[str]:
    """What the package imports for type checkers."""
    tree = ast.parse(SOURCE.read_text())
    guards = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {
        a.asname or a.name
        for guard in guards
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for a in node.names
    }


def test_all_is_sorted_and_lists_each_name_once() -> None:
    assert pytest_kerneltune.__all__ == sorted(set(pytest_kerneltune.__all__))


def test_all_is_what_type_checkers_see() -> None:
    assert set(pytest_kerneltune.__all__) == names_for_types()


def test_no_module_has_a_public_name() -> None:
    """Importing the module would put it in the place of the function."""
    modules = {path.stem for path in SOURCE.parent.iterdir()}
    assert modules & set(pytest_kerneltune.__all__) == set()


@pytest.mark.parametrize("name", pytest_kerneltune.__all__)
def test_a_public_name_is_importable_and_documented(name: str) -> None:
    value = getattr(pytest_kerneltune, name)
    assert value.__name__ == name
    assert value.__doc__


def test_public_names_are_listed_by_dir() -> None:
    assert set(pytest_kerneltune.__all__) <= set(dir(pytest_kerneltune))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'tuneable'"):
        _ = pytest_kerneltune.tuneable


def test_a_star_import_gives_every_name() -> None:
    code = "from pytest_kerneltune import *; import pytest_kerneltune as p; print(set(p.__all__) - set(globals()))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE.parent.parent
    )
    assert run.stdout.strip() == "set()"


def test_the_package_ships_its_types() -> None:
    assert SOURCE.with_name("py.typed").is_file()
