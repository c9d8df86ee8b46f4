"""What the doctor found, in words (pure): lines of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from pytest_kerneltune.commands.examination import Examination, findings, percent_up
from pytest_kerneltune.commands.machine import GpuState
from pytest_kerneltune.gate import format_ms
from pytest_kerneltune.instrument import Instrument
from pytest_kerneltune.noise import Noise
from pytest_kerneltune.nvidia import Sample, reasons_in_words
from pytest_kerneltune.report.format import one_line

_WIDTH = 100
_LABEL = 18
_HEADINGS = ("work", "clock", "time", "CV", "range", "paired CV", "bias", "threshold", "alone")
_LEFT = 2  # columns of the table that begin on the left


def facts(found: Examination) -> list[str]:
    """What is known before anything is measured."""
    lines = ["GPU"]
    if found.gpu is None:
        lines += _row("none", found.no_gpu)
        lines += ["", "CPU", *_facts(found.device)]
    else:
        lines += [*_facts(found.device), *_state(found.gpu)]
    lines += ["", "Software"]
    for name, version in found.software.items():
        lines += _row(name, version or "not installed")
    for name, version in found.compilers.items():
        lines += _row(name, version)
    if not found.compilers:
        lines += _row("compilers", "none on the PATH")
    lines += ["", "Caches"]
    for cache in found.caches:
        lines += _row(cache.name, f"{cache.path}: {'not writable' if cache.problem else 'writable'}")
    return lines


def measurements(found: Examination) -> list[str]:
    """What was measured, the verdict on the machine, and what needs action."""
    lines = [line for instrument in found.instruments for line in _instrument(instrument)]
    if found.under_load:
        lines += _row("under load", _load(found.under_load))
    if found.noises:
        lines += ["", "Noise", *_table([_HEADINGS, *map(_cells, found.noises)])]
        usual = {instrument.method for instrument in found.instruments}
        for noise in found.noises:
            if noise.method not in usual:
                lines += _wrapped(f"{noise.work}: {noise.method}", "  ", "    ")
    lines += ["", *_wrapped(_verdict(found))]
    if listed := findings(found):
        lines += ["", "Warnings"]
        for finding in listed:
            lines += _wrapped(f"- {'FATAL: ' if finding.fatal else ''}{one_line(finding.text)}", "  ", "    ")
            lines += _wrapped(one_line(finding.action), "    -> ", "       ")
    return lines


def _state(gpu: GpuState) -> Iterator[str]:
    state = gpu.state
    yield from _row("UUID", gpu.uuid or "unknown")
    yield from _row(
        "driver", ", ".join((state.get("driver_version", "unknown"), f"CUDA up to {gpu.cuda or 'unknown'}"))
    )
    if not state:
        yield from _row("state", "unknown, nvidia-smi gave no answer")
        return
    yield from _row("clocks now", _of("SM {} of {} MHz", gpu, "clocks.sm", "clocks.max.sm"))
    yield from _row("", _of("memory {} of {} MHz", gpu, "clocks.mem", "clocks.max.memory"))
    names = ("clocks.applications.graphics", "clocks.default_applications.graphics")
    yield from _row("application clock", _of("{} MHz (default {} MHz)", gpu, *names))
    yield from _row("power", _of("{} W drawn", gpu, "power.draw"))
    yield from _row("", _of("cap {} W (default {} W)", gpu, "power.limit", "power.default_limit"))
    yield from _row("temperature", _of("{} C", gpu, "temperature.gpu"))
    errors = _of("{} errors not corrected", gpu, "ecc.errors.uncorrected.volatile.total")
    yield from _row("ECC", f"{state.get('ecc.mode.current', 'unknown')}, {errors}")
    modes = {"persistence": "persistence_mode", "compute mode": "compute_mode", "MIG": "mig.mode.current"}
    for label, name in modes.items():
        yield from _row(label, state.get(name, "unknown"))
    yield from _row("clocks limited by", ", ".join(reasons_in_words(gpu.reasons)) or "nothing known")
    yield from _row("other processes", _guests(gpu))


def _of(text: str, gpu: GpuState, *names: str) -> str:
    return text.format(*(gpu.state.get(name, "?").removesuffix(".00") for name in names))


def _guests(gpu: GpuState) -> str:
    if gpu.guests is None:
        return "unknown"
    return ", ".join(f"{pid} ({name})" for pid, name in sorted(gpu.guests.items())) or "none"


def _instrument(instrument: Instrument) -> Iterator[str]:
    yield ""
    yield f"Clock: {instrument.method}"
    yield from _row("resolution", _us(instrument.resolution_us))
    yield from _row("reads of nothing", _us(instrument.empty_us))
    yield from _row("cost of a reading", f"{_us(instrument.reading_cost_us)} of the host")
    what = "launch overhead" if instrument.clock == "cuda" else "call overhead"
    yield from _row(what, f"{_us(instrument.launch_overhead_us)} of the host")
    yield from _row("fixed work", f"{_us(instrument.cold_us)} at first, {_us(instrument.warm_us)} when warm")
    if instrument.sm_mhz:
        limit = f" of {instrument.sm_max_mhz:.0f}" if instrument.sm_max_mhz else ""
        yield from _row("SM clock", f"{instrument.sm_mhz:.0f}{limit} MHz when warm")


def _us(value_us: float) -> str:
    return format_ms(value_us / 1e3)


def _load(sample: Sample) -> str:
    parts = [f"SM {sample.sm_mhz:.0f} MHz"] if sample.sm_mhz else []
    parts += [f"{sample.power_w:.0f} W"] if sample.power_w else []
    return ", ".join([*parts, *reasons_in_words(sample.reasons)]) or "unknown"


def _cells(noise: Noise) -> tuple[str, ...]:
    return (
        noise.work,
        noise.clock,
        format_ms(noise.latency_ms),
        _percent(noise.alone_cv),
        f"{_percent(noise.alone_low, '+')} to {_percent(noise.alone_high, '+')}",
        _percent(noise.paired_cv),
        _percent(noise.paired_bias, "+", digits=1),
        "none" if noise.threshold is None else percent_up(noise.threshold),
        "none" if noise.threshold_alone is None else percent_up(noise.threshold_alone),
    )


def _percent(fraction: float, sign: str = "", digits: int = 2) -> str:
    """To so many significant digits, and never with an exponent."""
    return f"{float(f'{100 * fraction:.{digits}g}'):{sign}g}%"


def _verdict(found: Examination) -> str:
    if not found.measurable:
        return "This machine cannot measure: see the warnings marked FATAL."
    clocks = dict.fromkeys(noise.clock for noise in found.noises)
    texts = [f"{text} on the {clock} clock" for clock in clocks if (text := _told(found, clock))]
    return f"This machine can measure. Smallest slowdown that the gate can tell: {', '.join(texts)}."


def _told(found: Examination, clock: str) -> str:
    """The least and the greatest threshold on a clock; empty where there is none."""
    chosen = [(n.threshold, n.work) for n in found.noises if n.clock == clock and n.threshold is not None]
    ends = dict.fromkeys((min(chosen), max(chosen))) if chosen else {}
    return " to ".join(f"{percent_up(threshold)} ({work})" for threshold, work in ends)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i < _LEFT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _facts(lines: Sequence[str]) -> list[str]:
    return [line for fact in lines for line in _wrapped(one_line(fact), "  ", "    ")]


def _row(label: str, text: str) -> list[str]:
    return _wrapped(one_line(text), f"  {label:<{_LABEL}}", " " * (_LABEL + 2))


def _wrapped(text: str, first: str = "", others: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=others) or [first.rstrip()]
