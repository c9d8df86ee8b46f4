"""Shared by all tests: pytest's own test harness, the gpu marker, Triton without a GPU, and Ctrl-C and time at will."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from pytest_kerneltune.gpu import cuda_available

    if reason := cuda_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def as_soon_as() -> Iterator[Callable[[Callable[[], object], Callable[[], object]], None]]:
    """Does something in a thread, once, when a condition has come true, or after a minute: ``(condition, action)``."""
    is_over = threading.Event()
    threads: list[threading.Thread] = []

    def begin(condition: Callable[[], object], action: Callable[[], object]) -> None:
        def watch() -> None:
            until = time.perf_counter() + 60.0
            while not condition() and time.perf_counter() < until:
                if is_over.wait(0.01):
                    return
            action()

        threads.append(threading.Thread(target=watch))
        threads[-1].start()

    yield begin
    is_over.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def interrupt_when(as_soon_as: Callable[..., None]) -> Callable[[Callable[[], object]], None]:
    """Ctrl-C, as soon as a condition has come true."""
    return lambda condition: as_soon_as(condition, lambda: os.kill(os.getpid(), signal.SIGINT))


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts this process's ``time.monotonic`` forward by so many seconds, so that limits can be ample and yet pass."""
    real, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + sum(ahead))
    return ahead.append


@pytest.fixture(scope="module")
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Triton's cache, empty; where there is no GPU, its driver says that there is an H200."""
    import triton

    from pytest_kerneltune.backends.toolchain import OfflineDriver, Target
    from pytest_kerneltune.gpu import cuda_available

    class OfflineH200(OfflineDriver):
        def get_benchmarker(self) -> None:
            """For @triton.autotune, in older versions."""

    if cuda_available() is not None:
        triton.runtime.driver.set_active(OfflineH200(Target("cuda", 90, 32, shared_bytes=232448)))
    directory = tmp_path_factory.mktemp("triton-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(directory))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns where nothing is said
        with triton.knobs.cache.scope():  # a program that is unpacked in this process sets the directory for good
            yield directory
