"""What the doctor found on a machine, and what of that needs action (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pytest_kerneltune.commands.machine import Cache, GpuState
from pytest_kerneltune.instrument import Instrument
from pytest_kerneltune.noise import Noise
from pytest_kerneltune.nvidia import Sample, reasons_in_words
from pytest_kerneltune.report.format import threshold

_LOW = 0.95  # of a GPU's highest or default clock or power
_RAMP = 1.05
_SLOW_LAUNCH_US = 35.0  # half of the time that a flush of the L2 cache hides
_COARSE_US = 1000.0
_NOISIER = 1.25  # times what the gate's rules allow at best
_HOT_C = 85.0


@dataclass(frozen=True)
class Finding:
    """Something that needs action; where it is ``fatal``, timings on this machine are worth nothing."""

    text: str
    action: str
    fatal: bool = False


@dataclass(frozen=True)
class Examination:
    """Everything that was found out. ``no_gpu`` says why no GPU is measured ("" where one is), ``hidden`` whether there
    is one all the same, ``is_smi_silent`` whether nvidia-smi was asked in vain, ``failure`` what ended the
    measurements, ``busy`` the load average over the cores."""

    software: Mapping[str, str]
    compilers: Mapping[str, str]
    caches: Sequence[Cache]
    device: Sequence[str]
    no_gpu: str = ""
    hidden: bool = False
    gpu: GpuState | None = None
    has_smi: bool = True
    is_smi_silent: bool = False
    instruments: Sequence[Instrument] = ()
    noises: Sequence[Noise] = ()
    under_load: Sample | None = None
    disturbances: Sequence[str] = field(default=())
    failure: str = ""
    busy: float = 0.0

    @property
    def measurable(self) -> bool:
        return not any(finding.fatal for finding in findings(self))

    def to_json(self) -> dict[str, Any]:
        """A JSON object; units are in the names, nvidia-smi's properties are in its own (MHz, W, C)."""
        return {
            "measurable": self.measurable,
            "no_gpu": self.no_gpu,
            "device": list(self.device),
            "gpu": asdict(self.gpu) if self.gpu else None,
            "software": dict(self.software),
            "compilers": dict(self.compilers),
            "caches": [asdict(cache) for cache in self.caches],
            "instruments": [instrument.to_json() for instrument in self.instruments],
            "noise": [noise.to_json() for noise in self.noises],
            "under_load": asdict(self.under_load) if self.under_load else None,
            "disturbances": list(self.disturbances),
            "failure": self.failure,
            "findings": [asdict(finding) for finding in findings(self)],
        }


def findings(found: Examination) -> list[Finding]:
    """What needs action, the fatal first."""
    listed = [*_of_device(found), *_of_measurements(found), *_of_installation(found)]
    return sorted(listed, key=lambda finding: not finding.fatal)


def _of_device(found: Examination) -> Iterator[Finding]:
    if found.hidden:
        action = "repair the driver, install PyTorch for CUDA, or let CUDA_VISIBLE_DEVICES name the GPU"
        yield Finding(f"this machine has a GPU that cannot be used: {found.no_gpu}", action, fatal=True)
    if found.gpu is not None:
        yield from _of_driver(found.gpu, found.has_smi)
        yield from _of_clocks(found.gpu, found.under_load)
    elif found.is_smi_silent and not found.hidden:
        text = "nvidia-smi does not answer, so it is not known whether there is a GPU"
        yield Finding(text, "repair the driver if there is one, else take nvidia-smi off the PATH")
    if found.gpu is None and found.busy > 1:
        text = f"there is {found.busy:.1f} times as much to run as there are cores"
        yield Finding(text, "measure when less else is running")


def _of_driver(gpu: GpuState, has_smi: bool) -> Iterator[Finding]:
    state = gpu.state
    if not state:
        what = "nvidia-smi does not answer" if has_smi else "there is no nvidia-smi on the PATH"
        yield Finding(
            f"{what}: throttling and other processes go unnoticed", "install what the driver's version has of it"
        )
    for pid, name in sorted((gpu.guests or {}).items()):
        yield Finding(f"process {pid} ({name}) uses this GPU", "stop it, or choose another GPU by CUDA_VISIBLE_DEVICES")
    if state.get("compute_mode") == "Prohibited":
        yield Finding("the GPU's compute mode forbids its use", "sudo nvidia-smi -c DEFAULT", fatal=True)
    elif state.get("compute_mode", "Default") != "Default":
        yield Finding("the GPU's compute mode lets only one process use it", "sudo nvidia-smi -c DEFAULT")
    if state.get("persistence_mode") == "Disabled":
        yield Finding(
            "persistence mode is off: the driver forgets the GPU when nobody uses it", "sudo nvidia-smi -pm 1"
        )
    if gpu.number("ecc.errors.uncorrected.volatile.total"):
        yield Finding("the GPU's memory had errors that could not be corrected", "reset the GPU, or have it replaced")
    if state.get("mig.mode.current") == "Enabled":
        text = "the GPU is divided (MIG): its parts share power and clocks"
        yield Finding(text, "keep the other parts idle, or compare latencies side by side only")


def _of_clocks(gpu: GpuState, under_load: Sample | None) -> Iterator[Finding]:
    cap, default = gpu.number("power.limit"), gpu.number("power.default_limit")
    if cap and default and cap < _LOW * default:
        text = f"the power cap is {cap:.0f} W, not the default of {default:.0f} W"
        yield Finding(text, f"sudo nvidia-smi -pl {default:.0f}, or keep it: baselines hold for one cap")
    chosen, usual = gpu.number("clocks.applications.graphics"), gpu.number("clocks.default_applications.graphics")
    if chosen and usual and chosen < _LOW * usual:
        text = f"the application clock is set to {chosen:.0f} MHz, not {usual:.0f} MHz"
        yield Finding(text, "sudo nvidia-smi -rac, or keep it: baselines hold for one clock")
    highest = gpu.number("clocks.max.sm")
    if under_load and under_load.sm_mhz and highest and under_load.sm_mhz < _LOW * highest:
        why = " and ".join(reasons_in_words(under_load.reasons & ~0x1)) or "perhaps locked"
        text = f"under load the SM clock is {under_load.sm_mhz:.0f} of {highest:.0f} MHz ({why})"
        yield Finding(text, _REMEDIES.get(under_load.reasons & 0xEC, _MIXED_REMEDY))
    if (gpu.number("temperature.gpu") or 0.0) >= _HOT_C:
        yield Finding(f"the GPU is at {gpu.state['temperature.gpu']} C", "see to its cooling")


_MIXED_REMEDY = "see to cooling and power supply, and give kernels a reference= to be compared with side by side"
_REMEDIES = {
    0x0: "sudo nvidia-smi -rgc takes a lock of the clocks away; keep it if it is meant: it makes times steadier",
    0x4: "nothing to repair: give kernels a reference= to be compared with side by side, which shares the clock",
}
"""By the active clock event reasons that slow a GPU down."""


def _of_measurements(found: Examination) -> Iterator[Finding]:
    if found.failure:
        yield Finding(f"measuring failed: {found.failure}", "look into the driver's messages (dmesg)", fatal=True)
    for line in found.disturbances:
        yield Finding(f"while this was measured: {line}", "see to it, then run this again")
    for instrument in found.instruments:
        yield from _of_instrument(instrument)
    unusable = {noise.clock for noise in found.noises if noise.threshold is None}
    usable = {noise.clock for noise in found.noises if noise.threshold is not None}
    for clock in sorted(unusable):
        text = f"unchanged work differs too much on the {clock} clock for any threshold"
        yield Finding(text, "measure when nothing else is running", fatal=not usable)
    for noise in found.noises:
        if noise.threshold is not None and noise.threshold > _NOISIER * noise.floor:
            text = (
                f"the {noise.work} is so noisy on the {noise.clock} clock that unchanged code needs a threshold of "
                f"{percent_up(noise.threshold)}; a quiet machine allows {percent_up(noise.floor)}"
            )
            yield Finding(text, "measure when nothing else is running, or set --perf-threshold to that")


def _of_instrument(instrument: Instrument) -> Iterator[Finding]:
    if instrument.resolution_us >= _COARSE_US:
        text = f"the {instrument.clock} clock moves in steps of {instrument.resolution_us / 1e3:.3g} ms"
        yield Finding(text, "use another clock, or kernels that take seconds")
    if instrument.clock != "cuda":
        return
    if instrument.launch_overhead_us > _SLOW_LAUNCH_US:
        text = f"a launch takes the host {instrument.launch_overhead_us:.0f} us"
        yield Finding(text, "leave the host idle cores: else short kernels look slower than they are")
    if instrument.ramp > _RAMP:
        text = f"the GPU's clock rises with use: the same work takes {instrument.ramp:.2f} times as long at first"
        yield Finding(text, "sudo nvidia-smi -lgc locks the clocks, which makes times steadier")


def _of_installation(found: Examination) -> Iterator[Finding]:
    if not any(name in found.compilers for name in ("cc", "gcc", "clang")):
        text = "there is no C compiler: neither C kernels nor Triton's launchers can be built"
        yield Finding(text, "install gcc or clang")
    broken = {name: text for name, text in found.compilers.items() if text.startswith("does not run")}
    for name, text in broken.items():
        yield Finding(f"the compiler {name} {text}", "repair or remove it")
    for cache in found.caches:
        if cache.problem:
            remedy = _CACHE_REMEDIES.get(cache.name, "set TMPDIR")
            yield Finding(
                f"the {cache.name} cache cannot be written to ({cache.problem})", f"{remedy} to another place"
            )


_CACHE_REMEDIES = {
    "tuning": "set KERNELTUNE_CACHE_DIR",
    "Triton": "set TRITON_CACHE_DIR",
    "code": "set XDG_CACHE_HOME",
}


def percent_up(fraction: float) -> str:
    """A threshold rounded up to a tenth of a percent, "2.1%"."""
    return threshold(-(-fraction * 1000 // 1) / 1000)
