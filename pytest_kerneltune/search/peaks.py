"""The highest rates of processors: what the makers' data sheets say, as lines in words that can be read back.

``gpu.py`` puts the lines among a device's facts, ``roofline.py`` reads them. All of it is an estimate: rates are those
at the highest clock, which power limits seldom allow for long.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

# FLOP (integer OP) per clock and SM by compute capability, dense, a fused multiply-add counting as two. From NVIDIA's
# white papers on Volta, Turing, GA100, GA102, Ada, Hopper and Blackwell, and the table of arithmetic throughput in the
# CUDA C++ Programming Guide.
_PER_CLOCK: Mapping[str, Mapping[str, int]] = {
    "7.0": {"FP64": 64, "FP32": 128, "FP16 tensor": 1024},
    "7.5": {"FP64": 4, "FP32": 128, "FP16 tensor": 1024, "INT8 tensor": 2048},
    "8.0": {
        "FP64": 64, "FP32": 128, "TF32 tensor": 1024, "FP16 tensor": 2048, "BF16 tensor": 2048, "INT8 tensor": 4096,
    },
    "8.6": {"FP64": 4, "FP32": 256, "TF32 tensor": 512, "FP16 tensor": 1024, "BF16 tensor": 1024, "INT8 tensor": 2048},
    "8.9": {
        "FP64": 4, "FP32": 256, "TF32 tensor": 512, "FP16 tensor": 1024, "BF16 tensor": 1024, "FP8 tensor": 2048,
        "INT8 tensor": 2048,
    },
    "9.0": {
        "FP64": 128, "FP32": 256, "TF32 tensor": 2048, "FP16 tensor": 4096, "BF16 tensor": 4096, "FP8 tensor": 8192,
        "INT8 tensor": 8192,
    },
    "10.0": {
        "FP64": 128, "FP32": 256, "TF32 tensor": 4096, "FP16 tensor": 8192, "BF16 tensor": 8192, "FP8 tensor": 16384,
        "INT8 tensor": 16384,
    },
    "12.0": {
        "FP64": 4, "FP32": 256, "TF32 tensor": 512, "FP16 tensor": 1024, "BF16 tensor": 1024, "FP8 tensor": 2048,
        "INT8 tensor": 2048,
    },
}  # fmt: skip

_HALVED = ("TF32 tensor", "FP16 tensor", "BF16 tensor", "FP8 tensor")
"""Summed in FP32, these run at half the rate on GeForce."""

_CDNA2: Mapping[str, float] = {
    "FP64": 22.6, "FP32": 22.6, "FP32 matrix": 45.3, "FP16 matrix": 181, "BF16 matrix": 181, "INT8 matrix": 181,
}  # fmt: skip
_CDNA3: Mapping[str, float] = {
    "FP64": 81.7, "FP32": 163.4, "FP32 matrix": 163.4, "TF32 matrix": 653.7, "FP16 matrix": 1307, "BF16 matrix": 1307,
    "FP8 matrix": 2615, "INT8 matrix": 2615,
}  # fmt: skip

# Highest rates by product: memory in GB/s, arithmetic in TFLOPS (TOPS), of one die where a GPU of two shows as two
# devices. From AMD's data sheets; what HIP says of memory clocks does not give the bandwidth.
_AMD: Mapping[str, tuple[float, Mapping[str, float]]] = {
    "MI100": (
        1229,
        {
            "FP64": 11.5, "FP32": 23.1, "FP32 matrix": 46.1, "FP16 matrix": 184.6, "BF16 matrix": 92.3,
            "INT8 matrix": 184.6,
        },
    ),
    "MI210": (1638, _CDNA2),
    "MI250X": (
        1638,
        {
            "FP64": 23.9, "FP32": 23.9, "FP32 matrix": 47.9, "FP16 matrix": 191.5, "BF16 matrix": 191.5,
            "INT8 matrix": 191.5,
        },
    ),
    "MI250": (1638, _CDNA2),
    "MI300X": (5300, _CDNA3),
    "MI325X": (6000, _CDNA3),
    "W6600": (224, {"FP32": 10.4, "FP16": 20.8}),
    "W6800": (512, {"FP32": 17.8, "FP16": 35.7}),
    "W7900": (864, {"FP32": 61.3, "FP16 matrix": 122.6, "BF16 matrix": 122.6, "INT8 matrix": 122.6}),
    "7900 XTX": (960, {"FP32": 61.4, "FP16 matrix": 122.8, "BF16 matrix": 122.8, "INT8 matrix": 122.8}),
}  # fmt: skip

# FP32 operations per clock and core with fused multiply-add: two vector units of the width. The widest set counts.
_CPU_PER_CLOCK = {"avx512f": 64, "fma": 32, "sve": 32, "asimd": 16}

_BANDWIDTH = "estimated peak memory bandwidth"
_ARITHMETIC = "estimated peak arithmetic"


def resident_facts(threads: int, warp: int, registers: int) -> list[str]:
    """A line on what a multiprocessor holds at a time; 0 stands for what is not known."""
    parts = [f"at most {threads} threads ({threads // warp} warps of {warp})"] if threads and warp else []
    parts += [f"{registers} registers of 32 bits"] if registers else []
    return [f"per multiprocessor: {', '.join(parts)}"] if parts else []


def bandwidth_facts(bits: int, mhz: float) -> list[str]:
    """A line on the memory of an NVIDIA GPU with a bus of ``bits``: two transfers a clock, as its driver counts."""
    return [_bandwidth_fact(bits / 8 * 2 * mhz / 1e3)] if bits and mhz else []


def nvidia_facts(name: str, capability: str, multiprocessors: int, mhz: float) -> list[str]:
    """A line on the highest rates of arithmetic at an SM clock of ``mhz``; none for an unknown capability."""
    slowed = _HALVED if "GeForce" in name else ()
    rates = {
        kind: rate / (2 if kind in slowed else 1) * multiprocessors * mhz * 1e-6
        for kind, rate in _PER_CLOCK.get(capability, {}).items()
    }
    return _arithmetic_facts(rates, f" at {mhz:.0f} MHz") if mhz else []


def amd_facts(name: str) -> list[str]:
    """Lines on a product's memory and arithmetic; none for an unknown one."""
    for product, (gb_per_s, rates) in _AMD.items():
        if product in name:
            return [_bandwidth_fact(gb_per_s), *_arithmetic_facts(rates)]
    return []


def _bandwidth_fact(gb_per_s: float) -> str:
    return f"{_BANDWIDTH} {gb_per_s:.0f} GB/s"


def _arithmetic_facts(rates: Mapping[str, float], clock: str = "") -> list[str]:
    words = ", ".join(f"{kind} {rate:.4g}" for kind, rate in rates.items())
    return [f"{_ARITHMETIC}{clock}, dense, in TFLOPS: {words}"] if words else []


def cpu_facts(flags: Collection[str]) -> list[str]:
    """What a processor with these instruction set flags can compute at best, if that is known."""
    rate = next((rate for flag, rate in _CPU_PER_CLOCK.items() if flag in flags), None)
    return [f"{_ARITHMETIC}: up to {rate} FP32 FLOP per clock and core, half as many in FP64"] if rate else []


def bandwidth(facts: Iterable[str]) -> float:
    """GB/s that the lines name; 0 where none does."""
    return next((float(found[1]) for line in facts if (found := re.search(rf"{_BANDWIDTH} ([\d.]+)", line))), 0.0)


def arithmetic(facts: Iterable[str]) -> dict[str, float]:
    """Kind of arithmetic to TFLOPS (TOPS), as the lines name them."""
    words = next((line.partition("TFLOPS: ")[2] for line in facts if line.startswith(_ARITHMETIC)), "")
    pairs = (item.rpartition(" ") for item in words.split(", ") if item)
    return {kind: float(rate) for kind, _, rate in pairs}


def flop_per_clock(facts: Iterable[str]) -> int:
    """FP32 operations per clock and core of a CPU; 0 where no line says."""
    pattern = rf"{_ARITHMETIC}: up to (\d+) FP32 FLOP per clock"
    return next((int(found[1]) for line in facts if (found := re.search(pattern, line))), 0)
