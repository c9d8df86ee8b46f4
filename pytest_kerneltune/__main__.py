"""``python -m pytest_kerneltune COMMAND``: what is done outside pytest, with tuning results and with the machine."""

from __future__ import annotations

import errno
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module

from pytest_kerneltune.errors import KernelTuneError

COMMANDS = {
    "doctor": (
        "pytest_kerneltune.commands.doctor",
        "whether this machine can measure, how finely, and what to change",
    ),
    "baselines": (
        "pytest_kerneltune.commands.baselines",
        "list baselines, show their history, merge two branches' and remove those of tests that are gone",
    ),
    "cache": (
        "pytest_kerneltune.commands.cache",
        "list, show, verify, export, import, merge and prune what the tuning cache holds",
    ),
    "compare-searches": (
        "pytest_kerneltune.commands.compare_searches",
        "how fast searches find good configs, on recorded search spaces",
    ),
    "self-test": (
        "pytest_kerneltune.commands.self_test",
        "how far the gate can be trusted on your kernels, on this machine",
    ),
    "record-spaces": (
        "pytest_kerneltune.commands.record_spaces",
        "write what the tuning cache holds as recorded search spaces",
    ),
}
"""A command's module, loaded when it is asked for, and what it does in a line."""

_FAILED = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` (default: the command line's) name; returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = ArgumentParser("python -m pytest_kerneltune", description="Tools around pytest-kerneltune.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=RawDescriptionHelpFormatter)
        if name in given[:1]:
            import_module(module).describe(command)
            command.set_defaults(run=import_module(module).run)
    ours, passed_on = _split(given)
    options = parser.parse_args(ours)
    if passed_on:
        if not hasattr(options, "passed_on"):
            parser.error(f"{given[0]} takes nothing behind --")
        options.passed_on = passed_on
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except KernelTuneError as error:
        print(f"{parser.prog} {given[0]}: error: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # who reads the output has seen enough; nor may Python flush it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        print(f"{parser.prog} {given[0]}: error: cannot write the output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED


def _split(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before a ``--``, and what behind it."""
    end = list(given).index("--") if "--" in given else len(given)
    return list(given[:end]), list(given[end + 1 :])


if __name__ == "__main__":
    sys.exit(main())
