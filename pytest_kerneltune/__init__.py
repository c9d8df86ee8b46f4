"""pytest-kerneltune: tune kernels under pytest, and fail the test when one gets slower.

A map of the house, from the bottom up; a module imports only what stands above it.

- ``errors``, ``trial``, ``condition``, ``parameter``, ``space``, ``threshold``, ``versions``,
  ``texts``: what all speak about.
- ``statistics``, ``timing``, ``record``: pure numbers: how often to launch, what readings say, what is kept of them.
- ``gate/``: the verdict (``policy``: its limits, ``decision``: the three-way rule, ``views`` and ``panel``: ratios to
  yardsticks against stored sessions, ``beside``: two versions in one process, ``wording``).
- ``search/``: which configs to try; one module a family, a row each in ``SEARCHES``.
- ``disk/`` (``leases``, ``regular`` and ``unused`` files, ``strictjson``, ``permissions``), ``files``, ``gpu`` (with
  ``nvidia``, ``devices``), ``locking`` (with ``turns``), ``timers`` (with ``gpu_timers``, ``instrument``),
  ``calibration`` (kernels of ours that never change) and ``delay`` (extra work of a known length), ``worker``: the
  outside world: files that several processes share, devices, clocks, killable processes.
- ``guard/``: what disturbs a measurement (``gpu_watch`` with ``nvml`` and ``intruders``, ``host_watch``, ``tracers``).
- ``source/`` (``reach``: the walk over what a kernel reaches, ``values``, ``origins``, ``arrays``: what that is in
  words, ``syntax``, ``csource``: text), ``packing``: a kernel's source and how it travels.
- ``backends/``: kinds of kernel, a row each in ``KERNELS``. ``llm/``: language models, a row each in ``PROVIDERS``.
- ``workload``, ``station`` (with ``launcher``, ``noise``), ``compilation``, ``lane`` (with ``ready``, ``attempts``),
  ``benchmark`` (with ``account``): a kernel at fixed inputs, and how its configs are compiled, checked and timed at
  once.
- ``cache/``, ``baseline`` (with ``baseline_text``, ``refreshing``, ``merging``): what is stored of a kernel,
  and of the same one at other shapes.
- ``recorded``, ``recording``, ``comparison``: search spaces measured before, and how good searches are on them.
- ``options``, ``settings``, ``outcome``, ``driver`` (with ``finals``), ``adviser``, ``choosing`` (with ``keeping``):
  what is asked of a run, and how it searches.
- ``judging`` (with ``asking``), ``verdicts``, ``place``, ``surroundings``: a kernel measured for the gate, what the
  user is told, where what is known is kept, and what it all runs on. ``selftest`` (with ``selftest_summary``,
  ``resampling``): the gate tried on a kernel and itself.
- ``basetree``, ``redirect``, ``exporting``, ``against``, ``bases``: an older commit's kernels: its files checked out,
  imported in a process of their own (``base_side``), sent here by value.
- ``gating``, ``session``: one kernel at the gate, all kernels of a run.
- ``report/``, ``results`` (with ``arrivals``, ``completeness``, ``retries``), ``live``: what the user reads.
- ``api``, ``testing`` (with ``contract_backend``), ``identity``, ``fixture``, ``base_side``, ``plugin`` (with
  ``items``, ``covering``): ``tune()``, contract tests for third parties, pytest.
- ``commands/``: ``python -m pytest_kerneltune``, a row each in ``__main__.COMMANDS``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_kerneltune.api import TuneResult, tune
    from pytest_kerneltune.backends.c import CKernel
    from pytest_kerneltune.backends.cuda import CudaKernel
    from pytest_kerneltune.backends.helion import HelionKernel
    from pytest_kerneltune.backends.python import PythonKernel
    from pytest_kerneltune.backends.triton import TritonKernel
    from pytest_kerneltune.fixture import TunedKernel, tunable
    from pytest_kerneltune.parameter import Parameter, boolean, choice, integer, list_of, permutation, power_of_two

__all__ = [
    "CKernel",
    "CudaKernel",
    "HelionKernel",
    "Parameter",
    "PythonKernel",
    "TritonKernel",
    "TuneResult",
    "TunedKernel",
    "boolean",
    "choice",
    "integer",
    "list_of",
    "permutation",
    "power_of_two",
    "tunable",
    "tune",
]

# Found when first used, so that pytest starts as fast with the plugin installed as without it.
_HOMES = {
    **dict.fromkeys(
        ("Parameter", "boolean", "choice", "integer", "list_of", "permutation", "power_of_two"), "parameter"
    ),
    **dict.fromkeys(("TuneResult", "tune"), "api"),
    **dict.fromkeys(("TunedKernel", "tunable"), "fixture"),
    "CKernel": "backends.c",
    "CudaKernel": "backends.cuda",
    "HelionKernel": "backends.helion",
    "PythonKernel": "backends.python",
    "TritonKernel": "backends.triton",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
