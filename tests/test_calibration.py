"""The frozen kernels: that they assemble for GPUs old and new, ship with the package, and take the time they should."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from pytest_kerneltune.calibration import arithmetic_launch, calibration_launches, copy_launch, ptx, spin_launch
from pytest_kerneltune.gpu_timers import BatchTimer, EventTimer
from pytest_kerneltune.record import YARDSTICKS

ROOT = Path(__file__).parent.parent
ENTRIES = ["copy", "arithmetic", "spin"]


def microseconds(launch: Any, count: int = 40) -> float:
    """What a launch takes, with a cold cache; what is read first does not count."""
    return 1e3 * median(EventTimer().measure(launch, count)[count // 4 :])


def test_the_code_is_plain_text_that_drivers_of_many_years_load() -> None:
    text = ptx().decode("ascii")
    assert re.findall(r"^\.visible \.entry (\w+)", text, re.MULTILINE) == ENTRIES
    assert ".version 6.3\n" in text
    assert ".target sm_70\n" in text
    assert "\0" not in text


@pytest.mark.parametrize("architecture", [75, 80, 90, 100])
def test_the_code_assembles(architecture: int, tmp_path: Path) -> None:
    compiler = pytest.importorskip("triton.backends.nvidia.compiler")
    code = tmp_path / "calibration.ptx"
    code.write_bytes(ptx())
    command = [compiler.get_ptxas(architecture).path, "-v", f"-arch=sm_{architecture}", str(code), "-o", "made.cubin"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sorted(re.findall(r"Compiling entry function '(\w+)'", run.stderr)) == sorted(ENTRIES)
    assert not re.search(r"[1-9]\d* bytes spill", run.stderr)


def test_the_code_is_in_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pytest_kerneltune", source / "pytest_kerneltune", ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    build = "import setuptools.build_meta as b; b.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (wheel,) = source.glob("*.whl")
    assert zipfile.ZipFile(wheel).read("pytest_kerneltune/calibration.ptx") == ptx()


@pytest.mark.gpu
def test_the_yardsticks_take_some_microseconds() -> None:
    launches = calibration_launches()
    assert list(launches) == [name for name in YARDSTICKS if name in ("copy", "arithmetic")]
    assert all(5 < microseconds(launch) < 100 for launch in launches.values())


@pytest.mark.gpu
def test_a_copy_is_one_and_writes_nothing_else() -> None:
    import torch

    source = torch.randint(0, 255, (1 << 20,), dtype=torch.uint8, device="cuda")
    memory = torch.zeros(3 << 20, dtype=torch.uint8, device="cuda")
    before, target, after = memory.split(1 << 20)
    with torch.cuda.stream(torch.cuda.Stream()):  # on the current stream, whichever that is
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        copy_launch(target, source)()
        torch.cuda.current_stream().synchronize()
    assert torch.equal(target, source)
    assert not torch.cat((before, after)).any()
    with pytest.raises(ValueError, match="multiple of 4096"):
        copy_launch(target[:5000], source[:5000])


@pytest.mark.gpu
def test_arithmetic_takes_as_long_as_it_has_rounds_and_feels_no_cache() -> None:
    few, many = (microseconds(arithmetic_launch(rounds)) for rounds in (2_000, 4_000))
    assert 1.8 < many / few < 2.05
    batched = 1e3 * median(BatchTimer(EventTimer().flush).measure(arithmetic_launch(2_000), 3))
    assert batched == pytest.approx(few, rel=0.1)


@pytest.mark.gpu
def test_a_wait_is_as_long_as_it_is_asked_to_be() -> None:
    waits = {ns: microseconds(spin_launch(nanoseconds=ns)) for ns in (20_000, 40_000)}
    assert waits[40_000] - waits[20_000] == pytest.approx(20, rel=0.1)
    turns = {cycles: microseconds(spin_launch(cycles=cycles)) for cycles in (30_000, 60_000, 90_000)}
    assert turns[90_000] - turns[60_000] == pytest.approx(turns[60_000] - turns[30_000], rel=0.1)
