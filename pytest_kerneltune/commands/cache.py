"""The tuning cache: what it holds, whether it is sound, and its way to other machines and into analyses."""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_kerneltune.cache import Entry
from pytest_kerneltune.cache.family import FINGERPRINT
from pytest_kerneltune.cache.journal import leftovers
from pytest_kerneltune.cache.upkeep import Item, items
from pytest_kerneltune.commands import cache_checks, cache_prune, cache_transfer
from pytest_kerneltune.commands import cache_report as report
from pytest_kerneltune.commands.arguments import at_least, matches
from pytest_kerneltune.commands.cache_scan import Trouble, add_directory, directory_of, entries, wanted_entries
from pytest_kerneltune.disk import leases
from pytest_kerneltune.errors import StoreError, UsageError
from pytest_kerneltune.texts import printable

_DESCRIPTION = """\
What the tuning cache holds, an entry for each kernel, inputs and device with every config that was tried: list and show
it, verify that it is sound, carry it to other machines, and remove what is no longer wanted.

export writes JSON Lines, a line for each trial with all that is known of it, ready for pandas.read_json(lines=True) or
a training script; import puts such lines into a cache, and merge whole caches. Neither loses or repeats anything, and
may be run again, at the same time as tests too. A cache is kept below a limit by itself; prune removes more.

The exit status is 0; 1 where something could not be read, imported or removed, or verify finds something corrupt; 2
where nothing is done.
"""

_EXAMPLE = """\
examples:
  python -m pytest_kerneltune cache list --kernel 'softmax*'
  python -m pytest_kerneltune cache show 'softmax[n1024]'
  python -m pytest_kerneltune cache export trials.jsonl --device '*H200*'
  ssh other python -m pytest_kerneltune cache export | python -m pytest_kerneltune cache import -
  python -m pytest_kerneltune cache prune --older-than 90d --dry-run
"""

_WAIT_S = 40  # a little longer than a lease lasts without its holder


def describe(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLE
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str, act: Callable[[Namespace], int]) -> ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=f"{text}.", formatter_class=RawDescriptionHelpFormatter
        )
        add_directory(added)
        added.set_defaults(act=act)
        return added

    listing = command(
        "list", "print a line for each entry: winner's latency, trials, last search, size, last use", _list
    )
    _add_filters(listing)
    show = command("show", "print all about one kernel's entries, and who tunes it now", _show)
    show.add_argument("what", metavar="KERNEL", help="a kernel's name, with * and ?, or a fingerprint's first digits")
    verify = command(
        "verify", "read everything, and name the files that are not as they should be", cache_checks.verify
    )
    verify.add_argument(
        "--repair",
        action="store_true",
        help="set corrupt entries aside, as tuning would, and remove what was left behind: pointers to entries that "
        "are gone, and temporary files",
    )
    for each in (listing, show, verify):
        each.add_argument("--json", action="store_true", help="print JSON")
    _add_transfers(command)
    prune = command(
        "prune", "remove entries by age, size, kernel and device, or files that were set aside", cache_prune.prune
    )
    _add_filters(prune)
    cache_prune.add_criteria(prune)


def _add_transfers(command: Callable[[str, str, Callable[[Namespace], int]], ArgumentParser]) -> None:
    export = command("export", "write JSON Lines, a line for each trial", cache_transfer.export)
    export.add_argument("file", nargs="?", default="-", metavar="FILE", help="where to (default: -, standard output)")
    _add_filters(export)
    importing = command("import", "put exported trials into the cache", cache_transfer.import_)
    importing.add_argument("files", nargs="+", metavar="FILE", help="exported trials; - is standard input")
    merge = command(
        "merge",
        "put other caches' entries and the trials of their interrupted searches into this one",
        cache_transfer.merge,
    )
    merge.add_argument("others", nargs="+", type=Path, metavar="DIR", help="another cache; it is only read")
    for each in (importing, merge):
        each.add_argument(
            "--wait",
            type=at_least(0),
            default=_WAIT_S,
            metavar="SECONDS",
            help="how long to wait for a process that tunes the same kernel (default: %(default)s)",
        )


def _add_filters(parser: ArgumentParser) -> None:
    for name in ("kernel", "device"):
        parser.add_argument(
            f"--{name}", action="append", metavar="PATTERN", help=f"only {name}s of this name, with * and ?; repeatable"
        )


def run(options: Namespace) -> int:
    try:
        return int(options.act(options))
    except StoreError as error:  # it may name a file that somebody else named
        raise StoreError(printable(str(error))) from error


def _list(options: Namespace) -> int:
    directory, trouble, now = directory_of(options), Trouble(), time.time()
    rows, found, counts = [], [], Counter[str]()
    for item, entry in wanted_entries(options, directory, trouble):
        counts.update(entries=1, trials=len(entry.trials), size=item.removable)
        if options.json:
            found.append(report.summary(item, entry))
        else:
            rows.append(report.row(item, entry, now))
    if not (options.kernel or options.device):
        counts.update(_beside_entries(directory))
    if options.json:
        print(json.dumps({"cache": str(directory), "entries": found, "total": report.totals(counts)}))
    else:
        print("\n".join([*(report.listing(rows) if rows else []), f"{directory}: {report.total_line(counts)}"]))
    return trouble.end()


def _beside_entries(directory: Path) -> Counter[str]:
    counts = Counter[str]()
    for item in items(directory):
        is_interrupted = item.entry is None and bool(item.journals)
        counts.update(interrupted=int(is_interrupted), size=item.removable if is_interrupted else 0)
        counts.update(set_aside=len(item.set_aside), size_aside=item.size_aside)
    return counts


def _show(options: Namespace) -> int:
    directory, trouble, now = directory_of(options), Trouble(), time.time()
    found, texts = [], []
    for item, entry in _named(directory, options.what, trouble):
        journals, tuner = _journals(item, entry, trouble), _tuner(item)
        if options.json:
            found.append(report.details_json(item, entry, journals, tuner))
        else:
            texts.append("\n".join(report.details(item, entry, journals, tuner, now)))
    if not found and not texts:
        trouble.end()
        raise UsageError(f"the cache {str(directory)!r} has no entry of {options.what!r}: `cache list` names them")
    print(json.dumps(found) if options.json else "\n\n".join(texts))
    return trouble.end()


def _named(directory: Path, what: str, trouble: Trouble) -> Iterator[tuple[Item, Entry]]:
    """The entries whose fingerprints begin so, or else whose kernels are called so."""
    is_hex = FINGERPRINT.fullmatch(what) is not None
    is_prefix = is_hex and any(i.entry and i.fingerprint.startswith(what) for i in items(directory))
    for item, entry in entries(directory, trouble, what if is_prefix else ""):
        if is_prefix or matches(entry.kernel, what):
            yield item, entry


def _journals(item: Item, entry: Entry, trouble: Trouble) -> list[report.Leftover]:
    @contextmanager
    def tolerant(_: str) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            trouble(str(error))

    found = leftovers(item.path, entry, tolerant)
    return [report.Leftover(each.path.name, len(each.run.trials), len(each.fresh)) for each in found]


def _tuner(item: Item) -> str:
    """Who holds the entry's lease, "" for nobody."""
    if not item.path.with_name(f"{item.path.name}.lock").exists():
        return ""
    try:
        leases.take(item.path, timeout_s=0).release()
    except leases.Busy as error:
        return str(error.owner or "another process")
    except StoreError:
        return "unknown"
    return ""
