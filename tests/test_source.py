"""Source closures, of functions in real files."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pytest_kerneltune
from pytest_kerneltune.source import TEXT_LIMIT, source_closure, source_digest, source_text
from pytest_kerneltune.source.csource import c_source_digest_text

ROOT = Path(pytest_kerneltune.__file__).parent.parent

HELPERS = '''\
"""Helpers of the kernel."""
from enum import Enum

SCALE = 2.0
UNUSED = 1

class Mode(Enum):
    FAST = 1

def scale(x):
    """Doubles."""
    return x * SCALE

def unused(x):
    return x
'''
KERNEL = '''\
import math
import helpers
from helpers import Mode, scale as twice

BLOCK = 64
TABLE = {"a": (1, 2), "b": [3.5, "x"]}
MODE = Mode.FAST
calls = 0

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

def kernel(x, tile=BLOCK, *, mode=MODE):
    """What it does."""
    # how it does it
    global calls
    calls += 1
    from helpers import scale as local_scale
    size = len([helpers.scale(i) for i in range(BLOCK)]) + math.floor(TABLE["a"][0])
    label = f"{x!r:>{BLOCK}} {{}}"
    return even(x) + twice(size) + local_scale(tile)
'''
Digest = Callable[..., str]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Writes a project to a folder of its own, imports it anew and returns its module ``kern``."""
    numbers = itertools.count()

    def load(kern: str = KERNEL, helpers: str = HELPERS, folder: str = "") -> Any:
        project = tmp_path / (folder or f"checkout{next(numbers)}")
        project.mkdir(parents=True)
        (project / "kern.py").write_text(kern)
        (project / "helpers.py").write_text(helpers)
        monkeypatch.syspath_prepend(str(project))
        for name in ("kern", "helpers"):
            sys.modules.pop(name, None)
        return import_module("kern")

    for name in ("kern", "helpers"):
        monkeypatch.setitem(sys.modules, name, None)  # so that what is loaded goes when the test ends
    return load


@pytest.fixture
def digest(load: Callable[..., Any]) -> Digest:
    """The digest of ``kern.kernel`` in a project made of the texts given."""
    return lambda **texts: source_digest([load(**texts).kernel])


def edited(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def test_the_digest_is_pinned(digest: Digest) -> None:
    """Whoever changes it sets aside every cached result; it is the same on every Python version."""
    assert digest() == "9834ca1c77d2bef46070eae59b9b16e0a626336939f044edf2eb777a440daab6"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    # how it does it\n", ""),
        ('    """What it does."""\n', '    """Something else."""\n'),
        (
            "even(x) + twice(size) + local_scale(tile)",
            "(\n        even(x) + twice( size )  # sum\n        + local_scale(tile))",
        ),
        ("import math\n", "import math\n\n\n\nOTHER = 5\n"),
        ('{"a": (1, 2), "b": [3.5, "x"]}', "{'a': (1, 2), 'b': [3.5, 'x'],}"),
        (
            "def kernel(x, tile=BLOCK, *, mode=MODE):",
            "def kernel(\n    x,\n    tile=BLOCK,\n    *,\n    mode=MODE,\n):",
        ),
        ("calls = 0", "calls = 17"),
    ],
)
def test_layout_comments_docstrings_and_state_do_not_count(digest: Digest, old: str, new: str) -> None:
    assert digest() == digest(kern=edited(KERNEL, old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("local_scale(tile)", "local_scale(tile + 1)"),
        ("n == 0 or", "n == 1 or"),
        ("n != 0 and", "n != 2 and"),
        ("BLOCK = 64", "BLOCK = 128"),
        ("BLOCK = 64", "BLOCK = 64.0"),
        ("(1, 2)", "(1, 3)"),
        ('"x"', '"y"'),
        ("tile=BLOCK", "tile=BLOCK + 1"),
        ("mode=MODE", "mode=None"),
        ("math.floor", "math.ceil"),
        ("scale as twice", "unused as twice"),
        ("scale as local_scale", "unused as local_scale"),
        ("helpers.scale", "helpers.unused"),
    ],
)
def test_edits_of_the_kernel_and_what_it_reads_count(digest: Digest, old: str, new: str) -> None:
    assert digest() != digest(kern=edited(KERNEL, old, new))


def test_edits_of_a_helper_in_another_file_count(digest: Digest) -> None:
    assert digest() != digest(helpers=edited(HELPERS, "x * SCALE", "x + SCALE"))
    assert digest() != digest(helpers=edited(HELPERS, "SCALE = 2.0", "SCALE = 3.0"))
    assert digest() != digest(helpers=edited(HELPERS, "FAST = 1", "FAST = 2"))


def test_edits_elsewhere_in_a_helpers_file_do_not_count(digest: Digest) -> None:
    assert digest() == digest(helpers=edited(HELPERS, "    return x\n", "    return -x\n"))
    assert digest() == digest(helpers=edited(HELPERS, "UNUSED = 1", "UNUSED = 2"))
    assert digest() == digest(helpers=edited(HELPERS, "Doubles", "Twice as much"))


def test_the_directory_does_not_count(digest: Digest) -> None:
    assert digest(folder="here") == digest(folder="some/where/else entirely")


def test_paths_made_from_the_files_own_count_without_its_directory(digest: Digest) -> None:
    kern = """
import os, pathlib
HERE = os.path.dirname(__file__)
PATHS = [HERE, os.path.join(HERE, "data.bin"), os.path.join(os.path.dirname(HERE), "lib.so"), pathlib.Path(HERE)]
def kernel():
    return PATHS, __file__, __name__
"""
    assert digest(kern=kern) == digest(kern=kern)
    assert digest(kern=kern) != digest(kern=edited(kern, "data.bin", "other.bin"))


class Awkward:
    """An object whose every attribute is trouble."""

    @property
    def shape(self) -> tuple[int, ...]:
        raise RuntimeError("not now")


def test_odd_objects_do_no_harm() -> None:
    class Array(np.ndarray):
        pass

    loop = functools.partial(len)
    loop.__wrapped__ = loop  # type: ignore[attr-defined]
    endless: list[Any] = []
    endless.append(endless)
    views = [np.zeros(n).view(Array) for n in (3, 4)]
    assert source_digest([adder(views[0])]) != source_digest([adder(views[1])])
    for value in (Awkward(), loop, endless, {1: endless}, ..., range(3), slice(1, 2), sys.modules["sys"]):
        assert source_digest([adder(value)]) == source_digest([adder(value)])


RUNS = {
    "plain": ["-c", "import kern, report; report.write(kern.kernel)"],
    "prepend": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"],
    "importlib": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "test_it.py"],
}


def test_pytest_import_modes_and_plain_python_agree(tmp_path: Path) -> None:
    """The kernel in a test file that pytest rewrites, against the same text in a module."""
    text = edited(
        KERNEL, "    calls += 1\n", "    calls += 1\n    assert calls > 0, 'lambda'\n    pick = lambda v: v\n"
    )
    text += "lambdas = [lambda c: c + BLOCK, lambda c: c - BLOCK]\n"
    report = "from pathlib import Path\nfrom pytest_kerneltune.source import source_digest\ndef write(*functions):\n"
    (tmp_path / "report.py").write_text(report + "    Path('digest').write_text(source_digest(functions))\n")
    (tmp_path / "helpers.py").write_text(HELPERS)
    (tmp_path / "kern.py").write_text(text)
    (tmp_path / "test_it.py").write_text(f"{text}\ndef test_it():\n    import report\n    report.write(kernel)\n")
    digests: dict[str, str] = {}
    for name, command in RUNS.items():
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "PYTHONHASHSEED": str(len(digests))}
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        digests[name] = (tmp_path / "digest").read_text()
    assert len(set(digests.values())) == 1, digests


def test_recursion_ends_and_everything_is_reached_once(load: Callable[..., Any]) -> None:
    names = [unit.code.partition("name=")[2].partition(",")[0] for unit in source_closure([load().kernel])]
    assert sorted(names) == ["'even'", "'kernel'", "'odd'", "'scale'"]


def one_line() -> list[Callable[..., Any]]:
    return [lambda c: c + 1, lambda c: c + 2, lambda: 3, lambda: 4, lambda c: lambda d: c + d, lambda d: d]


def test_lambdas_on_one_line_are_told_apart() -> None:
    lambdas = [*one_line(), one_line()[4](1), lambda: 1]
    assert len({source_digest([f]) for f in lambdas}) == len(lambdas)
    assert [source_text([f]) for f in one_line()][1:3] == ["lambda c: c + 2", "lambda: 3"]


def adder(step: Any, twice: bool = False) -> Callable[[Any], Any]:
    def add(x: Any) -> Any:
        return x + step

    return (lambda x: add(add(x))) if twice else add


def test_closures_count_by_value_and_arrays_by_shape_and_dtype() -> None:
    assert source_digest([adder(1)]) != source_digest([adder(2)])
    assert source_digest([adder(1, True)]) != source_digest([adder(2, True)])
    assert source_digest([adder(np.zeros(3))]) == source_digest([adder(np.ones(3))])
    assert source_digest([adder(np.zeros(3))]) != source_digest([adder(np.zeros(4))])
    assert source_digest([adder(np.zeros(3))]) != source_digest([adder(np.zeros(3, np.float32))])
    assert source_digest([adder(np.float32(1))]) != source_digest([adder(np.float32(2))])
    assert source_digest([adder(np.dtype("f4"))]) != source_digest([adder(np.dtype("f8"))])
    assert source_digest([adder(object())]) == source_digest([adder(object())])
    assert source_digest([adder({"b", "a"})]) != source_digest([adder({"b", "c"})])


class Model:
    """A kernel with state."""

    bias = 1

    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def __call__(self, **config: int) -> Any:
        return self.weight + self.bias

    @classmethod
    def build(cls, **config: int) -> Any:
        return cls(1)(**config)


class Doubled(Model):
    __slots__ = ("other",)


def test_callable_objects_methods_classes_and_partials() -> None:
    digests = [
        source_digest([f])
        for f in (
            Model(1),
            Model(2),
            Doubled(1),
            Model(1).__call__,
            Model(2).__call__,
            Model.build,
            Doubled.build,
            Model,
            functools.partial(adder, 1),
            functools.partial(adder, 2),
            functools.partial(adder, 2, twice=True),
            adder,
        )
    ]
    assert len(set(digests)) == len(digests)
    assert source_digest([Model(1)]) == digests[0]
    assert "self.weight + self.bias" in source_text([Model(1)])


def cached_kernel() -> Any:
    @functools.lru_cache
    def helper() -> int:
        return 1

    return lambda: helper()


def test_wrappers_of_the_library_are_looked_into() -> None:
    wrapped = cached_kernel()
    assert "return 1" in source_text([wrapped])


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args) + 1

    return wrapper


def test_a_wrapper_of_the_users_counts_with_what_it_wraps() -> None:
    text = source_text([decorated(adder(1))])
    assert "function(*args) + 1" in text
    assert "x + step" in text


def test_a_request_counts_by_its_parameter(request: pytest.FixtureRequest) -> None:
    assert "request None" in str(source_closure([lambda: request])[0].reads)


def executed(text: str, **names: Any) -> Any:
    scope: dict[str, Any] = {"__name__": "executed_by_a_test", **names}
    exec(text, scope)
    return scope["kernel"]


def test_code_without_a_file_counts_by_its_bytecode() -> None:
    text = "import math\ndef helper(x): return x + N\ndef kernel(x): return helper(x) + math.pi"
    assert source_digest([executed(text, N=1)]) == source_digest([executed("\n\n" + text, N=1)])
    assert source_digest([executed(text, N=1)]) != source_digest([executed(text, N=2)])
    assert source_digest([executed(text, N=1)]) != source_digest([executed(text.replace("x + N", "x - N"), N=1)])
    assert source_digest([executed(text, N=1)]) != source_digest([executed(text.replace("pi", "e"), N=1)])
    cls = "class kernel:\n  size = 1\n  def run(self): return 1"
    assert source_digest([executed(cls)]) != source_digest([executed(cls.replace("return 1", "return 2"))])


def test_very_deep_expressions_count_too(load: Callable[..., Any]) -> None:
    text = f"def kernel(x):\n    return x{' + 1' * 1500}\n"
    digest = source_digest([load(kern=text).kernel])
    assert source_digest([load(kern="\n" + text).kernel]) == digest
    assert source_digest([load(kern=text.replace("+", "-")).kernel]) != digest


def test_library_functions_count_by_name() -> None:
    assert source_closure([np.dot, np.add, len]) == []
    assert len({source_digest([f]) for f in (np.dot, np.add, len, functools.partial(len, ""))}) == 4


def test_a_kernel_from_an_installed_package_is_followed_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(site: str, helper: str) -> str:
        package = tmp_path / site / "site-packages" / "installed_kernels"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("from .ops import helper\ndef kernel(x):\n    return helper(x)\n")
        (package / "ops.py").write_text(f"def helper(x):\n    return {helper}\n")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(package.parent))
            module = import_module("installed_kernels")
            digests = source_digest([module.kernel]), source_digest([lambda x: module.helper(x)])
            for name in ("installed_kernels", "installed_kernels.ops"):
                del sys.modules[name]
        return ":".join(digests)

    first, second = install("a", "x + 1").split(":"), install("b", "x + 2").split(":")
    assert first[0] != second[0]
    assert first[1] == second[1], "other people's packages count by name"


def test_triton_kernels_are_followed(load: Callable[..., Any]) -> None:
    pytest.importorskip("triton")
    text = """
import triton
import triton.language as tl
from helpers import SCALE
BLOCK = tl.constexpr(64)
@triton.jit
def helper(x):
    return x * BLOCK  # times
@triton.jit
def kernel(x_ptr, n, ROWS: tl.constexpr):
    tl.store(x_ptr, helper(tl.load(x_ptr)) + tl.cdiv(n, ROWS))
"""

    def digest(kern: str) -> str:
        return source_digest([load(kern=kern).kernel])

    first = digest(text)
    assert digest(edited(text, "  # times", "")) == first
    assert digest(edited(text, "x * BLOCK", "x + BLOCK")) != first
    assert digest(edited(text, "constexpr(64)", "constexpr(32)")) != first
    assert digest(edited(text, "ROWS: tl.constexpr", "ROWS")) != first
    shown = source_text([load(kern=text).kernel])
    assert shown.startswith("@triton.jit\ndef kernel(")
    assert "BLOCK = 64" in shown
    assert "return x * BLOCK  # times" in shown


def test_the_text_shows_the_kernel_then_constants_then_helpers(load: Callable[..., Any]) -> None:
    text = source_text([load().kernel])
    order = ["def kernel(", "# how it does it", "BLOCK = 64", "SCALE = 2.0", "def even(", "def scale(", "def odd("]
    assert sorted(order, key=text.index) == order
    assert "UNUSED" not in text
    assert text.count("def scale") == 1
    assert "library" not in text


def test_the_text_is_bounded(load: Callable[..., Any]) -> None:
    long = edited(KERNEL, "    # how it does it\n", "    # how it does it\n" * 2000)
    cut = source_text([load(kern=long).kernel])
    assert len(cut) < TEXT_LIMIT + 100
    assert "... (cut)" in cut
    short = source_text([load().kernel], limit=500)
    assert "def kernel(" in short
    assert "def odd" not in short
    assert "left out" in short


C = """
#include <math.h>
#include "tile.h"
#define SQUARE(x) ((x) * (x))  /* a macro */
// says what it does
void kernel(float *x, int n) {
  const char *s = "a // b  /* c */ \\" d"; char q = '"';
  for (int i = 0; i < n; ++i) x[i] += SQUARE(x[i]) * 1.5e-3f;
}
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("// says what it does\n", "/* says\n what */ // else\n"),
        ("  /* a macro */", ""),
        ("for (int i = 0; i < n; ++i) x[i]", "for(int i=0;i<n;++i)\n\n\t x [ i ]"),
        ("#define SQUARE(x) ((x) *", "#  define SQUARE(x) ((x) \\\n  *"),
        ("#include <math.h>\n", "   #include <math.h>   // fast\n\n"),
        ("\n", "\r\n"),
    ],
)
def test_comments_and_layout_of_c_do_not_count(old: str, new: str) -> None:
    assert c_source_digest_text(C, None) == c_source_digest_text(edited(C, old, new), None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a // b", "a // c"),
        ("a // b  /", "a // b /"),
        ("SQUARE(x) ((", "SQUARE (x) (("),
        ("++i", "+ +i"),
        ("1.5e-3f", "1.5e-4f"),
        ("'\"'", "'x'"),
        ("#include <math.h>\n", ""),
        ("int n)", "long n)"),
    ],
)
def test_edits_of_c_count(old: str, new: str) -> None:
    assert c_source_digest_text(C, None) != c_source_digest_text(edited(C, old, new), None)


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_local_headers_count_with_those_they_include(tmp_path: Path) -> None:
    files = {
        "tile.h": '#include "inner/size.h"\n#include "tile.h"\n#include "missing.h"\nint tile; // one\n',
        "inner/size.h": '#include "next.h"\n',
        "inner/next.h": "int size = 4;\n",
    }
    first = c_source_digest_text(C, write(tmp_path / "a", files))
    assert first.count("int tile ;") == 1
    assert "int size = 4 ;" in first
    assert first == c_source_digest_text(C, write(tmp_path / "b", {**files, "tile.h": files["tile.h"] + "/* two */"}))
    assert first != c_source_digest_text(C, write(tmp_path / "c", {**files, "inner/next.h": "int size = 8;\n"}))
    assert first != c_source_digest_text(C, None)
