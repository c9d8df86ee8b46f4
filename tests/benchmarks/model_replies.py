"""How much a language model's first replies are worth on recorded search spaces.

``python -m tests.benchmarks.model_replies SPACES REPLIES [--seeds 20]`` takes every ``REPLIES/NAME.reply`` (a model's
whole answer to the first request for the kernel recorded in ``SPACES/NAME.json.gz``; ``NAME.default.json`` beside it
holds the default config that the prompt named, where that is not the recorded space's own) and runs
LLMSeededLFBOTreeSearch with it, without it, and with a model that proposes random configs.

Printed is optimum / best found: after the first round of the model alone, and after 15, 25, 40 and 100 configs of the
search, its start included, as the mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from pytest_kerneltune.recorded import SUFFIX, RecordedSpace
from pytest_kerneltune.search import Context, Effort, create
from pytest_kerneltune.search.replies import parse_reply
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import ScriptedModel, drive
from pytest_kerneltune.trial import Trial

MARKS = (15, 25, 40, 100)
SEARCH = "LLMSeededLFBOTreeSearch"


def completed(space: ConfigSpace, reply: Path) -> str:
    """The reply with its configs complete, since they were written against the default of the prompt."""
    named = reply.with_suffix(".default.json")
    default = json.loads(named.read_text()) if named.exists() else space.default
    text = reply.read_text()
    written = json.loads(text[text.index("{") : text.rindex("}") + 1])["configs"]
    return json.dumps({"configs": [{**default, **config} for config in written]})


def quality(recorded: RecordedSpace, trials: Sequence[Trial], count: int) -> float:
    """Optimum / best of the first ``count`` trials; 0 where none worked."""
    return recorded.best_ms / min((t.latency_ms for t in trials[:count]), default=math.inf)


def nonsense(space: ConfigSpace, seed: int) -> str:
    """A reply of random configs."""
    rng = random.Random(seed)
    drawn = (space.sample(rng) for _ in range(MARKS[0]))
    return json.dumps({"configs": [dict(config) for config in drawn if config is not None]})


def row(recorded: RecordedSpace, reply: Callable[[int], str] | None, seeds: int) -> list[float]:
    """Mean quality at each of ``MARKS``; ``reply`` gives a seed's reply, None is no model."""
    runs = []
    for seed in range(seeds):
        context = Context() if reply is None else Context(model=ScriptedModel([reply(seed)]))
        runs.append(drive(create(SEARCH, Effort.QUICK, context), recorded.space, recorded.measure, MARKS[-1], seed))
    return [fmean(quality(recorded, trials, mark) for trials in runs) for mark in MARKS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spaces", type=Path)
    parser.add_argument("replies", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    print(f"{'':36} first round  " + " ".join(f"f@{mark:<5}" for mark in MARKS))  # noqa: T201
    for reply in sorted(options.replies.glob("*.reply")):
        recorded = RecordedSpace.load(options.spaces / f"{reply.stem}{SUFFIX}")
        text = completed(recorded.space, reply)
        first = quality(recorded, [recorded.measure(c) for c in parse_reply(text, recorded.space).configs], 15)
        models: dict[str, Callable[[int], str] | None] = {
            reply.stem: lambda _, text=text: text,  # type: ignore[misc]
            "  without a model": None,
            "  with random replies": partial(nonsense, recorded.space),
        }
        for name, model in models.items():
            shown = f"{first:<11.3f}" if name == reply.stem else " " * 11
            values = row(recorded, model, options.seeds)
            print(f"{name:36} {shown}  " + " ".join(f"{value:<7.3f}" for value in values))  # noqa: T201


if __name__ == "__main__":
    main()
