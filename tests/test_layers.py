"""Rules on the package's modules, checked on their source: who imports whom, who reads the environment, what's lazy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "pytest_kerneltune"
ROOT = Path(__file__).parent.parent / PACKAGE

# A module imports only what stands above it; a name stands for a module or for a whole sub-package.
HOUSE = [
    ["errors", "trial", "condition", "parameter", "space", "threshold", "versions", "texts"],
    ["statistics", "timing", "record", "gate"],
    ["search"],
    ["disk", "files", "nvidia", "devices", "locking", "turns", "gpu", "guard"],
    ["gpu_timers", "timers", "instrument", "calibration", "delay", "worker"],
    ["source", "packing", "backends", "llm"],
    ["workload", "account", "station", "noise", "launcher", "compilation", "ready", "attempts", "lane", "benchmark"],
    ["cache", "baseline_text", "baseline", "refreshing", "merging", "recorded", "recording", "comparison"],
    ["options", "settings", "outcome", "driver", "finals", "asking", "judging"],
    ["adviser", "keeping", "choosing", "verdicts"],
    ["place", "surroundings", "redirect", "basetree", "against", "exporting", "bases", "gating"],
    ["resampling", "selftest_summary", "selftest", "session"],
    ["completeness", "report", "arrivals", "retries", "results", "live"],
    ["api", "contract_backend", "testing", "identity", "fixture", "base_side", "covering", "items"],
    ["plugin"],
    ["commands", "__main__"],
]
LAYERS = [name for storey in HOUSE for name in storey]

STRANGERS = {"files", "gpu", "worker", "backends", "llm"}
"""Doors to the outside world, each of which must be usable without the others."""

PYTEST_USERS = {"plugin", "items", "covering", "base_side", "fixture", "identity", "testing", "contract_backend"}
LAZY = ("torch", "triton", "sklearn", "scipy", "numpy", "httpx", "filelock", "cloudpickle", "matplotlib")


def module_name(path: Path) -> str:
    """Dotted name below the package; "" for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(), str(path)) for path in ROOT.rglob("*.py")}
MODULES = sorted(set(TREES) - {""})  # the package itself only lists public names, of every layer


def layer(module: str) -> str:
    return module.partition(".")[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that any import in ``tree`` may mean, function-local ones and those for types included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> set[str]:
    """Modules of this package that ``module`` imports."""
    found = set()
    for name in imported(TREES[module]):
        head, _, inner = name.partition(".")
        if head == PACKAGE and inner:
            found.add(inner if inner in TREES else inner.rpartition(".")[0])
    return found - {module}


def reads_of_environment(tree: ast.AST) -> list[ast.AST]:
    names = {"environ", "environb", "getenv", "getenvb"}
    return [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {a.name for a in node.names})
    ]


def test_every_module_has_a_layer() -> None:
    assert len(LAYERS) == len(set(LAYERS))
    assert {layer(module) for module in MODULES} <= set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    above = LAYERS[: LAYERS.index(layer(module)) + 1]
    assert {name for name in own_imports(module) if layer(name) not in above} == set()


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) in STRANGERS])
def test_doors_to_the_outside_world_do_not_know_each_other(module: str) -> None:
    assert {layer(name) for name in own_imports(module)} & (STRANGERS - {layer(module)}) == set()


def test_no_import_cycles() -> None:
    graph = TopologicalSorter({module: own_imports(module) for module in MODULES})
    try:
        graph.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_of_this_package_name_a_module_that_exists() -> None:
    assert {name for module in MODULES for name in own_imports(module)} <= set(MODULES)


def test_only_settings_reads_the_environment() -> None:
    readers = {module for module in TREES if reads_of_environment(TREES[module])}
    assert readers == {"settings", "worker"}


def test_the_worker_only_hands_the_environment_on_to_its_children() -> None:
    tree = TREES["worker"]
    handed_on = [
        value
        for call in ast.walk(tree)
        if isinstance(call, ast.keyword) and call.arg == "env" and isinstance(call.value, ast.Dict)
        for key, value in zip(call.value.keys, call.value.values, strict=True)
        if key is None
    ]
    assert [node for node in reads_of_environment(tree) if node not in handed_on] == []


def test_only_the_bridge_to_pytest_imports_pytest() -> None:
    users = {m for m in TREES if {name.partition(".")[0] for name in imported(TREES[m])} & {"pytest", "_pytest"}}
    assert "plugin" in users
    assert users <= PYTEST_USERS


def test_the_plugin_loads_nothing_heavy() -> None:
    code = f"import sys, {PACKAGE}.plugin; print(*sorted(sys.modules.keys() & {set(LAZY)!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert run.stdout.split() == []
