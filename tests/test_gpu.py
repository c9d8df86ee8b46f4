"""Devices described, disturbances seen. nvidia-smi is a shell script here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.gpu import (
    GpuWatch,
    cpu_device,
    cuda_available,
    cuda_device,
    parse_cpuinfo,
)
from pytest_kerneltune.nvidia import (
    FACTS,
    Sample,
    disturbances,
    lineage,
    own_family,
    parse_processes,
    parse_sample,
    remarks,
    smi_values,
)
from pytest_kerneltune.search.peaks import arithmetic, bandwidth, flop_per_clock

QUIET = "0x0000000000000000, 1980, 121.37"
UUID = "GPU-5d2c9b1e-8f64-1d0b-6c43-90a3c5d1f7aa"
STRANGER = 2**22 + 1  # above the highest process id of Linux

# What nvidia-smi says


def test_facts_are_read_by_name_and_unknown_ones_left_out() -> None:
    line = "580.159.03, 700.00, [N/A], 1980, [Not Supported]\n580.159.03, 350.00, Disabled, 1500, 3201\n"
    assert smi_values(line, FACTS) == {"driver_version": "580.159.03", "power.limit": "700.00", "clocks.max.sm": "1980"}
    assert smi_values("", FACTS) == {}


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        (QUIET, Sample(0, 1980.0, 121.37)),
        ("0x0000000000000004, 1605, 698.12\n", Sample(4, 1605.0, 698.12)),
        ("0x0000000000000048, [N/A], [Unknown Error]", Sample(0x48)),
        ("[N/A], 1605, 698.12", None),
        ("", None),
        ("No devices were found", None),
        ('Field "clocks_event_reasons.active" is not a valid field to query.', None),
    ],
)
def test_a_sample_is_read_from_a_line(line: str, sample: Sample | None) -> None:
    assert parse_sample(line) == sample


def test_processes_are_read_whatever_their_names_hold() -> None:
    text = "4242, /usr/bin/python3\n4243, train, v2 (debug)\n[N/A], [Not Found]\nNo running processes found\n"
    assert parse_processes(text) == {4242: "/usr/bin/python3", 4243: "train, v2 (debug)"}


@pytest.mark.parametrize(
    ("reasons", "disturbing", "remarkable"),
    [
        (0x0, [], []),
        (0x1, [], []),
        (0x8, ["hardware slowdown"], []),
        (0x40, ["hardware thermal slowdown"], []),
        (0x80, ["power brake slowdown"], []),
        (0x4, [], ["software power cap"]),
        (0x20, [], ["software thermal slowdown"]),
        (0x48 | 0x24, ["hardware slowdown", "hardware thermal slowdown"], ["software power cap", "software thermal"]),
    ],
)
def test_only_hardware_slowdowns_disturb(reasons: int, disturbing: list[str], remarkable: list[str]) -> None:
    samples = [Sample(0, 1980.0, 100.0), Sample(reasons, 1605.0, 698.6), Sample(0, 1900.0, None)]
    found, seen = disturbances(samples, {}), remarks(samples)
    assert [line.startswith(text) for line, text in zip(found, disturbing, strict=True)] == [True] * len(found)
    assert [line.startswith(text) for line, text in zip(seen, remarkable, strict=True)] == [True] * len(seen)
    assert all("SM clock 1605 to 1980 MHz, up to 699 W" in line for line in seen)


# Whose process it is


def test_lineage_goes_from_a_process_to_its_ancestors() -> None:
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        line = lineage(child.pid)
        child.kill()
    assert line[:3] == [child.pid, os.getpid(), os.getppid()]
    assert lineage(STRANGER) == [STRANGER]


def test_the_family_of_a_worker_includes_the_python_that_started_it() -> None:
    code = "from pytest_kerneltune.nvidia import own_family; print(own_family())"
    root = str(Path(__file__).parents[1])
    path = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True)
    family = [int(pid) for pid in done.stdout.strip("[]\n").split(",")]
    assert family[1] == os.getpid()
    assert family[1:] == own_family()


# The watch

Smi = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Smi]:
    """Installs an nvidia-smi that answers with the given lines, to the given queries only."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def install(sample: str, processes: str = "", query: str = "clocks_event_reasons.active") -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
            f"case \"$1\" in --query-compute-apps=*) printf '{processes}';; "
            f"--query-gpu={query}*) echo '{sample}';; *) echo 'not a valid field'; exit 2;; esac\n"
        )
        script.chmod(0o755)

    yield install
    assert f"-i {UUID}" in (tmp_path / "asked").read_text()


def watched(*pids: int) -> GpuWatch:
    with GpuWatch(UUID, pids or None, interval_s=0.01) as watch:
        pass
    return watch


def test_a_quiet_gpu_leaves_no_trace(smi: Smi) -> None:
    smi(QUIET, f"{os.getpid()}, python\\n")
    watch = watched()
    assert (watch.disturbances(), watch.remarks()) == ([], [])


def test_throttling_during_the_measurement_is_seen(smi: Smi) -> None:
    smi(QUIET)
    with GpuWatch(UUID, interval_s=0.01) as watch:
        smi("0x0000000000000048, 900, 400.00")
    assert watch.disturbances() == [
        "hardware slowdown of the GPU's clocks",
        "hardware thermal slowdown of the GPU's clocks",
    ]


def test_an_old_driver_is_asked_by_the_old_name(smi: Smi) -> None:
    smi("0x0000000000000004, 1605, 698.12", query="clocks_throttle_reasons.active")
    watch = watched()
    assert watch.disturbances() == []
    assert watch.remarks() == ["software power cap (SM clock 1605 to 1605 MHz, up to 698 W)"]


def test_another_process_on_the_gpu_disturbs_and_our_children_do_not(smi: Smi) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        smi(QUIET, f"{child.pid}, python\\n{STRANGER}, /sbin/train\\n")
        watch = watched()
    assert watch.disturbances() == [f"process {STRANGER} (/sbin/train) uses the same GPU"]


def test_process_ids_of_another_namespace_are_a_remark(smi: Smi) -> None:
    smi(QUIET, f"{STRANGER}, python\\n")
    watch = watched(os.getpid())
    assert watch.disturbances() == []
    assert watch.remarks()[0].startswith("other processes on the GPU cannot be told")


def test_an_nvidia_smi_that_fails_is_a_remark(smi: Smi) -> None:
    smi(QUIET, query="nothing")
    watch = watched()
    assert watch.disturbances() == []
    assert watch.remarks()[0].startswith("nvidia-smi gave no answer")


def test_without_nvidia_smi_the_watch_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    watch = watched()
    assert watch.disturbances() == []
    assert len(watch.remarks()) == 1


# Devices


@pytest.mark.parametrize(
    ("text", "model", "flags"),
    [
        (
            "processor\t: 0\nmodel name\t: AMD EPYC  9654\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\n",
            "AMD EPYC 9654",
            "fma",
        ),
        ("processor\t: 0\nFeatures\t: fp asimd sve2\nCPU part\t: 0xd4f\n", "", "sve2"),
    ],
)
def test_cpuinfo_of_x86_and_arm_is_read(text: str, model: str, flags: str) -> None:
    found = parse_cpuinfo(text)
    assert found[0] == model
    assert flags in found[1]
    assert "f" not in found[1]


def test_this_machine_s_processor_is_described() -> None:
    device = cpu_device()
    assert device.kind == "cpu"
    assert device.hard["cpu"] == device.name
    assert f"{os.cpu_count()} logical cores" in device.facts[0]
    assert flop_per_clock(device.facts) in {0, 16, 32, 64}
    assert all("\n" not in fact for fact in device.facts)


def test_why_there_is_no_gpu_is_one_line() -> None:
    reason = cuda_available()
    assert reason is None or (reason and "\n" not in reason)


# On a GPU


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.mark.gpu
def test_the_gpu_is_described(torch: Any) -> None:
    device = cuda_device()
    assert device.name == torch.cuda.get_device_name()
    assert device.hard["gpu"] == device.name
    major, minor = torch.cuda.get_device_capability()
    assert device.hard["compute capability"] == f"{major}.{minor}"
    assert device.uuid.startswith("GPU-")
    assert any("L2 cache" in fact for fact in device.facts)
    assert any("driver" in fact for fact in device.facts)
    assert any("warps of 32" in fact for fact in device.facts)
    assert bandwidth(device.facts) > 100
    assert all(rate > 0 for rate in arithmetic(device.facts).values())
    assert "power limit W" in device.hard


@pytest.mark.gpu
def test_the_watch_sees_this_gpu() -> None:
    with GpuWatch() as watch:
        pass
    assert not any("no answer" in line for line in watch.remarks())
