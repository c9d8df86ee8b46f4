"""Configs with a tag: which of several programs a config is for, where one kernel is made of several.

A kernel of two versions (``pair.py``), or of one slowed on purpose (``slowed.py``), is a kernel like any other for what
compiles, checks and times: only its configs say more.
"""

from __future__ import annotations

from typing import Any

from pytest_kerneltune.trial import Config

TAG = "@"
"""The name of the tag among a config's parameters, which no parameter of a space has."""


def tagged(config: Config, tag: Any) -> Config:
    """``config`` with ``tag``, a JSON value."""
    return {**config, TAG: tag}


def untagged(config: Config) -> tuple[Config, Any]:
    """A config without its tag, and the tag (None where there is none)."""
    return {name: value for name, value in config.items() if name != TAG}, config.get(TAG)
