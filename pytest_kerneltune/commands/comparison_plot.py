"""The picture of compare-searches: how near to the optimum each search is after how many measurements."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import fmean

from pytest_kerneltune.commands.comparison_report import Result
from pytest_kerneltune.errors import StoreError, UsageError

PICTURES = (".png", ".svg", ".pdf")

# Okabe and Ito's colours, which colour-blind people can tell apart; yellow, hard to see on white, is left out.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", "-.", ":")


def check_plot(path: Path) -> None:
    """Raise UsageError where :func:`plot` could not draw into ``path``."""
    if path.suffix not in PICTURES:
        raise UsageError(f"--plot: {str(path)!r} does not end in {', '.join(PICTURES)}")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install pytest-kerneltune[plot]")


def plot(results: Sequence[Result], title: str, path: Path) -> None:
    """Draw f against measurements into ``path``, in the format of its suffix; raises StoreError.

    A line for each search that failed nowhere, the mean over spaces of the median over seeds; shaded the means of the
    quartiles. The same results make the same file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawn = [result for result in results if not result.errors]
    with mpl.rc_context({"svg.hashsalt": "pytest-kerneltune", "svg.fonttype": "path"}):
        figure = Figure(figsize=(8, 5), layout="constrained")  # without pyplot, it draws by Agg whatever there is
        axes = figure.add_subplot()
        for result, colour, number in zip(drawn, cycle(_COLOURS), range(len(drawn)), strict=False):
            style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
            median, lower, upper = (_mean_curve(result, name) for name in ("median", "lower", "upper"))
            measurements = range(1, len(median) + 1)
            axes.fill_between(measurements, lower, upper, color=colour, alpha=0.15, linewidth=0)
            axes.plot(measurements, median, style, color=colour, label=result.search, linewidth=1.8)
        axes.set_xlabel("measurements (configs compiled and timed)")
        axes.set_ylabel("optimum's latency / best latency found (1 = optimum)")
        axes.set_title(title, fontsize="medium")
        axes.set_xlim(1, max([2, *(len(_mean_curve(result, "median")) for result in drawn)]))
        axes.set_ylim(top=1.0)
        axes.grid(visible=True, alpha=0.3)
        if drawn:
            axes.legend(loc="lower right", title="line: median, shaded: quartiles")
        try:
            figure.savefig(path, dpi=150, metadata=_METADATA[path.suffix])
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}") from error


_METADATA = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def _mean_curve(result: Result, name: str) -> list[float]:
    """The mean over spaces, for each number of measurements, of a statistic over seeds."""
    return [fmean(values) for values in zip(*(getattr(s, name) for s in result.scores.values()), strict=True)]
