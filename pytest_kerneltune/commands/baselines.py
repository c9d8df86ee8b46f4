"""Baseline files: what they hold, their history, merging two branches', and rows of tests that are gone."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pytest_kerneltune import files
from pytest_kerneltune.baseline import load_baselines, prune_baselines
from pytest_kerneltune.baseline_text import RECORD, Document, has_conflict_markers
from pytest_kerneltune.commands import baselines_report as report
from pytest_kerneltune.commands.baseline_files import merge_stages, stored_files
from pytest_kerneltune.errors import StoreError, UsageError
from pytest_kerneltune.merging import Merged, merge
from pytest_kerneltune.report.format import count

_DESCRIPTION = """\
The files in which --update-baselines keeps kernels' latencies, a row for each kernel: list them, show a row's history,
merge two branches' versions row by row, and take out what is left of test modules that are gone.

Branches that change different rows merge as text, unless both add rows at the same place. To have git merge row by row,
add this line to .gitattributes, and run the command once in each clone:

  **/__kerneltune__/**/*.json merge=kerneltune
  git config merge.kerneltune.driver "python -m pytest_kerneltune baselines merge %O %A %B --path %P"

The exit status is 0; 1 where branches disagree on a row, or list or prune cannot read a file; 2 where nothing is done.
"""

_EXAMPLE = """\
examples:
  python -m pytest_kerneltune baselines list perf
  python -m pytest_kerneltune baselines show perf/__kerneltune__/nvidia-h200/test_softmax.json 'softmax[n1024]'
  python -m pytest_kerneltune baselines resolve perf/__kerneltune__/nvidia-h200/test_softmax.json
  python -m pytest_kerneltune baselines prune perf --write
"""


def describe(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLE
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str) -> ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=f"{text}.", formatter_class=RawDescriptionHelpFormatter
        )
        added.set_defaults(act=_ACTS[name])
        return added

    _add_folder(command("list", "print a line for each row: latency, sessions, age, commit, creep since its anchor"))
    show = command("show", "print all that is stored of one kernel, and what it was before")
    show.add_argument("file", type=Path, metavar="FILE", help="a baseline file")
    show.add_argument("kernel", metavar="KERNEL", help="the kernel's name in it")
    driver = command("merge", "merge what became of BASE on two branches into OURS, as a merge driver of git")
    for name in ("base", "ours", "theirs"):
        driver.add_argument(name, type=Path, metavar=name.upper(), help="that version of the file")
    driver.add_argument("--path", metavar="PATH", help="what messages call the file (default: OURS)")
    resolve = command("resolve", "merge row by row a file that git left in conflict")
    resolve.add_argument("file", type=Path, metavar="FILE", help="the file in conflict")
    prune = command("prune", "list the baseline files of test modules that are gone")
    _add_folder(prune)
    prune.add_argument("--write", action="store_true", help="remove them")


def _add_folder(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=Path(), metavar="FOLDER", help="where to look (default: here)")
    add(
        "--baseline-dir",
        type=Path,
        metavar="DIR",
        help="pytest's option of that name, where it is used; FOLDER is then pytest's root directory",
    )


def run(options: Namespace) -> int:
    return int(options.act(options))


def _list(options: Namespace) -> int:
    failed = False
    stored = stored_files(options.folder, options.baseline_dir)
    today = datetime.now(UTC).date()
    for each in stored:
        try:
            content = load_baselines(each.path)
        except StoreError as error:
            failed = True
            print(error, file=sys.stderr)
            continue
        orphaned = f", orphaned: there is no {each.module}" if each.orphaned else ""
        print(f"{each.path} ({content.device.get('name', 'device unknown')}){orphaned}")
        print("\n".join(report.rows_table(content.rows, today)))
    if not stored:
        print(f"no baselines below {options.baseline_dir or options.folder.absolute()}")
    return int(failed)


def _show(options: Namespace) -> int:
    if not options.file.is_file():
        raise UsageError(f"{str(options.file)!r} is no file")
    rows = load_baselines(options.file).rows
    if options.kernel not in rows:
        raise UsageError(f"{options.file} has no row {options.kernel!r}, but {', '.join(map(repr, rows)) or 'none'}")
    print("\n".join(report.row_history(options.kernel, rows[options.kernel])))
    return 0


def _merge(options: Namespace) -> int:
    path = options.path or str(options.ours)
    base, ours, theirs = (_version(each) for each in (options.base, options.ours, options.theirs))
    merged = _merged(path, base or None, ours, theirs)
    files.write_text(options.ours, merged.text)
    return _disagreement(path, merged)


def _version(path: Path) -> bytes:
    content = files.read_bytes(path)
    if content is None:
        raise UsageError(f"{str(path)!r} is no file")
    return content


def _resolve(options: Namespace) -> int:
    path: Path = options.file
    base, ours, theirs = merge_stages(path)
    merged = _merged(str(path), base, ours, theirs)
    _refuse_to_lose(path, (ours, theirs, merged.text.encode()))
    files.write_text(path, merged.text)
    if not merged.conflicts:
        print(f"{path}: {count(len(merged.document.rows), 'row')} merged; `git add {shlex.quote(str(path))}`")
    return _disagreement(str(path), merged)


def _refuse_to_lose(path: Path, versions: Sequence[bytes]) -> None:
    """Raise UsageError where somebody changed the file after the merge: git's ``versions`` do not hold that."""
    content = files.read_bytes(path)
    known = [version.replace(b"\r\n", b"\n") for version in versions]
    if content is None or has_conflict_markers(content) or content.replace(b"\r\n", b"\n") in known:
        return
    name = shlex.quote(str(path))
    raise UsageError(
        f"{path} holds no conflict markers, and what was changed in it since the merge would be lost: `git add {name}` "
        f"if it is done, or `git checkout --merge {name}` to begin again"
    )


def _merged(path: str, base: bytes | None, ours: bytes, theirs: bytes) -> Merged:
    named: Sequence[tuple[str, bytes | None]] = (("merge base", base), ("ours", ours), ("theirs", theirs))
    return merge(*(Document.parse(f"{path} ({name})", content) for name, content in named))


def _disagreement(path: str, merged: Merged) -> int:
    for name, conflict in merged.conflicts.items():
        print(f"{path}: both branches changed the row {name!r}, and {conflict}: it is kept as ours", file=sys.stderr)
    if merged.conflicts:
        print(
            f"{path}: measure what the merged code does: {RECORD} for these kernels, then "
            f"`git add {shlex.quote(path)}`",
            file=sys.stderr,
        )
    return int(bool(merged.conflicts))


def _prune(options: Namespace) -> int:
    orphaned = [each for each in stored_files(options.folder, options.baseline_dir) if each.orphaned]
    failed = False
    for each in orphaned:
        try:
            names = list(Document.parse(str(each.path), files.read_bytes(each.path)).rows)
        except StoreError as error:
            failed = True
            print(error, file=sys.stderr)
            continue
        what = f"{each.path} ({', '.join(names)}): there is no {each.module}"
        if options.write:
            prune_baselines(each.path, names)
        print(f"{'removed' if options.write else 'would remove'} {what}")
    if orphaned and not options.write:
        print("nothing is removed without --write")
    return int(failed)


_ACTS = {"list": _list, "show": _show, "merge": _merge, "resolve": _resolve, "prune": _prune}
