"""Every error this package raises on purpose.

::

    KernelTuneError
    ├── UsageError               a wrong argument, option or setting; the text names it and says what to do
    │   └── SpaceError           a parameter, constraint or config that does not fit its space
    ├── KernelError              a kernel that cannot be described, packed for a worker, compiled or run
    ├── StoreError               a file (cache, baseline, recorded space, ...) that cannot be read or written
    ├── LLMError                 a language model that could not be asked or did not answer usefully
    │   └── LLMUnavailable       no model is configured; the text names the variable to set
    ├── WorkerError              a worker process failed a request
    │   ├── RemoteError          the request raised in the worker
    │   ├── WorkerTimeout        the request outlasted its limit and the worker's process group was killed
    │   └── WorkerCrash          the worker died (signal, abort, exit)
    └── GateFailure              also an AssertionError: what fails a performance test
        ├── PerformanceRegression  slower than the baseline by more than the threshold
        ├── WrongOutput            the output differs from the reference
        ├── NothingMeasured        no config of the kernel could be measured
        └── MissingBaseline        nothing to compare with, where that is an error
"""

from __future__ import annotations


class KernelTuneError(Exception):
    """Base of all errors below."""


class UsageError(KernelTuneError):
    """A wrong argument, option or setting."""


class SpaceError(UsageError):
    """A parameter, constraint or config that does not fit its space."""


class KernelError(KernelTuneError):
    """A kernel that cannot be described, packed for a worker, compiled or run."""


class StoreError(KernelTuneError):
    """A file (cache, baseline, recorded space, ...) that cannot be read or written."""


class LLMError(KernelTuneError):
    """A language model could not be asked or did not answer usefully."""


class LLMUnavailable(LLMError):
    """No language model is configured."""


class WorkerError(KernelTuneError):
    """A worker process failed a request; ``log`` is what it printed meanwhile."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class RemoteError(WorkerError):
    """The request raised in the worker; ``kind`` is the exception's class name there."""

    def __init__(self, kind: str, message: str, log: str = "") -> None:
        super().__init__(f"{kind}: {message}" if message else kind, log)
        self.kind = kind


class WorkerTimeout(WorkerError):
    """The request outlasted its limit and the worker's process group was killed."""


class WorkerCrash(WorkerError):
    """The worker died while it served the request."""


class GateFailure(KernelTuneError, AssertionError):
    """A performance test failed; the text is the whole message for the user."""


class PerformanceRegression(GateFailure):
    """Slower than the baseline by more than the threshold."""


class WrongOutput(GateFailure):
    """The kernel's output differs from its reference."""


class NothingMeasured(GateFailure):
    """No config of the kernel could be measured."""


class MissingBaseline(GateFailure):
    """There is no baseline to compare with, and the settings say that this fails."""
