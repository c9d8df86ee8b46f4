"""Two versions of a kernel on tensors in one memory: each finds its own content there, and answers for its writes."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from pytest_kerneltune import PythonKernel, TritonKernel  # noqa: E402
from pytest_kerneltune.backends.pair import BASE, PairKernel, PairProgram, paired  # noqa: E402
from pytest_kerneltune.backends.tagged import tagged  # noqa: E402
from pytest_kerneltune.backends.tensor_arguments import Comparison  # noqa: E402
from pytest_kerneltune.backends.tensor_program import TensorProgram  # noqa: E402
from pytest_kerneltune.benchmark import Benchmark, Limits  # noqa: E402
from pytest_kerneltune.launcher import Workers  # noqa: E402
from pytest_kerneltune.packing import unpack  # noqa: E402
from pytest_kerneltune.space import ConfigSpace  # noqa: E402
from pytest_kerneltune.station import Station  # noqa: E402
from pytest_kerneltune.trial import Config, Status  # noqa: E402

HERE = sys.modules[__name__]
EXACT = Comparison(None, None, None, one=True)


class Program(TensorProgram):
    """Its configs are keywords of a Python function of the arguments."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any], *others: Any) -> None:
        super().__init__(arguments, *others)
        self.function = function

    def _launcher(self, config: Any, artifact: Any) -> Callable[[], Any]:
        return partial(self.function, *self._arguments, **config)


class OnTensors(PythonKernel):
    """A Program as a kernel that runs in a worker."""

    isolated = True

    def __init__(self, program: Program) -> None:
        super().__init__(program.function)
        object.__setattr__(self, "made", program)

    def packed(self, by_value: Sequence[Any]) -> bytes:
        made: Program = self.made  # type: ignore[attr-defined]
        return made.packed([HERE], {})


def pair_of(today: Program, base: Program) -> Any:
    return unpack(PairKernel(OnTensors(today), OnTensors(base)).packed([HERE]))


def twice(x: Any, y: Any, at: int | None = None, clobber: bool = False, hit: Any = None) -> None:
    y.copy_(x * 2)
    if at is not None:
        ctypes.memset(y.data_ptr() + at, 0, 1)
    if clobber:
        x.zero_()
    if hit is not None:
        hit()


def doubling(start: float = 1.0, n: int = 8, kind: Callable[[Any], Any] = lambda x: x) -> Program:
    x, y = kind(torch.arange(start, start + n)), torch.zeros(n)
    return Program(twice, (x, y), (y,), lambda: x.detach() * 2, EXACT)


def checked(program: PairProgram, config: Config) -> str | None:
    launch = program.prepare(config, None)
    program.reset()
    return program.mismatch(launch())


def base(**config: Any) -> Config:
    return tagged(config, BASE)


@pytest.mark.parametrize("kind", [torch.clone, torch.nn.Parameter, torch.Tensor.requires_grad_])
def test_alike_tensors_share_their_memory_and_keep_their_content(kind: Callable[[Any], Any]) -> None:
    program = pair_of(doubling(1.0, kind=kind), doubling(100.0, kind=kind))
    assert program.shares
    program.expect()
    today, former = program._today, program._base
    assert [t.data_ptr() for t in today._arguments] == [t.data_ptr() for t in former._arguments]
    assert former._outputs[0].data_ptr() == today._outputs[0].data_ptr()
    for config in ({}, base(), {}, {}, base(), base()):
        assert checked(program, config) is None
    program.take_turn({})
    assert today._arguments[0][0] == 1.0
    program.take_turn(base())
    assert today._arguments[0][0] == 100.0
    assert program.restores is False


def test_what_a_reference_alone_uses_and_its_views_are_found_in_place() -> None:
    def version(start: float) -> Program:
        x, y, weight = torch.arange(start, start + 8), torch.zeros(4), torch.full((4,), start)
        head = x[:4]
        return Program(twice_of_head, (x, y), (y,), lambda: head * 2 + weight - weight, EXACT)

    program = pair_of(version(1.0), version(5.0))
    assert program.shares
    program.expect()
    assert [checked(program, config) for config in ({}, base(), {})] == [None] * 3


def twice_of_head(x: Any, y: Any) -> None:
    y.copy_(x[:4] * 2)


def test_equal_first_content_is_kept_once() -> None:
    program = pair_of(doubling(), doubling())
    first, second = program._today._found.first.first, program._base._found.first.first
    assert [content.data_ptr() for content in first.values()] == [content.data_ptr() for content in second.values()]


def test_only_inputs_that_differ_are_written_between_blocks() -> None:
    def version(start: float) -> Program:
        x, same, y = torch.arange(start, start + 8), torch.ones(8), torch.full((8,), start)
        return Program(lambda x, same, y: y.copy_(x * same), (x, same, y), (y,), lambda: x * same, EXACT)

    program = pair_of(version(1.0), version(100.0))
    program.expect()
    assert [checked(program, config) for config in ({}, base())] == [None] * 2
    program.take_turn({})
    x, same, y = program._today._arguments
    same[0], y[0] = 5.0, 5.0  # as no right config would
    program.take_turn(base())
    assert [float(t[0]) for t in (x, same, y)] == [100.0, 5.0, 5.0]
    program.prepare(base(), None)  # whose launch may be wrong
    program.take_turn({})
    assert [float(t[0]) for t in (x, same)] == [1.0, 1.0]


def views(shared: bool, n: int = 8) -> Program:
    buffer = torch.arange(2.0 * n)
    x, y = buffer[:n], buffer[n:] if shared else torch.arange(n, 2.0 * n)
    return Program(twice, (x, y), (y,), lambda: x * 2, EXACT)


@pytest.mark.parametrize(
    ("today", "other"),
    [
        (doubling(), doubling(n=9)),
        (doubling(), Program(twice, (torch.ones(8), torch.ones(8).double()), (), None, EXACT)),
        (doubling(), Program(twice, (torch.ones(8, 2)[:, 0], torch.ones(8)), (), None, EXACT)),
        (doubling(), Program(twice, (torch.ones(8),), (), None, EXACT)),
        (views(shared=True), views(shared=False)),
    ],
    ids=["size", "type", "strides", "count", "aliasing"],
)
def test_tensors_of_other_layouts_keep_their_own_memory(today: Program, other: Program) -> None:
    program = pair_of(today, other)
    assert program.shares is False
    program.expect()
    assert checked(program, {}) is None
    assert not {t.data_ptr() for t in program._today._arguments} & {t.data_ptr() for t in program._base._arguments}


def test_aliased_tensors_stay_aliased_in_shared_memory() -> None:
    program = pair_of(views(shared=True), views(shared=True))
    assert program.shares
    program.expect()
    assert [checked(program, config) for config in (base(), {}, base())] == [None] * 3
    x, y = program._base._arguments
    assert y.data_ptr() - x.data_ptr() == 32


def test_writes_of_the_base_outside_are_its_fault_alone() -> None:
    program = pair_of(doubling(), doubling(100.0))
    program.expect()
    assert checked(program, base(at=32)) == "overwrites memory outside argument 1: 1 bytes from 0 bytes after its end"
    assert [checked(program, config) for config in ({}, base(), {})] == [None] * 3


@pytest.mark.parametrize("victim", ["_today", "_base"])
@pytest.mark.parametrize("kept", ["first", "expected"])
@pytest.mark.parametrize("start", [1.0, 100.0])
def test_what_either_keeps_is_repaired_when_the_base_writes_over_it(victim: str, kept: str, start: float) -> None:
    program = pair_of(doubling(), doubling(start))
    program._base.function = twice  # with this test's program in sight

    def hit() -> None:
        found = getattr(program, victim)._found
        (next(iter(found.first.first.values())) if kept == "first" else found.expected[0])[0] = 77

    program.expect()
    assert checked(program, base(hit=hit)) == "overwrites memory far from its arguments"
    assert [checked(program, config) for config in (base(), {}, base())] == [None] * 3


def test_both_versions_are_restored_where_either_changes_its_inputs() -> None:
    program = pair_of(doubling(), doubling(100.0))
    program.expect()
    assert checked(program, {}) is None
    assert program.restores is False
    assert checked(program, base(clobber=True)) is None
    assert program.restores is True
    program.take_turn({})
    assert program._today._arguments[0][0] == 1.0


def test_each_reference_multiplies_as_precisely_as_in_its_own_process() -> None:
    seen: list[str] = []

    def version(precision: str) -> Any:
        torch.set_float32_matmul_precision(precision)
        return doubling()

    def reference() -> Any:
        seen.append(torch.get_float32_matmul_precision())
        return torch.arange(1.0, 9.0) * 2

    before = torch.get_float32_matmul_precision()
    try:
        packed = [OnTensors(version(precision)).packed([HERE]) for precision in ("high", "highest")]
        program: Any = paired(lambda: unpack(packed[0]), lambda: unpack(packed[1]))
        program._today.reference = program._base.reference = reference
        program.expect()
        assert seen == ["highest", "high"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_station_brings_each_version_its_inputs_before_its_blocks() -> None:
    seen: list[tuple[str, float]] = []

    def looking(name: str) -> Callable[..., None]:
        def launch(x: Any, y: Any) -> None:
            seen.append((name, float(x[0])))
            y.copy_(x * 2)

        return launch

    program = pair_of(doubling(1.0), doubling(100.0))
    program._today.function, program._base.function = looking("today"), looking("base")
    station = Station(program, "wall")
    arms = {"winner": ({}, None), "base": (base(), None)}
    assert set(station.compare(arms, True, 4)) == {"winner", "base", "reference", "calibration"}
    assert set(seen) == {("today", 1.0), ("base", 100.0)}
    assert station.shares_inputs()


@pytest.mark.gpu
def test_triton_versions_run_side_by_side_in_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    from kernels.softmax import softmax_kernel

    def version() -> TritonKernel:
        x = torch.randn(4096, 1500, device="cuda", dtype=torch.float16)
        y = torch.empty_like(x)
        grid, block = (4096,), {"BLOCK": 2048}
        return TritonKernel(softmax_kernel, (x, y, 4096, 1500), grid, y, lambda: torch.softmax(x, -1), kwargs=block)

    config = {"ROWS": 1, "STAGES": 1, "PROGRAMS_PER_SM": 0, "num_warps": 4}
    slow = {**config, "num_warps": 32}
    arms = {"winner": config, "base": tagged(config, BASE), "slow": tagged(slow, BASE)}
    workers = Workers(jobs=2)
    pair = PairKernel(version(), version())
    try:
        bench = Benchmark(pair, ConfigSpace({}), workers, Limits())
        bench.start()
        assert [bench.check(each).status for each in arms.values()] == [Status.OK] * 3
        blocks = bench.compare(arms, True, 8, bench.method(config))
    finally:
        workers.close()
    assert unpack(pair.packed([])).shares
    ratios = {name: median(a / b for a, b in zip(blocks[name], blocks["winner"], strict=True)) for name in arms}
    assert 0.95 < ratios["base"] < 1.05
    assert ratios["slow"] > 1.2
