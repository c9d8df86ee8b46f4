"""``python -m pytest_kerneltune COMMAND``: what is done outside pytest, with tuning results and with the machine."""

from __future__ import annotations

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
    "compare-searches": (
        "pytest_kerneltune.commands.compare_searches",
        "how fast searches find good configs, on recorded search spaces",
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
    options = parser.parse_args(given)
    try:
        return int(options.run(options))
    except KernelTuneError as error:
        print(f"{parser.prog} {given[0]}: error: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # who reads the output has seen enough; nor may Python flush it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED


if __name__ == "__main__":
    sys.exit(main())
