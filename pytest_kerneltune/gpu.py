"""The device that is measured: what it is."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_kerneltune.devices import parent_uuid
from pytest_kerneltune.nvidia import FACTS, query_gpu, smi_values
from pytest_kerneltune.search.peaks import amd_facts, bandwidth_facts, cpu_facts, nvidia_facts, resident_facts

_GIB, _KIB = 2**30, 2**10

_VECTOR_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


@dataclass(frozen=True)
class DeviceInfo:
    """A device: ``kind`` is "cuda" or "cpu", ``hard`` what must be equal for latencies to be comparable, ``facts``
    lines in words for prompts and reports, ``soft`` facts that may differ between comparable
    latencies, ``uuid`` what tells two devices of one name apart ("" where unknown)."""

    kind: str
    name: str
    hard: Mapping[str, str] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    uuid: str = ""
    soft: Mapping[str, str] = field(default_factory=dict)


def cuda_available() -> str | None:
    """Why no CUDA GPU can be used here; None where one can."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported ({error})"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    return str(caught[-1].message).splitlines()[0] if caught else "PyTorch finds no CUDA GPU"


def cuda_device(index: int | None = None) -> DeviceInfo:
    """The CUDA device with torch's number ``index``, by default the current one; raises RuntimeError without one."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    uuid = _uuid(properties)
    driver = smi_values(query_gpu(FACTS, uuid) or query_gpu(FACTS, parent_uuid(uuid)) or "", FACTS)
    capability = f"{properties.major}.{properties.minor}"
    hard = {"gpu": properties.name, "compute capability": capability}
    for key, name in (("mig", "mig.mode.current"), ("power limit W", "power.limit")):
        if name in driver:
            hard[key] = driver[name]
    soft = {"driver": driver["driver_version"]} if "driver_version" in driver else {}
    return DeviceInfo("cuda", properties.name, hard, tuple(_cuda_facts(properties, capability, driver)), uuid, soft)


def _cuda_facts(properties: Any, capability: str, driver: Mapping[str, str]) -> Iterator[str]:
    """The same whatever the maker; torch speaks of AMD's devices as of NVIDIA's, but for the name of their kind."""
    architecture = str(getattr(properties, "gcnArchName", "")).partition(":")[0]
    is_amd = architecture.startswith("gfx")
    what = f"architecture {architecture}" if is_amd else f"compute capability {capability}"
    units = f"{properties.multi_processor_count} {'compute units' if is_amd else 'SMs'}"
    yield f"{properties.name}: {what}, {units}, {properties.total_memory / _GIB:.0f} GiB"
    sizes = {
        "shared memory per block": getattr(properties, "shared_memory_per_block_optin", 0),
        "shared memory per SM": getattr(properties, "shared_memory_per_multiprocessor", 0),
        "L2 cache": _l2_bytes(properties),
    }
    yield ", ".join(f"{name} {size / _KIB:.0f} KiB" for name, size in sizes.items() if size)
    words = {
        "clocks.max.sm": "SM clock up to {} MHz",
        "clocks.max.memory": "memory clock up to {} MHz",
        "power.limit": "power limit {} W",
        "driver_version": "driver {}",
    }
    if known := [text.format(driver[name]) for name, text in words.items() if name in driver]:
        yield ", ".join(known)
    residents = ("max_threads_per_multi_processor", "warp_size", "regs_per_multiprocessor")
    yield from resident_facts(*(getattr(properties, name, 0) for name in residents))
    if is_amd:
        yield from amd_facts(properties.name)
    else:
        if driver.get("mig.mode.current") != "Enabled":  # a part of a GPU has a part of its bandwidth
            memory_mhz = _mhz(driver, "clocks.max.memory", properties, "memory_clock_rate")
            yield from bandwidth_facts(getattr(properties, "memory_bus_width", 0), memory_mhz)
        mhz = _mhz(driver, "clocks.max.sm", properties, "clock_rate")
        yield from nvidia_facts(properties.name, capability, properties.multi_processor_count, mhz)


def _mhz(driver: Mapping[str, str], name: str, properties: Any, attribute: str) -> float:
    """A highest clock as nvidia-smi or torch (in kHz) knows it; 0 where neither does."""
    try:
        return float(driver[name])
    except (KeyError, ValueError):
        return float(getattr(properties, attribute, 0)) / 1e3


def _uuid(properties: Any) -> str:
    return f"GPU-{properties.uuid}" if hasattr(properties, "uuid") else ""


def current_uuid() -> str:
    """The UUID of torch's current CUDA device; "" where there is none."""
    if cuda_available() is not None:
        return ""
    import torch

    return _uuid(torch.cuda.get_device_properties(torch.cuda.current_device()))


def _l2_bytes(properties: Any) -> int:
    return int(getattr(properties, "L2_cache_size", 0))


def cpu_device() -> DeviceInfo:
    """This machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    model, flags = parse_cpuinfo(cpuinfo.read_text(errors="replace") if cpuinfo.exists() else "")
    model = model or platform.processor() or platform.machine() or "unknown CPU"
    cores = os.cpu_count() or 1
    facts = [f"{model}: {cores} logical cores"]
    if caches := _cpu_caches(Path("/sys/devices/system/cpu/cpu0/cache")):
        facts.append("caches: " + ", ".join(caches))
    if vector := [flag for flag in _VECTOR_FLAGS if flag in flags]:
        facts.append("vector instructions: " + " ".join(vector))
    facts += cpu_facts(flags)
    return DeviceInfo("cpu", model, {"cpu": model, "cores": str(cores)}, tuple(facts))


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """The model's name ("" if it has none) and the instruction set flags in a /proc/cpuinfo."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    flags = values.get("flags") or values.get("Features") or ""
    return " ".join(values.get("model name", "").split()), frozenset(flags.split())


def _cpu_caches(folder: Path) -> list[str]:
    found = []
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = (index.joinpath(name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
        found.append(f"L{level}{suffix} {size}")
    return found
