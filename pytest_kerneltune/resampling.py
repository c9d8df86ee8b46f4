"""The gate's decisions made again on blocks that were measured, and what they say about thresholds. Pure functions.

A few dozen live decisions cannot show that something happens once in a thousand. Their blocks can be put together to
thousands of new ones: a moving-block bootstrap (Kuensch 1989), which draws whole chunks of neighbouring blocks, so that
what one block has in common with the next stays together.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from pytest_kerneltune.gate import Policy, Verdict, VerdictKind
from pytest_kerneltune.record import Blocks

CHUNK = 4
"""Blocks in a chunk: with two arms, the orders of the arms repeat after so many (see timing.block_order)."""

THRESHOLDS = (
    *(0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1),
    *(0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.75, 1.0),
)
"""The thresholds that :func:`smallest_safe` chooses from."""

SAFE_BEYOND = 1.5
SAFE_POWER = 0.99
"""A threshold is safe where this share of slowdowns by ``SAFE_BEYOND`` times the threshold is found."""

Judge: TypeAlias = Callable[[Blocks, Policy], Verdict]
"""The gate's rule for a comparison of the arm "winner" with another."""


@dataclass(frozen=True)
class Pool:
    """The blocks of live decisions of one kind, in the order in which they were measured, and who judges them.

    ``decisions`` hold the same arms, and at least one of them ``CHUNK`` blocks.
    """

    decisions: Sequence[Blocks]
    judge: Judge

    def redrawn(self, count: int, policy: Policy, slowdown: float = 0.0, seed: int = 0) -> Counter[VerdictKind]:
        """The verdicts on ``count`` resampled decisions, the readings of "winner" being longer by ``slowdown``, a
        fraction."""
        rng = random.Random(f"{seed} {policy.threshold} {slowdown}")
        chunks = self._chunks(slowdown)
        return Counter(self._decision(chunks, policy, rng) for _ in range(count))

    def rejudged(self, policy: Policy) -> Counter[VerdictKind]:
        """The verdicts of the live decisions under ``policy``, on the blocks that they have."""
        return Counter(self.judge(blocks, policy).kind for blocks in self.decisions)

    def _chunks(self, slowdown: float) -> list[Blocks]:
        return [
            {arm: _stretched(values[i : i + CHUNK], slowdown * (arm == "winner")) for arm, values in blocks.items()}
            for blocks in self.decisions
            for i in range(0, len(blocks["winner"]) - CHUNK + 1, CHUNK)
        ]

    def _decision(self, chunks: Sequence[Blocks], policy: Policy, rng: random.Random) -> VerdictKind:
        """One decision, from a stretch of chunks as long as the longest decision: what wanders slowly stays in it."""
        longest = policy.looks[-1] // CHUNK
        start = rng.randrange(len(chunks))
        near = [chunks[(start + i) % len(chunks)] for i in range(min(longest, len(chunks)))]
        drawn: list[Blocks] = []
        for look in policy.looks:
            places = sorted(rng.choices(range(len(near)), k=look // CHUNK - len(drawn)))
            drawn += [near[place] for place in places]
            verdict = self.judge(_joined(drawn), policy)
            if verdict.decided:
                break
        return verdict.kind


def smallest_safe(pool: Pool, policy: Policy, count: int) -> float | None:
    """The least threshold (a fraction) that is safe for a kernel whose decisions on itself are in ``pool``.

    Safe is a threshold that the gate's rules do not raise, with which none of the live decisions and none of ``count``
    resampled ones is red, and ``SAFE_POWER`` of as many are where the readings are longer by ``SAFE_BEYOND`` times the
    threshold. Searched by bisection of ``THRESHOLDS``; None where not even the largest is safe.
    """
    place = bisect_left(range(len(THRESHOLDS)), True, key=lambda i: _is_safe(pool, policy, THRESHOLDS[i], count))
    return THRESHOLDS[place] if place < len(THRESHOLDS) else None


def _is_safe(pool: Pool, policy: Policy, threshold: float, count: int) -> bool:
    chosen = replace(policy, threshold=threshold)
    used = pool.judge(pool.decisions[0], chosen).threshold
    if used is not None and used > threshold * (1 + 1e-9):
        return False
    if pool.rejudged(chosen)[VerdictKind.REGRESSED] or pool.redrawn(count, chosen)[VerdictKind.REGRESSED]:
        return False
    found = pool.redrawn(count, chosen, SAFE_BEYOND * threshold)[VerdictKind.REGRESSED]
    return found >= SAFE_POWER * count


def upper_bound(events: int, trials: int, confidence: float = 0.95) -> float:
    """The largest probability that ``events`` in ``trials`` leave possible at this one-sided confidence.

    The limit of Clopper and Pearson (1934). Raises ValueError unless 0 <= events <= trials and there is a trial.
    """
    if not 0 <= events <= trials or not trials:
        raise ValueError(f"{events} of {trials} is not a share")
    low, high = events / trials, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _at_most(events, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(events: int, trials: int, probability: float) -> float:
    """P(Binomial(trials, probability) <= events)."""
    ways = (math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(events + 1))
    return math.fsum(ways)


def _stretched(values: Sequence[float], slowdown: float) -> list[float]:
    return [value * (1 + slowdown) for value in values]


def _joined(chunks: Sequence[Blocks]) -> Mapping[str, list[float]]:
    return {arm: [value for chunk in chunks for value in chunk[arm]] for arm in chunks[0]}
