"""Helion kernels: their space, what is generated and compiled without a GPU, and how they run on one."""

from __future__ import annotations

import importlib.util
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
helion = pytest.importorskip("helion", reason="needs helion: pip install 'pytest-kerneltune[helion]'")


from pytest_kerneltune import choice  # noqa: E402 - after the skips
from pytest_kerneltune.api import kernel_space, starting_configs  # noqa: E402
from pytest_kerneltune.backends import Build  # noqa: E402
from pytest_kerneltune.backends.helion import HelionKernel  # noqa: E402
from pytest_kerneltune.backends.helion_code import launches  # noqa: E402
from pytest_kerneltune.backends.helion_module import loaded  # noqa: E402
from pytest_kerneltune.backends.helion_space import HelionSpace  # noqa: E402
from pytest_kerneltune.backends.toolchain import Target  # noqa: E402
from pytest_kerneltune.benchmark import Benchmark, Limits  # noqa: E402
from pytest_kerneltune.errors import KernelError, SpaceError, UsageError  # noqa: E402
from pytest_kerneltune.gpu import cuda_available  # noqa: E402
from pytest_kerneltune.launcher import Workers  # noqa: E402
from pytest_kerneltune.packing import unpack  # noqa: E402
from pytest_kerneltune.space import ConfigSpace  # noqa: E402
from pytest_kerneltune.trial import Config, Status  # noqa: E402
from pytest_kerneltune.worker import Service, Worker  # noqa: E402
from pytest_kerneltune.workload import Workload  # noqa: E402

kernels = import_module("helion_kernels")
N = 4096
TARGET = Target("cuda", 90, 32, 232448)


class _Properties:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}


class OfflineH200:
    """What is asked of Triton's driver before anything is launched."""

    utils = _Properties()

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def built(worker: Worker, kernel: HelionKernel, config: Config) -> Build:
    """What compiling ``config`` in ``worker`` gives."""
    task = kernel.compile_task(config)
    build = worker.call(Service(task.target, task.target_args), task.method, *task.args, timeout=120.0).unwrap()
    assert isinstance(build, Build)
    return build


def binaries(cache: Path) -> set[Path]:
    """The machine code in Triton's cache."""
    return set(cache.rglob("*.cubin"))


@pytest.fixture(scope="module", autouse=True)
def cache(triton_cache: Path) -> Path:
    if cuda_available() is not None:
        triton.runtime.driver.set_active(OfflineH200())
    return triton_cache


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker({"CUDA_VISIBLE_DEVICES": ""}, keep=8)
    yield made
    made.close()


@pytest.fixture(scope="module")
def softmax() -> HelionKernel:
    return HelionKernel(kernels.softmax, (torch.randn(256, 1500, dtype=torch.float16),))


@pytest.fixture(scope="module")
def product() -> HelionKernel:
    return HelionKernel(kernels.product, (torch.randn(256, 128), torch.randn(128, 256)))


def shifted(**given: Any) -> HelionKernel:
    return HelionKernel(kernels.shifted, (torch.randn(N), torch.empty(N)), **given)


@pytest.mark.parametrize("name", ["softmax", "product"])
def test_the_space_is_helions(request: pytest.FixtureRequest, name: str) -> None:
    kernel = request.getfixturevalue(name)
    space = kernel.space
    spec = kernel.bound.config_spec
    assert space.helion_config(space.default) == spec.default_config()
    assert {"block_sizes[0]", "num_warps", "num_stages", "pid_type", "indexing"} <= set(space.names)
    assert all(parameter.size > 1 for parameter in space.parameters.values())
    for config in space.sample_new(random.Random(0), 30, set()):
        again = spec.create_config_generation().canonicalize_flat(
            spec.create_config_generation().flatten(space.helion_config(config))
        )[1]
        assert space.helion_config(config) == again


def test_configs_that_helion_makes_the_same_of_are_one(product: HelionKernel) -> None:
    space = product.space
    flat = {**space.default, "pid_type": "flat"}
    alias = {**flat, "num_sm_multiplier": 8}  # says nothing of a kernel that is not persistent
    assert space.helion_config(flat) == space.helion_config(alias)
    assert space.key(flat) == space.key(alias)
    assert space.canonical(alias) == space.canonical(flat)
    drawn = space.sample_new(random.Random(1), 100, set())
    assert len({str(space.helion_config(config)) for config in drawn}) == len(drawn) == 100
    assert all(space.normalised(config) == config for config in drawn)


def test_a_neighbour_is_another_config_once(product: HelionKernel) -> None:
    space = product.space
    keys = [space.key(neighbour) for neighbour in space.neighbours(space.default, 2)]
    assert len(keys) == len(set(keys)) > 20
    assert space.key(space.default) not in keys


def test_drawn_tiles_fit_the_threads() -> None:
    space = HelionKernel(kernels.product, (torch.randn(4096, 4096), torch.randn(4096, 4096))).space
    for config in space.sample_new(random.Random(0), 100, set()):
        tile = config["block_sizes[0]"] * config["block_sizes[1]"] * config["block_sizes[2]"]
        smallest = 16**3  # of what tl.dot multiplies
        assert tile <= max(smallest, 2048 * 32 * config["num_warps"])


def test_the_space_starts_from_what_the_author_gave_the_kernel() -> None:
    space = shifted().space
    assert space.default["block_sizes[0]"] == 256
    assert space.default["num_warps"] == 8
    assert space.default in starting_configs(space, ())


def test_the_authors_config_may_lie_beyond_what_helion_would_search() -> None:
    space = HelionKernel(kernels.shifted, (torch.randn(64), torch.empty(64))).space
    assert space.default["block_sizes[0]"] == 256
    assert space.default in space.seeds


def test_configs_may_be_given_as_helion_writes_them() -> None:
    space = shifted().space
    (config, *_) = starting_configs(space, [helion.Config(block_sizes=[64], num_stages=2)])
    assert config == {**space.default, "block_sizes[0]": 64, "num_stages": 2}
    assert starting_configs(space, [{"num_warps": 2}])[0]["num_warps"] == 2
    with pytest.raises(UsageError, match="is not in the space"):
        starting_configs(space, [{"no_such_knob": 2}])


def test_a_given_space_narrows_helions(product: HelionKernel) -> None:
    given = ConfigSpace({"num_warps": choice(2, 8), "pid_type": choice("flat")}, lambda c: c["num_stages"] < 3)
    space = kernel_space(product, given)
    assert isinstance(space, HelionSpace)
    assert set(space.names) == set(product.space.names)
    drawn = space.sample_new(random.Random(0), 40, set())
    assert {c["pid_type"] for c in drawn} == {"flat"}
    assert {c["num_warps"] for c in drawn} == {2, 8}
    assert {c["num_stages"] for c in drawn} == {1, 2}
    assert kernel_space(product, None, lambda c: c["num_warps"] == 4).sample(random.Random(0))["num_warps"] == 4  # type: ignore[index]
    assert kernel_space(product, None) is product.space


def test_a_given_space_with_what_helion_does_not_know_is_refused(product: HelionKernel) -> None:
    with pytest.raises(UsageError, match=r"names BLOCK.*it has block_sizes\[0\]"):
        kernel_space(product, ConfigSpace({"BLOCK": choice(1, 2)}))
    with pytest.raises(SpaceError, match=r"num_warps.*Helion does not allow it: 3"):
        kernel_space(product, ConfigSpace({"num_warps": choice(1, 3)}))


def test_a_small_space_lists_each_config_once() -> None:
    names = [name for name in shifted().space.names if name not in ("pid_type", "num_sm_multiplier")]
    fixed = {name: choice(shifted().space.default[name]) for name in names}
    space = shifted().space.narrowed(fixed, None)
    assert space.is_listable
    listed = list(space.enumerate())
    assert len(listed) == len({space.key(config) for config in listed}) < space.size
    assert sum(config["pid_type"] == "flat" for config in listed) == 1


@pytest.mark.parametrize(
    ("args", "arguments"),
    [
        ({"kernel": torch.softmax}, "must be a @helion.kernel function"),
        ({"args": 3}, r"HelionKernel\(args=...\) must be a tuple"),
        ({"reference": 3}, r"HelionKernel\(reference=3\) must be callable"),
        ({"rtol": -1}, r"HelionKernel\(rtol=-1\) must be a number"),
        ({"output": torch.zeros(3)}, r"HelionKernel\(output=...\) must be a tensor in args"),
    ],
)
def test_a_wrong_argument_is_named(args: dict[str, Any], arguments: str) -> None:
    with pytest.raises(UsageError, match=arguments):
        HelionKernel(**{"kernel": kernels.shifted, "args": (torch.zeros(3), torch.zeros(3)), **args})


def test_arguments_that_helion_cannot_bind_are_an_error_of_the_user() -> None:
    with pytest.raises(UsageError, match="cannot bind product to these args"):
        _ = HelionKernel(kernels.product, (torch.zeros(3),)).space


def test_without_helion_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['helion'] = None\n"
        "from pytest_kerneltune.backends.helion import HelionKernel\n"
        "HelionKernel(print, ())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'pytest-kerneltune[helion]'" in run.stderr.splitlines()[-1]


def test_what_is_launched_is_noted_without_launching(softmax: HelionKernel) -> None:
    config = softmax.space.canonical({**softmax.space.default, "block_sizes[0]": 4, "num_warps": 2})
    (launch,) = launches(softmax.source(config), "softmax", softmax.args)
    assert launch.grid == (64,)
    assert launch.keywords["num_warps"] == 2
    x, out, *_ = unpack(launch.packed)[1]
    assert str(x.dtype) == str(out.dtype) == "torch.float16"
    assert x.size == out.size == 256 * 1500 * 2


def test_torch_work_around_a_launch_is_not_done_to_note_it() -> None:
    x = torch.randn(64, 100)
    kernel = HelionKernel(kernels.summed_in_parts, (x,))
    assert len(launches(kernel.source(kernel.space.default), "summed_in_parts", kernel.args)) == 1


HOST = """
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor
from helion.runtime import default_launcher as _default_launcher

@triton.jit
def first(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i) * 2)

@triton.jit
def second(y, z):
    rows = tl.arange(0, 16)
    tl.store(z + rows[:, None] * 16 + rows[None, :], y.load([0, 0]))

def twice(x, *, _launcher=_default_launcher):
    y = torch.empty([16, 16], dtype=x.dtype, device=x.device)
    _launcher(first, (3,), x, y, 256, num_warps=2, num_stages=1)
    z = torch.empty_like(y)
    described = TensorDescriptor.from_tensor(y, [16, 16])
    _launcher(second, (1, 2), described, z, num_warps=1, num_stages=2)
    return z

def curious(x, *, _launcher=_default_launcher):
    y = torch.empty_like(x)
    _launcher(first, (int(x.sum()),), x, y, 256, num_warps=2, num_stages=1)
    return y
"""


def test_all_launches_of_a_host_function_are_compiled(worker: Worker, cache: Path) -> None:
    noted = launches(HOST, "twice", (torch.ones(256),))
    assert [launch.grid for launch in noted] == [(3,), (1, 2)]
    before = binaries(cache)
    service = Service("pytest_kerneltune.backends.helion:HelionCompiler", (TARGET, str(cache)))
    build = worker.call(service, "compile", HOST, "twice", noted, timeout=120.0).unwrap()
    assert len(binaries(cache) - before) == 2
    assert build.artifact == {"source": HOST, "host": "twice"}
    assert build.usage["threads"] == 64


def test_where_a_launch_depends_on_data_the_first_one_compiles(worker: Worker, cache: Path) -> None:
    noted = launches(HOST, "curious", (torch.ones(256),))
    assert noted == ()
    service = Service("pytest_kerneltune.backends.helion:HelionCompiler", (TARGET, str(cache)))
    build = worker.call(service, "compile", HOST, "curious", noted, timeout=120.0).unwrap()
    assert build.artifact == {"source": HOST, "host": "curious"}
    assert build.code == ""


def test_a_view_keeps_its_alignment() -> None:
    base = torch.randn(N + 1)
    kernel = HelionKernel(kernels.shifted, (base[1:], torch.empty(N)))
    (launch,) = launches(kernel.source(kernel.space.default), "shifted", kernel.args)
    assert unpack(launch.packed)[1][0].data_ptr() % 16 == base[1:].data_ptr() % 16 == 4


def test_configs_compile_where_there_is_no_gpu(worker: Worker, softmax: HelionKernel, cache: Path) -> None:
    before = binaries(cache)
    build = built(worker, softmax, softmax.space.default)
    assert build.usage["registers"] > 0
    assert 0 < build.demand <= 1
    assert build.code
    assert len(binaries(cache) - before) == 1
    same = built(worker, softmax, {**softmax.space.default, "num_sm_multiplier": 4})
    assert same.code == build.code


def test_a_config_makes_one_task_for_one_service(softmax: HelionKernel) -> None:
    default, other = softmax.space.default, softmax.space.neighbours(softmax.space.default)[0]
    first, again, another = (softmax.compile_task(config) for config in (default, dict(default), other))
    assert first == again == pickle.loads(pickle.dumps(first))
    assert first != another
    assert (first.target, first.target_args) == (another.target, another.target_args)


def test_code_that_cannot_be_launched_is_refused(worker: Worker) -> None:
    kernel = HelionKernel(kernels.product, (torch.randn(1024, 1024), torch.randn(1024, 1024)))
    tiles = {"block_sizes[0]": 256, "block_sizes[1]": 128, "block_sizes[2]": 128, "num_stages": 4, "num_warps": 8}
    build = built(worker, kernel, kernel.space.canonical({**kernel.space.default, **tiles}))
    assert "shared memory" in build.refused
    assert build.demand > 1


def test_neither_kind_of_worker_imports_helion(softmax: HelionKernel) -> None:
    """Its import takes seconds. What compiles and what launches see the same kernel all the same."""
    source = softmax.source(softmax.space.default)
    (launch,) = launches(source, "softmax", softmax.args)
    code = (
        "import sys\n"
        "from pytest_kerneltune.packing import unpack\n"
        f"function = unpack(bytes.fromhex({launch.packed.hex()!r}))[0]\n"
        "print(function.cache_key, 'torch' in sys.modules)\n"
        "from pytest_kerneltune.backends.helion_module import loaded\n"
        f"print(loaded({source!r})._helion_softmax.cache_key, 'helion' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    key = loaded(source)._helion_softmax.cache_key
    assert run.stdout.split() == [key, "False", key, "False"]


def test_what_generated_text_imports_of_torch_is_there_once_the_reference_has_run(softmax: HelionKernel) -> None:
    """It takes seconds, which would be those of the first config."""
    code = (
        "import sys, pickle\n"
        "from pytest_kerneltune.packing import unpack\n"
        "from pytest_kerneltune.backends.helion_module import loaded\n"
        "program, source = pickle.loads(sys.stdin.buffer.read())\n"
        "unpack(program).expect()\n"
        "before = set(sys.modules)\n"
        "loaded(source)\n"
        "print(sorted(name for name in set(sys.modules) - before if name.startswith('torch')))\n"
    )
    source = softmax.source(softmax.space.default)
    assert "torch._inductor" in source
    content = pickle.dumps((softmax.packed((sys.modules[__name__],)), source))
    run = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    assert run.stdout.decode().strip() == "[]"


def test_constants_of_the_users_module_travel_in_the_text() -> None:
    source = shifted().source(shifted().space.default)
    assert "import helion_kernels" not in source
    assert loaded(source)._source_module.OFFSET == kernels.OFFSET


def test_a_config_that_helion_cannot_generate_has_no_code(product: HelionKernel) -> None:
    broken = {**product.space.default, "block_sizes[0]": 3}
    with pytest.raises(KernelError, match="Helion generates no code"):
        product.compile_task(broken)
    with pytest.raises(KernelError, match="knows no num_waves here"):  # a baseline of another version's
        product.compile_task({**product.space.default, "num_waves": 3})


INTERPRETED = """
import pickle, sys
packed, config, artifact = pickle.loads(sys.stdin.buffer.read())
from pytest_kerneltune.packing import unpack
program = unpack(packed)
program.expect()
launch = program.prepare(config, artifact)
for _ in range(2):
    program.reset()
    print(program.mismatch(launch()), "helion" in sys.modules, sep="; ")
"""


def interpreted(kernel: HelionKernel) -> list[str]:
    """What a program says of two launches in a process of its own, by Triton's interpreter."""
    config = kernel.space.default
    artifact = {"source": kernel.source(config), "host": kernel.kernel.name}
    content = pickle.dumps((kernel.packed((sys.modules[__name__],)), config, artifact))
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        input=content,
        capture_output=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout.decode().splitlines()


def test_a_program_launches_and_compares_in_its_worker() -> None:
    x = torch.randn(64)
    right = HelionKernel(kernels.shifted_of_any_size, (x,), lambda: x + 1)
    wrong = HelionKernel(kernels.shifted_of_any_size, (x,), lambda: x - 1)
    assert interpreted(right) == ["None; False"] * 2
    assert all("elements differ" in line for line in interpreted(wrong))


def test_a_program_brings_back_what_its_kernel_changes() -> None:
    x = torch.randn(64)
    first, out = x.clone(), torch.empty(64)
    assert interpreted(HelionKernel(kernels.shift_in_place, (x,), lambda: first + 1)) == ["None; False"] * 2
    assert interpreted(HelionKernel(kernels.shifted, (x, out), lambda: x + 1, output=out)) == ["None; False"] * 2


@pytest.fixture
def read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], ModuleType]:
    def read(folder: str, text: str) -> ModuleType:
        path = tmp_path / folder / "some_kernels.py"
        path.parent.mkdir()
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("some_kernels", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "some_kernels", module)
        spec.loader.exec_module(module)
        return module

    return read


def test_a_fingerprint_tells_sources_and_inputs_apart_and_no_folders(
    read_from: Callable[[str, str], ModuleType],
) -> None:
    text = Path(str(kernels.__file__)).read_text()
    x = torch.randn(N)

    def fingerprint(module: ModuleType, x: Any = x) -> str:
        kernel = HelionKernel(module.shifted, (x, torch.empty_like(x)))
        return Workload(name="shifted", file="test_it.py", kernel=kernel, space=kernel.space).fingerprint

    first = fingerprint(read_from("a", text))
    assert fingerprint(read_from("b", text)) == first
    assert fingerprint(read_from("c", text.replace("OFFSET = 1.0", "OFFSET = 2.0"))) != first
    assert fingerprint(read_from("d", text), x.half()) != first
    assert fingerprint(read_from("e", text.replace("x[tile] + OFFSET", "OFFSET - x[tile]"))) != first


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers(jobs=8)
    yield made
    made.close()


def measured(kernel: HelionKernel, workers: Workers) -> Benchmark:
    bench = Benchmark(kernel, kernel.space, workers, Limits(compile_s=20.0, run_s=20.0))
    bench.start()
    return bench


@pytest.mark.gpu
def test_what_a_kernel_returns_is_compared_with_the_reference(workers: Workers) -> None:
    x = torch.randn(512, 1500, device="cuda", dtype=torch.float16)
    right = HelionKernel(kernels.softmax, (x,), lambda: torch.softmax(x, -1))
    bench = measured(right, workers)
    space = right.space
    trials = {space.key(t.config): t for t in bench.measure([space.default, *space.neighbours(space.default)[:4]])}
    default = trials.pop(space.key(space.default))
    others = list(trials.values())
    assert default.ok, default.reason
    assert default.usage["registers"] > 0
    assert any(trial.ok for trial in others)
    assert not any(trial.status in (Status.WRONG, Status.CRASH, Status.RUNTIME_ERROR) for trial in others)
    actual = right(default.config, bench.artifact(default.config))
    torch.testing.assert_close(actual, torch.softmax(x, -1), rtol=1e-2, atol=1e-3)
    wrong = HelionKernel(kernels.softmax, (x,), lambda: torch.softmax(x, -1) * 2)
    assert measured(wrong, workers).check(wrong.space.default).status is Status.WRONG


@pytest.mark.gpu
def test_the_launch_finds_what_was_compiled_ahead(workers: Workers, cache: Path) -> None:
    x = torch.randn(300, 700, device="cuda")
    kernel = HelionKernel(kernels.softmax, (x,), lambda: torch.softmax(x, -1))
    bench = measured(kernel, workers)
    artifact = bench.artifact(kernel.space.default)
    before = binaries(cache)
    assert before
    assert bench.check(kernel.space.default).ok
    kernel(kernel.space.default, artifact)
    assert binaries(cache) == before


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["shifted", "shift_in_place", "shifted_of_any_size", "summed_in_parts"])
def test_kernels_that_write_or_change_what_they_are_given(workers: Workers, name: str) -> None:
    x = torch.randn(N, device="cuda")
    first = x.clone()
    rows = x.view(64, 64)
    out = torch.empty_like(x)
    kernel = {
        "shifted": lambda: HelionKernel(kernels.shifted, (x, out), lambda: first + 1, output=out),
        "shift_in_place": lambda: HelionKernel(kernels.shift_in_place, (x,), lambda: first + 1),
        "shifted_of_any_size": lambda: HelionKernel(kernels.shifted_of_any_size, (x,), lambda: first + 1),
        "summed_in_parts": lambda: HelionKernel(kernels.summed_in_parts, (rows,), lambda: first.sum()),
    }[name]()
    bench = measured(kernel, workers)
    for _ in range(2):
        trial = bench.check(kernel.space.default)
        assert trial.ok, trial.reason
    assert bench.measure([kernel.space.default])[0].ok
