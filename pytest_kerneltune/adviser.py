"""The language model of a run: connected once, bounded by each search's budget, accounted for kernel by kernel."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_kerneltune.driver import SearchRun
from pytest_kerneltune.errors import KernelError, LLMError
from pytest_kerneltune.outcome import ModelSummary
from pytest_kerneltune.search import FALLBACKS, Message, Submit
from pytest_kerneltune.search.fallback import FALLBACK
from pytest_kerneltune.search.guided import MODEL
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Trial

if TYPE_CHECKING:
    from pytest_kerneltune.llm import Call, LanguageModel, LLMOptions

_FASTEST = 10
_PATIENCE = 2
_TELLING = re.compile("cut off|not recorded|endless|asked without|recording ends")
"""Outcomes of answered requests that a user should hear of."""
_INSTEAD = {"random": "random configs took its place", "pattern": "a pattern search took its place"}
_REPLIES = "replies"


class Adviser:
    """The language model that the settings describe; nothing is connected before the first search that wants one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consultations: list[Consultation] = []

    @property
    def fallback(self) -> str:
        """What takes the model's place where it cannot be asked, one of ``search.FALLBACKS``."""
        return self._settings.llm.fallback or FALLBACKS[0]

    def consultation(self) -> Consultation:
        """The model for one search that begins now.

        Raises KernelError where there is no model and the user wants that to be an error.
        """
        model, budget = self._model, self._settings.autotune_budget
        if not isinstance(model, LLMError):
            model = self._given_up() or model
        if isinstance(model, LLMError):
            if self.fallback == "error":
                raise KernelError(f"language model: {model}")
            return Consultation("", _refusing(model), self.fallback, refusal=str(model))
        port = model.port(None if budget is None else time.monotonic() + budget)
        consultation = Consultation(
            model.label, port, self.fallback, lambda: port.calls, lambda: port.pending, port.forget
        )
        self._consultations.append(consultation)
        return consultation

    def _given_up(self) -> LLMError | None:
        """Why not to ask once more: it failed for the last kernels, each of which waited for it."""
        last = self._consultations[-_PATIENCE:]
        if len(last) < _PATIENCE or not all(each.calls() and not each.answered for each in last):
            return None
        return LLMError(f"not asked again after it failed for {_PATIENCE} kernels: {last[-1].calls()[-1].outcome}")

    def close(self) -> None:
        model = self.__dict__.get("_model")  # not connected only to be closed
        if model is not None and not isinstance(model, LLMError):
            model.close()

    @cached_property
    def _model(self) -> LanguageModel | LLMError:
        """The model of this run, or why there is none."""
        from pytest_kerneltune.llm import connect

        try:
            return connect(self._options())
        except LLMError as error:
            return error

    def _options(self) -> LLMOptions:
        from pytest_kerneltune.llm import LLMOptions

        settings, llm = self._settings, self._settings.llm
        cache = None if llm.reply_cache is False else settings.cache_directory
        folder = "" if cache is None else cache / _REPLIES
        return LLMOptions.from_settings(llm.given, llm.provider_variables, folder)


@dataclass(frozen=True)
class Consultation:
    """One search's use of the model: ``port`` is what it asks, ``calls`` gives its requests that ended, ``pending``
    how many are under way. ``forget`` takes its replies out of the reply cache.

    ``refusal`` says why there is no model (empty where there is one).
    """

    label: str
    port: Submit
    fallback: str
    calls: Callable[[], Sequence[Call]] = tuple
    pending: Callable[[], int] = int
    forget: Callable[[], None] = lambda: None
    refusal: str = ""

    @property
    def answered(self) -> bool:
        return any(call.answered for call in self.calls())

    def summary(self, space: ConfigSpace, run: SearchRun, winner: Config | None) -> ModelSummary | None:
        """The model's account after ``run``, which ``winner`` is the result of; None where there was no model."""
        if self.refusal:
            return None
        from pytest_kerneltune.llm import account

        total = account(self.calls())
        fastest = sorted((t for t in run.trials if t.ok), key=lambda t: t.latency_ms)[:_FASTEST]
        return ModelSummary(
            label=self.label,
            calls=total.calls,
            cached=total.cached,
            failed=total.calls - total.answered,
            tokens_in=total.tokens_in,
            tokens_out=total.tokens_out,
            seconds=total.seconds,
            proposed=run.counts.get("proposed", 0),
            valid=run.counts.get("valid", 0),
            new=run.counts.get("new", 0),
            fastest=len(fastest),
            among_fastest=sum(trial.stage == MODEL for trial in fastest),
            found_winner=winner is not None and _found_by_model(space, run.trials, winner),
        )

    def messages(self, run: SearchRun) -> list[str]:
        """What became of the model in a search that was to ask it: never silence."""
        calls = self.calls()
        failed = [call.outcome for call in calls if not call.answered]
        if self.refusal:
            failed = [self.refusal]
        elif not calls and self.pending():
            failed = [f"{self.label} had not replied when the search ended"]
        elif not calls:
            failed = [f"the search ended before {self.label} was asked"]
        if failed:
            what = "language model: a request failed" if self.answered else "language model skipped"
            return [f"{what}: {reason}{self._instead(run)}" for reason in failed]
        said = [f"language model: {call.outcome}" for call in calls if _TELLING.search(call.outcome)]
        proposed, valid = run.counts.get("proposed", 0), run.counts.get("valid", 0)
        if not valid:
            said.append(f"language model: nothing in its reply could be used{self._instead(run)}")
        elif 2 * valid < proposed:
            said.append(f"language model: {proposed - valid} of the {proposed} configs it proposed could not be used")
        return [f"language model: {self.label}", *said]

    def _instead(self, run: SearchRun) -> str:
        """What took its place."""
        if run.error:
            return ""
        if any(trial.stage == FALLBACK for trial in run.trials):
            return f"; {_INSTEAD[self.fallback]}"
        return "; the search went on without it"


def _refusing(error: LLMError) -> Submit:
    """A model that answers nothing, so that the search falls back as on any other failure."""

    def submit(_: Sequence[Message]) -> Future[str]:
        future: Future[str] = Future()
        future.set_exception(error)
        return future

    return submit


def _found_by_model(space: ConfigSpace, trials: Sequence[Trial], winner: Config) -> bool:
    key = space.key(winner)
    return any(trial.stage == MODEL and space.key(trial.config) == key for trial in trials)
