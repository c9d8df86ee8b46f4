"""Shared by all tests: pytest's own test harness, the gpu marker, and Triton without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
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
