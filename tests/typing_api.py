"""The public API as users write it: type-checked with mypy --strict, never run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pytest

from pytest_kerneltune import (
    CKernel,
    PythonKernel,
    TritonKernel,
    TunedKernel,
    TuneResult,
    boolean,
    choice,
    integer,
    list_of,
    permutation,
    power_of_two,
    tunable,
    tune,
)


@tunable(space={"n": integer(1, 4)})
def plain_callable() -> Any:
    return lambda n: sum(range(n))


@tunable(
    space={"n": integer(1, 4)},
    where=lambda config: config["n"] != 3,
    threshold="5%",
    configs=[{"n": 2}],
    scope="module",
    params=[1, 2],
    ids=lambda value: f"v{value}",
    name="renamed",
)
def python_kernel(request: pytest.FixtureRequest) -> PythonKernel:
    return PythonKernel(lambda n: n * request.param, reference=lambda: 2, setup=lambda: None, device="cpu", rtol=1e-3)


@tunable(
    space={
        "METHOD": choice("DIRECT", "TILED", default="TILED"),
        "PACK": boolean(default=True),
        "UNROLL": integer(1, 8, default=4),
        "TILE": power_of_two(8, 128, default=32),
        "ORDER": permutation(3, default=(0, 2, 1)),
        "STEPS": list_of(power_of_two(1, 8), 2, default=(1, 2), when={"METHOD": "TILED", "UNROLL": (4, 8)}),
    },
    threshold=0.05,
)
def c_kernel(tmp_path: Path) -> CKernel:
    x = np.zeros(16, dtype=np.float32)
    return CKernel(
        tmp_path / "kernel.c",
        "kernel",
        args=(x, 16, 0.5),
        output=x,
        reference=lambda: x,
        flags=["-O2"],
        compiler="gcc",
        returns=int,
        clock="wall",
        check=lambda actual, expected: bool((actual == expected).all()),
    )


@tunable(space={"BLOCK": power_of_two(16, 64), "num_warps": power_of_two(1, 8)})
def triton_kernel(function: Any, tensor: Any) -> TritonKernel:
    def grid(config: Mapping[str, Any]) -> tuple[int]:
        return (-(-tensor.numel() // int(config["BLOCK"])),)

    return TritonKernel(function, args=(tensor, 16), grid=grid, output=[tensor], reference=tensor.clone, atol=1e-2)


@pytest.mark.kerneltune(threshold="5%", missing_baseline="warn")
def a_test(plain_callable: TunedKernel) -> None:
    plain_callable()
    assert_type(plain_callable.config, Mapping[str, Any] | None)
    assert_type(plain_callable.latency_ms, float | None)
    assert_type(plain_callable.reference_latency_ms, float | None)
    assert_type(plain_callable.speedup, float | None)
    assert_type(plain_callable.verdict, str)
    if plain_callable.latency_ms is not None and plain_callable.reference_latency_ms is not None:
        assert plain_callable.latency_ms < 1.1 * plain_callable.reference_latency_ms
    for trial in plain_callable.trials:
        assert_type(trial.config, Mapping[str, Any])


def without_pytest(folder: Path) -> float:
    result = tune(
        lambda n: sum(range(n)),
        space={"n": integer(1, 4)},
        where=lambda config: config["n"] > 1,
        algorithm="RandomSearch",
        effort="quick",
        budget=10,
        seed=1,
        configs=[{"n": 2}],
        cache=folder,
        force=True,
        name="sum",
    )
    assert_type(result, TuneResult)
    assert_type(result.config, Mapping[str, Any])
    assert_type(result.speedup, float | None)
    return result.latency_ms
