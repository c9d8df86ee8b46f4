"""The commands of ``python -m pytest_kerneltune``, a module each, and what they are made of.

A command's module has two functions: ``describe(parser)`` gives an argparse parser its help text and arguments,
``run(options)`` carries the command out with the parsed values and returns the exit status. It may raise
KernelTuneError, whose text the user then reads. A command is a row in ``__main__.COMMANDS``.
"""
