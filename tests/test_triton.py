"""Triton kernels: compiled without a GPU, found in the cache by the launch, checked by their programs."""
# JIT functions have no types that Python knows, and name constants in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402 - after the skip

from pytest_kerneltune.backends import Kernel  # noqa: E402
from pytest_kerneltune.backends.jit_source import jit_reducers  # noqa: E402
from pytest_kerneltune.backends.tensor_arguments import Comparison  # noqa: E402
from pytest_kerneltune.backends.tensor_packing import TensorReducer  # noqa: E402
from pytest_kerneltune.backends.tensors import mismatch  # noqa: E402
from pytest_kerneltune.backends.toolchain import current_target  # noqa: E402
from pytest_kerneltune.backends.triton import TritonKernel, TritonProgram  # noqa: E402
from pytest_kerneltune.errors import KernelError, RemoteError, UsageError  # noqa: E402
from pytest_kerneltune.gpu import cuda_available  # noqa: E402
from pytest_kerneltune.launcher import RemoteLauncher  # noqa: E402
from pytest_kerneltune.packing import pack, unpack  # noqa: E402
from pytest_kerneltune.parameter import integer  # noqa: E402
from pytest_kerneltune.space import ConfigSpace  # noqa: E402
from pytest_kerneltune.worker import Service, Worker  # noqa: E402
from pytest_kerneltune.workload import Workload  # noqa: E402

LIMIT_S = 120.0
HERE = sys.modules[__name__]
SCALE = tl.constexpr(2.0)


@triton.jit
def scaled(x, BIAS: tl.constexpr):
    return x * SCALE + BIAS


@triton.jit
def affine(x_ptr, y_ptr, n, BLOCK: tl.constexpr, BIAS: tl.constexpr = 0):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n)
    tl.store(y_ptr + offsets, scaled(x, BIAS), mask=offsets < n)


@triton.jit
def stray(x_ptr, y_ptr, FAR: tl.constexpr):
    tl.store(y_ptr + FAR, tl.load(x_ptr))


@triton.jit
def affine_in_parts(x_ptr, y_ptr, counts_ptr, n, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n)
    if PARTS == 1:
        tl.store(y_ptr + offsets, x * 2, mask=offsets < n)
    else:
        tl.atomic_add(y_ptr + offsets, x * 2 / PARTS, mask=offsets < n)
        tl.atomic_add(counts_ptr, 1)


@triton.jit
def tile_by_descriptors(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    source = tl.make_tensor_descriptor(x_ptr, [n, n], [n, 1], [BLOCK, BLOCK])
    target = tl.make_tensor_descriptor(y_ptr, [n, n], [n, 1], [BLOCK, BLOCK])
    row, column = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK
    target.store([row, column], source.load([row, column]))


@pytest.fixture(scope="module", autouse=True)
def cache(triton_cache: Path) -> Path:
    return triton_cache


@pytest.fixture(scope="module")
def compiler() -> Iterator[Worker]:
    worker = Worker({"CUDA_VISIBLE_DEVICES": ""}, keep=8)
    yield worker
    worker.close()


def device() -> str:
    return "cpu" if cuda_available() else "cuda"


PROGRAMS = 64


def affine_kernel(n: int = 1000, **options: Any) -> TritonKernel:
    x = torch.arange(n, dtype=torch.float32, device=device())
    y = torch.zeros_like(x)
    return TritonKernel(
        affine, (x, y, n), lambda c: (triton.cdiv(n, c["BLOCK"]),), output=y, reference=lambda: x * 2, **options
    )


def compiled(worker: Worker, kernel: TritonKernel, config: dict[str, Any]) -> Any:
    task = kernel.compile_task(config)
    reply = worker.call(Service(task.target, task.target_args), task.method, *task.args, timeout=LIMIT_S)
    return reply.unwrap().artifact


def cubins(cache: Path) -> set[Path]:
    return set(cache.rglob("*.cubin")) | set(cache.rglob("*.hsaco"))


# Travelling to another process


def written_module(tmp_path: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


ODD_MODULE = """
import triton
from triton.language import arange, constexpr, load, program_id, store

WIDTH = constexpr(32)

@triton.jit
def doubled(x):
    return x + x

@triton.jit(noinline=True)
def own(index):
    return index + 0

@triton.autotune(configs=[triton.Config({"BLOCK": 32}), triton.Config({"BLOCK": 64})], key=["n"])
@triton.heuristics({"EVEN": lambda a: a["n"] % a["BLOCK"] == 0})
@triton.jit(do_not_specialize=["n"])
def kernel(x, y, n, BLOCK: constexpr, EVEN: constexpr):
    width: constexpr = WIDTH
    i = own(program_id(0)) * BLOCK + arange(0, BLOCK)
    if EVEN:
        store(y + i, doubled(load(x + i)) + width)
    else:
        store(y + i, doubled(load(x + i, mask=i < n)) + width, mask=i < n)
"""


@pytest.mark.filterwarnings("ignore:the @triton.autotune:UserWarning")
def test_a_kernel_travels_by_value_from_a_module_that_no_other_process_finds(
    compiler: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = written_module(tmp_path, "odd_kernels", ODD_MODULE, monkeypatch)
    x = torch.zeros(128, device=device())
    kernel = TritonKernel(module.kernel, (x, x, 128), lambda c: (128 // c["BLOCK"],))
    (tmp_path / "odd_kernels.py").unlink()
    artifact = compiled(compiler, kernel, {"BLOCK": 32})
    assert artifact["keywords"] == {"BLOCK": 32, "EVEN": True}
    assert artifact["grid"] == (4,)
    assert kernel.compile_task({"BLOCK": 256}).args[0]["EVEN"] is False
    inner = module.kernel.fn.fn
    assert artifact["hash"] == inner.run(x, x, 128, BLOCK=32, EVEN=True, grid=(4,), warmup=True).hash


def test_options_and_source_survive_travelling_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = written_module(tmp_path, "odd_kernels", ODD_MODULE, monkeypatch)
    inner = module.kernel.fn.fn
    copy = unpack(pack(inner, (), jit_reducers(lambda _: False)))
    assert copy is not inner
    assert copy.do_not_specialize == ["n"]
    assert copy.fn.__globals__["own"].noinline is True
    assert copy.cache_key == inner.cache_key
    path = tmp_path / "odd_kernels.py"
    path.write_text("# edited meanwhile\n" * 40)
    edited = unpack(pack(inner, (), jit_reducers(lambda _: False)))
    assert edited.cache_key == inner.cache_key
    assert edited.starting_line_number == inner.starting_line_number


def test_a_global_that_shares_its_name_with_a_local_stays_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ODD_MODULE.replace("WIDTH =", "x = y = i = [].append\nunpicklable = (frame for frame in ())\nWIDTH =")
    module = written_module(tmp_path, "odd_kernels", text, monkeypatch)
    copy = unpack(pack(module.kernel.fn.fn, (), jit_reducers(lambda _: False)))
    assert {"WIDTH", "constexpr", "own"} <= set(copy.fn.__globals__)
    assert not {"x", "y", "i", "unpicklable"} & set(copy.fn.__globals__)


def test_an_importable_kernel_travels_as_its_name() -> None:
    assert unpack(pack(affine, (), jit_reducers(lambda _: True))) is affine


def test_tensors_that_share_memory_share_it_after_the_journey() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    view = x[1:, ::2]
    args, part, total = unpack(pack(([x, x], view, lambda: x.sum()), (), {torch.Tensor: TensorReducer()}))
    assert args[0] is args[1]
    assert part.stride() == view.stride()
    assert torch.equal(part, view)
    args[0].zero_()
    assert part.sum() == 0
    assert total() == 0


# What the user wrote


def test_a_triton_kernel_is_a_kernel() -> None:
    kernel = affine_kernel()
    assert isinstance(kernel, Kernel)
    assert (kernel.kind, kernel.clock, kernel.isolated) == ("triton", "cuda", True)


def test_the_description_names_arguments_and_fixed_settings() -> None:
    x = torch.zeros(4, 3, dtype=torch.float16, device=device())
    kernel = TritonKernel(affine, (x, x.flatten()[1:], 12), (4, 2), kwargs={"BIAS": 1})
    described = kernel.describe()
    assert described.functions == (affine,)
    assert described.inputs == (
        "arg 0 x_ptr: float16[4, 3], strides (3, 1), 16-byte aligned",
        "arg 1 y_ptr: float16[11], strides (1,)",
        "arg 2 n: int 12",
    )
    assert described.facts == ("BIAS: int 1", "grid: (4, 2)")


def test_the_description_of_a_tensor_descriptor_does_not_depend_on_content() -> None:
    descriptors = pytest.importorskip("triton.tools.tensor_descriptor", reason="this Triton has no tensor descriptors")
    tiles = [descriptors.TensorDescriptor(t, [4, 16], [16, 1], [2, 16]) for t in (torch.zeros(64), torch.ones(64))]
    first, other = (TritonKernel(affine, (tile,), (1,)).describe().inputs for tile in tiles)
    assert first == other
    assert "float32[64], strides (1,)" in first[0]
    assert "block_shape: (int 2, int 16)" in first[0]


def test_a_function_among_the_arguments_is_part_of_the_kernel() -> None:
    kernel = TritonKernel(affine, (1, (scaled,)), (1,), kwargs={"BIAS": len, "BLOCK": math.dist, "n": device})
    described = kernel.describe()
    assert described.functions == (affine, scaled, device)
    assert described.inputs[1] == "arg 1 y_ptr: (JITFunction scaled)"
    assert "n: function device" in described.facts


def test_a_model_is_shown_the_grid_which_makes_another_kernel() -> None:
    def blocks(config: Any) -> tuple[int]:
        return (PROGRAMS // config["BLOCK"],)

    x = torch.zeros(16, device=device())
    made = (TritonKernel(affine, (x, x, 16), grid) for grid in (blocks, lambda _: (1,)))
    first, other = (Workload("affine", "test_it.py", kernel, ConfigSpace({"BLOCK": integer(1, 8)})) for kernel in made)
    source = first.subject([], send_source=True).source
    assert source.startswith("@triton.jit\ndef affine(")
    assert "return (PROGRAMS // config" in source
    assert "PROGRAMS = 64" in source
    assert first.fingerprint != other.fingerprint


def in_gpu_worker(kernel: TritonKernel, statement: str) -> list[str]:
    """What ``statement`` prints in a process that has unpacked ``kernel``."""
    program = "import sys; from pytest_kerneltune.packing import unpack; unpack(sys.stdin.buffer.read());"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": "elsewhere"}
    command = [sys.executable, "-c", program + statement]
    done = subprocess.run(command, input=kernel.packed([]), env=env, capture_output=True, check=True)
    return done.stdout.decode().split()


@pytest.mark.skipif(not hasattr(triton, "knobs"), reason="before Triton 3.4 processes inherit the directory")
def test_the_cache_directory_reaches_the_gpu_worker(cache: Path) -> None:
    assert in_gpu_worker(affine_kernel(), "import triton; print(triton.knobs.cache.dir)") == [str(cache)]


@pytest.mark.skipif(not hasattr(triton, "knobs"), reason="before Triton 3.4 the allocator is no context variable")
def test_kernels_that_ask_for_memory_are_given_it_in_the_gpu_worker() -> None:
    statement = "from triton.runtime._allocation import _allocator; memory = _allocator.get()(100, 16, None);"
    statement += "print(memory.nbytes, memory.device.type)"
    assert in_gpu_worker(affine_kernel(), statement) == ["100", device()]


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("fn", {"fn": lambda x: x}),
        ("args", {"args": "x"}),
        ("args", {"args": (torch.zeros(4).numpy(),)}),
        ("args", {"args": (torch.zeros(4),) * 6}),
        ("kwargs", {"kwargs": [1]}),
        ("grid", {"grid": (1, 2, 3, 4)}),
        ("grid", {"grid": "4"}),
        ("output", {"output": torch.zeros(3)}),
        ("output", {"output": 3}),
        ("reference", {"reference": 3}),
        ("reference", {"reference": lambda: 0}),
        ("rtol", {"rtol": -1.0}),
        ("atol", {"atol": math.nan}),
        ("check", {"check": True}),
        ("check", {"check": lambda *_: True}),
    ],
)
def test_a_wrong_argument_is_named(argument: str, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"TritonKernel\({argument}="):
        TritonKernel(**{"fn": affine, "args": (torch.zeros(4),), "grid": (1,), **change})


def test_a_grid_that_reads_an_unknown_parameter_is_a_usage_error() -> None:
    kernel = TritonKernel(affine, (torch.zeros(4), torch.zeros(4), 4), lambda given: (given["TILE"],))
    with pytest.raises(UsageError, match=r"grid=...\) reads 'TILE', which is not among what it is given: .*BLOCK"):
        kernel.compile_task({"BLOCK": 64})


def test_a_grid_knows_all_that_the_kernel_is_given() -> None:
    x = torch.zeros(4096, device=device())
    kernel = TritonKernel(affine, (x, x, 4096), lambda given: (given["n"] // given["BLOCK"], given["BIAS"] + 1))
    assert kernel.compile_task({"BLOCK": 64}).args[1] == (64, 1)
    assert kernel.compile_task({"BLOCK": 64, "BIAS": 2}).args[1] == (64, 3)


def test_a_config_for_which_there_is_no_grid_cannot_be_launched() -> None:
    def whole_blocks(config: Any) -> tuple[int]:
        assert 1000 % config["BLOCK"] == 0, "blocks must be whole"
        return (1000 // config["BLOCK"],)

    x = torch.zeros(1000, device=device())
    kernel = TritonKernel(affine, (x, x, 1000), whole_blocks)
    assert kernel.compile_task({"BLOCK": 8}).args[1] == (125,)
    with pytest.raises(KernelError, match=r"grid=...\) raised AssertionError: blocks must be whole"):
        kernel.compile_task({"BLOCK": 64})


def test_a_heuristic_that_reads_an_unknown_name_is_a_usage_error() -> None:
    guided = triton.heuristics({"BIAS": lambda given: given["m"]})(affine)
    with pytest.raises(UsageError, match="the heuristic of BIAS reads 'm'"):
        TritonKernel(guided, (torch.zeros(4), torch.zeros(4), 4), (1,)).compile_task({"BLOCK": 64})


@pytest.mark.parametrize(
    ("keywords", "config", "text"),
    [
        ({"BIAS": 1}, {"BLOCK": 64, "BIAS": 2}, "fixes BIAS, which the space tunes"),
        ({}, {"BLOCK": 64, "n": 2}, "fixes n, which the space tunes"),
        ({}, {"num_warps": 4}, "affine needs BLOCK: give it in"),
    ],
)
def test_every_parameter_is_given_once(keywords: dict[str, Any], config: dict[str, Any], text: str) -> None:
    kernel = TritonKernel(affine, (torch.zeros(4), torch.zeros(4), 4), (1,), kwargs=keywords)
    with pytest.raises(UsageError, match=text):
        kernel.compile_task(config)


def test_triton_s_own_autotuning_is_taken_off_with_a_warning() -> None:
    tuned = triton.autotune(configs=[triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 32})], key=["n"])(affine)
    with pytest.warns(UserWarning, match=r"pass affine\.fn"):
        assert TritonKernel(tuned, (torch.zeros(4),), (1,)).fn is affine


# Programs, on the CPU with Python functions in the place of compiled kernels


class _Launcher:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return self._function


def fill(x: Any, y: Any, part: int = 4) -> None:
    y[:part] = x[:part] * 2


def accumulate(x: Any, y: Any) -> None:
    y += x


def overwrite_inputs(x: Any, y: Any) -> None:
    y.copy_(x * 2)
    x.zero_()


def program(function: Callable[..., Any], y: Any, expected: Any) -> TritonProgram:
    x = torch.arange(1.0, 5.0)
    compare = Comparison(None, None, None, one=True)
    return TritonProgram(_Launcher(function), (x, y), {}, (y,), lambda: expected(x, y), compare)


def checked(tested: TritonProgram, **keywords: Any) -> str | None:
    tested.expect()
    launch = tested.prepare({}, {"grid": (1,), "keywords": keywords})
    tested.reset()
    return tested.mismatch(launch())


def test_a_right_kernel_passes_and_needs_no_restoring() -> None:
    tested = program(fill, torch.zeros(4), lambda x, _: x * 2)
    assert checked(tested) is None
    assert tested.restores is False


def test_a_config_that_writes_too_little_cannot_hide_behind_an_earlier_one() -> None:
    y = torch.arange(1.0, 5.0) * 2  # as it would be after a right launch
    tested = program(fill, y, lambda x, _: x * 2)
    assert checked(tested) is None
    wrong = checked(tested, part=3)
    assert wrong is not None
    assert "1 of 4 elements differ" in wrong
    assert "(3,): nan, expected 8" in wrong


def test_a_kernel_that_adds_to_its_output_keeps_the_output_s_first_content() -> None:
    tested = program(accumulate, torch.ones(4), lambda x, y: x + y)
    assert [checked(tested), checked(tested)] == [None, None]
    assert tested.restores is True


def test_a_kernel_that_changes_its_inputs_is_restored() -> None:
    tested = program(overwrite_inputs, torch.zeros(4), lambda x, _: x * 2)
    assert [checked(tested), checked(tested)] == [None, None]
    assert tested.restores is True


def test_a_reference_must_return_one_value_an_output() -> None:
    with pytest.raises(KernelError, match="returned None for 1 output"):
        program(fill, torch.zeros(4), lambda *_: None).expect()
    with pytest.raises(KernelError, match="returned 2 values for 1 output"):
        program(fill, torch.zeros(4), lambda x, _: (x, x)).expect()


def test_check_replaces_the_comparison() -> None:
    def close(actual: Any, expected: Any) -> bool:
        return bool((actual - expected).abs().max() < 10)

    y = torch.zeros(4)
    lenient = Comparison(None, None, close, one=True)
    assert lenient.mismatch([y], [y + 9]) is None
    assert lenient.mismatch([y], [y + 11]) == "is wrong: check= returned False"


# Comparing


def half(*values: float) -> Any:
    return torch.tensor(values, dtype=torch.float16)


@pytest.mark.parametrize(
    ("actual", "expected", "rtol", "atol", "text"),
    [
        (half(1, 2), half(1, 2.01), None, None, None),
        (half(1, 2), half(1, 2.2), None, None, "1 of 2 elements differ by more than rtol=0.01"),
        (half(0, 0), half(1e-3, 2e-3), None, None, "2 of 2"),
        (half(1e-3, 100), half(0, 100), None, None, None),
        (half(1, 2), half(1, 2.2), 0.0, 0.5, None),
        (half(1, math.nan), half(1, math.nan), None, None, None),
        (half(1, math.nan), half(1, 2), None, None, "worst at (1,): nan, expected 2"),
        (half(1, 2), half(1, math.nan), None, None, "1 of 2"),
        (half(1, math.inf), half(1, math.inf), None, None, None),
        (half(1, 5), half(1, math.inf), None, None, "1 of 2"),
        (half(1, math.inf), half(1, -math.inf), None, None, "1 of 2"),
        (half(1, 2), half(1, 2, 3), None, None, "has shape (2,), expected (3,)"),
        (half(1, 2), torch.tensor([1.0, 2.001]), None, None, None),
        (torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 2.001]).double(), None, None, "1 of 2"),
        (
            torch.tensor([1, 2]),
            torch.tensor([1, 3]),
            None,
            None,
            "1 of 2 elements differ; worst at (1,): 2, expected 3",
        ),
        (torch.tensor([True]), torch.tensor([True]), None, None, None),
        (torch.zeros(0), torch.zeros(0), None, None, None),
        (torch.tensor([1j]), torch.tensor([1j]), None, None, None),
        (torch.tensor([1j]), torch.tensor([2j]), None, None, "1 of 1"),
    ],
)
def test_mismatch(actual: Any, expected: Any, rtol: float | None, atol: float | None, text: str | None) -> None:
    found = mismatch(actual, expected, rtol, atol)
    assert (found is None) == (text is None), found
    assert text is None or text in str(found)


def test_mismatch_names_the_largest_errors() -> None:
    found = mismatch(torch.tensor([[1.0, 2.0], [3.0, 8.0]]), torch.tensor([[1.0, 4.0], [3.0, 5.0]]), None, None)
    assert found is not None
    assert "worst at (1, 1): 8, expected 5; max absolute error 3, max relative error 0.6" in found


def test_a_large_tensor_is_compared_to_its_end() -> None:
    actual, expected = (torch.zeros((1 << 15) + 1, 1 << 10, dtype=torch.int8) for _ in range(2))
    actual[-1, 3] = 1
    assert mismatch(actual, expected, None, None) == "1 of 33555456 elements differ; worst at (32768, 3): 1, expected 0"
    actual[0, 0] = 1
    assert mismatch(actual, expected, None, None) == "2 of 33555456 elements differ; worst at (0, 0): 1, expected 0"


# On a GPU


@pytest.fixture
def station() -> Iterator[Callable[[TritonKernel], Callable[..., Any]]]:
    """Makes a caller of a kernel's station in a GPU worker."""
    worker: list[Worker] = []

    def make(kernel: TritonKernel) -> Callable[..., Any]:
        worker.append(Worker(dict(kernel.launch_env())))
        service = Service("pytest_kerneltune.station:Station", (kernel.packed([HERE]), kernel.clock))

        def call(method: str, *args: Any) -> Any:
            return worker[0].call(service, method, *args, timeout=LIMIT_S).unwrap()

        return call

    yield make
    for process in worker:
        process.close()


@pytest.mark.gpu
def test_a_gpu_worker_launches_from_the_cache_alone(compiler: Worker, cache: Path, station: Any) -> None:
    kernel = affine_kernel(n=100_000)
    artifact = compiled(compiler, kernel, {"BLOCK": 512, "num_warps": 4})
    made = cubins(cache)
    call = station(kernel)
    assert call("expect") == "cuda-events, L2 flushed"
    wrong, readings = call("check_and_time", {"BLOCK": 512, "num_warps": 4}, artifact, math.inf)
    assert wrong is None
    assert len(readings) >= 5
    assert min(readings) > 0
    assert cubins(cache) == made


@pytest.mark.gpu
def test_wrong_configs_are_found_out(compiler: Worker, station: Any) -> None:
    kernel = affine_kernel(n=4096)
    call = station(kernel)
    right, biased = ({"BLOCK": 256, "BIAS": bias} for bias in (0, 1000))
    artifact = compiled(compiler, kernel, right)
    assert call("check", right, artifact) is None
    assert "elements differ" in call("check", biased, compiled(compiler, kernel, biased))
    short = {**artifact, "grid": (1,)}
    assert "3840 of 4096 elements differ" in call("check", right, short)
    assert call("check", right, artifact) is None


@pytest.mark.gpu
def test_an_illegal_access_fails_the_request(compiler: Worker, station: Any) -> None:
    x = torch.zeros(16, device="cuda")
    y = torch.zeros(16, device="cuda")
    kernel = TritonKernel(stray, (x, y), (1,), output=y, reference=lambda: y)
    artifact = compiled(compiler, kernel, {"FAR": 1 << 40})
    call = station(kernel)
    with pytest.raises(RemoteError, match="illegal memory access"):
        call("check", {"FAR": 1 << 40}, artifact)


@pytest.mark.gpu
def test_the_config_after_a_lost_context_runs_in_a_fresh_process(compiler: Worker) -> None:
    x = torch.ones(16, device="cuda")
    y = torch.zeros(16, device="cuda")
    kernel = TritonKernel(stray, (x, y), (1,), output=y, reference=lambda: torch.eye(1, 16, device="cuda")[0])
    worker = Worker(dict(kernel.launch_env()))
    launcher = RemoteLauncher(kernel, worker, [HERE])
    configs = [{"FAR": far} for far in (0, 1 << 40, 0, 1)]
    artifacts = [compiled(compiler, kernel, config) for config in configs]
    try:
        pairs = zip(configs, artifacts, strict=True)
        replies = [launcher.call("check", *pair, timeout=LIMIT_S) for pair in pairs]
    finally:
        worker.close()
    assert [reply.error is None for reply in replies] == [True, False, True, True]
    assert "illegal memory access" in str(replies[1].error)
    assert replies[0].value is replies[2].value is None
    assert "2 of 16 elements differ" in replies[3].value


@pytest.mark.gpu
def test_a_write_just_beyond_the_output_is_found(compiler: Worker, station: Any) -> None:
    x = torch.ones(16, device="cuda")
    y = torch.zeros(16, device="cuda")
    kernel = TritonKernel(stray, (x, y), (1,), output=y, reference=lambda: torch.eye(1, 16, device="cuda")[0])
    call = station(kernel)
    found = [call("check", {"FAR": far}, compiled(compiler, kernel, {"FAR": far})) for far in (0, 18, -1, 0)]
    assert found == [
        None,
        "overwrites memory outside argument 1 (y_ptr): 4 bytes from 8 bytes after its end",
        "overwrites memory outside argument 1 (y_ptr): 4 bytes up to 0 bytes before its start",
        None,
    ]


@pytest.mark.gpu
def test_configs_that_store_and_configs_that_add_are_timed_alike(compiler: Worker, station: Any) -> None:
    x = torch.arange(1.0, 4097.0, device="cuda")
    y, counts = torch.zeros_like(x), torch.zeros(1, dtype=torch.int32, device="cuda")
    args = (x, y, counts, 4096)
    kernel = TritonKernel(
        affine_in_parts, args, lambda c: (4096 // c["BLOCK"], c["PARTS"]), output=y, reference=lambda: x * 2
    )
    call = station(kernel)
    for parts in (1, 4, 2, 1):
        config = {"BLOCK": 256, "PARTS": parts}
        wrong, readings = call("check_and_time", config, compiled(compiler, kernel, config), math.inf)
        assert wrong is None, config
        assert min(readings) > 0


@pytest.mark.gpu
def test_descriptors_made_on_the_device_need_nothing_from_the_user(compiler: Worker, station: Any) -> None:
    x = torch.rand(128, 128, device="cuda")
    y = torch.zeros_like(x)
    kernel = TritonKernel(
        tile_by_descriptors, (x, y, 128), lambda c: (128 // c["BLOCK"],) * 2, output=y, reference=lambda: x
    )
    call = station(kernel)
    for block in (32, 64):
        wrong, readings = call(
            "check_and_time", {"BLOCK": block}, compiled(compiler, kernel, {"BLOCK": block}), math.inf
        )
        assert wrong is None
        assert min(readings) > 0


@pytest.mark.gpu
def test_calling_a_kernel_writes_the_user_s_own_output(compiler: Worker) -> None:
    kernel = affine_kernel()
    config = {"BLOCK": 128, "num_warps": 1}
    output = kernel(config, compiled(compiler, kernel, config))
    assert output is kernel.args[1]
    assert torch.equal(output, kernel.args[0] * 2)


@pytest.mark.gpu
def test_the_target_is_the_gpu_at_hand() -> None:
    target = current_target()
    assert target.backend in ("cuda", "hip")
    assert target.shared_bytes >= 48 * 1024
