"""Kernels of the version that is compared with, exported by a real process from a real repository and run here."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.against import Absent, BaseSide, Counterpart, Limits
from pytest_kerneltune.backends import CompileTask, Kernel
from pytest_kerneltune.baseline import baseline_path, device_slug, write_baselines
from pytest_kerneltune.basetree import BaseTree
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.gpu import cpu_device
from pytest_kerneltune.record import Baseline, StoredSession
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.trial import Config
from pytest_kerneltune.worker import Service, Worker

sys.path.insert(0, str(Path(__file__).parent.parent))
Repository = import_module("repositories").Repository
LIMIT_S = 120.0
OPTIONS = {"plugins": ["no:terminal", "no:doctest"], "overrides": ["xfail_strict=true"], "warnings": ["error"]}
Open = Callable[..., BaseSide]


@pytest.fixture
def repository(tmp_path: Path) -> Any:
    return Repository(tmp_path / "project")


@pytest.fixture
def opened(repository: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the base side of the repository's branch ``base``; ``values`` are options of today's run."""
    closing: list[Any] = []

    def open_side(root: str = "", values: Mapping[str, Any] | None = None, **settings: Any) -> BaseSide:
        folder = repository.root / root
        tree = BaseTree.at_merge_base(folder, "base")
        environ = {"KERNELTUNE_CACHE_DIR": str(tmp_path / "cache")}
        own = Settings.from_sources(settings.get, lambda _: None, environ, folder)
        side = BaseSide(tree, own, {**OPTIONS, "folder": str(folder), "values": dict(values or {})}, Limits(60.0, 60.0))
        closing.extend((side, tree))
        return side

    yield open_side
    for each in closing:
        each.close()


def found(side: BaseSide, test: str, name: str, *configs: Config) -> Counterpart:
    answer = side.find(test.partition("::")[0], name, test, configs)
    assert isinstance(answer, Counterpart), answer
    return answer


def absent(side: BaseSide, test: str, name: str) -> tuple[str, bool]:
    answer = side.find(test.partition("::")[0], name, test, [])
    assert isinstance(answer, Absent)
    return answer.reason, answer.broken


@pytest.fixture
def worker() -> Iterator[Worker]:
    process = Worker()
    yield process
    process.close()


@pytest.fixture
def launcher() -> Iterator[Worker]:
    process = Worker()
    yield process
    process.close()


def artifact_of(worker: Worker, kernel: Kernel, config: Config) -> Any:
    task = kernel.compile_task(config)
    assert isinstance(task, CompileTask)
    built = worker.call(Service(task.target, task.target_args), task.method, *task.args, timeout=LIMIT_S).unwrap()
    assert built.refused == ""
    return built.artifact


def differences(compiler: Worker, launcher: Worker, kernel: Kernel, configs: Sequence[Config]) -> list[Any]:
    """What checks in a worker say of the kernel's configs, against its own reference; None is right."""
    service = Service("pytest_kerneltune.station:Station", (kernel.packed(()), kernel.clock))
    launcher.call(service, "expect", timeout=LIMIT_S).unwrap()
    artifacts = [artifact_of(compiler, kernel, config) for config in configs]
    calls = zip(configs, artifacts, strict=True)
    return [launcher.call(service, "check", *call, timeout=LIMIT_S).unwrap() for call in calls]


CONFTEST = """\
import pytest

def pytest_addoption(parser):
    parser.addoption("--size", type=int, default=3)

@pytest.fixture(params=[1, 2], ids=["one", "two"])
def factor(request):
    return request.param
"""
HELPERS = """\
import functools
import threading
import helpers
from nested import deep
try:
    import brand_new
except ImportError:
    brand_new = None
try:
    import generated
except ImportError:
    generated = None

OFFSET = {offset}
LOCK = threading.Lock()  # cannot travel, and need not

def lazy():
    import nested.deep

@functools.lru_cache
def offset():
    return OFFSET

class Work:
    def done(self, n):
        return n * deep.SCALE + helpers.offset()
"""
TESTS = """\
import sys
import helpers
from pytest_kerneltune import choice, tunable

@tunable(space={{"block": choice({blocks})}}, name="product")
def made(request, factor):
    size = request.config.getoption("--size")
    work, known = helpers.Work(), (helpers.brand_new is None, helpers.generated is None)
    return lambda block: (work.done(size * factor) + block, known)

def test_{name}(product):
    raise AssertionError("a test's body is not run here")

class TestClass:
    def test_dynamic(self, request):
        request.getfixturevalue("{late}")()
"""
BASE = {
    "pytest.ini": "[pytest]\naddopts = --no-such-option\nautotune = none\n",
    "tests/conftest.py": CONFTEST,
    "tests/test_it.py": TESTS.format(blocks="1, 2", name="then", late="product"),
    "src/helpers.py": HELPERS.format(offset=100),
    "src/nested/__init__.py": "",
    "src/nested/deep.py": "SCALE = 10\n",
    ".gitignore": "generated.py\n",
}
TODAY = {
    "tests/test_it.py": TESTS.format(blocks="2, 4", name="now", late="product") + "\ndef test_more(added): ...\n",
    "src/helpers.py": HELPERS.format(offset=900),
    "src/nested/deep.py": "SCALE = 90\n",
    "src/brand_new.py": "",
}


def test_a_kernel_is_as_it_was_with_all_it_reaches(
    repository: Any, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.versions(BASE, TODAY)
    repository.write({"src/generated.py": "", "tests/test_it.py": "uncommitted"})
    monkeypatch.syspath_prepend(str(repository.root / "src"))  # as a .pth file of an editable install does
    helpers = import_module("helpers")
    assert helpers.OFFSET == 900
    side = opened(values={"size": 7, "plugins": None, "basetemp": "/nowhere"})
    side.start(["tests/test_it.py", "tests/gone.py"])
    two = found(side, "tests/test_it.py::test_now[two]", "product[two]", {"block": 2}, {"block": 4})
    assert (two.best, two.best_source, two.configs) == ({"block": 1}, "default", ({"block": 1}, {"block": 2}))
    program = two.kernel.program()
    # 7 * 2 * 10 + 100: today's option, the parameter, and the helpers of then; what git ignores is there.
    assert program.prepare({"block": 2}, None)() == (242, (True, False))
    assert sys.modules["helpers"] is helpers
    assert two.kernel({"block": 1}, None) == (241, (True, False))
    one = found(side, "tests/test_it.py::TestClass::test_dynamic[one]", "product[one]")
    assert one.kernel({"block": 1}, None) == (171, (True, False))
    assert one.fingerprint != two.fingerprint
    assert one.inputs == two.inputs
    with pytest.raises(KernelError, match="not exported with the config"):
        two.kernel.compile_task({"block": 4})
    assert absent(side, "tests/test_it.py::test_more", "added") == ("no test of tests/test_it.py gave added", False)
    assert absent(side, "tests/test_new.py::test_a", "a")[0].startswith("there was no tests/test_new.py at ")
    assert list(repository.root.rglob(".pytest_cache")) == []


C_TESTS = """\
import json
from pathlib import Path

import numpy as np
import pytest
from pytest_kerneltune import CKernel, integer, tunable

HERE = Path(__file__).parent
VALUE = {value}

def expected():
    return np.full(100, VALUE)

@tunable(space={{"UNROLL": integer(1, 4, default=2)}})
def filled():
    x = np.zeros(100)
    return CKernel(HERE / "fill.c", "fill", (x, 100), output=x, reference=expected, flags=["-O1", "-Iinclude"])

def test_filled(filled): ...
"""
C_SOURCE = """\
#include "value.h"
#include <more.h>
void fill(double *x, long n) { for (long i = 0; i < n; i++) x[i] = 2 * MORE - VALUE; }
"""


def test_a_c_kernel_is_compiled_with_the_files_of_then(
    repository: Any, opened: Open, worker: Worker, launcher: Worker
) -> None:
    def files(value: int) -> dict[str, str]:
        return {
            "sub/test_c.py": C_TESTS.format(value=value),
            "sub/fill.c": C_SOURCE,
            "sub/value.h": f"#define VALUE {value}\n",
            "sub/include/more.h": f"#define MORE {value}\n",
            "sub/pyproject.toml": "[tool.pytest.ini_options]\n",
        }

    store = repository.root / "store"
    kept = baseline_path(store, device_slug(cpu_device().name), "test_c")
    write_baselines(kept, {}, {"filled": Baseline({"UNROLL": 1}, {}, (StoredSession(1.0, {}, {}, 0.1, 1),))})
    repository.commit(files(5))
    repository.git("branch", "base")
    repository.git("rm", "-qr", "store")
    repository.commit(files(6))
    side = opened("sub", baseline_dir=str(store))
    counterpart = found(side, "test_c.py::test_filled", "filled", {"UNROLL": 3}, {"UNROLL": 9})
    assert (counterpart.best, counterpart.best_source) == ({"UNROLL": 1}, "baseline")
    kernel = counterpart.kernel
    assert (kernel.kind, kernel.clock, kernel.isolated) == ("c", "thread", True)
    assert isinstance(kernel, Kernel)
    assert kernel.launch_env()["OMP_NUM_THREADS"] == "1"
    assert differences(worker, launcher, kernel, counterpart.configs) == [None, None]
    assert [dict(config) for config in counterpart.configs] == [{"UNROLL": 1}, {"UNROLL": 3}]


JIT_HELPERS = """\
import triton
import triton.language as tl

FACTOR = tl.constexpr({factor})

@triton.jit
def scaled(x):
    return x * FACTOR

def rounded(n):
    return n + {factor}
"""
JIT_KERNELS = """\
import torch
import triton
import triton.language as tl
import jit_helpers

ROUNDED = tl.constexpr(jit_helpers.rounded(1))

@triton.jit
def scale(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, jit_helpers.scaled(tl.load(x_ptr + i, mask=i < n)) + ROUNDED, mask=i < n)

def kernel(device="cpu"):
    from pytest_kerneltune import TritonKernel
    x = torch.arange(1000, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    expected = lambda: x * jit_helpers.FACTOR.value + jit_helpers.rounded(1)
    grid = lambda meta: (triton.cdiv(meta["n"], meta["BLOCK"]),)
    return TritonKernel(scale, (x, y, 1000), grid, output=y, reference=expected)
"""
JIT_EXPORT = """\
import json, pickle, sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
import triton
from pytest_kerneltune.backends.exported import ExportedKernel
from pytest_kerneltune.backends.toolchain import OfflineDriver, Target
from pytest_kerneltune.gpu import cuda_available
from pytest_kerneltune.packing import travel_by_value
if cuda_available() is not None:
    triton.runtime.driver.set_active(OfflineDriver(Target("cuda", 90, 32, shared_bytes=232448)))
travel_by_value(folder)
import jit_kernels
exported = ExportedKernel.of(jit_kernels.kernel(), (), [{"BLOCK": 128}, {"BLOCK": 256}])
sys.stdout.buffer.write(pickle.dumps(exported))
"""


def test_a_triton_kernel_travels_with_its_helpers_and_constants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, triton_cache: Path
) -> None:
    for folder, factor in (("base", 2), ("today", 3)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "jit_helpers.py").write_text(JIT_HELPERS.format(factor=factor))
        (tmp_path / folder / "jit_kernels.py").write_text(JIT_KERNELS)
    command = [sys.executable, "-c", JIT_EXPORT, str(tmp_path / "base")]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    base = pickle.loads(done.stdout)
    monkeypatch.syspath_prepend(str(tmp_path / "today"))
    today = import_module("jit_kernels").kernel()
    code = {}
    compiler = Worker()
    for version, kernel in (("base", base), ("today", today), ("base again", base)):
        task = kernel.compile_task({"BLOCK": 128})
        reply = compiler.call(Service(task.target, task.target_args), task.method, *task.args, timeout=LIMIT_S)
        code[version] = reply.unwrap().code
    compiler.close()
    assert code["base"] == code["base again"] != code["today"]
    texts = [path.read_text().lower() for path in triton_cache.rglob("*.ptx")]
    assert all(any(factor in text for text in texts) for factor in ("0f40400000", "0f40800000"))  # 3 and 4: ROUNDED
    program = base.program()
    assert program.reference()[3].item() == 3 * 2 + 3
    assert today.program().reference()[3].item() == 3 * 3 + 4


GPU_TESTS = """\
from pathlib import Path
import torch
import jit_kernels
from pytest_kerneltune import CudaKernel, power_of_two, tunable

VALUE = {value}

@tunable(space={{"BLOCK": power_of_two(64, 256)}})
def scale():
    return jit_kernels.kernel("cuda")

@tunable(space={{"BLOCK": power_of_two(64, 256)}})
def fill():
    y = torch.zeros(1000, device="cuda")
    source = Path(__file__).parent / "fill.cu"
    grid = lambda config: -(-1000 // config["BLOCK"])
    return CudaKernel(
        source, "fill", (y, 1000), grid, lambda config: config["BLOCK"], output=y,
        reference=lambda: torch.full((1000,), float(VALUE), device="cuda"),
    )

def test_scale(scale): ...
def test_fill(fill): ...
"""
CUDA_SOURCE = """\
#include "value.cuh"
extern "C" __global__ void fill(float *y, long n) {
    long i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) y[i] = VALUE;
}
"""


@pytest.mark.gpu
def test_kernels_on_a_gpu_are_launched_as_they_were(
    repository: Any, opened: Open, worker: Worker, launcher: Worker
) -> None:
    pytest.importorskip("cupy")

    def files(value: int) -> dict[str, str]:
        return {
            "test_gpu.py": GPU_TESTS.format(value=value),
            "jit_kernels.py": JIT_KERNELS,
            "jit_helpers.py": JIT_HELPERS.format(factor=value),
            "fill.cu": CUDA_SOURCE,
            "value.cuh": f"#define VALUE {value}\n",
        }

    repository.versions(files(2), files(3))
    side = opened()
    for name in ("scale", "fill"):
        counterpart = found(side, f"test_gpu.py::test_{name}", name, {"BLOCK": 128})
        assert [dict(config) for config in counterpart.configs] == [{"BLOCK": 64}, {"BLOCK": 128}]
        assert differences(worker, launcher, counterpart.kernel, counterpart.configs) == [None, None]
