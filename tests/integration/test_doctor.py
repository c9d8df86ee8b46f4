"""``python -m pytest_kerneltune doctor``: on this machine, and what it says of machines made up here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.__main__ import main
from pytest_kerneltune.commands import machine
from pytest_kerneltune.commands.doctor_report import facts, measurements
from pytest_kerneltune.commands.examination import Examination, Finding, findings
from pytest_kerneltune.commands.machine import Cache, GpuState
from pytest_kerneltune.gpu import cuda_available
from pytest_kerneltune.instrument import Instrument
from pytest_kerneltune.noise import Noise
from pytest_kerneltune.nvidia import Sample

UUID = "GPU-5d2c9b1e-8f64-1d0b-6c43-90a3c5d1f7aa"
STRANGER = 2**22 + 1  # above the highest process id of Linux
STATE = {
    "name": "NVIDIA H200",
    "uuid": UUID,
    "driver_version": "580.159.03",
    "clocks.sm": "1980",
    "clocks.max.sm": "1980",
    "clocks.applications.graphics": "1980",
    "clocks.default_applications.graphics": "1980",
    "power.draw": "121.37",
    "power.limit": "700.00",
    "power.default_limit": "700.00",
    "temperature.gpu": "31",
    "ecc.mode.current": "Enabled",
    "ecc.errors.uncorrected.volatile.total": "0",
    "persistence_mode": "Enabled",
    "compute_mode": "Default",
    "mig.mode.current": "Disabled",
    "clocks_event_reasons.active": "0x0000000000000001",
}
GPU = GpuState("NVIDIA H200", UUID, ("NVIDIA H200: 132 SMs",), STATE, "13.0", {})
INSTRUMENT = Instrument("cuda", "cuda-events, L2 flushed", 0.032, 1.5, 2.0, 4.25, 104.0, 101.5, 1980.0, 1980.0)
NOISE = Noise(
    "matmul of 4096^3", "cuda", "cuda-events, L2 flushed", 0.19, 64, 0.03, -0.05, 0.12, 0.001, 0.0002, 0.0205, 0.02, 0.1
)
HEALTHY = Examination(
    software={"torch": "2.11.0", "triton": "3.6.0", "helion": "", "cupy": ""},
    compilers={"cc": "cc 12.2.0"},
    caches=[Cache("tuning", "/home/someone/.cache/pytest-kerneltune", "")],
    device=GPU.facts,
    gpu=GPU,
    instruments=[INSTRUMENT],
    noises=[NOISE, replace(NOISE, work="add over 1 MiB", method="batches", latency_ms=0.004, threshold=0.1, floor=0.1)],
    under_load=Sample(0, 1965.0, 640.0),
)


def text_of(found: Examination) -> str:
    return "\n".join([*facts(found), *measurements(found)])


def of_state(**changes: str) -> Examination:
    """The healthy machine with other answers of nvidia-smi; a dot in a name is written as two underscores."""
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return replace(HEALTHY, gpu=replace(GPU, state=STATE | changed))


# What is said of machines


def test_a_healthy_machine_needs_no_action() -> None:
    assert findings(HEALTHY) == []
    text = text_of(HEALTHY)
    assert "Warnings" not in text
    for words in (
        "SM 1980 of 1980 MHz",
        "cap 700 W (default 700 W)",
        "CUDA up to 13.0",
        "resolution        32 ns",
        "launch overhead   4.25 us of the host",
        "SM clock          1980 of 1980 MHz when warm",
        "under load        SM 1965 MHz, 640 W",
        "add over 1 MiB: batches",
        "2.1% (matmul of 4096^3) to 10% (add over 1 MiB) on the cuda clock",
    ):
        assert words in " ".join(text.split()) or words in text


@pytest.mark.parametrize(
    ("found", "text", "action"),
    [
        (of_state(power__limit="350.00"), "the power cap is 350 W", "nvidia-smi -pl 700"),
        (of_state(clocks__applications__graphics="1200"), "application clock is set to 1200 MHz", "nvidia-smi -rac"),
        (of_state(persistence_mode="Disabled"), "persistence mode is off", "nvidia-smi -pm 1"),
        (of_state(compute_mode="Exclusive_Process"), "only one process", "nvidia-smi -c DEFAULT"),
        (of_state(ecc__errors__uncorrected__volatile__total="3"), "errors that could not", "reset the GPU"),
        (of_state(mig__mode__current="Enabled"), "divided (MIG)", "side by side"),
        (of_state(temperature__gpu="91"), "at 91 C", "cooling"),
        (replace(HEALTHY, gpu=replace(GPU, guests={STRANGER: "train"})), f"process {STRANGER} (train)", "stop it"),
        (replace(HEALTHY, gpu=replace(GPU, state={})), "nvidia-smi does not answer", "install"),
        (replace(HEALTHY, gpu=None, is_smi_silent=True, no_gpu="no GPU"), "not known whether there is", "the PATH"),
        (replace(HEALTHY, gpu=replace(GPU, state={}), has_smi=False), "no nvidia-smi on the PATH", "install"),
        (replace(HEALTHY, under_load=Sample(0, 1200.0, 300.0)), "1200 of 1980 MHz (perhaps locked)", "-rgc"),
        (replace(HEALTHY, under_load=Sample(4, 1500.0, 700.0)), "(software power cap)", "reference="),
        (replace(HEALTHY, under_load=Sample(0x44, 900.0, 700.0)), "hardware thermal slowdown", "cooling"),
        (replace(HEALTHY, disturbances=["power brake slowdown"]), "power brake slowdown", "run this again"),
        (replace(HEALTHY, compilers={}), "no C compiler", "gcc"),
        (
            replace(HEALTHY, compilers={"cc": "cc 12", "nvcc": "does not run: x"}),
            "compiler nvcc does not run",
            "repair",
        ),
        (replace(HEALTHY, caches=[Cache("Triton", "/x", "/: Read-only")]), "(/: Read-only)", "TRITON_CACHE_DIR"),
        (replace(HEALTHY, caches=[Cache("tuning", "/x", "/: no")]), "tuning cache", "KERNELTUNE_CACHE_DIR"),
        (replace(HEALTHY, instruments=[replace(INSTRUMENT, launch_overhead_us=80.0)]), "takes the host 80 us", "idle"),
        (replace(HEALTHY, instruments=[replace(INSTRUMENT, cold_us=203.0)]), "2.00 times as long", "nvidia-smi -lgc"),
        (
            replace(HEALTHY, instruments=[replace(INSTRUMENT, resolution_us=15625.0)]),
            "steps of 15.6 ms",
            "another clock",
        ),
        (replace(HEALTHY, noises=[replace(NOISE, threshold=0.08)]), "threshold of 8%", "--perf-threshold"),
        (
            replace(HEALTHY, noises=[NOISE, replace(NOISE, clock="wall", threshold=None)]),
            "on the wall clock",
            "nothing",
        ),
        (replace(HEALTHY, gpu=None, no_gpu="PyTorch finds no CUDA GPU", busy=2.5), "2.5 times as much to run", "less"),
    ],
)
def test_what_needs_action_is_warned_of(found: Examination, text: str, action: str) -> None:
    (finding,) = findings(found)
    assert text in finding.text
    assert action in finding.action
    assert not finding.fatal
    assert found.measurable
    assert "Warnings" in measurements(found)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (replace(HEALTHY, gpu=None, hidden=True, no_gpu="PyTorch is built without CUDA"), "built without CUDA"),
        (replace(HEALTHY, failure="CUDA error: an illegal memory access"), "illegal memory access"),
        (of_state(compute_mode="Prohibited"), "compute mode forbids"),
        (replace(HEALTHY, noises=[replace(NOISE, threshold=None)]), "differs too much on the cuda clock"),
    ],
)
def test_what_makes_timings_worthless_is_fatal_and_comes_first(found: Examination, text: str) -> None:
    found = replace(found, compilers={})
    first, other = findings(found)
    assert text in first.text
    assert [first.fatal, other.fatal] == [True, False]
    assert not found.measurable
    assert "FATAL" in text_of(found)


LONG = "x" * 300


@pytest.mark.parametrize(
    "found",
    [
        HEALTHY,
        replace(HEALTHY, gpu=replace(GPU, state={}, guests=None, cuda="", uuid="")),
        replace(HEALTHY, gpu=None, no_gpu=f"PyTorch\n{LONG}", hidden=True, caches=[Cache("tuning", LONG, LONG)]),
        replace(HEALTHY, gpu=replace(GPU, guests={STRANGER + i: "python -m train" for i in range(40)})),
        replace(HEALTHY, noises=[replace(NOISE, alone_high=12.5, threshold=None, threshold_alone=None)], failure=LONG),
    ],
)
def test_every_line_fits_and_everything_can_be_stored(found: Examination) -> None:
    assert max(map(len, text_of(found).splitlines())) <= 100
    json.dumps(found.to_json(), allow_nan=False)


def test_processes_of_our_own_are_no_guests() -> None:
    listed = [(UUID, os.getpid(), "python"), (UUID, STRANGER, "train"), ("GPU-other", STRANGER + 1, "serve")]
    assert machine.guests_on(UUID, listed) == {STRANGER: "train"}
    assert machine.guests_on(UUID, None) is None


def test_a_place_that_cannot_be_written_to_is_told_from_one_that_can(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {"KERNELTUNE_CACHE_DIR": str(tmp_path / "new" / "cache"), "TRITON_CACHE_DIR": str(tmp_path / "file")}
    tuning, triton, _ = machine.caches(environment)
    assert (tuning.path, tuning.problem) == (str(tmp_path / "new" / "cache"), "")
    assert triton.problem
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_compilers_that_do_not_run_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in (("cc", "echo cc 1.2"), ("clang", "exit 3")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.compilers() == {"cc": "cc 1.2", "clang": "does not run: exit status 3"}


# The command


def doctor(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest_kerneltune", "doctor", "--seconds=1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def checked_report(file: Path, status: int, out: str) -> Any:
    """The JSON report; the text and the exit status agree with it."""
    assert max(map(len, out.splitlines())) <= 100
    data = json.loads(file.read_text())
    assert data["command"] == "doctor"
    assert status == (0 if data["measurable"] else 1)
    assert ("This machine can measure." in out) == data["measurable"]
    fatal = [Finding(**finding) for finding in data["findings"] if finding["fatal"]]
    assert bool(fatal) != data["measurable"]
    for noise in data["noise"]:
        assert noise["blocks"] >= 32
    return data


def rows(out: str, column: int) -> Sequence[str]:
    """A column of the table of noises."""
    table = out.split("\nNoise\n")[1].split("\n\n")[0].splitlines()
    start = table[0].index(table[0].split()[column])
    return [line[start:].split("  ")[0] for line in table[1:] if "%" in line]


def test_a_machine_without_a_gpu_is_examined_by_its_host_clocks(tmp_path: Path) -> None:
    if cuda_available() is None or machine.gpu_hidden():
        pytest.skip("there is a GPU")
    done = doctor("--seconds=1", "--json=doctor.json", cwd=tmp_path)
    data = checked_report(tmp_path / "doctor.json", done.returncode, done.stdout)
    assert done.stderr == ""
    assert data["measurable"], done.stdout
    assert done.stdout.startswith("GPU\n  none")
    assert cuda_available() == data["no_gpu"]
    assert [i["clock"] for i in data["instruments"]] == ["thread", "wall"]
    assert {(n["work"], n["clock"]) for n in data["noise"]} == {
        (work, clock) for work in ("interpreter loop", "copy of 16 MiB") for clock in ("thread", "wall")
    }
    assert rows(done.stdout, 1) == ["thread", "thread", "wall", "wall"]


def test_a_gpu_that_cannot_be_used_makes_the_examination_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if cuda_available() is None:
        pytest.skip("the GPU can be used")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA H200\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    status = main(["doctor", "--seconds=1", f"--json={tmp_path / 'doctor.json'}"])
    data = checked_report(tmp_path / "doctor.json", status, capsys.readouterr().out)
    assert status == 1
    assert "a GPU that cannot be used" in data["findings"][0]["text"]
    assert len(data["noise"]) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device=99"], "--device 99"),
        (["--device=-1"], "not a whole number of at least 0"),
        (["--seconds=0"], "not a whole number of at least 1"),
        (["--json=nowhere/doctor.json"], "is not a file in a folder that exists"),
        (["--json=."], "is not a file in a folder that exists"),
        (["now"], "unrecognized arguments: now"),
    ],
)
def test_a_wrong_use_is_an_error(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["doctor", *arguments])
    except SystemExit as exit_:
        status = int(str(exit_.code))
    assert status == 2
    assert words in capsys.readouterr().err


@pytest.mark.gpu
def test_a_machine_with_a_gpu_is_examined_by_it(tmp_path: Path) -> None:
    done = doctor("--json=doctor.json", "--device=0", cwd=tmp_path)
    data = checked_report(tmp_path / "doctor.json", done.returncode, done.stdout)
    assert done.stderr == ""
    assert data["measurable"], done.stdout
    assert [i["clock"] for i in data["instruments"]] == ["cuda"]
    assert len(data["noise"]) == 3
    assert data["gpu"]["state"]["driver_version"] in done.stdout
    assert data["under_load"]["sm_mhz"] > 100
    assert all(noise["threshold_alone"] is None or noise["threshold_alone"] >= 0.05 for noise in data["noise"])
