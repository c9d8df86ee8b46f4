"""How many threads linear algebra uses."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any


def one_thread() -> AbstractContextManager[Any]:
    """A block in which BLAS uses one thread.

    With matrices of a few hundred rows more threads wait more than they work: they took ten times the processor time,
    on cores that are to compile kernels meanwhile.
    """
    controls: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return controls


@cache
def _libraries() -> Any:
    import scipy.linalg  # noqa: F401 - loads the BLAS of its own that is to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
