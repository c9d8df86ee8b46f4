"""A GPU watched while it is measured; nvidia-smi is a shell script here, NVML a small C library (data/nvml.c)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_kerneltune.guard.gpu_watch import GpuWatch
from pytest_kerneltune.guard.intruders import Guests, family_of_run, on_cuda, own_among
from pytest_kerneltune.guard.nvml import NvmlGpu
from pytest_kerneltune.nvidia import GpuProcess, Sample

QUIET = "0x0000000000000000, 1980, 121.37"
UUID = "GPU-5d2c9b1e-8f64-1d0b-6c43-90a3c5d1f7aa"
STRANGER = 2**22 + 1  # above the highest process id of Linux
OWN = os.getpid()
_SOURCE = Path(__file__).parent / "data" / "nvml.c"

# By nvidia-smi

Smi = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Smi]:
    """Installs an nvidia-smi that answers with the given lines, to the given queries only."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def install(sample: str, processes: str = f"{OWN}, python", query: str = "clocks_event_reasons.active") -> None:
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
    smi(QUIET)
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


def child(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


def test_other_processes_on_the_gpu_disturb_and_our_workers_do_not(smi: Smi) -> None:
    with child("input()  # pytest_kerneltune.worker") as worker, child("input()") as user_s:
        smi(QUIET, f"{worker.pid}, python\\n{user_s.pid}, load\\n{STRANGER}, /sbin/train\\n")
        watch = watched()
        for process in (worker, user_s):
            process.communicate(b"\n")
    assert watch.disturbances() == [
        f"process {user_s.pid} (load) uses the same GPU",
        f"process {STRANGER} (/sbin/train) uses the same GPU",
    ]


def test_process_ids_of_another_namespace_are_a_remark(smi: Smi) -> None:
    smi(QUIET, f"{STRANGER}, python\\n")
    watch = watched(OWN)
    assert watch.disturbances() == []
    assert watch.remarks()[0].startswith("other processes on the GPU cannot be told")


def test_a_list_without_even_this_run_is_a_remark(smi: Smi) -> None:
    smi(QUIET, "")
    watch = watched()
    assert watch.disturbances() == []
    assert watch.remarks() == [
        "the driver lists no process on the GPU, not even this run's: others went unnoticed",
    ]


def test_an_nvidia_smi_that_fails_is_a_remark(smi: Smi) -> None:
    smi(QUIET, query="nothing")
    watch = watched()
    assert watch.disturbances() == []
    assert watch.remarks()[0].startswith("neither NVML nor nvidia-smi answered")


def test_without_nvidia_smi_the_watch_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    watch = watched()
    assert watch.disturbances() == []
    assert len(watch.remarks()) == 1


# By NVML


class Nvml:
    """Builds of the library, and the state that they tell."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"

    def build(self, kind: str) -> str:
        """The library's path; ``kind`` is "NEW", "OLD" (a driver that knows few calls) or "REFUSES"."""
        path = self.folder / f"{kind}.so"
        if not path.exists():
            defined = [f"-D{kind}", f'-DSTATE="{self.state}"', f'-DUUID="{UUID}"']
            subprocess.run(["cc", "-shared", "-fPIC", "-o", path, *defined, _SOURCE], check=True)
        return str(path)

    def tell(self, *lines: str) -> None:
        waiting = self.state.with_suffix(".new")
        waiting.write_text("".join(f"{line}\n" for line in lines))
        waiting.replace(self.state)


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Nvml:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    return Nvml(tmp_path_factory.mktemp("nvml"))


CALM = ("reasons 0", "mhz 1980", "milliwatts 121370", "errors 7")


def test_nvml_tells_what_nvidia_smi_does(nvml: Nvml) -> None:
    gpu = NvmlGpu.open(UUID, nvml.build("NEW"))
    assert gpu is not None
    nvml.tell("reasons 72", "mhz 1605", "milliwatts 698120", "utilisation 97", "errors 2", "process 41 3", "process 40")
    assert gpu.sample() == Sample(0x48, 1605.0, 698.12)
    assert (gpu.utilisation(), gpu.uncorrected_errors()) == (97, 2)
    assert gpu.processes() == [GpuProcess(41, "/bin/job41", 3), GpuProcess(40, "/bin/job40")]
    assert gpu.use(10) is None
    nvml.tell("knows-use 1", "use 41 0 5", "use 40 80 5", "use 40 90 6", "use 42 90 0")
    assert gpu.use(10) == {40: 90}
    nvml.tell("knows-use 1", *[f"process {pid}" for pid in range(1, 201)])
    assert [process.pid for process in gpu.processes() or ()] == list(range(1, 201))
    assert (gpu.use(10), gpu.sample(), gpu.utilisation()) == ({}, None, None)


def test_an_nvml_that_knows_little_says_what_it_knows(nvml: Nvml) -> None:
    gpu = NvmlGpu.open("", nvml.build("OLD"))
    assert gpu is not None
    nvml.tell(*CALM, "process 40")
    assert gpu.sample() == Sample(0, 1980.0, None)
    assert gpu.processes() == [GpuProcess(40)]
    assert (gpu.use(0), gpu.utilisation(), gpu.uncorrected_errors()) == (None, None, None)


def test_an_nvml_that_cannot_be_asked_is_none(nvml: Nvml) -> None:
    assert NvmlGpu.open("GPU-another", nvml.build("NEW")) is None
    assert NvmlGpu.open(UUID, nvml.build("REFUSES")) is None
    assert NvmlGpu.open(UUID, str(nvml.folder / "missing.so")) is None


def test_nvidia_smi_is_asked_where_nvml_does_not_answer(nvml: Nvml, smi: Smi) -> None:
    nvml.tell("mhz 1980")
    smi("0x0000000000000008, 900, 400.00")
    with GpuWatch(UUID, interval_s=0.01, library=nvml.build("NEW")) as watch:
        pass
    assert watch.disturbances() == ["hardware slowdown of the GPU's clocks"]


def test_what_happens_between_two_looks_is_seen_by_nvml(nvml: Nvml) -> None:
    nvml.tell(*CALM, f"process {OWN}")
    with GpuWatch(UUID, interval_s=0.002, library=nvml.build("NEW")) as watch:
        nvml.tell("reasons 132", "mhz 900", "milliwatts 700000", f"process {OWN}", f"process {STRANGER}")
        until = time.monotonic() + 30
        while len(watch.disturbances()) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        nvml.tell(*CALM[:3], "errors 9", f"process {OWN}")
    assert watch.disturbances() == [
        "power brake slowdown of the GPU's clocks",
        "2 memory errors of the GPU that could not be corrected",
        f"process {STRANGER} (/bin/job{STRANGER}) uses the same GPU",
    ]
    assert watch.remarks() == ["software power cap (SM clock 900 to 1980 MHz, up to 700 W)"]


def test_who_holds_the_gpu_and_does_nothing_is_a_remark(nvml: Nvml) -> None:
    here = (*CALM, f"process {OWN}", f"process {STRANGER}")
    name = f"process {STRANGER} (/bin/job{STRANGER})"
    states = [("utilisation 0",), ("utilisation 3",), ("utilisation 0", "knows-use 1", f"use {STRANGER} 20 1"), ()]
    seen = []
    for state in states:
        nvml.tell(*here, *state)
        with GpuWatch(UUID, interval_s=0.01, library=nvml.build("NEW")) as watch:
            pass
        seen.append((watch.disturbances(), watch.remarks()))
    assert seen[0] == ([], [f"{name} holds the same GPU, idle"])
    assert seen[1:] == [([f"{name} uses the same GPU"], [])] * 3


def test_waiting_ends_with_the_disturbance(nvml: Nvml) -> None:
    nvml.tell(*CALM, f"process {OWN}", f"process {STRANGER}")
    with GpuWatch(UUID, library=nvml.build("NEW")) as watch:
        pass
    began = time.monotonic()
    end = threading.Timer(0.3, nvml.tell, [*CALM, f"process {OWN}"])
    end.start()
    assert watch.wait(30.0) == []
    assert 0.2 < time.monotonic() - began < 20.0
    end.join()


def test_unseen_processes_show_in_what_the_gpu_does_when_nothing_of_this_run_does(nvml: Nvml) -> None:
    nvml.tell(*CALM, "utilisation 88")
    with GpuWatch(UUID, library=nvml.build("NEW")) as watch:
        pass
    assert watch.wait(0.01) == []  # this run's own last work may still be in the figure
    assert watch.wait(1.2) == ["something else uses the GPU: 88% of the time while nothing of this run does"]


# Whose processes they are


def listed(*processes: GpuProcess) -> dict[int, GpuProcess]:
    return {process.pid: process for process in processes}


def test_the_other_parts_of_a_divided_gpu_are_a_remark() -> None:
    guests = Guests(listed(GpuProcess(1, "own", 1), GpuProcess(2, "near", 1), GpuProcess(3, "far", 2)), {1})
    assert guests.disturbances() == ["process 2 (near) uses the same GPU"]
    assert guests.remarks() == ["process 3 (far) uses another part of the same GPU"]


def test_processes_are_counted_where_their_ids_mean_nothing() -> None:
    two = listed(GpuProcess(7), GpuProcess(9), GpuProcess(11, "/usr/bin/nvidia-cuda-mps-server"))
    assert Guests(two, (), own_on_cuda=2).disturbances() == []
    assert Guests(two, (), own_on_cuda=2).remarks()[0].startswith("other processes on the GPU cannot be told")
    shared = Guests(two, (), own_on_cuda=1)
    assert shared.disturbances() == ["2 processes use the same GPU, and 1 of this run use one"]
    assert shared.remarks() == []


def test_idleness_is_believed_only_of_a_gpu_that_stands_still() -> None:
    pair = listed(GpuProcess(1), GpuProcess(2))
    assert Guests(pair, {1}).unclear
    assert Guests(pair, {1}).disturbances() == ["process 2 (of unknown name) uses the same GPU"]
    assert not Guests(pair, {1}, still=True).unclear
    assert Guests(pair, {1}, still=True).disturbances() == []
    assert not Guests(pair, {1}, busy={1, 2}).unclear
    assert Guests(pair, {1}, busy={1}).unclear
    assert len(Guests(pair, {1}, busy={2}, still=True).disturbances()) == 1
    assert not Guests(listed(GpuProcess(1)), {1}).unclear


def test_processes_on_cuda_are_found_by_what_they_have_open(tmp_path: Path) -> None:
    for pid, target in ((OWN, "/dev/nvidia-uvm"), (os.getppid(), "/dev/nvidia0"), (STRANGER, "/dev/nvidia-uvm")):
        descriptors = tmp_path / str(pid) / "fd"
        descriptors.mkdir(parents=True)
        descriptors.joinpath("5").symlink_to(target)
    assert on_cuda({OWN}, tmp_path) == 1
    assert on_cuda({OWN}, tmp_path / "missing") == 0
    assert own_among([OWN, STRANGER], {os.getppid()}) == {OWN}


def test_a_run_with_xdist_is_one_family() -> None:
    assert family_of_run({}) == {OWN}
    assert family_of_run({"PYTEST_XDIST_WORKER": "gw0"}) == {OWN, os.getppid()}


# On a GPU

_LOAD = """
import sys, time, torch
a = torch.randn(4096, 4096, device="cuda")
print(flush=True)
end = time.monotonic() + 30
while time.monotonic() < end:
    a @ a
    torch.cuda.synchronize()
"""


@pytest.mark.gpu
def test_a_process_that_loads_this_gpu_is_named() -> None:
    torch = pytest.importorskip("torch")
    from pytest_kerneltune.gpu import current_uuid

    torch.zeros(1, device="cuda").item()
    with GpuWatch(current_uuid()) as watch:
        torch.randn(2048, 2048, device="cuda").sum().item()
    assert (watch.disturbances(), [line for line in watch.remarks() if "answered" in line]) == ([], [])
    # A process of nobody's: its parent ends at once.
    start = f"{sys.executable} -c '{_LOAD}' & echo $!"
    with subprocess.Popen(["sh", "-c", start], stdout=subprocess.PIPE, text=True, start_new_session=True) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        try:
            assert shell.stdout.readline() == "\n"
            with GpuWatch(current_uuid()) as watch:
                torch.randn(2048, 2048, device="cuda").sum().item()
        finally:
            os.kill(pid, signal.SIGKILL)
    assert [line for line in watch.disturbances() if f"process {pid} " in line]
    assert watch.wait(10.0) == []
    with GpuWatch(current_uuid()) as watch:
        pass
    assert watch.disturbances() == []
