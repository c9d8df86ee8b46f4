"""The cache between runs and between processes, and what is left of a run that was killed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

FINITE, FIRST = "--autotune=FiniteSearch", "test_it.py::test_first"

KERNELS = """
def make(name, cost):
    def run(block):
        log("ran", f"{os.getpid()} {name} {block}")
        spin(cost * (5 - block))
    return run

@tunable(space=BLOCKS)
def first():
    return make("first", MS)

@tunable(space=BLOCKS)
def second():
    return make("second", 2 * MS)

def test_first(first): pass
def test_second(second): pass
def test_both(first, second): pass
"""


def tuned_by(suite: Suite, name: str) -> set[str]:
    """The processes that ran more configs of the kernel than the one that is best."""
    runs = [line.split() for line in suite.lines("ran")]
    return {pid for pid, kernel, block in runs if kernel == name and block != "4"}


def test_a_second_run_finds_everything_in_the_cache_and_says_so(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    first = suite.run(FINITE)
    assert first.kernels["first"]["search"]["source"] == "search"
    (suite.root / "ran").unlink()
    second = suite.run(FINITE)
    assert second.outcomes == {"passed": 3}
    assert {line.split()[2] for line in suite.lines("ran")} == {"4"}
    assert second.kernels["first"]["config"] == {"block": 4}
    assert second.kernels["first"]["search"]["source"] == "cache"
    assert second.kernels["first"]["search"]["seconds"] == 0
    assert second.kernels["first"]["trials"] == first.kernels["first"]["trials"]
    rows = [line.split() for line in second.out.splitlines() if line.startswith("new ")]
    assert [row[-2:] for row in rows[:2]] == [["cache", "hit"]] * 2


def test_a_plain_run_uses_the_cached_config_and_leaves_the_cache_alone(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    suite.run(FINITE)
    (suite.root / "ran").unlink()
    files = {p: p.read_bytes() for p in (suite.root / "cache").rglob("*") if p.is_file()}
    assert suite.run().outcomes == {"passed": 3}
    assert {line.split()[2] for line in suite.lines("ran")} == {"4"}
    assert {p: p.read_bytes() for p in (suite.root / "cache").rglob("*") if p.is_file()} == files


def test_force_tunes_again_and_writes(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    suite.run(FIRST, FINITE, "--autotune-configs=1")
    assert (
        suite.run(FIRST, FINITE, "--autotune-force", "--autotune-seed=3").kernels["first"]["search"]["source"]
        == "search"
    )
    again = suite.run(FIRST, FINITE).kernels["first"]["search"]
    assert (again["source"], again["seed"], again["attempts"]) == ("cache", 3, 3)


def test_without_a_cache_every_run_searches_and_nothing_is_written(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    for _ in range(2):
        assert suite.run(FIRST, FINITE, "--autotune-cache=off").kernels["first"]["search"]["source"] == "search"
    assert not (suite.root / "cache").exists()


def test_a_larger_budget_continues_where_a_smaller_one_ended(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    assert suite.run(FIRST, FINITE, "--autotune-configs=2").kernels["first"]["search"]["attempts"] == 2
    assert suite.run(FIRST, FINITE, "--autotune-configs=1").kernels["first"]["search"]["source"] == "cache"
    run = suite.run(FIRST, FINITE)
    assert run.kernels["first"]["search"]["source"] == "search"
    assert run.kernels["first"]["search"]["attempts"] == 3
    assert "continued from 2 configs that an earlier run measured" in run.out


def test_a_changed_kernel_is_tuned_anew(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    suite.run(FINITE)
    suite.edit("test_it.py", "2 * MS", "3 * MS")
    run = suite.run(FINITE)
    assert run.kernels["first"]["search"]["source"] == "cache"
    assert run.kernels["second"]["search"]["source"] == "search"


SIZES = """
@tunable(space={"x": integer(0, 999), "block": choice(1, 2, 4)}, params=[1, 2], ids=["n1024", "n2048"])
def kernel(request):
    return lambda x, block: spin(MS * request.param * (1 + abs(x - 700) / 500 + (5 - block)))

def test_kernel(kernel): pass
"""


def test_a_search_starts_from_the_same_kernel_at_another_size_and_before_an_edit(suite: Suite) -> None:
    suite.write("test_it.py", SIZES)
    tree, small, large = "--autotune=LFBOTreeSearch", "test_it.py::test_kernel[n1024]", "test_it.py::test_kernel[n2048]"
    first = suite.run(tree, "--autotune-configs=6", small)
    assert "related" not in first.out
    second = suite.run(tree, "--autotune-configs=2", large)
    assert "started from 6 configs of 1 related kernel" in second.out
    assert _fastest(first.kernels["kernel[n1024]"]) in _configs(second.kernels["kernel[n2048]"])
    suite.edit("test_it.py", "spin(MS * request", "spin(2 * MS * request")
    third = suite.run(tree, "--autotune-configs=3", small)
    assert "started from 8 configs of 2 related kernels" in third.out
    assert _fastest(first.kernels["kernel[n1024]"]) in _configs(third.kernels["kernel[n1024]"])


def _configs(kernel: Any) -> list[Any]:
    return [trial["config"] for trial in kernel["trials"]]


def _fastest(kernel: Any) -> Any:
    worked = [trial for trial in kernel["trials"] if "latency_ms" in trial]
    return min(worked, key=lambda trial: trial["latency_ms"])["config"]


def test_a_corrupt_entry_is_set_aside_with_a_warning(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    suite.run(FIRST, FINITE)
    for entry in (suite.root / "cache").glob("*/*.json"):
        entry.write_text("{")
    run = suite.run(FIRST, FINITE)
    assert run.outcomes == {"passed": 1}
    assert run.kernels["first"]["search"]["source"] == "search"
    assert "is corrupt" in run.out
    assert "kept as" in run.out
    assert len(list((suite.root / "cache").glob("*/*.corrupt-1"))) == 1


def test_a_cache_that_cannot_be_written_is_a_warning(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    suite.write("blocked", "")
    run = suite.run(FIRST, FINITE, "--autotune-cache=blocked/inside")
    assert run.outcomes == {"passed": 1}
    assert run.kernels["first"]["search"]["source"] == "search"
    assert "tuning cache: " in run.out
    assert "going on without it" in run.out


def kernels(path: Path) -> dict[str, dict[str, object]]:
    return {kernel["name"]: kernel for kernel in json.loads(path.read_text())["kernels"]}


def test_four_processes_tune_each_kernel_once(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    reports = [suite.root / f"report-{i}.json" for i in range(4)]
    processes = [suite.start(FINITE, f"--autotune-json={report}") for report in reports]
    assert [process.wait(120) for process in processes] == [0] * 4, suite.started_log.read_text()
    for name in ("first", "second"):
        found = [kernels(report)[name] for report in reports]
        sources = sorted(kernel["search"]["source"] for kernel in found)  # type: ignore[index]
        assert sources == ["cache", "cache", "cache", "search"]
        assert {str(kernel["config"]) for kernel in found} == {"{'block': 4}"}
        assert len(tuned_by(suite, name)) == 1


STOPPING = """
@tunable(space={"block": choice(0, 1, 2, 3, 4, 5)})
def kernel():
    def run(block):
        log("ran", block)
        stop_at(f"stop{block}")
        spin(MS * (6 - block))
    return run

def test_kernel(kernel): pass
"""


def test_a_killed_run_leaves_its_configs_to_the_next(suite: Suite) -> None:
    suite.write("test_it.py", STOPPING)
    stop = suite.write("stop3", "")
    process = suite.start(FINITE)
    suite.wait_until_stopped(process)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert sorted(set(suite.lines("ran"))) == ["0", "1", "2", "3"]
    (suite.root / "ran").unlink()
    stop.unlink()

    run = suite.run(FINITE)
    assert run.outcomes == {"passed": 1}
    kernel = run.kernels["kernel"]
    assert "continued from 3 configs that an earlier run measured" in run.out
    assert kernel["config"] == {"block": 5}
    assert kernel["search"]["attempts"] == 6
    assert [trial["config"]["block"] for trial in kernel["trials"]] == [0, 1, 2, 3, 4, 5]
    assert {"0", "1"}.isdisjoint(suite.lines("ran"))
    assert not list((suite.root / "cache").rglob("*.trials.jsonl"))


HANGING = r'''
SOURCE = """
#include <stdio.h>
void hang(void) {
    FILE *file = fopen(PLACE, "w");
    fclose(file);
    for (volatile int i = 0;;) i = i;
}
"""

@tunable(space={"UNUSED": choice(1, 2, 3)})
def kernel():
    place = Path(__file__).with_name("hanging")
    return CKernel(SOURCE, "hang", flags=[f'-DPLACE="{place}"'])

def test_kernel(kernel): pass
'''


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_ends_early_leaves_no_process_behind(suite: Suite, name: signal.Signals) -> None:
    suite.write("test_it.py", HANGING)
    process = suite.start(FINITE)
    suite.wait_until(lambda: (suite.root / "hanging").exists(), process)
    children = _children(process.pid)
    assert children
    process.send_signal(name)
    assert process.wait(30) != 0
    deadline = time.monotonic() + 60
    while any(map(_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, children))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # in a container nobody may reap it


STRICT = """
@tunable(space=BLOCKS)
def kernel():
    return lambda block: spin(MS * (5 - block))

def test_kernel(kernel): pass
"""


def test_a_strict_run_keeps_to_its_own_versions(suite: Suite) -> None:
    suite.write("test_it.py", STRICT)
    loose = suite.run(FINITE).kernels["kernel"]
    strict = suite.run(FINITE, "--autotune-strict").kernels["kernel"]
    assert strict["search"]["source"] == "search"
    assert strict["fingerprint"] != loose["fingerprint"]
    again = suite.run(FINITE, "--autotune-strict").kernels["kernel"]
    assert (again["search"]["source"], again["fingerprint"]) == ("cache", strict["fingerprint"])
