"""What makes another kernel of a kernel's source, and what does not: edits of projects in files of their own."""

from __future__ import annotations

import functools
import itertools
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pytest_kerneltune
from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.source import kernel_digest, source_closure, source_text

ROOT = Path(pytest_kerneltune.__file__).parent.parent

PROJECT = {
    "deep.py": '''\
"""Two modules away."""
import numpy as np
TABLE = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
EPSILON = 1e-6
def deepest(x):
    return x * EPSILON
''',
    "near.py": '''\
"""One module away."""
import functools, os, re
from enum import Enum, IntEnum
from pathlib import Path
import numpy as np
import deep
from deep import TABLE as RENAMED
HERE = Path(__file__).resolve().parent
class Mode(IntEnum):
    FAST = 1
    def tile(self):
        return 16
class Step(Enum):
    ONE = 1
class Base:
    width = 4
    def run(self, x):
        return x
    def other(self):
        return self.run(1)
class Derived(Base):
    def run(self, x):
        return super().run(x) + 1
class Table(list):
    def lookup(self, i):
        return self[i]
def times(factor):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(x):
            return function(x) * factor
        return wrapper
    return decorate
@times(3)
def wrapped(x):
    return x
@functools.singledispatch
def scaled(x):
    return x
@scaled.register
def _(x: str):
    return x * 2
def part(x, y=2):
    return deep.deepest(x) + y
def make_table(n):
    return np.arange(n) * 0.5
OTHER = make_table(4)
RANDOM = np.random.default_rng().random(16)
OUT = np.empty(16)
FILE = np.loadtxt(HERE / "table.txt")
PATTERN = re.compile("a+")
PARTIAL = functools.partial(part, y=3)
PICK = {"add": lambda a: a + 1, "double": lambda a: a * 2}
LONG = list(range(1000))
KEYS = {("a", 1), ("b", 2), ("c", 3)}
LOOKUP = Table([1, 2, 3])
MODE = Mode.FAST
LEVEL = os.environ.get("KERNEL_LEVEL", "1")
NESTED = [[[[[[[[[[[1]]]]]]]]]]]
FLAGS = f"-I{HERE}/include"
''',
    "kern.py": '''\
import near
from near import *
from near import Derived, PICK
BLOCK = 64
CALLS = 0
def even(n):
    return n == 0 or odd(n - 1)
def odd(n):
    return n != 0 and even(n - 1)
def kernel(x, tile=BLOCK):
    """Says what it does."""
    global CALLS
    CALLS += 1  # counts
    near.OUT[:] = near.RENAMED[0] + near.OTHER[1] + near.RANDOM[2] + FILE[0]
    text = near.PATTERN.sub("a", near.FLAGS) + near.LEVEL + str(near.HERE)
    numbers = [near.LONG[0], near.KEYS, LOOKUP.lookup(0), near.NESTED, near.MODE.tile(), near.Step.ONE]
    return even(x) + PARTIAL(x) + wrapped(x) + scaled(x) + PICK["add"](x) + Derived().other() + len(text) + len(numbers)
''',
    "table.txt": "1.5 2.5\n",
}
STATEFUL = """\
import functools, importlib, os
from types import SimpleNamespace
import parts, registered
MEMO, LOG, STATS = {}, [], SimpleNamespace(calls=0)
LAZY = None
class Sizes:
    tile = int(os.environ.get("A_TILE", "16"))
    runs = 0
    @functools.cached_property
    def table(self):
        return [self.tile] * 2
SIZES = Sizes()
def table():
    global LAZY
    LAZY = LAZY or [1, 2]
    return LAZY
def memo(x):
    if x not in MEMO:
        MEMO[x] = lambda: x
    return MEMO[x]
def options():
    return options.level
options.level = 2
def base(x):
    return x
compiled = functools.lru_cache(maxsize=8)(base)
IMPLEMENTATIONS = {"parts": parts}
def kernel(x):
    LOG.append(x)
    STATS.calls += 1
    Sizes.runs += 1
    memo(x), table(), SIZES.table, options(), Sizes.tile, Sizes.runs, compiled(x), (LAZY or [0])[0]
    return registered.STEPS["step"](x) + IMPLEMENTATIONS["parts"].part(x) + len(MEMO) + len(LOG) + STATS.calls
"""
STATEFUL_PROJECT = {
    "kern.py": STATEFUL,
    "registered.py": """\
STEPS = {}
def register(name):
    def decorate(function):
        if STEPS.get(name):
            raise ValueError(name)
        STEPS[name] = function
        return function
    return decorate
@register("step")
def step(x):
    return x + 1
""",
    "parts.py": "from inner import scale\ndef part(x):\n    return scale(x)\n",
    "inner.py": "def scale(x):\n    return x * 5\n",
}
Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports the project, ``edits`` of (file, old, new) made, from a folder of its own; gives its module ``kern``."""
    numbers = itertools.count()
    names = ("kern", "near", "deep", "registered", "parts", "inner")

    def load(*edits: tuple[str, str, str], folder: str = "", project_files: dict[str, str] = PROJECT) -> Any:
        files = dict(project_files)
        for file, old, new in edits:
            assert old in files[file], old
            files[file] = files[file].replace(old, new)
        project = tmp_path / (folder or f"checkout{next(numbers)}")
        project.mkdir(parents=True)
        for name, text in files.items():
            (project / name).write_text(text)
        for name in names:
            sys.modules.pop(name, None)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(project))
            return import_module("kern")

    yield load
    for name in names:
        sys.modules.pop(name, None)


REAL_EDITS = [
    ("deep.py", "x * EPSILON", "x / EPSILON"),
    ("deep.py", "1e-6", "1e-5"),
    ("deep.py", "7.0", "7.5"),
    ("kern.py", "tile=BLOCK", "tile=BLOCK * 2"),
    ("kern.py", "BLOCK = 64", "BLOCK = 32"),
    ("kern.py", "n == 0", "n <= 0"),
    ("near.py", "FAST = 1", "FAST = 2"),
    ("near.py", "return 16", "return 32"),
    ("near.py", "ONE = 1", "ONE = 2"),
    ("near.py", "width = 4", "width = 8"),
    ("near.py", "super().run(x) + 1", "super().run(x) + 2"),
    ("near.py", "    def run(self, x):\n        return x\n", "    def run(self, x):\n        return -x\n"),
    ("near.py", "return self[i]", "return self[-i]"),
    ("near.py", "function(x) * factor", "function(x) + factor"),
    ("near.py", "@times(3)", "@times(4)"),
    ("near.py", "return x * 2\n", "return x * 3\n"),
    ("near.py", "y=2):", "y=5):"),
    ("near.py", "y=3)", "y=4)"),
    ("near.py", "np.arange(n) * 0.5", "np.arange(n) * 0.25"),
    ("near.py", "make_table(4)", "make_table(4) + 1"),
    ("near.py", "random(16)", "normal(size=16)"),
    ("table.txt", "2.5", "3.5"),
    ("near.py", '"a+"', '"b+"'),
    ("near.py", "a + 1", "a + 2"),
    ("near.py", "list(range(1000))", "[*range(500), 0, *range(501, 1000)]"),
    ("near.py", '("b", 2)', '("b", 4)'),
    ("near.py", "Table([1, 2, 3])", "Table([1, 2, 4])"),
    ("near.py", '"KERNEL_LEVEL", "1"', '"KERNEL_LEVEL", "2"'),
    ("near.py", "[[[[[[[[[[[1]]", "[[[[[[[[[[[2]]"),
    ("near.py", "/include", "/headers"),
]
OTHER_SPELLINGS = [
    ("kern.py", "  # counts", ""),
    ("kern.py", "Says what it does.", "Does."),
    ("kern.py", "CALLS = 0", "CALLS = 9"),
    ("kern.py", "def kernel(x, tile=BLOCK):", "def kernel(\n    x,\n    tile=(BLOCK),\n):"),
    ("kern.py", "even(x) + PARTIAL(x)", "(\n        even(\n            x,\n        )\n        + PARTIAL(x)\n    )"),
    ("near.py", '"a+"', "'a+'"),
    ("near.py", "\nclass Derived", "\n\n\n# Derived\nUNUSED = 3\n\n\nclass Derived"),
    ("deep.py", "[1.0, 2.0, ", "[\n    1.0,\n    2.0,  # two\n    "),
    ("deep.py", "Two modules away.", "Far."),
    ("near.py", "OUT = np.empty(16)", "OUT = np.empty(16)  # filled later"),
]


def test_every_edit_of_what_a_kernel_reaches_is_another_kernel(load: Load) -> None:
    digests = {edit: kernel_digest([load(edit).kernel]) for edit in REAL_EDITS}
    same = {edit for edit, digest in digests.items() if digest == kernel_digest([load().kernel])}
    assert same == set()
    assert len(set(digests.values())) == len(REAL_EDITS)


def test_another_spelling_place_or_content_of_a_buffer_is_the_same_kernel(load: Load) -> None:
    first = kernel_digest([load().kernel])
    assert {edit for edit in OTHER_SPELLINGS if kernel_digest([load(edit).kernel]) != first} == set()
    assert kernel_digest([load(folder="another/deep/checkout").kernel]) == first
    used = load()
    used.near.OUT[:] = 7
    assert kernel_digest([used.kernel]) == first
    used.near.OUT = np.empty(17)
    assert kernel_digest([used.kernel]) != first


def test_what_a_kernel_changes_as_it_runs_does_not_count(load: Load) -> None:
    used = load(project_files=STATEFUL_PROJECT)
    first = kernel_digest([used.kernel])
    used.kernel(3)
    assert kernel_digest([used.kernel]) == first
    assert (used.STATS.calls, len(used.MEMO), used.LAZY) == (1, 1, [1, 2])


@pytest.mark.parametrize(
    "edit",
    [
        ("registered.py", "x + 1", "x + 2"),
        ("inner.py", "x * 5", "x * 6"),
        ("kern.py", "options.level = 2", "options.level = 3"),
        ("kern.py", "maxsize=8", "maxsize=9"),
        ("kern.py", "LAZY or [1, 2]", "LAZY or [1, 3]"),
        ("kern.py", "MEMO[x] = lambda: x", "MEMO[x] = lambda: -x"),
        ("kern.py", "STATS.calls += 1", "STATS.calls += 2"),
        ("kern.py", "SIZES = Sizes()", "SIZES = Sizes()\nSizes.tile *= 2"),
    ],
)
def test_edits_beside_what_a_kernel_changes_count(load: Load, edit: tuple[str, str, str]) -> None:
    digests = [kernel_digest([load(*e, project_files=STATEFUL_PROJECT).kernel]) for e in ((), (edit,))]
    assert digests[0] != digests[1]


def test_what_a_classs_body_reads_from_the_environment_counts(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kernel_digest([load(project_files=STATEFUL_PROJECT).kernel])
    monkeypatch.setenv("A_TILE", "32")
    assert kernel_digest([load(project_files=STATEFUL_PROJECT).kernel]) != first


def test_a_formatters_order_of_imports_does_not_count(load: Load) -> None:
    text = "def kernel(x):\n    import os, math\n    from near import part, scaled\n    del (x, y)\n"
    text += "    return os, math, part\n"
    sorted_text = (
        "def kernel(x):\n    import math\n    import os\n    from near import scaled, part\n    del x, y\n"
        "    return os, math, part\n"
    )
    found = {kernel_digest([load(project_files={**PROJECT, "kern.py": one}).kernel]) for one in (text, sorted_text)}
    assert len(found) == 1


def test_where_a_machine_keeps_homes_and_packages_does_not_count(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from pathlib import Path\nimport os, sysconfig\nHERE = os.path.dirname(__file__)\n"
    text += "PLACES = {HERE + '/a', HERE + '/b'}, HERE.encode(), Path.home() / 'x', sysconfig.get_path('purelib')\n"
    text += "FLAG = f'-I{PLACES[-1]}/numpy'\ndef kernel(x):\n    return PLACES, FLAG\n"
    first = kernel_digest([load(project_files={"kern.py": text}).kernel])
    monkeypatch.setenv("HOME", "/home/another")
    here = sysconfig.get_path
    elsewhere = ("purelib", "platlib")
    monkeypatch.setattr(
        sysconfig, "get_path", lambda name: here(name).replace("/lib/", "/another/" if name in elsewhere else "/lib/")
    )
    assert kernel_digest([load(project_files={"kern.py": text}).kernel]) == first


TRAPS = """\
import types, unittest.mock, weakref
class Any: pass
gone = weakref.proxy(Any())
class Lying(type):
    def __getattribute__(cls, name): raise RuntimeError(name)
    def __hash__(cls): raise RuntimeError
class Trap(metaclass=Lying): pass
class Stops:
    @property
    def shape(self): raise SystemExit
class Module(types.ModuleType):
    def __getattribute__(self, name): raise RuntimeError(name)
module, nameless, stops, mock = Module("m"), types.ModuleType("n"), Stops(), unittest.mock.MagicMock()
del nameless.__name__
trap = Trap()
NUMBER = 10**6000
import lazy
def kernel(x):
    import skips
    return gone, Trap, trap, module.a, nameless.b, stops, mock.c, NUMBER, lazy.thing, skips.that
"""


def test_nothing_of_the_users_raises_through_a_digest(load: Load) -> None:
    files = {
        "kern.py": TRAPS,
        "lazy.py": "def __getattr__(name):\n    raise ImportError(name)\n",
        "skips.py": "import pytest\npytest.skip('no', allow_module_level=True)\n",
    }
    first = kernel_digest([load(project_files=files).kernel])
    assert kernel_digest([load(project_files=files).kernel]) == first
    assert kernel_digest([load(("kern.py", "10**6000", "10**6001"), project_files=files).kernel]) != first


def test_code_of_a_notebook_counts_whichever_program_runs_it() -> None:
    def kernel_of(text: str) -> Any:
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(text, namespace)
        return namespace["kernel"]

    text = "SIZE = 3\nclass Cell:\n    size = 4\ndef kernel():\n    return SIZE, Cell"
    digests = {kernel_digest([kernel_of(text.replace(*edit))]) for edit in (("", ""), ("3", "5"), ("4", "6"))}
    assert len(digests) == 3


def test_networks_count_by_their_layers() -> None:
    nn = pytest.importorskip("torch").nn
    made = [nn.Sequential(nn.Linear(3, 4), act()) for act in (nn.ReLU, nn.ReLU, nn.GELU)]
    digests = [digest_of(network) for network in made]
    assert digests[0] == digests[1] != digests[2]


def test_a_method_put_into_a_class_counts(load: Load) -> None:
    def another(self: Any, x: Any) -> Any:
        return self, x * 100

    changed = load()
    first = kernel_digest([changed.kernel])
    changed.Derived.run = another
    assert kernel_digest([changed.kernel]) != first


RUN = """
import sys
order = sys.argv[1]
if order == "helpers first":
    import deep, near
import kern
from pytest_kerneltune.source import kernel_digest, source_text
print(kernel_digest([kern.kernel, lambda c: c["a"] in near_sets]), len(source_text([kern.kernel])))
"""


def test_processes_agree_whatever_their_hashes_import_order_and_directory(tmp_path: Path) -> None:
    found = set()
    for seed, order in (("1", "kernel first"), ("2", "helpers first")):
        project = tmp_path / f"machine {seed}" / "checkout"
        project.mkdir(parents=True)
        for name, text in PROJECT.items():
            (project / name).write_text(text)
        (project / "run.py").write_text(RUN)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        command = [sys.executable, *(["-O"] if seed == "2" else []), "run.py", order]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.add(re.sub(r" \d+$", "", done.stdout.strip()))
    assert len(found) == 1


def closing_over(value: Any) -> Callable[[], Any]:
    return lambda: value


def digest_of(value: Any) -> str:
    return kernel_digest([closing_over(value)])


def test_values_of_the_standard_library_count_by_what_they_are() -> None:
    from datetime import timedelta
    from decimal import Decimal
    from operator import itemgetter

    pairs = [
        (Path("a.bin"), Path("b.bin")),
        (re.compile("a"), re.compile("a", re.IGNORECASE)),
        (Decimal("1.0"), Decimal("1.00")),
        (timedelta(1), timedelta(2)),
        (itemgetter(1), itemgetter(2)),
        (deque([1]), deque([2])),
        (defaultdict(lambda: 1), defaultdict(lambda: 2)),
        (bytearray(b"a"), bytearray(b"b")),
        (slice(1), slice(2)),
        (SimpleNamespace(a=1), SimpleNamespace(a=2)),
        ({1: frozenset({("a", 1)})}, {1: frozenset({("a", 2)})}),
        ([0] * 2000, [0] * 1999 + [1]),
        ([[0] * 300], [[0] * 299 + [1]]),
    ]
    assert [pair for pair in pairs if digest_of(pair[0]) == digest_of(pair[1])] == []
    assert functools.partial(dict, a=1, b=2).keywords != {}
    assert digest_of(functools.partial(dict, a=1, b=2)) == digest_of(functools.partial(dict, b=2, a=1))


def test_layouts_of_arrays_count_and_their_contents_and_addresses_do_not() -> None:
    square, line = np.zeros((8, 8), np.float32), np.zeros(65, np.float32)
    alike = [square, np.ones((8, 8), np.float32), square.copy()]
    assert len({digest_of(array) for array in alike}) == 1
    structured = np.zeros((8, 8), [("a", "<f2"), ("b", "<i2")])
    others = [
        square.T,
        square[::-1],
        np.broadcast_to(np.float32(0), (8, 8)),
        square.astype(">f4"),
        structured,
        line[1:].reshape(8, 8),
        line[4:8],
        np.zeros((), np.float32),
    ]
    assert len({digest_of(array) for array in (square, *others)}) == 1 + len(others)


def test_tensors_count_by_type_layout_and_kind_of_device() -> None:
    torch = pytest.importorskip("torch")
    square, line = torch.zeros(8, 8), torch.zeros(65)
    assert digest_of(square) == digest_of(torch.ones(8, 8))
    others = [square.T, square.double(), torch.zeros(8, 8, device="meta"), line[1:].reshape(8, 8), square.to_sparse()]
    others += [torch.zeros(1, 8).expand(8, 8), torch.nn.Parameter(square)]
    assert len({digest_of(tensor) for tensor in (square, *others)}) == 1 + len(others)
    image = torch.zeros(2, 3, 4, 5)
    assert digest_of(image) != digest_of(image.to(memory_format=torch.channels_last))


def test_what_differs_between_runs_and_machines_of_a_kind_does_not_count() -> None:
    torch = pytest.importorskip("torch")
    assert digest_of(torch.device("cuda:0")) == digest_of(torch.device("cuda:1"))
    assert digest_of("cuda:0") == digest_of("cuda:3") != digest_of("cuda graphs")
    first, second = torch.zeros(1 << 16), torch.zeros(1 << 16)
    assert digest_of(first.data_ptr()) == digest_of(second.data_ptr())
    assert digest_of(4096) != digest_of(8192)
    names = [Path(os.path.realpath("/tmp"), f"run{i}", "x.bin") for i in (1, 2)]
    assert digest_of(names[0]) == digest_of(names[1])


class Evil:
    """An object that no part of may be called, and whose address must not show."""

    __slots__ = ("__dict__", "weight")

    def __init__(self, weight: int) -> None:
        object.__setattr__(self, "weight", weight)

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("called")

    __eq__ = __hash__ = __reduce_ex__ = __repr__ = __str__ = __len__ = __iter__ = _refuse
    __getattribute__ = __bool__ = __int__ = _refuse


class EvilList(list[Any]):
    __iter__ = __len__ = __repr__ = Evil._refuse


class EvilInt(int):
    __int__ = __repr__ = __ge__ = __str__ = Evil._refuse


def test_no_code_of_an_objects_class_runs() -> None:
    for make in (Evil, EvilInt, lambda n: EvilList([n]), lambda n: {1: Evil(n)}, lambda n: [slice(EvilInt(n))]):
        assert digest_of(make(1)) == digest_of(make(1)) != digest_of(make(2))


def chain(length: int, end: int) -> Any:
    link: Any = SimpleNamespace(value=end)
    for _ in range(length):
        link = Link(link)
    return link


def nested(depth: int, width: int, end: int) -> list[Any]:
    """Lists in a list, all those of a level one and the same."""
    inner: list[Any] = [end]
    for _ in range(depth):
        inner = [inner] * width
    return inner


class Link:
    def __init__(self, following: Any) -> None:
        self.following = following


def test_cycles_and_depths_end_and_nothing_past_a_limit_is_silently_equal() -> None:
    endless: list[Any] = [1]
    endless.append({"again": endless})
    other: list[Any] = [2]
    other.append({"again": other})
    assert digest_of(endless) == digest_of(endless) != digest_of(other)
    assert digest_of(chain(3000, 1)) != digest_of(chain(3000, 2))
    assert digest_of(nested(3000, 1, 1)) != digest_of(nested(3000, 1, 2))
    for width in (2, 20):
        assert digest_of(nested(30, width, 1)) == digest_of(nested(30, width, 1)) != digest_of(nested(30, width, 2))
    with pytest.raises(UsageError, match="reaches more than"):
        digest_of(chain(20_000, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@triton.jit\ndef helper", "@triton.jit(noinline=True)\ndef helper"),
        ("tl.constexpr(64)", "tl.constexpr(32)"),
        ('args["n"] % 16', 'args["n"] % 8'),
        ("x * SCALE", "x + SCALE"),
        ("SCALE: tl.constexpr = 2", "SCALE: tl.constexpr = 3"),
        ("do_not_specialize=['n']", "do_not_specialize=[]"),
    ],
)
def test_edits_of_triton_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    pytest.importorskip("triton")
    text = """
import triton
import triton.language as tl
BLOCK = tl.constexpr(64)
SCALE: tl.constexpr = 2
@triton.jit
def helper(x):
    return x * SCALE
@triton.heuristics({"EVEN": lambda args: args["n"] % 16 == 0})
@triton.jit(do_not_specialize=['n'])
def kernel(x_ptr, n, EVEN: tl.constexpr):
    tl.store(x_ptr, helper(tl.load(x_ptr)) + BLOCK)
"""
    assert old in text
    digests = []
    for name, content in (("first", text), ("again", f"# another\n{text}"), ("edited", text.replace(old, new))):
        path = tmp_path / f"triton_{name}_{abs(hash(old))}.py"
        path.write_text(content)
        monkeypatch.syspath_prepend(str(tmp_path))
        digests.append(kernel_digest([import_module(path.stem).kernel]))
    assert digests[0] == digests[1] != digests[2]


def test_a_prompt_shows_no_more_than_before_and_a_set_in_order(load: Load) -> None:
    text = source_text([load().kernel])
    assert "made by" not in text
    assert "KEYS = {('a', 1), ('b', 2), ('c', 3)}" in text
    assert all("made by" not in str(unit.reads) for unit in source_closure([load().kernel]))


def test_a_digest_costs_milliseconds(load: Load) -> None:
    kernel = load().kernel
    kernel_digest([kernel])
    start = time.process_time()
    for _ in range(20):
        kernel_digest([kernel])
    assert time.process_time() - start < 20 * 0.25, "measured: about 5 ms each"
