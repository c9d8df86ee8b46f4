"""Whether the cache stays right while processes that use it are killed: prints counts, and exits 1 on a violation.

    python -m tests.benchmarks.stress_cache [--processes 16] [--fingerprints 20] [--seconds 60] [--hosts 1|2] [--stop]
                                            [--full-disk | --remove] [--lease S] [--seed N] [--directory DIR]

Each process looks up one fingerprint after another, asks for more trials of it the longer the run lasts, and makes them
when its turn has come. Random processes are killed and replaced. With ``--stop`` some are stopped for longer than a
lease and then continued; with ``--hosts 2`` every other process believes itself on another host, so that the ones here
see only by its lease that it is dead (needs root); with ``--full-disk`` the cache is on a file system of 256 KiB (needs
root), with ``--remove`` the directory is deleted now and then: the trials of those two modes may be lost, but nothing
may fail or be wrong. ``stress_ledger`` says what is checked.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random

from pytest_kerneltune.cache import Cache
from pytest_kerneltune.cache.document import parsed
from tests.benchmarks.stress_ledger import Judgement, Ledger, Limits, read
from tests.benchmarks.stress_worker import WAIT_S, Stress, Worker

_KILL_EVERY_S = 0.15
_STOP_EVERY_S = 1.0
_REMOVE_EVERY_S = 5.0
_GRACE_S = 20.0
_CLONE_NEWUTS, _CLONE_NEWNS = 0x04000000, 0x00020000
_FULL_AT = "256k"


def _started(stress: Stress, who: int) -> int:
    """The id of a new process at work."""
    if pid := os.fork():
        return pid
    try:
        if stress.hosts == 2 and who % 2:
            _unshare(_CLONE_NEWUTS)
            socket.sethostname("the-other-host")
        Worker(stress, who).work()
    except BaseException:
        Ledger(stress.ledger, who).write("fails", text=traceback.format_exc())
        os._exit(1)
    os._exit(0)


def _unshare(what: int) -> None:
    """Give this process a namespace of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(what):
        raise OSError(ctypes.get_errno(), "no namespace of one's own: this needs root")


class Watcher:
    """Starts the processes, kills, stops and replaces them, and waits for their end."""

    def __init__(self, stress: Stress, processes: int) -> None:
        self._stress, self._processes = stress, processes
        self._random = Random(stress.seed)
        self._running: dict[int, int] = {}  # number to process id
        self._stopped: dict[int, float] = {}  # number to when it may go on
        self._started = 0

    def watch(self, acts: Mapping[Callable[[], None], float]) -> None:
        """Do each of ``acts`` about every so many seconds until the end."""
        due = {act: time.monotonic() + self._pause(every) for act, every in acts.items()}
        while (now := time.monotonic()) < self._stress.end:
            self._replenish()
            self._continue(now)
            for act, at in due.items():
                if now >= at:
                    act()
                    due[act] = now + self._pause(acts[act])
            time.sleep(0.01)
        self._finish()

    def kill(self) -> None:
        """End one process at whatever it does."""
        if able := sorted(self._running.keys() - self._stopped.keys()):
            self._end(self._random.choice(able))

    def stop(self) -> None:
        """Stop one process for longer than a lease."""
        if able := sorted(self._running.keys() - self._stopped.keys()):
            who = self._random.choice(able)
            Ledger(self._stress.ledger, who).write("stops")
            os.kill(self._running[who], signal.SIGSTOP)
            self._stopped[who] = time.monotonic() + 1.5 * self._stress.lease_s

    def remove(self) -> None:
        """Delete the cache, as somebody who needs the space."""
        shutil.rmtree(self._stress.directory, ignore_errors=True)

    def _pause(self, every_s: float) -> float:
        return self._random.expovariate(1 / every_s)

    def _replenish(self) -> None:
        self._reap()
        while len(self._running) < self._processes:
            self._running[self._started] = _started(self._stress, self._started)
            self._started += 1

    def _reap(self) -> None:
        for who, pid in list(self._running.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._running[who]

    def _continue(self, now: float) -> None:
        for who in [who for who, at in self._stopped.items() if at <= now]:
            os.kill(self._running[who], signal.SIGCONT)
            Ledger(self._stress.ledger, who).write("continues")
            del self._stopped[who]

    def _end(self, who: int) -> None:
        """Kill a process; it counts as at work until it is gone, so that none seems to have come after it too soon."""
        pid = self._running.pop(who)
        at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        Ledger(self._stress.ledger, who).write("kills", at=at)

    def _finish(self) -> None:
        self._continue(float("inf"))
        give_up = time.monotonic() + WAIT_S + _GRACE_S
        while self._running and time.monotonic() < give_up:
            self._reap()
            time.sleep(0.01)
        for who in list(self._running):
            Ledger(self._stress.ledger, who).write("fails", text="did not come to its end")
            self._end(who)


def _found(stress: Stress, warn: Callable[[str], None]) -> dict[str, list[str]]:
    """The names of the trials in the cache, of entries and of searches that were killed, as the next one finds them."""
    cache = Cache(stress.directory, warn, lease_s=stress.lease_s, wait_s=WAIT_S)
    found = {}
    for fingerprint in stress.fingerprints:
        with cache.flight(fingerprint) as flight:
            known = [*(flight.entry.trials if flight.entry else ()), *flight.interrupted]
        found[fingerprint] = [trial.config["name"] for trial in known]
    return found


def _corrupt(directory: Path) -> Iterator[str]:
    """What is no whole entry, and what was set aside as such."""
    for path in directory.glob("??/*.json"):
        try:
            parsed(path.read_bytes())
        except ValueError as error:
            yield f"{path.name} is corrupt: {error}"
    yield from (f"{path.name} was set aside" for path in directory.glob("**/*.corrupt*"))


def _left(directory: Path) -> str:
    """How many files of which kind there are."""
    names = [path.name for path in directory.glob("??/*")]
    kinds = {"entries": ".json", "journals": ".jsonl", "leases": ".lock", "temporary files": ".tmp"}
    return ", ".join(f"{sum(name.endswith(end) for name in names)} {kind}" for kind, end in kinds.items())


@contextmanager
def _place(options: argparse.Namespace) -> Iterator[Path]:
    """A directory to be in; with ``--full-disk`` the cache in it is on a small file system, seen by us alone."""
    if options.directory:
        options.directory.mkdir(parents=True)
        yield options.directory
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        if options.full_disk:
            _unshare(_CLONE_NEWNS)
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            disk = Path(name, "disk")
            disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_FULL_AT}", "none", disk], check=True)
        yield Path(name)
        if options.full_disk:
            subprocess.run(["umount", disk], check=True)


def main(options: argparse.Namespace) -> int:
    with _place(options) as place:
        start = time.monotonic()
        random = Random(options.seed)
        stress = Stress(
            directory=place / ("disk" if options.full_disk else "") / "cache",
            ledger=place / "ledger.jsonl",
            fingerprints=tuple(f"{random.getrandbits(256):064x}" for _ in range(options.fingerprints)),
            lease_s=options.lease,
            hosts=options.hosts,
            seed=options.seed,
            start=start,
            end=start + options.seconds,
        )
        watcher = Watcher(stress, options.processes)
        acts = {watcher.kill: _KILL_EVERY_S}
        if options.stop:
            acts[watcher.stop] = _STOP_EVERY_S
        if options.remove:
            acts[watcher.remove] = _REMOVE_EVERY_S
        watcher.watch(acts)
        return _report(stress, Limits(WAIT_S + 1, loses=options.full_disk or options.remove))


def _report(stress: Stress, limits: Limits) -> int:
    """Print what happened; 1 if anything was wrong."""
    left = _left(stress.directory)
    warned: list[str] = []
    found = _found(stress, warned.append)
    judgement = Judgement(read(stress.ledger), found, limits)
    violations = [*judgement.violations, *_corrupt(stress.directory)]
    if not limits.loses:
        violations += warned
    lines = [f"{number:8,} {name}" for name, number in judgement.counts.items()]
    lines += [f"{judgement.longest_wait_s:8.2f} s the longest wait", f"left behind: {left}"]
    lines += [f"warned {number} times: {text}" for text, number in judgement.warnings.most_common(8)]
    lines += [f"VIOLATION: {each}" for each in violations] or ["no violation"]
    sys.stdout.write("\n".join([*lines, ""]))
    return 1 if violations else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="whether the cache stays right while its users are killed")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--fingerprints", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--hosts", type=int, choices=(1, 2), default=1)
    parser.add_argument("--stop", action="store_true", help="stop some processes for longer than a lease")
    parser.add_argument("--lease", type=float, default=2.0, help="seconds without a sign of life that end a lease")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="a new directory to work in, which is kept")
    lossy = parser.add_mutually_exclusive_group()
    lossy.add_argument("--full-disk", action="store_true", help="a file system that is too small")
    lossy.add_argument("--remove", action="store_true", help="delete the cache now and then")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(_options()))
