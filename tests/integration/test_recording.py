"""``--update-baselines``: which rows are written, and that nothing else is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

NONE = "--autotune=none"

# What each kernel's verdict will be once the numbers in COSTS are those of LATER.
COSTS = {"slower": 1, "faster": 8, "same": 2}
LATER = {"slower": 8, "faster": 1, "same": 2, "fresh": 2}


def module(costs: Mapping[str, float]) -> str:
    return "".join(
        f"""
@tunable(space=BLOCKS)
def {name}():
    return lambda block: spin({cost} * MS)

def test_{name}({name}): pass
"""
        for name, cost in costs.items()
    )


def recorded(suite: Suite) -> str:
    """The text of the baseline file of COSTS, with the kernels then changed to LATER."""
    suite.write("pytest.ini", "[pytest]\nperf_threshold = 40%\n")  # which is decided at the first look
    suite.write("test_it.py", module(COSTS))
    assert suite.run(NONE, "--update-baselines").ret == 0
    suite.write("test_it.py", module(LATER))
    return suite.baseline_files[0].read_text()


SELECTIONS: list[tuple[str, set[str]]] = [
    ("=new", {"fresh"}),
    ("=improved", {"faster"}),
    ("=new,regressed", {"fresh", "slower"}),
    ("", {"fresh", "faster", "slower"}),
]


def test_only_the_selected_rows_are_written(suite: Suite) -> None:
    text = recorded(suite)
    for option, written in SELECTIONS:
        suite.baseline_files[0].write_text(text)
        check_selection(suite, option, written)


def check_selection(suite: Suite, option: str, written: set[str]) -> None:
    failed = int("slower" not in written)
    before = suite.rows()
    run = suite.run(NONE, f"--update-baselines{option}")
    verdicts = {**run.verdicts, "same": "ok"}  # which may be noisy here
    assert verdicts == {"slower": "regressed", "faster": "improved", "same": "ok", "fresh": "new"}
    assert run.outcomes.get("failed", 0) == failed
    assert run.ret == failed
    after = suite.rows()
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed - {"same"} == written
    assert f"baselines written: {len(changed)} of 4" in run.out
    shown = run.out.partition("baselines written:")[2]
    for name in written - {"fresh"}:
        line = next(line for line in shown.splitlines() if line.startswith(f"{name} "))
        assert " -> " in line
        assert "%" in line
    if "fresh" in written:
        assert "new: " in next(line for line in shown.splitlines() if line.startswith("fresh "))


def test_accepting_a_regression_makes_the_next_run_pass(suite: Suite) -> None:
    recorded(suite)
    assert suite.run(NONE, "-k", "slower").outcomes == {"failed": 1, "deselected": 3}
    assert suite.run(NONE, "-k", "slower", "--update-baselines=regressed").outcomes == {"passed": 1, "deselected": 3}
    run = suite.run(NONE, "-k", "slower")
    assert run.outcomes == {"passed": 1, "deselected": 3}
    assert run.verdicts["slower"] != "regressed"


def test_the_command_that_a_failure_names_accepts_it(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write("pytest.ini", "[pytest]\n")
    suite.write("perf/test_it.py", module({"kernel": 1}))
    monkeypatch.chdir(suite.root / "perf")
    suite.run(NONE, "--baseline-dir=../recorded", "--update-baselines")
    suite.write("perf/test_it.py", module({"kernel": 8}))
    failed = suite.run(NONE, "--baseline-dir=../recorded")
    command = next(line for line in failed.out.splitlines() if line.startswith("  accept"))
    words = command.split()[1:]
    assert words == ["pytest", "test_it.py", NONE, "--baseline-dir=../recorded", "--update-baselines=regressed"]
    assert suite.run(*words[1:]).outcomes == {"passed": 1}
    assert suite.run(NONE, "--baseline-dir=../recorded").verdicts["kernel"] != "regressed"


def test_what_does_not_run_keeps_its_very_bytes(suite: Suite) -> None:
    text = recorded(suite)
    file = suite.baseline_files[0]
    # A row as only a person would format it.
    head, _, tail = text.partition('"same": {')
    odd = f'{head}"same":   {{ {tail}'
    file.write_text(odd)
    suite.run(NONE, "--update-baselines", "test_it.py::test_slower")
    after = file.read_text()
    assert after != odd
    assert after.partition('"slower"')[0] == odd.partition('"slower"')[0]
    tails = [t.partition('"slower": {')[2].partition("\n    }")[2] for t in (odd, after)]
    assert tails[0] == tails[1]


def test_a_run_that_fails_to_measure_writes_nothing(suite: Suite) -> None:
    text = recorded(suite)
    suite.write("test_it.py", module(LATER).replace("spin(8 * MS)", "1 // 0"))
    run = suite.run(NONE, "--update-baselines", "-k", "slower")
    assert run.ret == 1
    assert "baselines written: 0 of 1" in run.out
    assert suite.baseline_files[0].read_text() == text


def test_a_plain_run_never_writes_a_baseline(suite: Suite) -> None:
    suite.write("test_it.py", module(COSTS))
    assert suite.run().ret == 0
    assert suite.run(NONE).ret == 0
    assert suite.baseline_files == []


def test_each_test_module_has_a_file(suite: Suite) -> None:
    suite.write("a/test_one.py", module({"kernel": 1}))
    suite.write("b/test_two.py", module({"kernel": 1}))
    suite.run(NONE, "--update-baselines")
    places = [(p.relative_to(suite.root).parts[0], p.name) for p in suite.baseline_files]
    assert places == [("a", "test_one.json"), ("b", "test_two.json")]
    assert (suite.root / "a/__kerneltune__").is_dir()


def test_a_baseline_config_is_what_plain_runs_use(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS)
def kernel():
    return lambda block: spin(MS * (5 - block))

def test_kernel(kernel): log("block", kernel.config["block"])
""",
    )
    suite.run("--autotune=FiniteSearch", "--update-baselines")
    assert suite.rows()["kernel"]["config"] == {"block": 4}
    suite.run("--autotune-cache=off")
    suite.run("--autotune-cache=off", "--baseline-dir=none")
    assert suite.lines("block") == ["4", "4", "1"]


def test_a_config_that_the_space_lost_is_not_run_any_more(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS, where=lambda c: c["block"] <= 4)
def kernel():
    def run(block):
        log("ran", block)
        spin(MS * (5 - block) ** 2)
    return run

def test_kernel(kernel): pass
""",
    )
    suite.run("--autotune=FiniteSearch", "--update-baselines")
    assert suite.rows()["kernel"]["config"] == {"block": 4}
    (suite.root / "ran").unlink()
    suite.edit("test_it.py", "<= 4", "<= 2")
    run = suite.run("--autotune=FiniteSearch")
    assert run.outcomes == {"failed": 1}
    assert run.kernels["kernel"]["config"] == {"block": 2}
    assert run.kernels["kernel"]["verdict"]["blame"] == "config gone"
    assert "config gone: the old config no longer runs, and the best one found is slower" in run.out
    assert "  config   block=4 -> 2" in run.out
    assert "4" not in suite.lines("ran")


def place(suite: Suite) -> Path:
    """Where the baseline of the first kernel belongs, with its directory."""
    file = suite.root / str(suite.run().report["kernels"][0]["baseline_file"])
    file.parent.mkdir(parents=True)
    return file


CONFLICT = "<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> topic\n"


@pytest.mark.parametrize("options", [(), (NONE,), (NONE, "--update-baselines")], ids=["plain", "gate", "update"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (CONFLICT, "holds conflict markers (line 1)"),
        ("garbage", "is no baseline file"),
        ("", "is no baseline file"),
        ('{"schema": 99, "device": {}, "kernels": {}}', "newer pytest-kerneltune"),
        ('{"schema": 1, "device": {}, "kernels": {"kernel": {}}}', "the row 'kernel' is malformed"),
    ],
    ids=["conflict", "garbage", "empty", "newer", "row"],
)
def test_a_damaged_file_is_named_and_left_alone(
    suite: Suite, content: str, said: str, options: tuple[str, ...]
) -> None:
    suite.write("test_it.py", module({"kernel": 1}))
    file = place(suite)
    file.write_text(content)
    run = suite.run(*options)
    assert run.ret == 1
    assert run.outcomes == {"error": 1}
    line = next(line for line in run.out.splitlines() if line.startswith(f"test_it.py::kernel: {file}"))
    assert said in line
    assert "Traceback" not in run.out
    assert "session.py" not in run.out
    assert file.read_text() == content


def test_a_damaged_file_fails_only_its_own_tests(suite: Suite) -> None:
    suite.write("a/test_one.py", module({"kernel": 1}))
    suite.write("b/test_two.py", module({"kernel": 1}))
    place(suite).write_text("garbage")
    assert suite.run().outcomes == {"error": 1, "passed": 1}


def test_a_file_that_cannot_be_written_fails_the_run(suite: Suite) -> None:
    suite.write("test_it.py", module({"kernel": 1}))
    file = place(suite)
    file.with_name(file.name + ".lock").mkdir()
    run = suite.run(NONE, "--update-baselines")
    assert run.outcomes == {"passed": 1}
    assert run.ret == 1
    assert f"--update-baselines: cannot lock {file}" in run.out
