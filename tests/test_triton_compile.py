"""Triton's compiler without a GPU: keys, shared code, what code uses, errors."""
# JIT functions have no types that Python knows, and name constants in capitals.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402 - after the skip

from pytest_kerneltune.backends import Build  # noqa: E402
from pytest_kerneltune.backends.resources import code_usage, demand  # noqa: E402
from pytest_kerneltune.backends.stand_in import stand_in  # noqa: E402
from pytest_kerneltune.backends.toolchain import Target  # noqa: E402
from pytest_kerneltune.backends.triton import TritonKernel  # noqa: E402
from pytest_kerneltune.errors import RemoteError, WorkerTimeout  # noqa: E402
from pytest_kerneltune.gpu import cuda_available  # noqa: E402
from pytest_kerneltune.packing import pack  # noqa: E402
from pytest_kerneltune.worker import Service, Worker  # noqa: E402

LIMIT_S = 120.0
SHARED_BYTES = 232448
H200 = Target("cuda", 90, 32, SHARED_BYTES)
NOWHERE = Path("/no/cuobjdump")
TOOLS = Path(triton.__file__).with_name("backends") / "nvidia" / "bin"
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool", "float8_e4m3fn")


@triton.jit
def copied(x_ptr, y_ptr, n, extra, BLOCK: tl.constexpr, SPARE: tl.constexpr = 0):  # noqa: ARG001 - on purpose
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if extra is None:
        tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n), mask=i < n)
    else:
        tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n) + extra, mask=i < n)


@triton.jit
def greedy(x_ptr, y_ptr, BLOCK: tl.constexpr):
    rows = tl.arange(0, BLOCK)
    tile = rows[:, None] * BLOCK + rows[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for i in range(8):
        x = tl.load(x_ptr + i * BLOCK * BLOCK + tile)
        total += tl.dot(x, tl.trans(x))
    tl.store(y_ptr + tile, total)


@triton.jit
def unassemblable(x_ptr, y_ptr):
    for i in tl.static_range(100):
        x = tl.load(x_ptr + i)
        tl.store(y_ptr + i, tl.inline_asm_elementwise("no.such.instruction $0, $1;", "=r,r", [x], tl.int32, True, 1))


@triton.jit
def summed(parts, y_ptr):
    tl.store(y_ptr, tl.load(parts[0]) + parts[1])


@triton.jit
def described(source, y_ptr):
    rows = tl.arange(0, 16)
    tl.store(y_ptr + rows[:, None] * 16 + rows[None, :], source.load([0, 0]))


@triton.jit(noinline=True)
def apart(x):
    return x * x + 1


@triton.jit
def calling(x_ptr, y_ptr):
    i = tl.program_id(0)
    tl.store(y_ptr + i, apart(tl.load(x_ptr + i)))


@pytest.fixture(scope="module", autouse=True)
def cache(triton_cache: Path) -> Path:
    return triton_cache


@pytest.fixture(scope="module")
def compiler() -> Iterator[Worker]:
    worker = Worker({"CUDA_VISIBLE_DEVICES": ""}, keep=8)
    yield worker
    worker.close()


@pytest.fixture
def assembler(tmp_path: Path) -> Path:
    """A ptxas that adds a line to ``calls`` beside it whenever it assembles something."""
    from triton.backends.nvidia import compiler

    tool = compiler.get_ptxas(90)
    real = tool.path if hasattr(tool, "path") else tool[0]  # before Triton 3.4
    path = tmp_path / "ptxas"
    path.write_text(f'#!/bin/sh\ncase "$*" in *.ptx*) echo "$@" >> {tmp_path}/calls;; esac\nexec {real} "$@"\n')
    path.chmod(0o755)
    return path


def assembled_by(assembler: Path) -> dict[str, str]:
    return {"TRITON_PTXAS_PATH": str(assembler), "TRITON_PTXAS_BLACKWELL_PATH": str(assembler)}


def calls(assembler: Path) -> int:
    log = assembler.with_name("calls")
    return len(log.read_text().splitlines()) if log.exists() else 0


def device() -> str:
    return "cpu" if cuda_available() else "cuda"


def zeros(n: int, dtype: Any = torch.float32) -> Any:
    return torch.zeros(n, dtype=dtype, device=device())


def copy_kernel(x: Any, n: Any = 1000, extra: Any = None, grid: Any = (8,)) -> TritonKernel:
    return TritonKernel(copied, (x, torch.zeros_like(x), n, extra), grid)


def built(worker: Worker, kernel: TritonKernel, config: dict[str, Any]) -> Build:
    task = kernel.compile_task(config)
    build = worker.call(Service(task.target, task.target_args), task.method, *task.args, timeout=LIMIT_S).unwrap()
    assert isinstance(build, Build)
    return build


def binaries(cache: Path) -> set[Path]:
    return set(cache.rglob("*.cubin")) | set(cache.rglob("*.hsaco"))


def launch_hash(kernel: TritonKernel, **keywords: Any) -> str:
    """The key under which the launch in this process looks for the compiled kernel."""
    return str(kernel.fn.run(*kernel.args, **keywords, grid=(1,), warmup=True).hash)


# The launch finds what was compiled


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_launch_finds_a_kernel_of_any_element_type(compiler: Worker, cache: Path, dtype: str) -> None:
    kernel = copy_kernel(zeros(1024, getattr(torch, dtype)))
    build = built(compiler, kernel, {"BLOCK": 128, "num_warps": 2})
    made = binaries(cache)
    assert made
    assert launch_hash(kernel, BLOCK=128, num_warps=2) == build.artifact["hash"]
    assert binaries(cache) == made


@pytest.mark.parametrize("extra", [1, 16, 3, 1 << 40, 1.5, True, None], ids=str)
@pytest.mark.parametrize("shift", [0, 1])
def test_alignment_and_scalars_are_part_of_the_key(compiler: Worker, extra: Any, shift: int) -> None:
    kernel = copy_kernel(zeros(1025)[shift:], n=17 - shift, extra=extra)
    build = built(compiler, kernel, {"BLOCK": 64})
    assert launch_hash(kernel, BLOCK=64) == build.artifact["hash"]
    plain = built(compiler, copy_kernel(zeros(1025)[1 - shift :], n=17 - shift, extra=extra), {"BLOCK": 64})
    assert plain.artifact["hash"] != build.artifact["hash"]


def test_tuples_reach_the_compiler(compiler: Worker) -> None:
    kernel = TritonKernel(summed, ((zeros(4), 3), zeros(4)), (1,))
    assert launch_hash(kernel, num_warps=1) == built(compiler, kernel, {"num_warps": 1}).artifact["hash"]


def test_tensor_descriptors_reach_the_compiler(compiler: Worker) -> None:
    descriptors = pytest.importorskip("triton.tools.tensor_descriptor")
    x = torch.zeros(64, 64, dtype=torch.float16, device=device())
    source = descriptors.TensorDescriptor.from_tensor(x, [16, 16])
    kernel = TritonKernel(described, (source, zeros(256, torch.float16)), (1,))
    assert launch_hash(kernel, num_warps=4) == built(compiler, kernel, {"num_warps": 4}).artifact["hash"]
    assert isinstance(stand_in(source).shape, list)


@pytest.mark.gpu
def test_a_launch_compiles_nothing_anew(compiler: Worker, cache: Path) -> None:
    for dtype in DTYPES:
        kernel = copy_kernel(zeros(1024, getattr(torch, dtype)))
        build = built(compiler, kernel, {"BLOCK": 128, "num_warps": 1})
        made = binaries(cache)
        kernel({"BLOCK": 128, "num_warps": 1}, build.artifact)
        torch.cuda.synchronize()
        assert binaries(cache) == made, dtype


def test_a_stand_in_has_the_type_and_alignment_of_its_tensor() -> None:
    tensor = torch.zeros(64, dtype=torch.bfloat16)
    ours = stand_in((tensor[1:], 3, None))
    assert ours[0].data_ptr() % 16 == tensor[1:].data_ptr() % 16 == 2
    assert (str(ours[0].dtype), hash(ours[0].dtype)) == ("torch.bfloat16", hash(stand_in(tensor).dtype))
    assert ours[0].ptr_range() == 128
    assert ours[1:] == (3, None)
    pack(ours)


def test_a_compile_worker_imports_neither_torch_nor_the_kernel_s_module(tmp_path: Path) -> None:
    task = copy_kernel(zeros(64)).compile_task({"BLOCK": 64})
    (tmp_path / "task").write_bytes(pickle.dumps((task.target_args, task.args)))
    code = f"""
import pickle, sys
from pytest_kerneltune.backends.jit import Compiler
from pytest_kerneltune.backends.toolchain import warm
warm()
target_args, args = pickle.load(open({str(tmp_path / "task")!r}, "rb"))
build = Compiler(*target_args).compile(*args)
print(build.usage["threads"], *sorted({{"torch", "numpy", {__name__!r}}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["128"]


# Code is made once


def test_configs_of_the_same_code_are_assembled_once_by_all_workers(assembler: Path) -> None:
    kernel = copy_kernel(zeros(2048), n=2000, grid=lambda c: (c["SPARE"] % 2,))
    builds = []
    for start in (0, 2):
        worker = Worker(assembled_by(assembler))
        builds += [built(worker, kernel, {"BLOCK": 32, "SPARE": s, "num_stages": s + 1}) for s in (start, start + 1)]
        worker.close()
    assert calls(assembler) == 1
    assert len({build.artifact["hash"] for build in builds}) == 4
    assert [build.code == builds[0].code != "" for build in builds] == [True, False, True, False]
    assert launch_hash(kernel, BLOCK=32, SPARE=2, num_stages=3) == builds[2].artifact["hash"]


def test_damaged_results_are_made_again(assembler: Path, cache: Path) -> None:
    kernel = copy_kernel(zeros(4096), n=4000)
    worker = Worker(assembled_by(assembler))
    first = built(worker, kernel, {"BLOCK": 16})
    for entry in [path for path in (cache / "kerneltune-stages").rglob("*") if path.is_file()]:
        entry.write_bytes(entry.read_bytes()[:-1] + b"?")
    again = built(worker, kernel, {"BLOCK": 16, "SPARE": 1})
    worker.close()
    assert calls(assembler) == 2
    assert again.code == first.code


def test_a_killed_compile_leaves_nothing_behind_for_another_run(tmp_path: Path) -> None:
    stuck = tmp_path / "ptxas"
    stuck.write_text(f'#!/bin/sh\ncase "$*" in *.ptx*) exec sleep 600;; esac\nexec {TOOLS / "ptxas"} "$@"\n')
    stuck.chmod(0o755)
    kernel = copy_kernel(zeros(512), n=500)
    task = kernel.compile_task({"BLOCK": 8})
    (tmp_path / "other").mkdir()
    worker, other = (
        Worker({"TMPDIR": str(tmp_path), **assembled_by(stuck)}),
        Worker({"TMPDIR": str(tmp_path / "other")}),
    )
    reply = worker.call(Service(task.target, task.target_args), task.method, *task.args, timeout=2.0)
    again = worker.call(Service(task.target, task.target_args), task.method, *task.args, timeout=60.0)
    build = built(other, kernel, {"BLOCK": 8})
    worker.close()
    other.close()
    assert isinstance(reply.error, WorkerTimeout)
    assert "killed while it compiled the same code" in str(again.error)  # in this run, it is known to hang
    assert build.code


def test_a_tuned_argument_that_the_launch_passes_makes_another_launch(compiler: Worker) -> None:
    x = zeros(64)
    kernel = TritonKernel(copied, (x, x), (1,), kwargs={"extra": None})
    builds = [built(compiler, kernel, {"BLOCK": 64, "n": n}) for n in (3, 5, 3)]
    assert builds[0].artifact["hash"] == builds[1].artifact["hash"]
    assert builds[0].code == builds[2].code != builds[1].code
    assert launch_hash(kernel, extra=None, BLOCK=64, n=5) == builds[1].artifact["hash"]


def test_a_task_is_made_in_no_time() -> None:
    kernel = copy_kernel(zeros(64))
    first, second = (kernel.compile_task({"BLOCK": 64, "SPARE": spare}) for spare in (0, 1))
    assert first.target_args is second.target_args


# What code uses


def test_the_build_says_what_the_kernel_needs_and_how_to_launch_it(compiler: Worker) -> None:
    build = built(compiler, copy_kernel(zeros(1000), grid=lambda c: (triton.cdiv(1000, c["BLOCK"]),)), {"BLOCK": 256})
    assert build.artifact["grid"] == (4,)
    assert build.artifact["keywords"] == {"BLOCK": 256}
    assert {name: build.usage[name] for name in ("threads", "shared_bytes", "stack_bytes")} == {
        "threads": 128,
        "shared_bytes": 0,
        "stack_bytes": 0,
    }
    assert 0 < build.usage["registers"] < 256
    assert build.demand == pytest.approx(128 / 1024)
    assert build.refused == ""


def test_too_much_shared_memory_is_refused_before_anything_is_assembled(compiler: Worker, cache: Path) -> None:
    kernel = TritonKernel(greedy, (zeros(8 * 256 * 256, torch.float16), zeros(256 * 256)), (1,))
    before = binaries(cache)
    build = built(compiler, kernel, {"BLOCK": 256, "num_stages": 4, "num_warps": 8})
    assert (
        build.refused == f"out of shared memory: a block needs {build.usage['shared_bytes']} bytes, the GPU has 232448"
    )
    assert build.demand == build.usage["shared_bytes"] / 232448 > 1
    assert (build.artifact, build.code) == (None, "")
    assert binaries(cache) == before


def test_too_many_threads_are_refused(compiler: Worker) -> None:
    build = built(compiler, copy_kernel(zeros(4096)), {"BLOCK": 4096, "num_warps": 64})
    assert build.refused == "out of threads: a block needs 2048 threads, the GPU has 1024"
    assert build.demand == 2.0


@pytest.mark.parametrize(
    ("registers", "threads", "share"),
    [(64, 1024, 1.0), (65, 1024, 1.125), (168, 384, 0.984375), (168, 416, 1.3125)],
)
def test_registers_are_handed_out_to_warps_in_units(registers: int, threads: int, share: float) -> None:
    found, refused = demand({"registers": registers, "threads": threads}, H200.limits)
    assert found == pytest.approx(share)
    assert refused.startswith("out of registers: ") == (share > 1)


@pytest.mark.skipif(shutil.which(str(TOOLS / "cuobjdump")) is None, reason="this Triton has no cuobjdump")
def test_registers_and_stack_are_read_as_cuobjdump_reads_them(compiler: Worker, cache: Path) -> None:
    before = binaries(cache)
    spilling = TritonKernel(greedy, (zeros(8 * 256 * 256, torch.float16), zeros(256 * 256)), (1,))
    built(compiler, spilling, {"BLOCK": 128, "num_stages": 1, "num_warps": 1})
    built(compiler, TritonKernel(calling, (zeros(32), zeros(32)), (1,)), {"num_warps": 1})
    built(compiler, copy_kernel(zeros(64)), {"BLOCK": 32, "num_warps": 8})
    found = set()
    for path in binaries(cache) - before:
        read = code_usage(path.read_bytes(), path.stem, NOWHERE)
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", str(path)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"REG:{read['registers']} STACK:{read['stack_bytes']} " in told
        found.add(read["stack_bytes"] > 0)
    assert found == {True, False}


@pytest.mark.parametrize("damage", [slice(0), slice(100), slice(20, None), slice(0, -3000), slice(None, None, 2)])
def test_what_is_no_cubin_has_no_usage(compiler: Worker, cache: Path, damage: slice) -> None:
    built(compiler, copy_kernel(zeros(64)), {"BLOCK": 64})
    path = next(iter(binaries(cache)))
    assert code_usage(path.read_bytes()[damage], path.stem, NOWHERE) == {}


# Errors


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"BLOCK": 100}, "CompileError: line 2 of the kernel: ValueError: arange's range must be a power of 2"),
        ({"BLOCK": 128, "num_warps": 3}, "num_warps must be a power of 2"),
        ({"BLOCK": 128, "BLOCKS": 1}, "BLOCKS was specified but unrecognised"),
    ],
)
def test_what_triton_rejects_comes_back_as_one_line(compiler: Worker, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(RemoteError) as caught:
        built(compiler, copy_kernel(zeros(64)), config)
    assert caught.value.kind == "CompileError"
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_ptxas_rejects_comes_back_as_one_line_and_without_the_assembly(compiler: Worker) -> None:
    x = zeros(16, torch.int32)
    with pytest.raises(RemoteError) as caught:
        built(compiler, TritonKernel(unassemblable, (x, x), (1,)), {"num_warps": 1})
    assert caught.value.kind == "CompileError"
    assert "ptxas error" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ".visible .entry" not in caught.value.log
    assert len(caught.value.log) < 10_000
