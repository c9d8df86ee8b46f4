"""Devices described, what nvidia-smi says of them read."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from pytest_kerneltune.gpu import (
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
    parse_processes,
    parse_sample,
    remarks,
    smi_values,
)
from pytest_kerneltune.search.peaks import arithmetic, bandwidth, flop_per_clock

QUIET = "0x0000000000000000, 1980, 121.37"
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
        (0x0, [], ["the GPU's clock moved"]),
        (0x1, [], []),
        (0x8, ["hardware slowdown"], ["the GPU's clock moved"]),
        (0x40, ["hardware thermal slowdown"], ["the GPU's clock moved"]),
        (0x80, ["power brake slowdown"], ["the GPU's clock moved"]),
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
    assert remarks([Sample(0, 1980.0, 100.0), Sample(1, 345.0, 80.0), Sample(0, 1905.0, 120.0)]) == []
    assert all("(SM clock 1605 to 1980 MHz, up to 699 W)" in line for line in seen)


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
