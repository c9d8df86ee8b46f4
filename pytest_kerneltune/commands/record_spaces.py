"""Writes what the tuning cache holds as recorded search spaces."""

from __future__ import annotations

import gzip
import io
import json
import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_kerneltune import files
from pytest_kerneltune.cache import Entry
from pytest_kerneltune.commands.arguments import at_least
from pytest_kerneltune.commands.cache_scan import Trouble, add_directory, directory_of, entries, is_wanted, say
from pytest_kerneltune.errors import StoreError, UsageError
from pytest_kerneltune.recorded import REPEATS_SUFFIX, SUFFIX
from pytest_kerneltune.recording import Recording

_LONGEST_NAME = 120
_MARK = 8  # digits of a fingerprint that tell entries of one name apart

_DESCRIPTION = """\
Writes the trials that the tuning cache holds as recorded search spaces, on which compare-searches replays searches.
For each kernel and device FOLDER gets KERNEL_DEVICE.json.gz with the latency of every config that was tried, or why it
failed, and KERNEL_DEVICE.reps.npz with the repeated readings behind the latencies. Entries of one kernel and device,
from before and after an edit, have the first digits of their fingerprints in their names.

The cache knows what was tried, not the whole space: a parameter's values are those that were seen, and a config that
was not tried counts as one that the space's constraint refuses. So record a space as completely as you can:

  pytest --autotune=FiniteSearch --autotune-force
      tries every config of a kernel with at most 1000
  pytest --autotune=RandomSearch --autotune-effort=full --autotune-force --autotune-seed=1
      tries 1000 at random; again with another seed adds others to them

Trials of a search that was killed count when a later run of the kernel has ended. The exit status is 1 where an entry
could not be read or a file was in the way, and 2 where nothing could be done.
"""

_EXAMPLE = """\
example:
  python -m pytest_kerneltune record-spaces spaces --kernel 'softmax*' --least 200
"""


def describe(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLE
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="where to write; made where missing")
    add_directory(parser)
    add("--kernel", nargs="+", metavar="NAME", help="names of kernels, with * and ? (default: all)")
    add("--least", type=at_least(1), metavar="N", default=50, help="trials that make a space (default: %(default)s)")
    add("--force", action="store_true", help="replace files that exist; without it they are left as they are")


def run(options: Namespace) -> int:
    directory = directory_of(options)
    trouble = Trouble()
    found = [entry for _, entry in entries(directory, trouble) if is_wanted(entry, options.kernel, None)]
    if options.kernel and not found:
        raise UsageError(f"the cache {str(directory)!r} holds no kernel {' or '.join(map(repr, options.kernel))}")
    for name, entry in _named(found):
        if len(entry.trials) < options.least:
            say(f"skipped {entry.kernel}: {len(entry.trials)} trials are fewer than --least {options.least}")
            continue
        try:
            print(_write(options.folder, name, entry, options.force))
        except StoreError as error:
            trouble(f"skipped {entry.kernel}: {error}")
    return trouble.end()


def _named(found: Sequence[Entry]) -> list[tuple[str, Entry]]:
    """Each entry with the name of its files, marked where several are of one kernel and device."""
    names = ["_".join(map(_safe, (entry.kernel, entry.device)))[:_LONGEST_NAME] for entry in found]
    times = Counter(name.casefold() for name in names)
    return [
        (name if times[name.casefold()] == 1 else f"{name}_{entry.fingerprint[:_MARK]}", entry)
        for name, entry in zip(names, found, strict=True)
    ]


def _safe(text: str) -> str:
    return re.sub("[^A-Za-z0-9.=+]+", "-", text).strip("-.") or "unnamed"


def _write(folder: Path, name: str, entry: Entry, replace: bool) -> str:
    """Write the entry's files; returns a line on what they hold. Raises StoreError where that is not possible."""
    space, repeats = folder / f"{name}{SUFFIX}", folder / f"{name}{REPEATS_SUFFIX}"
    for path in (space, repeats):
        if path.exists() and not replace:
            raise StoreError(f"{path} exists; --force replaces it")
    try:
        recording = Recording.of(entry.trials)
    except ValueError as error:
        raise StoreError(str(error)) from error
    content = json.dumps(recording.to_json(_facts(name, entry)), separators=(",", ":"), allow_nan=False)
    deviations = recording.deviations()
    if deviations:
        files.write_bytes(repeats, _packed(deviations))
    else:
        files.remove(repeats)
    files.write_bytes(space, gzip.compress(content.encode(), mtime=0))
    found = recording.statistics
    return (
        f"{space}: {found['n']} of {recording.size} combinations of the values tried, {found['failed']} failed, "
        f"{found['best']:.4g} ms at best"
    )


def _facts(name: str, entry: Entry) -> dict[str, Any]:
    last = entry.last
    origin = {key: value for key, value in last.origin.items() if key != "device"}
    return {
        "name": name,
        "split": "",
        "kernel": entry.kernel,
        "gpu": entry.device,
        "source": f"pytest-kerneltune's tuning cache: {last.algorithm} at {last.effort} effort, {last.created}",
        "fingerprint": entry.fingerprint,
        "origin": origin,
    }


def _packed(deviations: Sequence[Sequence[int]]) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, rep=np.array(deviations, dtype=np.int16))
    return buffer.getvalue()
