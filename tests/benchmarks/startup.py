"""What the installed, unused plugin adds to pytest's start: ``python -m tests.benchmarks.startup [RUNS]``.

Runs pytest on one empty test with the plugin and with ``-p no:kerneltune`` in turn, and prints CPU ms (user and system)
of both, and which heavy modules the run with the plugin imported.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HEAVY = ("torch", "triton", "sklearn", "httpx", "numpy", "filelock", "cloudpickle")


def cpu_ms(command: list[str], folder: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main(runs: int) -> None:
    # Without the plugins that happen to be installed besides: they would only add to both sides and to the noise.
    base = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    with_plugin, without = [*base, "test_empty.py"], [*base, "-p", "no:kerneltune", "test_empty.py"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_empty.py").write_text("def test_empty():\n    pass\n")
        cpu_ms(with_plugin, folder), cpu_ms(without, folder)
        pairs = [(cpu_ms(with_plugin, folder), cpu_ms(without, folder)) for _ in range(runs)]
        (folder / "test_empty.py").write_text(
            f"import sys\n\ndef test_empty():\n    print('imported:', [m for m in {HEAVY!r} if m in sys.modules])\n"
        )
        shown = subprocess.run([*with_plugin, "-s"], cwd=folder, capture_output=True, text=True, check=True).stdout
    mine, theirs = zip(*pairs, strict=True)
    for label, values in (("with", mine), ("without", theirs)):
        print(f"{label:8} CPU ms: least {min(values):.0f}, median {statistics.median(values):.0f}")  # noqa: T201
    added = statistics.median(a - b for a, b in pairs)
    print(f"added: median of pairs {added:.0f} ms, least minus least {min(mine) - min(theirs):.0f} ms")  # noqa: T201
    print(next(line for line in shown.splitlines() if "imported:" in line))  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
