"""Which roof binds a kernel, memory bandwidth or arithmetic, and how low its latency can be.

After Williams, Waterman and Patterson, "Roofline" (2009). All figures are estimates: rates are those at the highest
clock, and the traffic is that of reading or writing each array once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_kerneltune.search import Subject
from pytest_kerneltune.search.advice import in_bytes, subject_work
from pytest_kerneltune.search.arithmetic import Array, Work, arrays
from pytest_kerneltune.search.hardware import multiprocessors
from pytest_kerneltune.search.peaks import arithmetic, bandwidth, flop_per_clock

ASSUMED_GHZ = 3.0
"""Clock of a CPU core, which its facts do not name."""

LATENCY_S = 700e-9
"""Of a GPU's memory, from cold caches; published measurements of recent data-centre GPUs lie around it."""

_TENSOR_CODE = re.compile(r"wmma::|mma_sync|mma\.sync|wgmma|__dp4a|mfma")
_EXACT = re.compile(r"allow_tf32\s*[=:]?\s*False|input_precision\s*[=:]\s*\W?ieee", re.IGNORECASE)
_ROUNDED = re.compile(r"allow_tf32\s*[=:]?\s*True|input_precision\s*[=:]\s*\W?tf32\b|xf32", re.IGNORECASE)


@dataclass(frozen=True)
class Roof:
    """Bounds on a kernel's latency; ``seconds`` of 0 and a ridge of 0 mean that a bound is not known.

    ``ridge`` is in FLOP per byte, ``kind`` the arithmetic that counts ("BF16 tensor"), ``rate`` its TFLOPS and
    ``bandwidth`` GB/s.
    """

    bytes: int = 0
    flop: float = 0.0
    bandwidth: float = 0.0
    kind: str = ""
    rate: float = 0.0

    @property
    def memory_s(self) -> float:
        return self.bytes / (self.bandwidth * 1e9) if self.bandwidth else 0.0

    @property
    def arithmetic_s(self) -> float:
        return self.flop / (self.rate * 1e12) if self.rate else 0.0

    @property
    def ridge(self) -> float:
        return self.rate * 1e3 / self.bandwidth if self.bandwidth else 0.0

    @property
    def least_s(self) -> float:
        return max(self.memory_s, self.arithmetic_s)


def roof(subject: Subject, names: Sequence[str] = ()) -> Roof:
    """The bounds that the hardware's facts and the inputs of a kernel give; ``names`` are its parameters'."""
    found, done = arrays(subject.inputs), subject_work(subject, names)
    rates = _rates(subject)
    kind = next((k for k in _kinds(subject, done.operands or found, done) if k in rates), "")
    return Roof(sum(a.bytes for a in found), done.flop, bandwidth(subject.hardware), kind, rates.get(kind, 0.0))


def roof_lines(subject: Subject, names: Sequence[str] = ()) -> list[str]:
    """What binds the kernel and how fast it could be, one line each; empty where too little is known."""
    bounds = roof(subject, names)
    return (
        [*_gpu_lines(bounds, subject.hardware), *_cpu_lines(bounds, subject.hardware)]
        if bounds.bytes or bounds.flop
        else []
    )


def distance(bounds: Roof, ms: float) -> str:
    """How far a latency is from the roof, in words; "" where the roof is not known."""
    if not bounds.least_s:
        return ""
    which = "bandwidth" if bounds.memory_s >= bounds.arithmetic_s else "arithmetic"
    return f"{ms * 1e-3 / bounds.least_s:.3g} x the estimated {which} roof of {_us(bounds.least_s)}"


def _rates(subject: Subject) -> Mapping[str, float]:
    """Kind of arithmetic to TFLOPS; of one core where the hardware is a CPU."""
    rates = arithmetic(subject.hardware)
    if per_clock := flop_per_clock(subject.hardware):
        core = per_clock * ASSUMED_GHZ / 1e3
        return {**rates, "FP32": core, "FP64": core / 2}
    return rates


def _kinds(subject: Subject, operands: Sequence[Array], done: Work) -> list[str]:
    """The kinds of arithmetic that the kernel may use, the fastest first."""
    widest = max(operands, key=lambda a: a.elements, default=None)
    if widest is None:
        return []
    plain = "FP64" if widest.is_float and widest.bits == 64 else "FP32"
    has_tensors = subject.kind in {"triton", "helion"} or _TENSOR_CODE.search(subject.source)
    if plain == "FP64" or not (has_tensors and done.flop):
        return [plain]
    if widest.is_float and widest.bits == 32:
        return [*_tf32(subject), "FP32 matrix", plain]
    names = {(8, True): "FP8", (8, False): "INT8"}
    name = "BF16" if widest.kind in {"bfloat", "bf"} else names.get((widest.bits, widest.is_float), "FP16")
    # FP8 may be multiplied as FP16 where there is nothing faster; BF16 and INT8 may not.
    names_of_rates = [name] if name in {"BF16", "INT8"} else [name, "FP16"]
    return [*(f"{name} {unit}" for name in names_of_rates for unit in ("tensor", "matrix")), plain]


def _tf32(subject: Subject) -> list[str]:
    """The kinds that round float32 operands: the default of Triton on NVIDIA GPUs, on AMD ones only if asked for."""
    text = "\n".join([subject.source, *subject.facts])
    if _EXACT.search(text):
        return []
    return ["TF32 tensor", *(["TF32 matrix"] if _ROUNDED.search(text) else [])]


def _gpu_lines(bounds: Roof, facts: Sequence[str]) -> list[str]:
    if not bounds.bandwidth or not bounds.bytes:
        return []
    roof_line = (
        f"bandwidth roof: {in_bytes(bounds.bytes)} at {bounds.bandwidth:.0f} GB/s take {_us(bounds.memory_s)} "
        "(estimated; well tuned kernels reach 70 to 92% of that bandwidth, those of less than 50 us often 50 to 70%)"
    )
    return [
        roof_line,
        *(_both(bounds) if bounds.flop and bounds.rate else _memory_alone(bounds, multiprocessors(facts))),
    ]


def _memory_alone(bounds: Roof, units: int) -> list[str]:
    """What can be said where the operations are not known."""
    lines = []
    if units:
        amount = bounds.bandwidth * 1e9 * LATENCY_S / units
        lines.append(
            f"to keep the memory busy some {amount / 1024:.2g} KiB of loads have to be in flight per multiprocessor "
            f"(estimated, {LATENCY_S * 1e9:.0f} ns of latency assumed): resident threads x bytes each loads"
        )
    if bounds.rate:
        words = f"more than about {bounds.ridge:.3g} operations per byte of the arrays ({bounds.kind}, estimated)"
        lines.append(f"memory bandwidth binds unless the source does {words}: count them in its inner loop")
    return lines


def _both(bounds: Roof) -> list[str]:
    intensity = bounds.flop / bounds.bytes
    binding = "memory bandwidth" if bounds.memory_s >= bounds.arithmetic_s else "arithmetic"
    arithmetic_line = (
        f"arithmetic roof: {bounds.flop / 1e9:.4g} GFLOP at {bounds.rate:.4g} TFLOPS ({bounds.kind}) take "
        f"{_us(bounds.arithmetic_s)} (estimated at the highest clock; 60 to 85% is well tuned)"
    )
    intensity_line = (
        f"intensity {intensity:.4g} FLOP per byte against a ridge point of {bounds.ridge:.3g}: {binding} binds if each "
        "byte is moved once"
    )
    is_close = 0.4 < bounds.memory_s / bounds.arithmetic_s < 2.5
    close = "the roofs are close: overlap of loads and arithmetic, and reuse in caches, count as much as either"
    return [arithmetic_line, intensity_line, *([close] if is_close else [])]


def _cpu_lines(bounds: Roof, hardware: Sequence[str]) -> list[str]:
    caches = [cache for line in hardware for cache in _caches(line)]
    lines = []
    if caches and bounds.bytes:
        fitting = next((name for name, size in caches if bounds.bytes <= size), "")
        where = f"they fit {fitting}" if fitting else "they exceed all caches: memory traffic counts"
        lines.append(f"the arrays hold {in_bytes(bounds.bytes)}: {where}")
    if flop_per_clock(hardware) and bounds.flop and bounds.rate:
        lines.append(
            f"arithmetic roof of one core: {bounds.flop / 1e9:.4g} GFLOP at {bounds.rate * 1e3:.4g} GFLOPS take "
            f"{_us(bounds.arithmetic_s)} (estimated, {ASSUMED_GHZ:g} GHz and full vectors assumed; compiled C without "
            "hand-written vectors reaches 20 to 60%)"
        )
    return lines


def _caches(line: str) -> list[tuple[str, int]]:
    """Name and bytes of the caches that hold data, the smallest first, in a line on caches."""
    if not line.startswith("caches: "):
        return []
    found = re.findall(r"(L\d+d?) (\d+)([KM])(?=,|$)", line)
    return [(name, int(size) << (20 if unit == "M" else 10)) for name, size, unit in found]


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.4g} us"
