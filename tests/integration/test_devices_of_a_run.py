"""The GPUs of the processes of a run, and who holds a device's lock when. nvidia-smi is a shell script here; nothing
needs a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_kerneltune import CKernel, integer
from pytest_kerneltune.benchmark import Benchmark, Limits, Site
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.turns import DeviceTurn

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

NONE = "--autotune=none"
EACH = ("--dist=each", NONE)
UUIDS = [f"GPU-{digit * 8}-0000-1111-2222-333344445555" for digit in "abcd"]

CONFTEST = """
import os
IMPORTED = os.environ.get("CUDA_VISIBLE_DEVICES")
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "controller")
log("conftest", f"{WORKER} {IMPORTED}")
"""
TESTS = """
import subprocess

def test_it():
    worker, own = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("CUDA_VISIBLE_DEVICES")
    child = subprocess.run(["/bin/sh", "-c", "echo $CUDA_VISIBLE_DEVICES"], capture_output=True, text=True).stdout
    log("seen", f"{worker} {own} {child.strip() or None}")
"""


@pytest.fixture
def four_gpus(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite whose tests and conftest write down what they see, on a machine with four equal GPUs."""
    folder = suite.root / "bin"
    folder.mkdir()
    script = folder / "nvidia-smi"
    listed = "\n".join(f"GPU {i}: NVIDIA H200 (UUID: {uuid})" for i, uuid in enumerate(UUIDS))
    script.write_text(f"#!/bin/sh\n[ $1 = -L ] || exit 2\ncat <<'END'\n{listed}\nEND\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    suite.write("conftest.py", CONFTEST)
    suite.write("test_it.py", TESTS)
    return suite


def seen(suite: Suite) -> dict[str, str]:
    """Worker to the GPU that its conftest, its tests and their children saw."""
    imported = dict(line.split() for line in suite.lines("conftest"))
    assert imported.pop("controller", "None") == os.environ.get("CUDA_VISIBLE_DEVICES", "None")
    found = {}
    for worker, own, child in (line.split() for line in suite.lines("seen")):
        assert own == child == imported[worker]
        found[worker] = own
    return found


def workers(*uuids: str) -> dict[str, str]:
    return {f"gw{i}": uuid for i, uuid in enumerate(uuids)}


def test_four_workers_use_four_gpus(four_gpus: Suite) -> None:
    assert four_gpus.run("-n4", *EACH).outcomes == {"passed": 4}
    assert seen(four_gpus) == workers(*UUIDS)


def test_more_workers_than_gpus_share_them(four_gpus: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert four_gpus.run("-n3", *EACH).outcomes == {"passed": 3}
    assert seen(four_gpus) == workers(UUIDS[3], UUIDS[1], UUIDS[3])


@pytest.mark.parametrize("ini", ["autotune = none", "addopts = --autotune=none"])
def test_the_ini_file_may_ask_for_timing(four_gpus: Suite, ini: str) -> None:
    four_gpus.write("pytest.ini", f"[pytest]\n{ini}\n")
    assert four_gpus.run("-n2", "--dist=each").outcomes == {"passed": 2}
    assert seen(four_gpus) == workers(*UUIDS[:2])


def test_a_run_that_times_nothing_leaves_the_gpus_alone(four_gpus: Suite) -> None:
    assert four_gpus.run("-n2", "--dist=each").outcomes == {"passed": 2}
    assert seen(four_gpus) == workers("None", "None")


def test_a_worker_that_was_given_a_gpu_keeps_it(four_gpus: Suite) -> None:
    given = [f"--tx=popen//env:CUDA_VISIBLE_DEVICES={number}" for number in (2, 1)]
    assert four_gpus.run(*given, *EACH).outcomes == {"passed": 2}
    assert seen(four_gpus) == workers("2", "1")


def test_a_run_without_workers_sees_all_gpus(four_gpus: Suite) -> None:
    assert four_gpus.run(NONE).outcomes == {"passed": 1}
    assert four_gpus.lines("seen") == ["None None None"]


# The lock

DEVICE = "device"

KERNEL = """
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
void f(double *held) {
    int file = open("LOCK", O_RDWR);
    volatile int differs = N;  /* equal code would be timed once */
    held[0] = file >= 0 && flock(file, LOCK_EX | LOCK_NB) != 0;
    close(file);
}
"""

TRY = f"""
import sys
from pathlib import Path
from pytest_kerneltune.locking import try_lock
print("taken" if try_lock("{DEVICE}", Path(sys.argv[1])) is None else "free")
"""

HOLD = f"""
import sys, time
from pathlib import Path
from pytest_kerneltune.locking import device_lock
with device_lock("{DEVICE}", Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

CONFIGS = [{"N": n} for n in range(3)]


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    return tmp_path / "locks"


@pytest.fixture
def compiler(tmp_path: Path, locks: Path) -> Path:
    """A C compiler that writes down how it finds the lock, and ends the process in "holder" when it compiles last."""
    script = tmp_path / "compiler"
    log = tmp_path / "compiled"
    script.write_text(
        f"#!/bin/sh\n{sys.executable} -c '{TRY}' {locks} >> {log}\n"
        f"[ $(wc -l < {log}) -ge {len(CONFIGS)} ] && [ -f {tmp_path}/holder ] && kill -9 $(cat {tmp_path}/holder)\n"
        'exec cc "$@"\n'
    )
    script.chmod(0o755)
    return script


@pytest.fixture
def bench(locks: Path, compiler: Path) -> Iterator[Benchmark]:
    """Measures a kernel that is right only where somebody holds the lock of its device."""
    held = np.zeros(1)
    source = KERNEL.replace("LOCK", str(locks / f"{DEVICE}.lock"), 1)
    kernel = CKernel(source, "f", (held,), output=held, reference=lambda: np.ones(1), compiler=str(compiler))
    workers = Workers(jobs=1)
    site = Site({}, DeviceTurn(DEVICE, locks))
    yield Benchmark(kernel, ConfigSpace({"N": integer(0, 9)}), workers, Limits(30.0, 30.0), [site])
    workers.close()


def test_the_lock_is_held_while_timing_and_not_while_compiling(bench: Benchmark, tmp_path: Path) -> None:
    bench.start()
    trials = bench.measure(CONFIGS)
    assert [(trial.ok, trial.reason) for trial in trials] == [(True, "")] * len(CONFIGS)
    assert (tmp_path / "compiled").read_text().split() == ["free"] * len(CONFIGS)


def test_configs_are_compiled_while_another_process_has_the_device(
    bench: Benchmark, tmp_path: Path, locks: Path
) -> None:
    bench.start()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(locks)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        (tmp_path / "holder").write_text(str(holder.pid))
        try:
            trials = bench.measure(CONFIGS, deadline=time.monotonic() + 30)
        finally:
            holder.kill()
    assert [(trial.ok, trial.reason) for trial in trials] == [(True, "")] * len(CONFIGS)
    assert (tmp_path / "compiled").read_text().split() == ["taken"] * len(CONFIGS)
