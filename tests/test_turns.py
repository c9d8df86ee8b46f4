"""Processes that want one device get it in turn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pytest_kerneltune.turns import DeviceTurn


def test_a_free_device_is_taken_and_given_back(tmp_path: Path) -> None:
    first, second = DeviceTurn("GPU-1", tmp_path), DeviceTurn("GPU-1", tmp_path)
    release = first.take()
    assert release is not None
    assert second.take() is None
    release()
    again = second.take()
    assert again is not None
    again()


def test_who_waits_comes_before_who_had_it(tmp_path: Path) -> None:
    first, second, third = (DeviceTurn("GPU-1", tmp_path) for _ in range(3))
    release = first.take()
    assert release is not None
    assert second.take() is None  # in line
    assert third.take() is None
    release()
    assert first.take() is None
    assert third.take() is None
    turn = second.take()
    assert turn is not None
    turn()
    back = first.take()
    assert back is not None
    back()


def test_who_leaves_the_line_holds_nobody_up(tmp_path: Path) -> None:
    first, second = DeviceTurn("GPU-1", tmp_path), DeviceTurn("GPU-1", tmp_path)
    release = first.take()
    assert release is not None
    assert second.take() is None
    second.withdraw()
    release()
    again = first.take()
    assert again is not None
    again()


def test_devices_are_apart(tmp_path: Path) -> None:
    releases = [DeviceTurn(name, tmp_path).take() for name in ("GPU-1", "GPU-2")]
    assert all(releases)
    for release in releases:
        assert release is not None
        release()


def test_who_dies_in_line_holds_nobody_up(tmp_path: Path) -> None:
    turn = DeviceTurn("GPU-1", tmp_path)
    release = turn.take()
    assert release is not None
    program = "from pathlib import Path; from pytest_kerneltune.turns import DeviceTurn; import os, sys; "
    program += "assert DeviceTurn('GPU-1', Path(sys.argv[1])).take() is None; os._exit(0)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    release()
    again = turn.take()
    assert again is not None
    again()
