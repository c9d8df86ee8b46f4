"""How far the gate can be trusted on the user's own kernels, on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_kerneltune import files
from pytest_kerneltune.commands.arguments import at_least
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.selftest_summary import SelfTest

SCHEMA = 1
_LEAST_DECISIONS = 5
_DECISIONS = 20

_DESCRIPTION = """\
How far the gate can be trusted on your kernels, on this machine. Runs pytest on PATHS, and lets the gate decide about
every kernel that the tests use: about the kernel beside itself, where a red decision is a false alarm, and about the
kernel beside itself slowed by real work of 2, 3, 5 and 10% (where CPU or wall time is measured by 25 and 100%, too),
where a red one is right. A table says, for each kernel:

  latency, noise   what a launch takes, and how much the ratio of the kernel to itself scatters from block to block
  false alarms     red decisions, and how often there may be one by that number (95% upper bound)
  resampled        the same of decisions put together from the blocks that were measured
  undecided        decisions that the noise did not allow; disturbed: those during which the device was not quiet
  s a decision     wall seconds, in the median and at the most
  safe from        the smallest threshold with which no decision on the unchanged kernel is red, live or resampled, and
                   99% of slowdowns by 1.5 times the threshold are found
  slowed by        how much slower the kernel was in truth, and how many of the decisions were red

The config of a kernel is the best one known (as with --autotune=none). N decisions of each kind take about as long as
5 N measurements of the kernel (7 N where CPU or wall time is measured). The exit status is 0 where every kernel has a
safe threshold that is no larger than its own, else 1, also where a kernel could not be tried, or there was none; and 2
where pytest could not run.
"""

_EXAMPLE = """\
examples:
  python -m pytest_kerneltune self-test tests/perf
  python -m pytest_kerneltune self-test tests/perf --decisions 100 --json trust.json -- -k softmax --perf-threshold=1.5%
"""


def describe(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLE
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATHS", help="what pytest is to run; what stands behind -- are options for it")
    add(
        "--decisions",
        type=at_least(_LEAST_DECISIONS),
        metavar="N",
        default=_DECISIONS,
        help="decisions of each kind a kernel (default: %(default)s)",
    )
    add("--json", type=Path, metavar="PATH", help="write what was found to this file")
    parser.set_defaults(passed_on=[])


def run(options: Namespace) -> int:
    """The exit status; raises KernelError where pytest did not get as far as to report."""
    kernels = _tried([*options.paths, *options.passed_on], options.decisions)
    tests = {name: SelfTest.from_json(found) for name, found in kernels.items() if found}
    if options.json is not None:
        document = {"schema": SCHEMA, "kernels": {name: test.to_json() for name, test in tests.items()}}
        files.write_text(options.json.absolute(), json.dumps(document, indent=1) + "\n")
    if not kernels:
        print("no kernel was tried: do the tests in PATHS use any, and was none of them skipped?", file=sys.stderr)
    elif missing := sorted(kernels.keys() - tests.keys()):
        print(f"not tried, since they could not be measured: {', '.join(missing)}", file=sys.stderr)
    return int(not tests or tests.keys() != kernels.keys() or not all(test.passed for test in tests.values()))


def _tried(arguments: Sequence[str], decisions: int) -> Mapping[str, Mapping[str, Any]]:
    """The self-test of each kernel by its id, as JSON (empty: it has none), made by a pytest of its own."""
    with tempfile.TemporaryDirectory(prefix="kerneltune-") as folder:
        report = Path(folder, "report.json")
        wanted = ["--autotune=none", f"--gate-self-test={decisions}", f"--autotune-json={report}"]
        command = [sys.executable, "-m", "pytest", *wanted, "--missing-baseline=warn", *arguments]
        status = subprocess.run(command).returncode
        if not report.exists():
            raise KernelError(f"pytest ended with status {status} and wrote no report")
        found: Mapping[str, Any] = json.loads(report.read_text())
    return {kernel["id"]: kernel.get("self_test", {}) for kernel in found["kernels"]}
