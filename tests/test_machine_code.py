"""Compiled kernels are the same whatever file and line they were written at."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.backends.machine_code import without_debugging

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from pytest_kerneltune.backends.jit_source import jit_reducers  # noqa: E402
from pytest_kerneltune.backends.stand_in import stand_in  # noqa: E402
from pytest_kerneltune.backends.toolchain import Target  # noqa: E402
from pytest_kerneltune.packing import pack  # noqa: E402
from pytest_kerneltune.worker import Service, Worker  # noqa: E402

SOURCE = """import triton
import triton.language as tl


@triton.jit
def scaled(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.reshape(tl.load(x_ptr + i), (BLOCK // 32, 32))
    tl.store(y_ptr + tl.arange(0, BLOCK // 32), tl.sum(x, 1) * 2)
"""
VERSIONS = {
    "first": SOURCE,
    "moved": SOURCE,
    "commented": SOURCE.replace("@triton", "# a comment\n\n@triton"),
    "changed": SOURCE.replace("* 2", "* 3"),
}


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """Each of VERSIONS compiled for an H200, from a folder of its name."""
    folder, worker = tmp_path_factory.mktemp("versions"), Worker({"CUDA_VISIBLE_DEVICES": ""}, keep=len(VERSIONS))
    try:
        return {name: compiled(folder / name, text, worker) for name, text in VERSIONS.items()}
    finally:
        worker.close()


def compiled(folder: Path, text: str, worker: Worker) -> bytes:
    folder.mkdir()
    file, name = folder / "kernels.py", f"version_{folder.name}"
    file.write_text(text)
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    x = stand_in(torch.zeros(4096))
    packed = pack((module.scaled, (x, x), {}), [module], jit_reducers(lambda name: name.partition(".")[0] == "triton"))
    del sys.modules[name]
    service = Service("pytest_kerneltune.backends.jit:Compiler", (packed, Target("cuda", 90, 32, 232448), str(folder)))
    worker.call(service, "compile", {"BLOCK": 4096}, (1,), timeout=120.0).unwrap()
    (cubin,) = folder.rglob("*.cubin")
    return cubin.read_bytes()


def test_the_place_of_the_source_makes_no_other_code(cubins: Mapping[str, bytes]) -> None:
    assert len(set(cubins.values())) == len(VERSIONS)
    code = {name: without_debugging(cubin) for name, cubin in cubins.items()}
    assert code["first"] == code["moved"] == code["commented"] != code["changed"]
    assert str(Path("first", "kernels.py")).encode() not in code["first"]


def test_what_is_no_elf_file_is_all_code(cubins: Mapping[str, bytes]) -> None:
    whole = cubins["first"]
    for damaged in (b"", b"no cubin at all", whole[:64], whole[: len(whole) // 2]):
        assert without_debugging(damaged) == damaged
