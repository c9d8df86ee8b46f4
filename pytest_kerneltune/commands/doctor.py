"""Whether this machine can measure, how finely, and what to change."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_kerneltune import files, nvidia
from pytest_kerneltune.commands import doctor_report as report
from pytest_kerneltune.commands import machine
from pytest_kerneltune.commands.arguments import at_least
from pytest_kerneltune.commands.examination import Examination
from pytest_kerneltune.commands.reference_kernels import gpu_kernels, host_kernels
from pytest_kerneltune.devices import parent_uuid
from pytest_kerneltune.errors import KernelError, UsageError
from pytest_kerneltune.gpu import DeviceInfo, cpu_device, cuda_available, cuda_device
from pytest_kerneltune.guard.gpu_watch import GpuWatch
from pytest_kerneltune.instrument import Instrument
from pytest_kerneltune.locking import device_lock
from pytest_kerneltune.noise import Noise, measure_noise
from pytest_kerneltune.options import available_cores
from pytest_kerneltune.settings import environment
from pytest_kerneltune.trial import Clock
from pytest_kerneltune.versions import versions

_HOST_CLOCKS: tuple[Clock, ...] = ("thread", "wall")

_DESCRIPTION = """\
Whether this machine can measure kernels, and how finely: what the GPU, its driver and its clocks are set to, who else
uses it, what is installed, how well the clocks measure, and how much the times of fixed kernels of PyTorch differ when
they are measured as a test's are. Without a GPU the same is said of the CPU's clocks.

A threshold in the last table is the least with which the gate finds the second half of the measurements unchanged
against the first: with a reference beside the kernel, and alone. Warnings at the end say what to do.

The exit status is 0 where the machine can measure, 1 where its timings would be worth nothing (a GPU that is there but
cannot be used, or that fails; no clock that is steady enough), and 2 where the command itself is wrong.
"""

_EXAMPLE = """\
examples:
  python -m pytest_kerneltune doctor
  python -m pytest_kerneltune doctor --device 1 --seconds 5 --json doctor.json
"""


def describe(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLE
    add = parser.add_argument
    add("--json", type=Path, metavar="PATH", help="write everything to a JSON file")
    add(
        "--seconds",
        type=at_least(1),
        metavar="N",
        default=2,
        help="about how long to measure the noise of each kernel and clock (default: %(default)s)",
    )
    add("--device", type=at_least(0), metavar="INDEX", help="PyTorch's number of the GPU (default: the current one)")


def run(options: Namespace) -> int:
    if options.json and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        raise UsageError(f"--json: {str(options.json)!r} is not a file in a folder that exists")
    guests = nvidia.query_guests()  # before this process is one
    no_gpu = cuda_available() or ""
    if options.device is not None:
        _check_device(options.device, no_gpu)
    found, device = _looked_at(no_gpu, options.device, guests)
    print("\n".join(report.facts(found)), flush=True)
    if device is None:
        found = _host_measured(found, options.seconds)
    else:
        found = _gpu_measured(found, device, options.device, options.seconds)
    print("\n".join(report.measurements(found)))
    if options.json:
        facts = {"command": "doctor", "versions": versions()}
        files.write_json(options.json, facts | found.to_json())
    return 0 if found.measurable else 1


def _check_device(index: int, no_gpu: str) -> None:
    if no_gpu:
        raise UsageError(f"--device {index}: {no_gpu}")
    import torch

    if index >= (count := torch.cuda.device_count()):
        raise UsageError(f"--device {index}: PyTorch sees {count}, numbered from 0")


def _looked_at(
    no_gpu: str, index: int | None, guests: Sequence[tuple[str, int, str]] | None
) -> tuple[Examination, DeviceInfo | None]:
    """What can be said without measuring, and the GPU to measure."""
    found = Examination(
        machine.software(),
        machine.compilers(),
        machine.caches(environment()),
        cpu_device().facts,
        no_gpu=no_gpu,
        hidden=bool(no_gpu) and machine.gpu_hidden(),
        has_smi=nvidia.smi_installed(),
        is_smi_silent=nvidia.smi_installed() and guests is None,
        busy=os.getloadavg()[0] / available_cores(),
    )
    if no_gpu:
        return found, None
    try:
        device = cuda_device(index)
    except RuntimeError as error:
        return replace(found, no_gpu=str(error).splitlines()[0], hidden=True), None
    return replace(found, device=device.facts, gpu=_gpu_state(device, guests)), device


def _gpu_state(device: DeviceInfo, guests: Sequence[tuple[str, int, str]] | None) -> machine.GpuState:
    uuid = parent_uuid(device.uuid)
    return machine.GpuState(
        device.name,
        device.uuid,
        device.facts,
        nvidia.query_state(uuid),
        nvidia.cuda_of_driver(),
        machine.guests_on(uuid, guests),
    )


def _host_measured(found: Examination, seconds: float) -> Examination:
    instruments = [Instrument.for_clock(clock) for clock in _HOST_CLOCKS]
    kernels = host_kernels()
    noises = [measure_noise(work, kernels[work], clock, seconds) for clock in _HOST_CLOCKS for work in kernels]
    return replace(found, instruments=instruments, noises=noises)


def _gpu_measured(found: Examination, device: DeviceInfo, index: int | None, seconds: float) -> Examination:
    """The examination with the GPU's part; whatever the GPU's failure is called, it ends the measurements."""
    import torch

    uuid = parent_uuid(device.uuid)
    noises: list[Noise] = []
    with torch.cuda.device(index), device_lock(uuid):
        watch = GpuWatch(uuid)
        try:
            with watch:
                instrument = Instrument.for_clock("cuda")
                found = replace(found, instruments=[instrument])
                kernels = gpu_kernels()
                for work, launch in kernels.items():
                    noises.append(measure_noise(work, launch, "cuda", seconds))
                under_load = _under_load(kernels, uuid)
        except (RuntimeError, KernelError) as error:
            return replace(found, noises=noises, failure=str(error).splitlines()[0])
    known = nvidia.disturbances([], found.gpu.guests or {} if found.gpu else {})
    others = [line for line in watch.disturbances() if line not in known]
    return replace(found, noises=noises, under_load=under_load, disturbances=others)


def _under_load(kernels: Mapping[str, Callable[[], Any]], uuid: str) -> nvidia.Sample | None:
    """What the driver says of the GPU while it runs all kernels in turn."""
    import torch

    with ThreadPoolExecutor(1) as pool:
        sample = pool.submit(nvidia.query_sample, uuid)
        while not sample.done():
            for launch in kernels.values():
                launch()
            torch.cuda.synchronize()
    return sample.result()
