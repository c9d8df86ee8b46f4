"""What a cache directory holds without reading it, and how it is kept within a limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kerneltune.cache import Entry, Run, document
from pytest_kerneltune.cache.family import Family, Member
from pytest_kerneltune.cache.upkeep import STAMP, is_due, items, trim
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Trial

FAMILY = "fa" * 32
NOW = time.time()
DAY = 86_400.0
AT_ONCE = """
import sys, time
from pathlib import Path
from pytest_kerneltune.cache import upkeep
Path(sys.argv[1], f"ready-{sys.argv[2]}").touch()
while not Path(sys.argv[1], "go").exists():
    time.sleep(0.001)
"""


def fingerprint(number: int) -> str:
    return f"{number:02x}" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    directory = tmp_path / "cache"
    directory.mkdir()
    return directory


def aged(path: Path, days: float) -> Path:
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def written(cache: Path, number: int, days: float, size: int = 10_000) -> Path:
    """An entry of about ``size`` bytes, last used some days ago, and its family's pointer to it."""
    run = Run("RandomSearch", Effort.QUICK, number, True, "2026-01-02T03:04:05+00:00", (Trial({"x": 1}, reason="r"),))
    entry = Entry(fingerprint(number), f"kernel{number}", (run,), {"x": 1}, FAMILY)
    padding = size - len(document.rendered(entry))
    entry = replace(entry, runs=(replace(run, trials=(Trial({"x": 1}, log="l" * padding),)),))
    path = cache / entry.fingerprint[:2] / f"{entry.fingerprint}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(document.rendered(entry))
    Family(cache, FAMILY).add(Member(entry.fingerprint, entry.kernel, ()))
    return aged(path, days)


def beside(path: Path, suffix: str, content: str, days: float) -> Path:
    other = path.with_name(path.stem + suffix)
    other.write_text(content)
    return aged(other, days)


def left(cache: Path) -> list[str]:
    return [item.fingerprint for item in items(cache) if item.entry]


def python(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def all_at_once(code: str, cache: Path, number: int = 4) -> list[str]:
    """What so many processes print that run ``code`` at the same time."""
    gate = cache.parent / f"gate-{time.monotonic_ns()}"
    gate.mkdir()
    processes = [python("-c", AT_ONCE + code, gate, each, cache) for each in range(number)]
    while len(list(gate.iterdir())) < number:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    (gate / "go").touch()
    outputs = [process.communicate(timeout=30)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * number
    return outputs


def test_files_are_counted_by_fingerprint_and_what_is_not_the_caches_is_not(cache: Path, tmp_path: Path) -> None:
    assert list(items(cache / "none")) == []
    path = written(cache, 1, days=5)
    journals = [beside(path, ".trials-0123456789abcdef.jsonl", "{}\n", 3), beside(path, ".trials.jsonl", "{}\n", 4)]
    aside = beside(path, ".json.corrupt-1", "x" * 100, 9)
    alone = beside(cache / "01" / f"01{'cd' * 5}.json", ".trials-0123456789abcdef.jsonl", "{}\n", -30)
    for name in (
        f"{'02' * 32}.json",
        "README.md",
        f"{path.stem}.json.lock",
        f"{path.stem}.trials-xyz.jsonl",
        "01.json",
    ):
        (path.parent / name).write_text("not ours")
    (path.parent / f"{'01' * 20}.json").symlink_to(path)
    (path.parent / f"{'01' * 21}.json").mkdir()
    os.mkfifo(path.parent / f"{'01' * 22}.json")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{'03' * 32}.json").write_text("{}")
    (cache / "03").symlink_to(tmp_path / "elsewhere")
    interrupted, whole = sorted(items(cache), key=lambda item: len(item.journals))
    assert (whole.fingerprint, whole.path, whole.entry) == (fingerprint(1), path, path)
    assert whole.journals == tuple(sorted(journals))
    assert whole.set_aside == (aside,)
    assert (whole.size, whole.removable) == (path.stat().st_size + 6 + 100, path.stat().st_size + 6)
    assert whole.used == pytest.approx(NOW - 3 * DAY)
    assert (interrupted.entry, interrupted.journals, interrupted.size) == (None, (alone,), 3)
    assert NOW <= interrupted.used <= time.time(), "a date in the future is now"
    cache.rename(tmp_path / "file")
    cache.write_text("")
    with pytest.raises(StoreError, match="cannot read"):
        list(items(cache))


def test_the_least_recently_used_go_until_nine_tenths_of_the_limit_are_left(cache: Path) -> None:
    ages = {1: 1.0, 2: 9.0, 3: -50.0, 4: 7.0, 5: 8.0, 6: 6.0}
    paths = {number: written(cache, number, days) for number, days in ages.items()}
    journal = beside(paths[2], ".trials-0123456789abcdef.jsonl", "{}\n", 9)
    assert trim(cache, 70_000).items == 0
    assert len(left(cache)) == 6
    trimmed = trim(cache, 45_000)
    assert left(cache) == [fingerprint(number) for number in (1, 3, 4, 6)]
    assert trimmed.items == 2
    assert trimmed.size == pytest.approx(20_003, abs=500)
    assert not journal.exists()
    pointers = sorted(path.stem for path in (cache / "families" / FAMILY).iterdir())
    assert pointers == left(cache)
    assert not list(cache.rglob("*.lock"))
    trim(cache, 0)
    assert left(cache) == []


def test_what_is_not_understood_tuned_or_not_ours_stays(cache: Path, tmp_path: Path) -> None:
    newer, corrupt, other, tuned, searched = (written(cache, number, days=30) for number in range(1, 6))
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "schema": 99}))
    corrupt.write_text("{" + "x" * 50_000)
    other.write_text(json.dumps({**json.loads(other.read_text()), "fingerprint": "ab" * 32}))
    beside(searched, ".trials-0123456789abcdef.jsonl", "{}\n", 0)  # perhaps of a search without a lease
    kept = [
        *(newer, corrupt, other, tuned, searched),
        aged(beside(searched, ".json.corrupt-3", "x" * 90_000, 99), 99),
        aged(beside(searched, ".orig", "x" * 90_000, 99), 99),
        aged(written(tmp_path / "cache", 6, 1).rename(cache / "06" / "note.json"), 99),
    ]
    for path in (newer, corrupt, other):
        aged(path, 30)
    go = written(cache, 7, days=0)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tuned)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        assert trim(cache, 0).items == 1
        assert [path for path in kept if not path.exists()] == []
        assert not go.exists()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert trim(cache, 0).items == 1, "a dead process tunes nothing"
    assert not tuned.exists()


_HOLDER = """
import sys, time
from pathlib import Path
from pytest_kerneltune.disk import leases
lease = leases.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_pointer_is_not_followed_out_of_the_cache(cache: Path, tmp_path: Path) -> None:
    path, evil = written(cache, 1, days=5), written(cache, 2, days=5)
    (cache / "families" / FAMILY).rename(tmp_path / "outside")
    (cache / "families" / FAMILY).symlink_to(tmp_path / "outside")
    evil.write_text(json.dumps({**json.loads(evil.read_text()), "family": "../../outside"}))
    victims = [tmp_path / "outside" / f"{each.name}" for each in (path, evil)]
    trim(cache, 0)
    assert left(cache) == []
    assert [victim.exists() for victim in victims] == [True, True]


def test_temporary_files_go_when_nobody_can_be_writing_them(cache: Path) -> None:
    written(cache, 1, days=5)
    names = {
        folder: f".kerneltune-{number:016x}.tmp" for number, folder in enumerate((".", "01", f"families/{FAMILY}"))
    }
    stale = [cache / folder / name for folder, name in names.items()]
    fresh = cache / "01" / f".kerneltune-{'f' * 16}.tmp"
    for path in (*stale, fresh):
        path.write_text("12345")
    for path in stale:
        aged(path, 1)
    assert trim(cache, 1 << 30).size == 15
    assert [path.exists() for path in (*stale, fresh)] == [False, False, False, True]
    assert len(left(cache)) == 1


@pytest.mark.parametrize("hours", [None, 2, -5])
def test_one_process_an_hour_has_to_look_after_the_size(cache: Path, hours: float | None) -> None:
    if hours is not None:
        (cache / STAMP).touch()
        aged(cache / STAMP, hours / 24)
    assert sorted(all_at_once("print(upkeep.is_due(Path(sys.argv[3])))", cache)) == ["False"] * 3 + ["True"]
    assert not is_due(cache)
    aged(cache / STAMP, 0.9 / 24)
    assert not is_due(cache)
    aged(cache / STAMP, 1.1 / 24)
    assert is_due(cache)
    assert [path.name for path in cache.iterdir()] == [STAMP]
    assert not is_due(cache / "none")


def test_several_may_trim_at_once(cache: Path) -> None:
    for number in range(1, 41):
        written(cache, number, days=number)
    all_at_once("upkeep.trim(Path(sys.argv[3]), 200_000)", cache)
    kept = left(cache)
    assert 12 <= len(kept) <= 18
    assert kept[:12] == [fingerprint(number) for number in range(1, 13)]
    assert not list(cache.rglob("*.lock"))


def test_files_may_vanish_while_they_are_looked_at(cache: Path) -> None:
    paths = [cache / "ab" / f"ab{number:062x}.json" for number in range(40)]
    paths[0].parent.mkdir()
    is_over = threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            for act in (Path.touch, Path.unlink):
                for path in paths:
                    act(path)

    coming = threading.Thread(target=come_and_go)
    coming.start()
    try:
        found = [len(list(items(cache))) for _ in range(2000)]
    finally:
        is_over.set()
        coming.join()
    assert len(set(found)) > 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_written_to_is_left_alone() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        cache.chmod(0o755)
        paths = [written(cache, number, days=5) for number in (1, 2)]
        paths[1].parent.chmod(0o777)
        code = "import os, sys; from pathlib import Path; from pytest_kerneltune.disk import leases; "
        code += "from pytest_kerneltune.cache import upkeep as u; c = Path(sys.argv[1]); "
        code += "leases.take(c / 'x').release(); os.setuid(65534); print(u.is_due(c), u.trim(c, 0).items)"
        assert python("-c", code, cache).communicate(timeout=30)[0] == "False 1\n"
        assert [path.exists() for path in paths] == [True, False]
