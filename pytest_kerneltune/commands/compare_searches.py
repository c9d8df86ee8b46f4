"""How fast searches find good configs, on recorded search spaces."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pytest_kerneltune import files
from pytest_kerneltune.commands import comparison_report as report
from pytest_kerneltune.commands.arguments import at_least, matches
from pytest_kerneltune.commands.comparison_plot import check_plot, plot
from pytest_kerneltune.commands.replay import Conditions, Run, check, replay
from pytest_kerneltune.comparison import by_chance, score
from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.options import available_cores
from pytest_kerneltune.recorded import SUFFIX, RecordedSpace
from pytest_kerneltune.report.format import count
from pytest_kerneltune.search import DEFAULT_SEARCH, SEARCHES, Effort
from pytest_kerneltune.versions import versions

_SEARCHES = tuple(dict.fromkeys((DEFAULT_SEARCH, "LFBOTreeSearch", "RandomSearch")))
_BUDGETS = (25, 50, 100, 200)

_DESCRIPTION = """\
How fast searches find good configs. FOLDER holds recorded search spaces: files NAME.json.gz with the latency of every
config of a kernel, as record-spaces writes them. Each search is run on each space, once a seed, and its configs are
looked up instead of being compiled and timed. A table says, as means over the spaces:

  f@N     the best possible latency over that of the best config found within N measurements (1 is the optimum);
          of one space, the median over seeds
  P@N     how far ahead of random sampling, on average over 1 to N measurements: 0 is no better, 1 is the optimum
          at once, less than 0 is worse; where random sampling is within 0.1% of the optimum nothing is counted
  N95     how many measurements it takes until f is 0.95; ">200" if 200 are not enough
  hit95   the share of runs that are within 5% of the optimum (f of 0.95) in the end
  CPU s   processor seconds that the search itself takes a run (median over seeds)

A config that failed when it was recorded costs a measurement like any other. One that is not recorded breaks the
space's constraint: no search may propose it. The same command prints the same table, CPU seconds excepted. The exit
status is 1 where a search failed, which leaves it out of the table of means, and 2 where nothing could be compared.
"""

_EXAMPLE = """\
examples:
  python -m pytest_kerneltune compare-searches spaces --plot searches.svg
  python -m pytest_kerneltune compare-searches spaces --searches RandomSearch mysearch:MySearch --spaces 'gemm_*'
"""


def describe(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLE
    _add_runs(parser)
    _add_results(parser)


def _add_runs(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="folder with recorded spaces")
    add(
        "--searches",
        nargs="+",
        metavar="NAME",
        default=_SEARCHES,
        help="what to compare: names of searches or, for one of your own, module:Class, whose preset() is called with "
        f"the effort (default: {' '.join(_SEARCHES)}; known: {', '.join(SEARCHES)}). Searches that ask a language "
        "model have none here",
    )
    add("--spaces", nargs="+", metavar="NAME", help="names of spaces, with * and ? (default: all in the folder)")
    add("--seeds", type=at_least(1), metavar="N", default=20, help="runs on each space (default: %(default)s)")
    efforts = [Effort.QUICK, Effort.FULL]
    add("--effort", type=Effort, choices=efforts, default=Effort.FULL, help="the searches' sizes (default: full)")
    add(
        "--budgets",
        nargs="+",
        type=at_least(1),
        metavar="N",
        default=_BUDGETS,
        help="numbers of measurements to score at; runs end after the largest "
        f"(default: {' '.join(map(str, _BUDGETS))})",
    )
    add(
        "--batch",
        type=at_least(1),
        metavar="N",
        default=1,
        help="tell the searches that N configs are compiled at once, so that they propose batches of about that many "
        "and learn the latencies only after each (default: %(default)s)",
    )
    add(
        "--noise",
        type=at_least(0),
        metavar="N",
        default=0,
        help="let searches see the mean of N of the repeated readings in NAME.reps.npz, drawn at random: fewer are "
        "noisier. What they find is scored by its true latency (default: 0, they see that)",
    )
    add("--jobs", type=at_least(1), metavar="N", default=available_cores(), help="processes (default: all cores)")


def _add_results(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--by-space", action="store_true", help="print a table for each search with a line for each space, too")
    add("--json", type=Path, metavar="PATH", help="write everything, each space's curves included, to a JSON file")
    add(
        "--plot",
        type=Path,
        metavar="PATH",
        help="draw f against the number of measurements, with the quartiles over seeds: a .png, .svg or .pdf file; "
        "needs pip install pytest-kerneltune[plot]",
    )


def run(options: Namespace) -> int:
    searches, budgets = list(dict.fromkeys(options.searches)), sorted(set(options.budgets))
    for name in searches:
        check(name)
    _check_outputs(options)
    paths = _selected(options.folder, options.spaces)
    spaces = {name: RecordedSpace.load(path) for name, path in paths.items()}
    title = _title(options, spaces)
    conditions = Conditions(budgets[-1], options.effort, options.batch, options.noise)
    runs = replay(searches, list(paths.values()), options.seeds, conditions, options.jobs)
    runs = _with_progress(runs, len(searches) * len(paths) * options.seeds)
    results = _results(searches, paths, spaces, sorted(runs, key=lambda r: r.seed))
    print(title, end="\n\n")
    for result in results if options.by_space else ():
        print(report.by_space(result, budgets), end="\n\n")
    print(report.means(results, budgets))
    if options.json:
        files.write_json(options.json, report.document(_facts(options), budgets, spaces, results))
    if options.plot:
        plot(results, title, options.plot)
    for line in (f"{r.search} failed on {space}: {error}" for r in results for space, error in r.errors.items()):
        print(line, file=sys.stderr)
    return int(any(result.errors for result in results))


def _check_outputs(options: Namespace) -> None:
    """Raise UsageError where a result could not be written, before hours of searching."""
    if options.plot:
        check_plot(options.plot)
    for path in filter(None, (options.json, options.plot)):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UsageError(f"{str(path)!r} is not a file in a folder that exists")


def _selected(folder: Path, patterns: Sequence[str] | None) -> dict[str, Path]:
    """The recorded spaces by name; raises UsageError where there are none, or a pattern matches none."""
    paths = {path.name.removesuffix(SUFFIX): path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    if not paths:
        raise UsageError(f"{str(folder)!r} holds no recorded spaces (*{SUFFIX})")
    chosen: set[str] = set()
    for pattern in patterns or ("*",):
        matching = {name for name in paths if matches(name, pattern)}
        if not matching:
            raise UsageError(f"--spaces: {pattern!r} matches none of {', '.join(paths)}")
        chosen |= matching
    return {name: path for name, path in paths.items() if name in chosen}


def _title(options: Namespace, spaces: Mapping[str, RecordedSpace]) -> str:
    """What is compared, in a line; raises StoreError where repeated readings are wanted and cannot be read."""
    parts = [f"{len(spaces)} spaces" if len(spaces) > 1 else next(iter(spaces))]
    parts += [count(options.seeds, "seed"), f"{options.effort} effort"]
    if options.batch > 1:
        parts.append(f"batches of {options.batch}")
    if options.noise:
        exact = sum(not space.has_repeats for space in spaces.values())
        parts.append(f"readings averaged: {options.noise}" + (f" (exact on {exact}: no repeats)" if exact else ""))
    return ", ".join(parts)


def _with_progress(runs: Iterable[Run], total: int) -> Iterator[Run]:
    """``runs``; on a terminal a line says how many of ``total`` there were."""
    for done, run in enumerate(runs, start=1):
        if sys.stderr.isatty():
            end = "" if done < total else "\n"
            print(f"\r{done} of {total} runs", end=end, file=sys.stderr, flush=True)
        yield run


def _results(
    searches: Sequence[str], paths: Mapping[str, Path], spaces: Mapping[str, RecordedSpace], runs: Sequence[Run]
) -> list[report.Result]:
    results = [report.Result(search) for search in searches]
    grouped: dict[tuple[str, Path], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.search, run.path), []).append(run)
    for name, space in spaces.items():
        chance = by_chance(space, max(len(r.curve) for r in runs))
        for result in results:
            mine = grouped[result.search, paths[name]]
            if failed := [r.error for r in mine if r.error]:
                result.errors[name] = failed[0]
                continue
            cpu_s = median(r.cpu_s for r in mine)
            result.scores[name] = score(space.best_ms, chance, [r.curve for r in mine], cpu_s)
            result.batches[name] = median(r.batches for r in mine)
    return results


def _facts(options: Namespace) -> dict[str, Any]:
    shown = {name: value for name, value in vars(options).items() if name != "run"}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in shown.items()}
    return {"command": "compare-searches", "options": plain, "versions": versions()}
