"""What requests to a language model cost: one ``Call`` each, and their sum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """One request that ended: wall seconds, tokens (None: not said), how it ended in one line, whether it was answered.

    ``cached`` is an answer that was kept from an earlier request: no seconds and no tokens were spent on it.
    """

    seconds: float
    tokens_in: int | None
    tokens_out: int | None
    outcome: str
    answered: bool
    cached: bool = False


@dataclass(frozen=True)
class Account:
    """The sum of several calls.

    ``answered`` and ``cached`` count calls, a cached one being answered too. Tokens are the sums of what was said, None
    where nothing was. ``seconds`` is the sum of all calls' wall seconds, also of those that ran side by side.
    """

    calls: int
    answered: int
    cached: int
    tokens_in: int | None
    tokens_out: int | None
    seconds: float


def account(calls: Iterable[Call]) -> Account:
    """The sum of ``calls``."""
    ended = list(calls)
    return Account(
        calls=len(ended),
        answered=sum(call.answered for call in ended),
        cached=sum(call.cached for call in ended),
        tokens_in=_sum_of_known([call.tokens_in for call in ended]),
        tokens_out=_sum_of_known([call.tokens_out for call in ended]),
        seconds=sum(call.seconds for call in ended),
    )


def _sum_of_known(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
