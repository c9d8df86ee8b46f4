"""Which GPUs a process may use, and how others are put on them. nvidia-smi is a shell script here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.devices import (
    VISIBLE,
    Device,
    Lookup,
    alike,
    device_of,
    of_xdist_worker,
    parent_uuid,
    pinned,
    unoccupied,
    visible_devices,
)

A, B, C = (f"GPU-{digit * 8}-0000-1111-2222-333344445555" for digit in "abc")
A2 = "GPU-aaaabbbb-0000-1111-2222-333344445555"
P, Q, R = (f"MIG-{digit * 8}-0000-1111-2222-333344445555" for digit in "123")
H200, L40 = "NVIDIA H200", "NVIDIA L40S"

Smi = Callable[..., None]
"""Installs an nvidia-smi that lists these lines, says that these GPUs are divided, and that these processes compute."""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    def install(*lines: str, divided: tuple[str, ...] = (), processes: str = "") -> None:
        script = tmp_path / "nvidia-smi"
        modes = "\n".join(f"{uuid}, Enabled" for uuid in divided)
        script.write_text(
            "#!/bin/sh\n"
            f"case $1 in -L) cat <<'END'\n{chr(10).join(lines)}\nEND\n"
            f";; --query-gpu=uuid,mig.mode.current) cat <<'END'\n{modes}\nEND\n"
            f";; --query-compute-apps=gpu_uuid,*) cat <<'END'\n{processes}\nEND\n"
            ";; *) echo 'invalid option' >&2; exit 2;; esac\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return install


def gpu(number: int, uuid: str, name: str = H200) -> str:
    return f"GPU {number}: {name} (UUID: {uuid})"


def part(number: int, uuid: str, profile: str = "1g.18gb") -> str:
    return f"  MIG {profile}     Device  {number}: (UUID: {uuid})"


def uuids(value: str | None, **environ: str) -> list[str]:
    devices = visible_devices(environ if value is None else {VISIBLE: value, **environ})
    assert [device.index for device in devices] == list(range(len(devices)))
    return [device.uuid for device in devices]


# What is visible


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (None, [A, B, C]),
        ("0,1,2", [A, B, C]),
        ("2,0", [C, A]),
        (" 2 , 0", [C, A]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,2,-1,1", [A, C]),
        ("1,7,0", [B]),
        ("1,x,0", [B]),
        ("1x,0", [B, A]),
        ("0,1,0", []),
        (f"{C},{A}", [C, A]),
        (f" {C}", [C]),
        ("GPU-b", [B]),
        ("GPU-cccccccc,GPU-a", [C, A]),
        ("GPU-d,GPU-a", []),
        ("GPU-a,GPU-d,GPU-b", [A]),
        (f"{A},GPU-a", []),
        (f"{A},1", [A]),
        (f"1,{A}", [B]),
        ("GPU-", []),
        ("MIG-1", []),
    ],
)
def test_what_the_variable_leaves_visible(smi: Smi, value: str | None, seen: list[str]) -> None:
    smi(gpu(0, A), gpu(1, B), gpu(2, C))
    assert uuids(value) == seen


def test_a_short_uuid_that_fits_two_gpus_names_none(smi: Smi) -> None:
    smi(gpu(0, A), gpu(1, A2))
    assert uuids("GPU-aaaa") == []
    assert uuids("GPU-aaaab") == [A2]


def test_gpus_of_several_names_have_no_known_numbers_unless_their_order_is_the_bus_s(smi: Smi) -> None:
    smi(gpu(0, A, L40), gpu(1, B), gpu(2, C))
    assert uuids(None) == uuids("0") == uuids("1,2") == []
    assert uuids(f"{B},{A}") == [B, A]
    assert uuids(None, CUDA_DEVICE_ORDER="PCI_BUS_ID") == [A, B, C]
    assert uuids("1,2", CUDA_DEVICE_ORDER="PCI_BUS_ID") == [B, C]
    assert uuids("1,2", CUDA_DEVICE_ORDER="FASTEST_FIRST") == []


def test_a_divided_gpu_is_used_through_its_parts(smi: Smi) -> None:
    smi(gpu(0, A), part(0, P), part(1, Q, "3g.71gb+me"), gpu(1, B), part(0, R), divided=(A, B))
    assert visible_devices({}) == [
        Device(0, P, f"{H200} MIG 1g.18gb", A),
        Device(1, Q, f"{H200} MIG 3g.71gb+me", A),
        Device(2, R, f"{H200} MIG 1g.18gb", B),
    ]
    assert uuids("1") == [R]
    assert uuids(A) == [P, Q]
    assert uuids(f"{Q},MIG-3") == [Q, R]
    assert uuids(f"{Q},{B}") == [Q]
    assert uuids("MIG-9") == []


def test_parts_may_have_the_names_that_older_drivers_give_them(smi: Smi) -> None:
    old = f"MIG-{A}/7/0"
    smi(gpu(0, A), part(0, old), part(1, f"MIG-{A}/8/0"))
    assert uuids(old) == [old]
    assert parent_uuid(old) == A


def test_whole_gpus_beside_parts_are_not_numbered(smi: Smi) -> None:
    smi(gpu(0, A), part(0, P), gpu(1, B), divided=(A,))
    assert uuids(None) == uuids("1,0") == []
    assert (uuids("1"), uuids(B), uuids("0"), uuids(P)) == ([B], [B], [P], [P])


def test_a_gpu_that_is_divided_into_nothing_is_not_usable(smi: Smi) -> None:
    smi(gpu(0, A), gpu(1, B), divided=(B,))
    assert uuids(None) == uuids(f"{A},{B}") == [A]
    assert uuids(B) == []


@pytest.mark.parametrize("script", [None, "exit 9", "echo 'No devices were found'", "kill -SEGV $$"])
def test_without_an_answer_no_device_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
    assert uuids(None) == uuids("0") == uuids(A) == []
    assert of_xdist_worker({"PYTEST_XDIST_WORKER": "gw1"}) == {}
    assert parent_uuid(A) == A


# Who may run where


def test_devices_of_one_name_and_profile_are_alike_and_the_own_one_leads() -> None:
    devices = [Device(0, A, L40), Device(1, B, H200), Device(2, C, H200)]
    assert alike(devices, devices[2]) == [devices[2], devices[1]]
    assert alike(devices, devices[0]) == [devices[0]]
    parts = [Device(0, P, "x MIG 1g", A), Device(1, Q, "x MIG 2g", A), Device(2, R, "x MIG 1g", B)]
    assert alike(parts, parts[0]) == [parts[0], parts[2]]


def test_a_process_is_pinned_by_uuid_and_other_numbers_keep_their_meaning() -> None:
    devices = [Device(0, A, H200), Device(1, B, H200), Device(2, C, H200)]
    assert pinned(devices, 0, devices[2]) == {VISIBLE: C}
    assert pinned(devices, 1, devices[1]) == {VISIBLE: f"{A},{B},{C}"}
    assert pinned(devices, 1, devices[2]) == {VISIBLE: f"{A},{C},{B}"}
    assert pinned(devices, 1, devices[0]) == {VISIBLE: f"{B},{A},{C}"}
    parts = [Device(0, P, "x MIG 1g", A), Device(1, Q, "x MIG 1g", A)]
    assert pinned(parts, 0, parts[1]) == pinned(parts, 1, parts[1]) == {VISIBLE: Q}


@pytest.mark.parametrize("chosen", range(3))
@pytest.mark.parametrize("position", range(3))
def test_a_pinned_process_finds_its_device_where_it_looks(smi: Smi, position: int, chosen: int) -> None:
    smi(gpu(0, A), gpu(1, B), gpu(2, C))
    devices = visible_devices({VISIBLE: "2,0,1"})
    assert uuids(pinned(devices, position, devices[chosen])[VISIBLE])[position] == devices[chosen].uuid


def test_a_gpu_on_which_others_compute_is_occupied(smi: Smi) -> None:
    stranger = 2**22 + 1  # above the highest process id of Linux
    smi(processes=f"{A}, {stranger}, train\n{B}, {os.getpid()}, python\n{P[:4]}{A}, x, [Not Found]")
    devices = [Device(0, A, H200), Device(1, B, H200), Device(2, C, H200), Device(3, P, "x MIG", A)]
    assert unoccupied(devices) == devices[1:3]
    smi(processes="")
    assert unoccupied(devices) == devices


def test_torch_s_uuid_finds_the_device_whatever_its_prefix() -> None:
    devices = [Device(0, A, H200), Device(1, B, H200)]
    assert device_of(devices, B) == devices[1]
    assert device_of(devices, B.removeprefix("GPU-")) == devices[1]
    assert device_of(devices, C) is None
    assert device_of(devices, "") is None
    parts = [Device(0, P, "x MIG 1g", A), Device(1, Q, "x MIG 1g", A)]
    assert device_of(parts, Q.replace("MIG-", "GPU-")) == parts[1]
    assert device_of(parts, A) == parts[0]


def test_clocks_are_those_of_the_gpu_that_a_part_belongs_to(smi: Smi) -> None:
    smi(gpu(0, A), part(0, P), gpu(1, B), part(0, Q), divided=(A, B))
    assert [parent_uuid(uuid) for uuid in (Q, Q.replace("MIG-", "GPU-"), B, C, "")] == [B, B, B, C, ""]


# xdist


@pytest.mark.parametrize(
    ("environ", "given"),
    [
        ({"PYTEST_XDIST_WORKER": "gw0"}, A),
        ({"PYTEST_XDIST_WORKER": "gw2"}, C),
        ({"PYTEST_XDIST_WORKER": "gw4"}, B),
        ({"PYTEST_XDIST_WORKER": "gw1", VISIBLE: "2,1"}, B),
        ({"PYTEST_XDIST_WORKER": "gw2", VISIBLE: "2,1"}, C),
        ({"PYTEST_XDIST_WORKER": "gw1", VISIBLE: "2"}, None),
        ({"PYTEST_XDIST_WORKER": "gw1", VISIBLE: ""}, None),
        ({"PYTEST_XDIST_WORKER": "master"}, None),
        ({"PYTEST_XDIST_WORKER": "left"}, None),
        ({}, None),
    ],
)
def test_xdist_workers_take_turns(smi: Smi, environ: dict[str, str], given: str | None) -> None:
    smi(gpu(0, A), gpu(1, B), gpu(2, C))
    assert of_xdist_worker(environ) == ({} if given is None else {VISIBLE: given})


def test_xdist_workers_use_devices_like_the_first_only(smi: Smi) -> None:
    smi(gpu(0, A), gpu(1, B, L40), gpu(2, C))
    ordered = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    found = [of_xdist_worker({"PYTEST_XDIST_WORKER": f"gw{n}", **ordered}).get(VISIBLE) for n in range(3)]
    assert found == [A, C, A]
    assert of_xdist_worker({"PYTEST_XDIST_WORKER": "gw1"}) == {}


def test_xdist_workers_use_a_mig_device_each(smi: Smi) -> None:
    smi(gpu(0, A), part(0, P), part(1, Q))
    assert [of_xdist_worker({"PYTEST_XDIST_WORKER": f"gw{n}"})[VISIBLE] for n in range(3)] == [P, Q, P]


def test_finding_devices_imports_nothing_heavy() -> None:
    code = (
        "import os, sys; from pytest_kerneltune.devices import visible_devices; visible_devices(os.environ);"
        "print(sorted({'torch', 'triton', 'numpy', 'filelock'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_lookup_waits_for_nobody_until_it_is_asked(smi: Smi, tmp_path: Path) -> None:
    smi(gpu(0, A), gpu(1, B), processes=f"{B}, {2**22 + 1}, python")
    script = tmp_path / "nvidia-smi"
    script.write_text(script.read_text().replace("\n", f"\nuntil [ -e {tmp_path}/go ]; do sleep 0.05; done\n", 1))
    lookup = Lookup({})
    assert not lookup.is_known()
    assert not lookup.is_known(within_s=0.1)
    (tmp_path / "go").touch()
    assert [device.uuid for device in lookup.visible] == [A, B]
    assert [device.uuid for device in lookup.free] == [A]
    assert lookup.is_known()


def test_a_lookup_without_devices() -> None:
    lookup = Lookup({VISIBLE: ""})
    assert (lookup.visible, lookup.free) == ([], [])


# On a GPU


@pytest.mark.gpu
def test_the_devices_are_torch_s_and_a_pinned_process_sees_the_one_it_should() -> None:
    torch: Any = pytest.importorskip("torch")
    devices = visible_devices(os.environ)
    if not devices:
        pytest.skip("nvidia-smi lists no device, or not in CUDA's order")
    bare = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    assert [device.uuid[4:] for device in devices][: len(bare)] == bare
    code = "import torch; print(*(torch.cuda.get_device_properties(i).uuid for i in range(torch.cuda.device_count())))"
    environ = {**os.environ, **pinned(devices, 0, devices[-1])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [devices[-1].uuid[4:]]


@pytest.mark.gpu
def test_a_worker_that_has_begun_to_use_cuda_stays_where_it_is(smi: Smi) -> None:
    torch: Any = pytest.importorskip("torch")
    smi(gpu(0, A), gpu(1, B))
    torch.zeros(1, device="cuda")
    assert of_xdist_worker({"PYTEST_XDIST_WORKER": "gw1"}) == {}
