"""Entries as JSON Lines and back, and put into another cache."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.cache import Cache, Entry, Finalist, Run, Verification, document
from pytest_kerneltune.cache.exchange import LONGEST_LINE, exported, imported
from pytest_kerneltune.cache.joining import Change, Joining, united
from pytest_kerneltune.cache.store import entry_path, read_entry
from pytest_kerneltune.cache.upkeep import items
from pytest_kerneltune.disk import leases
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Status, Trial

FAMILY = "fa" * 32
ROOT = Path(__file__).parents[1]
IMPORTER = """
import sys
from pathlib import Path
from pytest_kerneltune.cache.exchange import imported
from pytest_kerneltune.cache.joining import Joining
joining = Joining(Path(sys.argv[1]), print, print, 30)
with open(sys.argv[2], "rb") as source:
    print("begun", flush=True)
    for entry in imported(source, print):
        joining.add(entry)
"""


def run(seed: int, **changes: Any) -> Run:
    trials = (
        Trial(
            {"b": 1, "p": (1, 2), "m": None},
            latency_ms=1.0 + seed,
            samples_ms=(1.0, 2.5),
            stage="start",
            at_s=10.0 * seed + 1.5,
        ),
        Trial(
            {"b": 2, "p": (2, 1), "m": "x"},
            Status.CRASH,
            reason="line\none",
            log="\x1b[31m",
            compile_s=0.25,
            at_s=10.0 * seed + 2,
        ),
        Trial(
            {"b": True, "p": (), "m": 0.5},
            latency_ms=3.0,
            demand=0.5,
            usage={"registers": 32},
            measure_s=1,
            at_s=10.0 * seed + 9,
        ),
    )
    made = Run(
        *("RandomSearch", Effort.QUICK, seed, True, f"2026-01-0{seed + 1}T03:04:05+00:00", trials),
        origin={"device": "NVIDIA H200", "host": "0a1b", "torch": "2.9"},
        token=f"{seed:016x}",
    )
    return replace(made, **changes)


def part(seed: int, begin: int, end: int, **changes: Any) -> Run:
    return run(seed, trials=run(seed).trials[begin:end], **changes)


def entry(number: int = 1, runs: Iterable[Run] = (), **changes: Any) -> Entry:
    made = Entry(f"{number:02x}" * 32, f"kernel[n{number}]", tuple(runs) or (run(0),), run(0).trials[0].config, FAMILY)
    verification = Verification("2026-01-02T03:04:06+00:00", True, (Finalist(run(0).trials[0].config, (1.0, 1.25)),))
    return replace(made, **{"inputs": ("float32 [4, 4]", "7"), "verification": verification, **changes})


UNFINISHED = run(1, finished=False, budget_seconds=2.5, budget_configs=9, token="", origin={})
RICH = entry(2, [UNFINISHED, run(2, trials=()), run(0), run(3, effort=Effort.FULL, trials=run(0).trials * 2)])
FAILED = entry(3, [run(0, trials=run(0).trials[1:2])], winner=None, verification=None, inputs=(), family="")
BURIED = entry(4, winner={"b": "of a trial that is no more"}, verification=None)
ALL = [entry(1), RICH, FAILED, BURIED]


def lines(*entries: Entry) -> list[str]:
    return [line for each in entries for line in exported(each)]


def read(text: Sequence[str] | bytes) -> tuple[list[Entry], list[str]]:
    """The entries of some lines, and what was said of others."""
    content = text if isinstance(text, bytes) else "".join(f"{line}\n" for line in text).encode()
    problems: list[str] = []
    return list(imported(io.BytesIO(content), problems.append)), problems


def write(directory: Path, *entries: Entry) -> Path:
    for each in entries:
        path = directory / each.fingerprint[:2] / f"{each.fingerprint}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.rendered(each))
    return directory


def join(directory: Path, *entries: Entry, wait_s: float = 0.0) -> tuple[dict[Change, int], list[str]]:
    """What became of entries put into a cache, and what was said."""
    directory.mkdir(exist_ok=True)
    said: list[str] = []
    joining = Joining(directory, said.append, said.append, wait_s)
    for each in entries:
        joining.add(each)
    return dict(joining.entries), said


def held(directory: Path) -> dict[str, Entry]:
    found = {item.fingerprint: read_entry(item.path, item.fingerprint) for item in items(directory) if item.entry}
    return {fingerprint: each for fingerprint, each in found.items() if each is not None}


def by_fingerprint(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {each.fingerprint: each for each in entries}


def state(directory: Path) -> dict[str, tuple[bytes, int]]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def test_entries_come_back_as_they_were_however_their_lines_lie(tmp_path: Path) -> None:
    text = lines(*ALL)
    assert len(text) == sum(len(each.trials) for each in ALL)
    assert read(text) == (ALL, [])
    shuffled = random.Random(1).sample(text, len(text))
    assert by_fingerprint(read(["", *shuffled, "  "])[0]) == by_fingerprint(ALL)
    rewritten = [json.dumps(dict(reversed(json.loads(line).items())), indent=None) for line in text]
    assert by_fingerprint(read(rewritten)[0]) == by_fingerprint(ALL)
    assert join(tmp_path / "cache", *ALL) == ({Change.ADDED: 4}, [])
    assert held(tmp_path / "cache") == by_fingerprint(ALL)
    cache = Cache(tmp_path / "cache", pytest.fail)
    assert cache.lookup(RICH.fingerprint) == RICH
    assert {each.fingerprint for each in cache.members(FAMILY, _member(BURIED))} == {"01" * 32, "02" * 32}


def _member(each: Entry) -> Any:
    from pytest_kerneltune.cache.family import Member

    return Member(each.fingerprint, each.kernel, each.inputs)


def test_a_line_says_all_that_there_is_to_say_of_a_trial() -> None:
    good, failed, _ = (json.loads(line) for line in lines(entry()))
    assert (good["kernel"], good["device"], good["inputs"]) == ("kernel[n1]", "NVIDIA H200", ["float32 [4, 4]", "7"])
    assert (good["latency_ms"], good["samples_ms"], good["is_winner"]) == (1.0, [1.0, 2.5], True)
    assert (failed["latency_ms"], failed["samples_ms"], failed["is_winner"]) == (None, [], False)
    assert (failed["status"], failed["reason"], failed["log"]) == ("crash", "line\none", "\x1b[31m")
    assert (failed["run"], failed["trial"], failed["token"], failed["seed"]) == (0, 1, "0" * 16, 0)
    assert (failed["algorithm"], failed["effort"], failed["finished"]) == ("RandomSearch", "quick", True)
    assert failed["origin"] == {"device": "NVIDIA H200", "host": "0a1b", "torch": "2.9"}
    assert good.keys() == failed.keys()
    assert all(line.isascii() and line.isprintable() for line in lines(*ALL))


def test_what_is_no_trial_is_named_by_its_line_and_the_rest_is_read() -> None:
    good = json.loads(lines(entry())[0])
    changes: dict[str, dict[str, Any]] = {
        "'fingerprint' is none": {"fingerprint": "../../etc/passwd"},
        "newer pytest-kerneltune": {"format": 2},
        "'family' is none": {"family": "../x"},
        "'token' is": {"token": "../../x"},
        "'inputs' is": {"inputs": "x"},
        "'kernel' is": {"kernel": None},
        "'run' is -1": {"run": -1},
        "'trial' is True": {"trial": True},
        "not a valid Effort": {"effort": "heroic"},
        "'seed' is": {"seed": "1"},
        "Invalid isoformat": {"created": "yesterday"},
        "latency is": {"latency_ms": -1.0},
        "trial is malformed": {"config": 3},
        "'Infinity' for a number": {"at_s": "Infinity"},
        "'origin' holds": {"origin": {"device": 3}},
        "'result' is not": {"result": []},
        "not as it is written": {"result": {"winner": [1]}},
        "'finalists' is missing": {"result": {"winner": None, "verification": {"created": "", "checked": True}}},
    }
    bad = [json.dumps({**good, **change}).encode() for change in changes.values()]
    bad += [b"{", b"\xff\xfe", b"[]", b"3", b'{"a": NaN}', b'{"x": ' * 100, b"[" * 100_000, b"x" * (LONGEST_LINE + 9)]
    whole = "\n".join(lines(entry())).encode()
    two = json.dumps(good).encode()[:-1] + b', "fingerprint": "' + b"ab" * 32 + b'"}'
    entries, problems = read(b"\n".join([*bad, two, whole, whole[:200]]))
    assert by_fingerprint(entries) == by_fingerprint([entry()])
    assert [problem.partition(":")[0] for problem in problems if "longer than" not in problem]
    numbers = sorted(int(problem.partition(":")[0].removeprefix("line ")) for problem in problems)
    assert numbers == [*range(1, len(bad) + 2), len(bad) + 5]
    said = "\n".join(problems)
    assert [text for text in (*changes, "longer than 16 MiB", "two fingerprints", "deep") if text not in said] == []


def test_exports_in_one_file_are_one_cache_and_lines_left_out_are_no_harm(tmp_path: Path) -> None:
    other = entry(1, [run(5, effort=Effort.FULL)], winner={"b": 9}, verification=None)
    entries, problems = read([*lines(entry()), *lines(entry()), *lines(other)])
    assert problems == []
    assert join(tmp_path / "cache", *entries)[0] == {Change.ADDED: 1, Change.UNCHANGED: 1, Change.EXTENDED: 1}
    both = held(tmp_path / "cache")["01" * 32]
    assert (both.runs, both.winner) == ((run(0), run(5, effort=Effort.FULL)), {"b": 9})
    ((partial,), _) = read(lines(entry())[1:])
    assert (partial.winner, len(partial.trials)) == (None, 2)
    ((partial,), _) = read(lines(entry())[:1])
    assert (partial.winner, partial.trials) == (entry().winner, run(0).trials[:1])
    without_result = [json.dumps({**json.loads(line), "result": None}) for line in lines(entry())]
    assert read(without_result)[0] == [replace(entry(), verification=None)]


def test_what_is_known_already_changes_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    join(cache, *ALL)
    before = state(cache)
    parts = [read(lines(each)[:keep])[0][0] for each in ALL for keep in (1, 2)]
    for again in (ALL, read(lines(*ALL))[0], parts):
        assert join(cache, *again)[0].keys() == {Change.UNCHANGED}
    assert state(cache) == before


@pytest.mark.parametrize(
    ("ours", "theirs", "runs"),
    [
        ([run(0)], [run(1)], [run(0), run(1)]),
        ([run(1)], [run(0), run(2)], [run(0), run(1), run(2)]),
        ([part(0, 0, 2)], [run(0)], [run(0)]),
        ([run(0)], [part(0, 0, 2)], [run(0)]),
        ([part(0, 0, 2)], [part(0, 1, 3)], [run(0)]),
        ([part(0, 2, 3, token="")], [part(0, 0, 3, token="")], [run(0, token="")]),
        ([part(0, 0, 2, token="")], [part(0, 2, 3, token="")], [run(0, token="")]),
        ([run(1), run(0, trials=())], [run(0)], [run(1), run(0)]),
        ([part(0, 0, 2, token="", created="")], [part(0, 1, 3, token="", created="")], [0, 1, 2]),
        ([run(0, token="", created="")], [part(0, 1, 3, token="", created="")], [run(0, token="", created="")]),
    ],
)
def test_nothing_that_either_side_knows_is_lost(ours: list[Run], theirs: list[Run], runs: list[Any]) -> None:
    one, other = entry(runs=ours), entry(runs=theirs)
    both = united(one, other)
    assert sorted(map(str, both.trials)) == sorted({str(t) for known in (one, other) for t in known.trials})
    assert list(both.runs) == runs or runs == [0, 1, 2] == [len(both.trials) - 3, len(both.runs) - 1, 2]
    assert united(both, one) == united(both, other) == both
    assert united(replace(one, winner=None, verification=None), other).winner == entry().winner
    assert united(one, replace(other, winner=None, verification=None)).verification == entry().verification


def test_an_entry_that_is_full_takes_the_same_runs_in_once() -> None:
    def runs(year: int, number: int) -> list[Run]:
        return [
            run(minute + 100 * (year - 2025), token=f"{year}{minute:012x}", created=f"{year}-01-01T00:{minute:02}:00")
            for minute in range(number)
        ]

    full, older = entry(runs=runs(2026, 60)), entry(runs=runs(2025, 9))
    both = united(full, older)
    assert len(both.runs) < 69
    assert len(both.trials) == 69 * 3
    assert united(both, older) == united(both, full) == both
    with pytest.raises(ValueError, match="two kernels"):
        united(entry(1), entry(2))


def test_entries_that_cannot_be_joined_are_named_and_stay(tmp_path: Path) -> None:
    cache = write(tmp_path / "cache", *ALL)
    paths = [cache / each.fingerprint[:2] / f"{each.fingerprint}.json" for each in ALL]
    paths[0].write_text(json.dumps({**json.loads(paths[0].read_text()), "schema": 99}))
    paths[1].write_text("{")
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(paths[2])], stdout=subprocess.PIPE, cwd=ROOT)
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        before = [path.read_bytes() for path in (paths[0], paths[2])]
        changes, said = join(cache, *(replace(each, runs=(*each.runs, run(7))) for each in ALL))
        holder.kill()
    assert changes == {Change.REFUSED: 2, Change.ADDED: 1, Change.EXTENDED: 1}
    assert [path.read_bytes() for path in (paths[0], paths[2])] == before
    for part in ("kernel[n1]: the entry of", f"locked by process {holder.pid}", "kept as"):
        assert any(part in each for each in said), said
    assert (paths[1].parent / f"{paths[1].name}.corrupt-1").read_text() == "{"
    assert join(cache, ALL[2], wait_s=5)[0] == {Change.UNCHANGED: 1}
    assert not list(cache.rglob("*.tmp"))


def test_what_wrote_in_place_of_an_import_that_was_stopped_is_not_lost(tmp_path: Path) -> None:
    cache, said = write(tmp_path / "cache", entry(1)), []
    (path,) = cache.rglob("*.json")
    path.write_text("{")

    def stopped_for_long(note: str) -> None:
        said.append(note)
        path.with_name(path.name + ".lock").unlink()
        write(cache, entry(1, [run(1)]))

    joining = Joining(cache, pytest.fail, stopped_for_long, 5)
    joining.add(entry(1, [run(2)]))
    assert held(cache)["01" * 32].runs == (run(1), run(2))
    assert dict(joining.entries) == {Change.EXTENDED: 1}
    assert len(said) == 1


_HOLDER = """
import sys, time
from pathlib import Path
from pytest_kerneltune.disk import leases
lease = leases.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_journals_of_another_cache_come_along_as_far_as_they_hold_something_new(tmp_path: Path) -> None:
    there, here = write(tmp_path / "there", entry(1)), tmp_path / "here"
    here.mkdir()
    (there / "05").mkdir()

    def journal(path: Path, suffix: str, own: Run | None, trials: Sequence[Trial]) -> Path:
        head = [json.dumps({"run": document.run_to_json(own)})] if own else []
        target = path.with_suffix(f".trials{suffix}.jsonl")
        target.write_text("\n".join([*head, *(json.dumps(trial.to_json()) for trial in trials), '{"unfin']))
        return target

    path, alone = there / "01" / f"{'01' * 32}.json", there / "05" / f"{'05' * 32}.json"
    known = journal(path, f"-{run(0).token}", run(0, trials=()), run(0).trials)
    fresh = journal(path, f"-{'ab' * 8}", run(2, trials=(), token="ab" * 8), run(2).trials[:1])
    old = journal(alone, "", None, run(3).trials)
    before = state(there)
    for expected in ({Change.ADDED: 2, Change.UNCHANGED: 1}, {Change.UNCHANGED: 3}):
        joining = Joining(here, pytest.fail, pytest.fail, 0)
        for item in items(there):
            joining.add_item(item)
        assert dict(joining.journals) == expected
    assert not (here / "01" / known.name).exists()
    assert (here / "01" / fresh.name).read_bytes() == fresh.read_bytes()
    assert state(there) == before
    with Cache(here, pytest.fail).flight("05" * 32) as flight:
        assert flight.interrupted == run(3).trials
    with fresh.open("a") as file:
        file.write("\n" + json.dumps(run(2).trials[1].to_json()) + "\n")
    joining = Joining(here, pytest.fail, pytest.fail, 0)
    joining.add_item(next(items(there)))
    assert dict(joining.journals) == {Change.EXTENDED: 1, Change.UNCHANGED: 1}
    with Cache(here, pytest.fail).flight("01" * 32) as flight:
        assert flight.interrupted == run(2).trials[:2]
    assert old.exists()


@pytest.fixture
def many(tmp_path: Path) -> tuple[dict[str, Entry], list[Path]]:
    """Forty entries, and two exports that know different runs of most of them."""
    whole: dict[str, Entry] = {}
    exports = []
    for source in (0, 1):
        entries = [entry(n, [run(source, trials=run(source).trials * 15)]) for n in range(1 + 5 * source, 41)]
        for each in entries:
            known = whole.get(each.fingerprint)
            whole[each.fingerprint] = each if known is None else united(known, each)
        path = tmp_path / f"export{source}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines(*entries)))
        exports.append(path)
    (tmp_path / "cache").mkdir()
    return whole, exports


def start(cache: Path, export: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTER, str(cache), str(export)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_an_import_that_is_killed_does_no_harm_and_may_be_repeated(
    tmp_path: Path, many: tuple[dict[str, Entry], list[Path]]
) -> None:
    cache, (export, _) = tmp_path / "cache", many[1]
    wanted = by_fingerprint(read(export.read_bytes())[0])
    seen = []
    last = entry_path(cache, entry(40).fingerprint)
    last.parent.mkdir()
    for most in (1, 10, 25):
        lease = leases.take(last)  # which keeps the import from its end, however late it is killed
        process = start(cache, export)
        with process:
            while process.poll() is None and len(held(cache)) < most:
                time.sleep(0.001)
            process.kill()
        lease.release()
        for marker in cache.rglob("*.lock"):
            if not marker.read_bytes():  # killed before it could say whose it is: that costs the length of a lease
                marker.unlink()
        known = held(cache)
        seen.append(len(known))
        assert known == {fingerprint: wanted[fingerprint] for fingerprint in known}
    assert 0 < seen[0] < 40
    with start(cache, export) as process:
        assert process.communicate(timeout=60)[0] == ""
    assert held(cache) == wanted


def test_two_imports_at_once_lose_nothing(tmp_path: Path, many: tuple[dict[str, Entry], list[Path]]) -> None:
    whole, exports = many
    processes = [start(tmp_path / "cache", export) for export in (*exports, *exports)]
    for process in processes:
        said = process.communicate(timeout=60)[0].splitlines()
        assert [line for line in said if "waiting for" not in line] == []
    assert {f: sorted(r.token for r in e.runs) for f, e in held(tmp_path / "cache").items()} == {
        fingerprint: sorted(r.token for r in each.runs) for fingerprint, each in whole.items()
    }
    assert held(tmp_path / "cache") == whole
    assert not list((tmp_path / "cache").rglob("*.lock"))
