"""Workloads: what makes two kernels one, and what a prompt says about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pytest_kerneltune
from pytest_kerneltune.backends.c import CKernel
from pytest_kerneltune.backends.python import PythonKernel
from pytest_kerneltune.errors import SpaceError
from pytest_kerneltune.parameter import Parameter, boolean, choice, integer, power_of_two
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.versions import toolchain
from pytest_kerneltune.workload import Workload

ROOT = Path(pytest_kerneltune.__file__).parent.parent
PARAMETERS: dict[str, Parameter] = {"tile": power_of_two(1, 64), "order": choice("ij", "ji")}
DEVICE = {"cpu": "some model"}
LIMIT = 32
SOURCE = '#include "size.h"\nvoid twice(float *x, long n) { for (long i = 0; i < n; i++) x[i] *= 2; /* in place */ }\n'


def small(config: Any) -> bool:
    return bool(config["tile"] <= LIMIT)


def kernel(tile: int, order: str) -> int:
    """Sums."""
    return tile * LIMIT + len(order)


def workload(**changes: Any) -> Workload:
    plain = Workload("sum[n1]", "perf/test_sum.py", PythonKernel(kernel), ConfigSpace(PARAMETERS), device_key=DEVICE)
    return replace(plain, **changes)


def c_kernel(source: Any = SOURCE, count: int = 8, **options: Any) -> CKernel:
    x = np.ones(count, np.float32)
    return CKernel(source, "twice", (x, count), output=x, **options)


def test_a_fingerprint_is_a_sha256_and_repeats() -> None:
    assert workload().fingerprint == workload().fingerprint
    assert len(bytes.fromhex(workload().fingerprint)) == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "sum[n2]"},
        {"file": "perf/test_other.py"},
        {"kernel": PythonKernel(lambda **config: len(config))},
        {"kernel": PythonKernel(kernel, device="cuda")},
        {"kernel": PythonKernel(kernel, setup=lambda: None)},
        {"space": ConfigSpace(PARAMETERS, where=small)},
        {"space": ConfigSpace({**PARAMETERS, "tile": power_of_two(1, 128)})},
        {"space": ConfigSpace({**PARAMETERS, "tile": power_of_two(1, 64, default=2)})},
        {"space": ConfigSpace({**PARAMETERS, "tile": integer(1, 64)})},
        {"space": ConfigSpace({**PARAMETERS, "unroll": boolean()})},
        {"device_key": {"cpu": "another model"}},
        {"toolchain": {"python": "3.13"}},
    ],
)
def test_what_makes_another_kernel(changes: dict[str, Any]) -> None:
    assert workload(**changes).fingerprint != workload().fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "elsewhere/deep/test_sum.py"},
        {"configs": ({"tile": 4, "order": "ji"},)},
        {"threshold": 0.1},
        {"device_name": "the machine under the desk"},
        {"kernel": PythonKernel(kernel, reference=lambda: 1, rtol=0.5)},
        {"space": ConfigSpace(dict(reversed(PARAMETERS.items())))},
        {"toolchain": {}},
        {"test": "perf/test_sum.py::test_sum"},
    ],
)
def test_what_leaves_it_the_same(changes: dict[str, Any]) -> None:
    assert workload(**changes).fingerprint == workload().fingerprint


def constrained(limit: int) -> Workload:
    return workload(space=ConfigSpace(PARAMETERS, where=lambda config: config["tile"] <= limit))


def test_the_constants_of_a_constraint_count() -> None:
    assert constrained(8).fingerprint == constrained(8).fingerprint
    assert constrained(8).fingerprint != constrained(16).fingerprint


def test_c_kernels_count_by_code_inputs_and_flags() -> None:
    def fingerprint(*args: Any, **options: Any) -> str:
        return workload(kernel=c_kernel(*args, **options)).fingerprint

    assert fingerprint() == fingerprint(SOURCE.replace("/* in place */", "\n\n  // doubles it\n"))
    others = [fingerprint(SOURCE.replace("*= 2", "+= x[i]")), fingerprint(count=16), fingerprint(flags=["-O2"])]
    assert len({fingerprint(), *others}) == 4


def test_local_headers_of_a_c_file_count(tmp_path: Path) -> None:
    def fingerprint(folder: str, size: int) -> str:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "size.h").write_text(f"// {folder}\n#define SIZE {size}\n")
        source = tmp_path / folder / "twice.c"
        source.write_text(SOURCE)
        return workload(kernel=c_kernel(source)).fingerprint

    assert fingerprint("a", 1) == fingerprint("b", 1)
    assert fingerprint("c", 2) != fingerprint("d", 1)


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("#include <size.h>\n", ()),
        ('#include "outer.h"\n', ()),
        ('#define WHICH "size.h"\n#include WHICH\n', ()),
        ("#define WHICH <size.h>\n#include WHICH\n", ()),
        ('char data[] = {\n#embed "size.h"\n};\n', ()),
        ("", ("-include", "FOLDER/size.h", "-LFOLDER", "-Wl,-rpath,FOLDER")),
    ],
)
def test_whatever_way_a_file_is_read_by_a_compiler_it_counts(
    tmp_path: Path, source: str, flags: tuple[str, ...]
) -> None:
    def fingerprint(folder: str, size: int) -> str:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "size.h").write_text(f"#define SIZE {size}\n")
        (tmp_path / folder / "outer.h").write_text("#include <size.h>\n")
        path = tmp_path / folder / "twice.c"
        path.write_text(source + "void twice(float *x, long n) {}\n")
        given = [flag.replace("FOLDER", str(tmp_path / folder)) for flag in flags]
        return workload(kernel=c_kernel(path, flags=given)).fingerprint

    assert fingerprint("a", 1) == fingerprint("b", 1)
    assert fingerprint("c", 2) != fingerprint("d", 1)


def test_headers_in_a_compilers_directories_count_and_the_directories_do_not(tmp_path: Path) -> None:
    def fingerprint(folder: str, size: int, *flags: str) -> str:
        include = tmp_path / folder / "include"
        include.mkdir(parents=True)
        (include / "size.h").write_text(f"#include <inner.h>\n// {folder}\n")
        (include / "inner.h").write_text(f"#define SIZE {size}\n")
        options = [flag.replace("DIRECTORY", str(include)) for flag in flags]
        return workload(kernel=c_kernel(flags=["-O3", *options])).fingerprint

    joined = [fingerprint("a", 1, "-IDIRECTORY"), fingerprint("b", 1, "-IDIRECTORY")]
    assert joined[0] == joined[1] != fingerprint("c", 2, "-IDIRECTORY")
    assert fingerprint("d", 1, "-I", "DIRECTORY") == fingerprint("e", 1, "-I", "DIRECTORY")
    assert len({fingerprint("f", 1, f"-DSIZE={n}") for n in (1,)} | {joined[0], fingerprint("g", 1, "-DSIZE=2")}) == 3


class Launched(PythonKernel):
    """A kernel with a function that says how it is launched, as kernels of a GPU have."""

    launchers: tuple[Any, ...] = ()

    def describe(self) -> Any:
        return replace(super().describe(), launchers=self.launchers)


def launched(*launchers: Any, **options: Any) -> str:
    made = Launched(kernel, **options)
    object.__setattr__(made, "launchers", launchers)
    return workload(kernel=made).fingerprint


def persistent(processors: int) -> Any:
    return lambda config: (min(processors, LIMIT * config["tile"]),)


def test_how_a_kernel_is_launched_counts_and_its_reference_does_not() -> None:
    assert launched(persistent(132)) == launched(persistent(132), reference=lambda: 7)
    others = [launched(), launched(persistent(108)), launched(persistent(132), persistent(132))]
    assert len({launched(persistent(132)), *others}) == 4


TRITON = "import triton\n@triton.jit\ndef copy(x_ptr, n, tile, order):\n    pass\n"


def test_the_grid_of_a_triton_kernel_counts_and_where_its_tensors_are_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, triton = pytest.importorskip("torch"), pytest.importorskip("triton")
    from pytest_kerneltune.backends.triton import TritonKernel

    (tmp_path / "launched_copy.py").write_text(TRITON)
    monkeypatch.syspath_prepend(str(tmp_path))
    copy = import_module("launched_copy").copy

    def fingerprint(grid: Any, count: int = 64) -> str:
        x = torch.zeros(count)
        address, device = x.data_ptr(), torch.device("cuda:0")
        made = TritonKernel(copy, (x, count), lambda c: (grid(x.numel(), c["tile"]), 1 + 0 * address, bool(device)))
        return workload(kernel=made).fingerprint

    assert fingerprint(triton.cdiv) == fingerprint(triton.cdiv) != fingerprint(triton.cdiv, 128)
    assert fingerprint(triton.cdiv) != fingerprint(lambda n, tile: n // tile)


def test_an_array_that_is_passed_twice_makes_another_kernel() -> None:
    x, y = np.ones(8, np.float32), np.ones(8, np.float32)
    made = [CKernel(SOURCE, "twice", args, output=x) for args in ((x, y, 8), (x, x, 8))]
    assert workload(kernel=made[0]).fingerprint != workload(kernel=made[1]).fingerprint


class Unwilling:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError


@dataclass
class Both:
    tensor: Any
    count: int = 1


def test_arguments_in_words_are_the_same_in_every_process() -> None:
    torch = pytest.importorskip("torch")
    from pytest_kerneltune.backends.tensor_arguments import described, functions_in

    assert described(Both(torch.zeros(4))) == described(Both(torch.ones(4))) != described(Both(torch.zeros(5)))
    assert described({"b", "a"}) == "set {str a, str b}"
    assert described(torch.device("cuda:1")) == described(torch.device("cuda:0"))
    assert described(partial(small, 1)) == "partial function small (int 1) {}"
    assert functions_in([partial(small, 1)]) == (small,)
    assert described(Unwilling()) == "Unwilling that cannot be described"
    assert "Tensor" in described(torch.zeros(4).to_sparse())


def test_a_toolchain_is_that_of_the_kind_of_kernel(tmp_path: Path) -> None:
    plain = toolchain("python", {})
    assert plain["python"].count(".") == 2
    assert plain["numpy"] == np.__version__
    assert "python" not in toolchain("triton", {})
    assert toolchain("cuda", {"driver": "1.2"})["driver"] == "1.2"
    compiler = tmp_path / "mycc"
    compiler.write_text("#!/bin/sh\necho mycc 1.2\necho more\n")
    compiler.chmod(0o755)
    assert toolchain("c", {}, str(compiler)) == {"compiler": "mycc 1.2"}
    assert toolchain("c", {}, "no-such-compiler") == {"compiler": "unknown"}
    strict = [workload(toolchain=toolchain("c", {}, name)).fingerprint for name in (str(compiler), "no-such-compiler")]
    assert len({workload().fingerprint, *strict}) == 3


def test_inputs_have_a_digest_of_their_own() -> None:
    digests = [workload(kernel=c_kernel(count=n), name=f"sum[n{n}]").inputs_digest for n in (8, 16)]
    assert digests[0] != digests[1]
    assert workload(kernel=c_kernel(), name="another").inputs_digest == digests[0]


def test_a_family_is_one_kernel_at_any_parameters_before_and_after_an_edit() -> None:
    alike: list[dict[str, Any]] = [
        {"name": "sum[n2]"},
        {"name": "sum"},
        {"file": "elsewhere/test_sum.py"},
        {"kernel": c_kernel(count=16)},
        {"space": ConfigSpace({"x": boolean()})},
        {"device_key": {"cpu": "other"}},
    ]
    assert {workload(**changes).family for changes in alike} == {workload().family}
    others: list[dict[str, Any]] = [
        {"name": "summed[n1]"},
        {"file": "perf/test_o.py"},
    ]
    assert len({workload().family, *(workload(**changes).family for changes in others)}) == 3


def test_known_good_configs_become_canonical() -> None:
    space = ConfigSpace({"shape": choice((1, 2), (2, 1)), "tile": power_of_two(1, 8)})
    good = json.loads('{"tile": 4, "shape": [2, 1]}')
    assert workload(space=space, configs=(good,)).configs == ({"shape": (2, 1), "tile": 4},)
    with pytest.raises(SpaceError, match="tile"):
        workload(space=space, configs=({"shape": (1, 2), "tile": 3},))


def test_a_subject_says_all_that_a_prompt_may_say() -> None:
    subject = workload(space=ConfigSpace(PARAMETERS, where=small)).subject(["CPU: some model"], send_source=True)
    assert (subject.name, subject.kind, subject.hardware) == ("sum[n1]", "python", ("CPU: some model",))
    assert subject.source.startswith("def kernel(tile: int, order: str) -> int:")
    assert "LIMIT = 32" in subject.source
    assert 'return bool(config["tile"] <= LIMIT)' in subject.constraint
    assert subject.facts == ("device cpu",)


def test_a_subject_of_a_c_kernel_has_its_source_and_inputs() -> None:
    subject = workload(kernel=c_kernel()).subject([], send_source=True)
    assert subject.source == SOURCE
    assert "float32" in subject.inputs[0]
    assert subject.constraint == ""


def test_source_stays_here_where_it_must() -> None:
    for made in (PythonKernel(kernel), c_kernel()):
        subject = workload(kernel=made, space=ConfigSpace(PARAMETERS, where=small)).subject([], send_source=False)
        assert (subject.source, subject.constraint) == ("", "")
        assert subject.facts


MACHINE = """
import sys
from pytest_kerneltune.backends.python import PythonKernel
from pytest_kerneltune.parameter import boolean
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.versions import toolchain
from pytest_kerneltune.workload import Workload
import test_kern
space = ConfigSpace({"fast": boolean()}, where=lambda c: c["fast"] in test_kern.ALLOWED)
print(Workload("k", sys.argv[1], PythonKernel(test_kern.kernel), space, device_key={"gpu": "H200"}).fingerprint)
"""


def test_two_machines_of_a_kind_share_a_fingerprint(tmp_path: Path) -> None:
    """Other directory, other hash seed, other file times, compiled files or none."""
    found: list[str] = []
    for machine in ("one", "two/deeper"):
        folder = tmp_path / machine
        folder.mkdir(parents=True)
        (folder / "test_kern.py").write_text("ALLOWED = {True, False, 'a', 'b'}\ndef kernel(fast): return ALLOWED\n")
        (folder / "run.py").write_text(MACHINE)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(len(found) + 1)}
        command = [sys.executable, "run.py", f"{machine}/test_kern.py"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert found[0] == found[1]


def test_the_kernel_is_asked_once_what_it_is() -> None:
    asked: list[int] = []

    class Counting(PythonKernel):
        def describe(self) -> Any:
            asked.append(1)
            return super().describe()

    one = workload(kernel=Counting(kernel))
    assert one.fingerprint != one.inputs_digest != one.subject([], True).source
    assert asked == [1]
    assert one.id == "perf/test_sum.py::sum[n1]"
