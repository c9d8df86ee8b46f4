"""CUDA C++ kernels: compiled by the real NVRTC, which needs no GPU; launched where there is one."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_kerneltune.backends import Build
from pytest_kerneltune.backends.code_store import CodeStore, Entry
from pytest_kerneltune.backends.cubin import Signature, signature, usage
from pytest_kerneltune.backends.cuda import CudaKernel
from pytest_kerneltune.backends.cuda_arguments import Parameters
from pytest_kerneltune.backends.cuda_compiler import Compiler, Launch, Target
from pytest_kerneltune.backends.headers import find_headers
from pytest_kerneltune.backends.nvrtc import compile_code
from pytest_kerneltune.backends.resources import Limits
from pytest_kerneltune.benchmark import Benchmark
from pytest_kerneltune.benchmark import Limits as TimeLimits
from pytest_kerneltune.errors import KernelError, UsageError
from pytest_kerneltune.gpu import cuda_available
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.parameter import choice, integer
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Status
from pytest_kerneltune.worker import Service, Worker
from pytest_kerneltune.workload import Workload

SCALE = """
extern "C" __global__ void scale(const float *x, float *y, int n, float factor)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}
"""
H200 = Target("sm_90a", Limits(shared_bytes=232448))
LAUNCH = Launch((8, 1, 1), (128, 1, 1))


@pytest.fixture(scope="module")
def nvrtc() -> None:
    cupy = pytest.importorskip("cupy", reason="needs cupy, which brings the bindings of NVRTC")
    try:
        cupy.cuda.nvrtc.getVersion()
    except (RuntimeError, ImportError) as error:
        pytest.skip(f"NVRTC cannot be loaded ({str(error).splitlines()[0]})")


def compiler(source: str, *directories: Path, store: Path | str = "", target: Target = H200) -> Compiler:
    return Compiler(source, "kernel.cu", [str(directory) for directory in directories], target, str(store))


def compiled(source: str, *options: str, function: str = "f", launch: Launch = LAUNCH) -> Build:
    return compiler(source).compile(function, options, launch)


def kernel(source: str | Path, **arguments: Any) -> CudaKernel:
    return CudaKernel(source, "f", (1.5,), 1, 32, **arguments)


def void(body: str, parameters: str = "float *a") -> str:
    return f'extern "C" __global__ void f({parameters}) {{ {body} }}\n'


# Compiling


@pytest.mark.usefixtures("nvrtc")
def test_a_build_says_what_a_launch_needs_and_what_the_code_uses() -> None:
    built = compiled(SCALE, function="scale", launch=Launch((8, 1, 1), (256, 2, 1), 1000))
    assert built.artifact["name"] == "scale"
    assert built.artifact["cubin"][:4] == b"\x7fELF"
    assert built.artifact["parameters"] == (8, 8, 4, 4)
    assert built.artifact["launch"].grid == (8, 1, 1)
    assert built.usage.keys() == {"threads", "shared_bytes", "registers", "stack_bytes"}
    assert (built.usage["threads"], built.usage["shared_bytes"], built.usage["stack_bytes"]) == (512, 1000, 0)
    assert 0 < built.usage["registers"] < 64
    assert built.demand == pytest.approx(0.5)
    assert not built.refused


@pytest.mark.usefixtures("nvrtc")
def test_stack_and_declared_shared_memory_are_read_from_the_compiled_code() -> None:
    body = "__shared__ float s[512]; float x[3000]; for (int i = 0; i < 3000; i++) x[i] = a[i]; "
    built = compiled(void(body + "s[threadIdx.x] = x[(int)a[7]]; __syncthreads(); a[0] = s[threadIdx.x ^ 1];"))
    assert built.usage["stack_bytes"] == 12000
    assert built.usage["shared_bytes"] == 2048
    assert built.demand < 1


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_90a", "sm_100a", "sm_120a"])
def test_the_cubin_tells_what_the_compiler_reports(architecture: str) -> None:
    shared = void("__shared__ float s[2000]; s[threadIdx.x] = a[1]; __syncthreads(); a[0] = s[(int)a[2]];")
    stack = void("float x[3000]; for (int i = 0; i < 3000; i++) x[i] = a[i]; a[0] = x[(int)a[7]];").replace("f(", "g(")
    options = (f"--gpu-architecture={architecture}",)
    code = compile_code(shared + stack, "kernel.cu", "f", options)
    found = {name: usage(code.cubin, name) for name in ("f", "g")}
    assert (found["f"]["stack_bytes"], found["f"]["shared_bytes"]) == (0, 8000)
    assert (found["g"]["stack_bytes"], found["g"]["shared_bytes"]) == (12000, 0)
    assert code.usage == found["f"]
    assert usage(code.cubin, "missing") == {}


@pytest.mark.usefixtures("nvrtc")
def test_configs_of_the_same_code_and_launch_are_known_to_be_the_same() -> None:
    source = void("a[threadIdx.x] = FACTOR;")
    first = compiled(source, "-DFACTOR=2")
    assert compiled(source, "-DFACTOR=2", "-DUNUSED=1").code == first.code
    assert compiled(source, "-DFACTOR=3").code != first.code
    assert compiled(source, "-DFACTOR=2", launch=LAUNCH._replace(block=(64, 1, 1))).code != first.code
    assert compiled(source, "-DFACTOR=2", launch=LAUNCH._replace(shared_bytes=64)).code != first.code


@pytest.mark.usefixtures("nvrtc")
def test_a_function_may_be_a_template_whose_arguments_are_macros() -> None:
    source = "template <class T, int VALUE> __global__ void fill(T *a) { a[threadIdx.x] = VALUE; }"
    names = {compiled(source, f"-DN={n}", function="fill<float, N>").artifact["name"] for n in (1, 2)}
    assert len(names) == 2
    assert compiled("__global__ void f(float *a) { a[0] = 1; }").artifact["name"] == "_Z1fPf"  # without extern "C"


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        (void("\n\n  a[0] = b;"), (), 'line 3 of kernel.cu: identifier "b" is undefined'),
        (
            'static_assert(TILE < 9, "big");\n' + void(""),
            ("-DTILE=9",),
            'line 1 of kernel.cu: static assertion .*"big"',
        ),
        ("#include <no/such.h>\n" + void(""), (), 'line 1 of kernel.cu: .*"no/such.h"'),
        ("__global__ void g() {}", (), "no kernel 'f': identifier \"f\" is undefined"),
        (void(""), ("--nonsense",), "--nonsense"),
    ],
)
def test_an_error_is_one_line_that_says_where_it_is(
    source: str, options: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KernelError, match=reason) as caught:
        compiled(source, *options)
    assert "\n" not in str(caught.value)
    log = capsys.readouterr().out
    assert "error" in log
    assert "/kerneltune" not in log + str(caught.value)


@pytest.mark.usefixtures("nvrtc")
def test_an_unknown_gpu_is_an_error_that_says_so() -> None:
    with pytest.raises(KernelError, match="gpu-architecture"):
        compiler(void(""), target=Target("sm_999", H200.limits)).compile("f", (), LAUNCH)


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize(
    ("source", "launch", "refused"),
    [
        (void("a[0] = 1;"), Launch((1, 1, 1), (64, 32, 1)), "2048 threads"),
        (void("a[0] = 1;"), Launch((1, 1, 1), (1, 1, 65)), "block is"),
        (void("a[0] = 1;"), Launch((1, 65536, 1), (32, 1, 1)), "grid is"),
        (void("a[0] = 1;"), Launch((0, 1, 1), (32, 1, 1)), "grid is"),
        (void("a[0] = 1;"), Launch((1, 1, 1), (32, 1, 1), 232449), "232449 bytes"),
        (void("a[0] = 1;").replace("void f", "void __launch_bounds__(64) f"), LAUNCH, "__launch_bounds__ allow 64"),
        (
            void("__shared__ float s[9000]; s[threadIdx.x] = a[1]; __syncthreads(); a[0] = s[(int)a[2]];"),
            LAUNCH._replace(shared_bytes=200000),
            "236000 bytes",
        ),
    ],
)
def test_what_cannot_be_launched_is_refused_with_the_reason(source: str, launch: Launch, refused: str) -> None:
    built = compiled(source, launch=launch)
    assert refused in built.refused
    assert built.artifact is None
    assert built.usage["threads"] == launch.threads


@pytest.mark.usefixtures("nvrtc")
def test_more_declared_shared_memory_than_the_assembler_allows_is_refused_too() -> None:
    source = void("__shared__ float s[20000]; s[threadIdx.x] = a[1]; __syncthreads(); a[0] = s[(int)a[2]];")
    built = compiler(source, target=H200._replace(architecture="sm_90")).compile("f", (), LAUNCH)
    assert "80000 bytes" in built.refused
    assert built.usage["shared_bytes"] == 80000
    assert built.demand == pytest.approx(80000 / 49152)


@pytest.mark.usefixtures("nvrtc")
def test_a_block_that_needs_more_registers_than_there_are_is_refused() -> None:
    body = "float x[96]; for (int i = 0; i < 96; i++) x[i] = a[i * 7 + threadIdx.x]; "
    body += "for (int k = 0; k < 96; k++) for (int i = 0; i < 96; i++) x[i] = x[i] * x[(i + 1) % 96] + x[k]; "
    source = void(body + "for (int i = 0; i < 96; i++) a[i * 7 + threadIdx.x] = x[i];")
    built = compiled(source, launch=LAUNCH._replace(block=(1024, 1, 1)))
    assert built.usage["registers"] > 64
    assert "registers" in built.refused
    assert built.demand > 1


@pytest.mark.usefixtures("nvrtc")
def test_headers_are_found_beside_the_source_and_where_include_says(tmp_path: Path, monkeypatch: Any) -> None:
    own, other, elsewhere = tmp_path / "own", tmp_path / "other", tmp_path / "elsewhere"
    for folder in (own / "sub", other, elsewhere):
        folder.mkdir(parents=True)
    (own / "sub" / "a.cuh").write_text('#include "b.cuh"\n')
    (own / "sub" / "b.cuh").write_text("#define B 2\n")
    (other / "c.cuh").write_text("#define C 3\n")
    (elsewhere / "d.cuh").write_text("#define D 4\n")
    source = '#include "sub/a.cuh"\n#include <c.cuh>\n' + void("a[0] = B + C;")
    assert compiler(source, own, other).compile("f", (), LAUNCH).artifact
    monkeypatch.chdir(elsewhere)  # where a compile worker happens to run must not matter
    with pytest.raises(KernelError, match=r"d\.cuh"):
        compiler('#include "d.cuh"\n' + void("a[0] = D;"), own).compile("f", (), LAUNCH)


@pytest.mark.usefixtures("nvrtc")
def test_cuda_s_own_headers_are_found_where_they_are_installed() -> None:
    from pytest_kerneltune.backends.nvrtc import toolkit_headers

    if not any((folder / "cuda_fp16.h").is_file() for folder in toolkit_headers()):
        pytest.skip("the headers of CUDA are not installed")
    built = compiled("#include <cuda_fp16.h>\n" + void("a[0] = __hadd(a[1], a[2]);", "__half *a"))
    assert built.artifact["parameters"] == (8,)


@pytest.mark.usefixtures("nvrtc")
def test_compiled_kernels_are_kept_and_read_back(tmp_path: Path) -> None:
    source, store = void("a[threadIdx.x] = FACTOR;"), tmp_path / "store"

    def build(*options: str) -> Build:
        return compiler(source, store=store).compile("f", options, LAUNCH)

    first = build("-DFACTOR=2")
    (file,) = (path for path in store.rglob("*") if path.is_file())
    assert build("-DFACTOR=2") == first
    known = CodeStore(store)
    key = file.parent.name + file.name
    entry = known.get(key)
    assert entry is not None
    known.put(key, Entry(entry.result, {**entry.notes, "usage": {"registers": 77, "stack_bytes": 8}}))
    assert build("-DFACTOR=2").usage["registers"] == 77  # so it was read, not compiled
    known.put(key, Entry(entry.result, {"of": "another version"}))
    assert build("-DFACTOR=2") == first
    file.write_bytes(file.read_bytes()[:-9])
    assert build("-DFACTOR=2") == first
    build("-DFACTOR=3")
    assert len([path for path in store.rglob("*") if path.is_file()]) == 2


@pytest.mark.usefixtures("nvrtc")
def test_an_edited_header_makes_another_kernel(tmp_path: Path) -> None:
    store, header = tmp_path / "store", tmp_path / "part.cuh"
    source = '#include "part.cuh"\n' + void("a[0] = VALUE;")
    codes = set()
    for value in (1, 2, 1):
        header.write_text(f"#define VALUE {value}\n")
        codes.add(compiler(source, tmp_path, store=store).compile("f", (), LAUNCH).code)
    assert len(codes) == 2
    assert len([path for path in store.rglob("*") if path.is_file()]) == 2


@pytest.mark.usefixtures("nvrtc")
def test_what_a_macro_includes_cannot_be_known_and_is_not_kept(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (tmp_path / "part.cuh").write_text("#define VALUE 1\n")
    source = "#include HEADER\n" + void("a[0] = VALUE;")
    assert compiler(source, tmp_path, store=store).compile("f", ('-DHEADER="part.cuh"',), LAUNCH).artifact
    assert not store.exists()


@pytest.mark.usefixtures("nvrtc")
def test_compiling_needs_no_gpu_and_prints_what_the_compiler_said() -> None:
    worker = Worker({"CUDA_VISIBLE_DEVICES": ""})
    try:
        service = Service("pytest_kerneltune.backends.cuda:Compiler", (SCALE, "kernel.cu", (), H200, ""))
        reply = worker.call(service, "compile", "scale", (), LAUNCH, timeout=60)
        assert reply.unwrap() == compiled(SCALE, function="scale")
        assert "registers" in reply.log
        failed = worker.call(service, "compile", "missing", (), LAUNCH, timeout=60)
        assert "no kernel 'missing'" in str(failed.error)
    finally:
        worker.close()


def test_what_is_no_cubin_has_an_unknown_signature() -> None:
    for content in (b"", b"\x7fELF", bytes(64), b"\x7fELF\x02\x01" + bytes(range(200))):
        assert signature(content, "f") == Signature()
        assert usage(content, "f") == {}


def test_headers_are_searched_as_a_preprocessor_does(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.h").write_text('#include "deep/b.h"\n#  include <c.h>\n')
    (tmp_path / "deep" / "b.h").write_text('#include "c.h"\n#include "a.h"\n')
    (tmp_path / "deep" / "c.h").write_text("int beside;\n")
    (tmp_path / "c.h").write_text("int above;\n")
    found = find_headers('#include "a.h"\n#include "missing.h"\n', [tmp_path])
    assert [name for name, _ in found.texts] == ["a.h", "deep/b.h", "c.h", "c.h"]
    assert {text for _, text in found.texts} >= {"int above;\n", "int beside;\n"}
    assert found.complete
    assert not find_headers("#include HEADER\n", []).complete
    assert find_headers('#include "c.h"\n', [], [tmp_path]).complete


# Arguments


def content(parameters: Parameters, count: int, size: int = 8) -> list[bytes]:
    addresses = (ctypes.c_void_p * count).from_address(parameters.address)
    return [ctypes.string_at(address or 0, size) for address in addresses]


def test_python_numbers_take_the_size_of_their_parameter() -> None:
    values = content(Parameters((7, -1, 0.5, 0.5, True, None), (4, 8, 4, 8, 1, 8)), 6)
    assert values[0][:4] == struct.pack("<i", 7)
    assert values[1] == struct.pack("<q", -1)
    assert values[2][:4] == struct.pack("<f", 0.5)
    assert values[3] == struct.pack("<d", 0.5)
    assert values[4][:1] == b"\1"
    assert values[5] == bytes(8)
    assert content(Parameters((7, 0.5), None), 2) == [struct.pack("<q", 7), struct.pack("<d", 0.5)]


def test_numpy_scalars_and_ctypes_values_keep_their_type() -> None:
    class Pair(ctypes.Structure):
        _fields_ = (("first", ctypes.c_int), ("second", ctypes.c_double))

    values = (np.float32(2), np.int64(3), ctypes.c_short(4), Pair(1, 2.5))
    found = content(Parameters(values, (4, 8, 2, 16)), 4, 16)
    assert found[0][:4] == struct.pack("<f", 2)
    assert found[1][:8] == struct.pack("<q", 3)
    assert found[2][:2] == struct.pack("<h", 4)
    assert found[3] == bytes(values[3])


@pytest.mark.parametrize(
    ("values", "sizes", "reason"),
    [
        ((1, 2), (4,), "has 1 parameters, and args= has 2"),
        ((np.float64(1),), (4,), r"argument 0 \(float64\) has 8 bytes, its parameter has 4"),
        ((1 << 40,), (4,), "argument 0 is 1099511627776, which 4 bytes do not hold"),
        ((1e300,), (4,), "argument 0 is 1e.300, which 4 bytes do not hold"),
        ((1.0,), (1,), "argument 0 is a float, and no floating type has 1 bytes"),
    ],
)
def test_arguments_that_do_not_fit_their_parameters_are_named(
    values: tuple[Any, ...], sizes: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(KernelError, match=reason):
        Parameters(values, sizes)


# The kernel object


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": 7}, "source=7"),
        ({"source": "missing.cu"}, "missing.cu"),
        ({"function": ""}, "function="),
        ({"args": 1.5}, "args="),
        ({"args": (object(),)}, "argument 0 is a object"),
        ({"args": (np.zeros(3),)}, "argument 0 is a numpy array in host memory"),
        ({"args": (1 << 70,)}, "argument 0 is 1180591620717411303424"),
        ({"grid": (1, 2, 3, 4)}, "grid"),
        ({"grid": 1.5}, "grid"),
        ({"block": (-1,)}, "block"),
        ({"shared_bytes": 1.5}, "shared_bytes"),
        ({"options": "--use_fast_math"}, "options="),
        ({"options": ("-I/usr/include",)}, "include="),
        ({"options": ("-arch=sm_90",)}, "compiled for the GPU that is here"),
        ({"include": "folder"}, "include="),
        ({"include": ["/no/such/folder"]}, "/no/such/folder"),
        ({"output": 1.5}, "output="),
        ({"reference": lambda: 1}, "output="),
        ({"reference": 1}, "reference=1"),
        ({"rtol": -1}, "rtol=-1"),
    ],
)
def test_a_wrong_argument_is_named(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"source": SCALE, "function": "scale", "args": (1.5,), "grid": 1, "block": 32}
    with pytest.raises(UsageError, match="CudaKernel") as caught:
        CudaKernel(**arguments | changed)
    assert message in str(caught.value)


@pytest.mark.usefixtures("nvrtc")
def test_a_tensor_in_host_memory_is_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match=r"argument 1 is a tensor on cpu.*device='cuda'"):
        CudaKernel(SCALE, "scale", (1.5, torch.zeros(3)), 1, 32)


@pytest.mark.parametrize("missing", ["cupy", "torch"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
from pytest_kerneltune.backends.cuda import CudaKernel
try:
    CudaKernel("", "f", (), 1, 32)
except Exception as error:
    print(type(error).__name__, error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "UsageError CudaKernel needs cupy and torch: pip install 'pytest-kerneltune[cuda]'" in run.stdout


def fingerprint(described: CudaKernel) -> str:
    return Workload("f", "test_f.py", described, ConfigSpace({"TILE": integer(1, 4)})).fingerprint


@pytest.mark.usefixtures("nvrtc")
def test_a_fingerprint_depends_on_content_not_on_directories(tmp_path: Path) -> None:
    def written(folder: str, value: int, shared: int = 1) -> CudaKernel:
        own, include = tmp_path / folder / "own", tmp_path / folder / "include"
        for path in (own, include):
            path.mkdir(parents=True)
        (own / "k.cu").write_text('#include "near.cuh"\n#include <far.cuh>\n' + void("a[0] = 1; // a comment"))
        (own / "near.cuh").write_text(f"#define NEAR {value}\n")
        (include / "far.cuh").write_text(f"#define FAR {shared}\n")
        return kernel(own / "k.cu", include=[include])

    first = fingerprint(written("a", 1))
    assert fingerprint(written("b", 1)) == first
    assert fingerprint(written("c", 2)) != first
    assert fingerprint(written("d", 1, 2)) != first


@pytest.mark.usefixtures("nvrtc")
def test_a_description_tells_settings_apart() -> None:
    source = void("a[0] = 1;", "double a")
    first = fingerprint(kernel(source))
    assert fingerprint(kernel(source + "// said\n")) == first
    others: list[dict[str, Any]] = [
        {"options": ["--use_fast_math"]},
        {"shared_bytes": 8},
        {"options": lambda c: [f"-DA={c['TILE']}"]},
    ]
    assert len({first, *(fingerprint(kernel(source, **other)) for other in others)}) == 4
    assert "block: (32, 1, 1)" in kernel(source).describe().facts
    launchers = kernel(source, shared_bytes=lambda c: c["TILE"]).describe().launchers
    assert len(launchers) == 1


@pytest.mark.usefixtures("nvrtc")
def test_without_a_gpu_there_is_nothing_to_compile_for() -> None:
    if cuda_available() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(KernelError, match="no CUDA GPU to compile for"):
        kernel(SCALE).compile_task({})


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("name", ["grid", "block", "shared_bytes", "options"])
def test_a_callable_that_reads_what_the_space_does_not_have_is_named(name: str) -> None:
    arguments: dict[str, Any] = {"grid": 1, "block": 32, name: lambda config: config["TILE"]}
    with pytest.raises(
        UsageError, match=rf"CudaKernel\({name}=...\) reads 'TILE', which is not among what it is given"
    ):
        CudaKernel(SCALE, "scale", (1.5,), **arguments).compile_task({"ROWS": 1})


@pytest.mark.usefixtures("nvrtc")
def test_a_parameter_that_is_an_option_of_ours_is_refused() -> None:
    with pytest.raises(UsageError, match="-arch=sm_80 cannot be given"):
        kernel(SCALE).compile_task({"-arch=": "sm_80"})


# On a GPU


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(jobs=2)
    yield made
    made.close()


def run(launched: CudaKernel, **config: Any) -> Any:
    """What ``config`` gives in this process."""
    task = launched.compile_task(config)
    built: Build = getattr(Compiler(*task.target_args), task.method)(*task.args)
    assert not built.refused
    return launched(config, built.artifact)


@pytest.mark.gpu
@pytest.mark.usefixtures("nvrtc")
def test_cupy_arrays_are_passed_and_returned_without_a_copy(workers: Workers) -> None:
    import cupy

    x = cupy.arange(1000, dtype=cupy.float32)
    y = cupy.zeros_like(x)
    made = CudaKernel(SCALE, "scale", (x, y, x.size, 3), 8, 128, output=y, reference=lambda: 3 * x)
    assert run(CudaKernel(SCALE, "scale", (x, y, x.size, 3.0), 8, 128, output=y)) is y
    assert bool((y == 3 * x).all())
    args, close = (x, y, x.size, 3.0), lambda actual, expected: bool((actual == expected).all())
    fitting = CudaKernel(SCALE, "scale", args, 8, 128, output=y, reference=lambda: 3 * x, check=close)
    space = ConfigSpace({"UNUSED": integer(0, 3)})
    bench = Benchmark(fitting, space, workers, TimeLimits())
    bench.start()
    assert bench.check({"UNUSED": 0}).status is Status.OK
    assert made.describe() != fitting.describe()


@pytest.mark.gpu
@pytest.mark.usefixtures("nvrtc")
def test_what_is_compiled_for_a_kernel_is_kept_where_it_was_told(tmp_path: Path) -> None:
    import torch

    a = torch.zeros(32, device="cuda")
    made = CudaKernel(void("a[threadIdx.x] = VALUE;"), "f", (a,), 1, 32, output=a)
    made.keep_code_in(tmp_path / "code")
    assert [run(made, VALUE=value).sum().item() for value in (2, 3, 2)] == [64, 96, 64]
    assert len([path for path in (tmp_path / "code").rglob("*") if path.is_file()]) == 2


@pytest.mark.gpu
@pytest.mark.usefixtures("nvrtc")
def test_a_block_may_have_all_the_dynamic_shared_memory_there_is() -> None:
    import torch

    source = void(
        "extern __shared__ float s[]; s[COUNT - 1 - threadIdx.x] = a[threadIdx.x]; __syncthreads(); "
        "a[threadIdx.x] = s[COUNT - blockDim.x + threadIdx.x];"
    )
    a = torch.arange(128, device="cuda", dtype=torch.float32)
    big = CudaKernel(source, "f", (a,), 1, 128, output=a, shared_bytes=lambda c: 4 * c["COUNT"])
    limit = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    assert run(big, COUNT=limit // 4).tolist() == list(range(127, -1, -1))


@pytest.mark.gpu
@pytest.mark.usefixtures("nvrtc")
def test_numbers_arrive_as_the_kernel_declares_them() -> None:
    import torch

    class Pair(ctypes.Structure):
        _fields_ = (("first", ctypes.c_int), ("second", ctypes.c_double))

    declared = "double *a, int i, long long l, float f, double d, short s, bool b, pair p, const int *none, float g"
    body = "double v[] = {(double)i, (double)l, f, d, (double)s, (double)b, (double)p.a, p.b, none ? 1. : 0., g}; "
    source = "struct pair { int a; double b; };\n" + void(body + "for (int k = 0; k < 10; k++) a[k] = v[k];", declared)
    a = torch.zeros(10, device="cuda", dtype=torch.float64)
    args = (a, -3, 1 << 40, 0.5, 0.25, ctypes.c_short(9), True, Pair(4, 5.5), None, np.float32(1.5))
    assert run(CudaKernel(source, "f", args, 1, 1, output=a)).tolist() == [-3, 2**40, 0.5, 0.25, 9, 1, 4, 5.5, 0, 1.5]


@pytest.mark.gpu
@pytest.mark.usefixtures("nvrtc")
def test_it_is_launched_on_the_current_stream_so_that_a_graph_captures_it() -> None:
    import torch

    x, y = torch.ones(1000, device="cuda"), torch.zeros(1000, device="cuda")
    made = CudaKernel(SCALE, "scale", (x, y, 1000, 2.0), 8, 128, output=y)
    task = made.compile_task({})
    built = Compiler(*task.target_args).compile(*task.args)
    launch = made.program().prepare({}, built.artifact)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    torch.cuda.synchronize()
    assert y.sum().item() == 0  # captured, not run
    graph.replay()
    assert y.sum().item() == 2000


@pytest.mark.gpu
@pytest.mark.usefixtures("nvrtc")
def test_a_refused_config_is_never_launched(workers: Workers) -> None:
    import torch

    x, y = torch.ones(1000, device="cuda"), torch.zeros(1000, device="cuda")
    args = (x, y, 1000, 2.0)
    made = CudaKernel(SCALE, "scale", args, 8, lambda c: c["BLOCK"], output=y, reference=lambda: 2 * x)
    bench = Benchmark(made, ConfigSpace({"BLOCK": choice(128, 4096)}), workers, TimeLimits())
    bench.start()
    right, refused = bench.measure([{"BLOCK": 128}, {"BLOCK": 4096}])
    assert right.status is Status.OK
    assert refused.status is Status.OUT_OF_RESOURCES
    assert refused.demand == 4
