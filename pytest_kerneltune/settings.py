"""Command line, ini file and environment, made into one frozen ``Settings``.

The command line wins over the ini file, which wins over the default. The language model's settings are the other way
round: the environment wins over the ini file, because what is written in a repository should not override the person
or machine that runs it, and secrets are read from nowhere else. No other module reads ``os.environ``.

To add an option: a row in ``options.OPTIONS`` and a field of ``Settings`` with the same name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.options import (
    OPTIONS,
    Given,
    Option,
    Parse,
    boolean,
    fallback,
    file,
    names,
    number,
    one_of,
    path,
    second_stage,
    seconds,
    text,
    whole_number,
    worker_count,
)

LLM_PREFIXES = ("KERNELTUNE_LLM_", "HELION_LLM_")
"""First parts of the variables of the language model; the first that is set wins."""

_OTHER_VARIABLES = {"second_stage": "HELION_HYBRID_SECOND_STAGE_ALGORITHM"}
"""Variables that Helion users have under another first part; what has one of ours wins."""

PROVIDER_VARIABLES = (
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "OPENROUTER_API_KEY",
    "OLLAMA_API_KEY",
    "OLLAMA_HOST",
)
"""The providers' own variables, handed on to ``llm`` under their names."""


REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""How much a model may think, as providers call it; not every model knows each."""


def environment() -> Mapping[str, str]:
    """This process's environment as it is now."""
    return dict(os.environ)


def change_environment(variables: Mapping[str, str]) -> None:
    """Set the variables for this process and those that it starts."""
    os.environ.update(variables)


@dataclass(frozen=True)
class LLMSettings:
    """What is set about the language model; None where nothing is. The defaults are those of ``llm``.

    A field is the last part of its variable, ``KERNELTUNE_LLM_API_KEY`` for ``api_key``. Times are seconds.
    ``provider_variables`` holds those of ``PROVIDER_VARIABLES`` that are set. Nothing secret is in the repr.
    """

    provider: str | None = None
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    api_base: str | None = field(default=None, repr=False)
    request_timeout_s: float | None = None
    compile_timeout_s: float | None = None
    ca_bundle: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    max_rounds: int | None = None
    send_source: bool | None = None
    replies: Path | None = None
    second_stage: str | None = None
    fallback: str | None = None
    record: Path | None = None
    reply_cache: bool | None = None
    temperature: float | None = None
    reasoning_effort: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None
    allow_http: tuple[str, ...] | None = None
    extra_headers: str | None = field(default=None, repr=False)
    client_key_password: str | None = field(default=None, repr=False)
    provider_variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are set, by name, ``provider_variables`` left out."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "provider_variables"}
        return {name: value for name, value in named.items() if value is not None}


_LLM_PARSERS: Mapping[str, Parse] = {
    "provider": text,
    "model": text,
    "api_key": text,
    "api_base": text,
    "request_timeout_s": seconds,
    "compile_timeout_s": seconds,
    "ca_bundle": path,
    "client_cert": path,
    "client_key": path,
    "max_rounds": whole_number(1),
    "send_source": boolean,
    "replies": file,
    "second_stage": second_stage,
    "fallback": fallback,
    "record": file,
    "reply_cache": boolean,
    "temperature": number(0.0, 2.0),
    "reasoning_effort": one_of(*REASONING_EFFORTS),
    "max_output_tokens": whole_number(1),
    "stream": boolean,
    "allow_http": names,
    "extra_headers": text,
    "client_key_password": text,
}


@dataclass(frozen=True)
class Settings:
    """How this run tunes, measures and judges. Every field that is an option is described in ``options.OPTIONS``.

    ``autotune`` is None in a plain run, "none" to time what is known, else a search's name. Times are seconds, the
    target latency ms, the threshold a fraction, paths absolute. ``autotune_cache`` are the layers of the cache, the one
    that is written first; ``autotune_cache_limit`` is in MiB. ``root`` is where ini paths start, ``workers`` the
    number of xdist workers, ``step_summary`` the file that GitHub shows as the summary of the step.
    """

    autotune: str | None
    autotune_effort: str
    autotune_budget: float | None
    autotune_configs: int | None
    autotune_target: float | None
    autotune_seed: int
    autotune_cache: tuple[Path, ...]
    autotune_wait: float
    autotune_strict: bool
    autotune_cache_limit: int
    autotune_force: bool
    autotune_json: Path | None
    baseline_dir: Path | None
    update_baselines: frozenset[str]
    missing_baseline: str
    against: str | None
    perf_threshold: float
    gate_self_test: int | None
    prune_baselines: bool
    noisy_verdict: str
    invalid_verdict: str
    incomparable_verdict: str
    compile_timeout: float
    run_timeout: float
    compile_jobs: int
    llm: LLMSettings
    root: Path
    workers: int = 1
    step_summary: Path | None = None

    @classmethod
    def from_sources(
        cls,
        option: Callable[[str], object],
        ini: Callable[[str], object],
        environ: Mapping[str, str],
        root: Path,
    ) -> Settings:
        """The settings of this run.

        ``option`` and ``ini`` give the value of an option by its name, None (or an empty text in the ini file) where
        it is not set. Raises UsageError that names the option, ini key or variable and says what is allowed.
        """
        sources = _Sources(option, ini, environ, root)
        values = {row.name: sources.read(row) for row in OPTIONS if not row.name.startswith("kerneltune_llm_")}
        summary = environ.get("GITHUB_STEP_SUMMARY", "")
        settings = cls(
            **values,
            llm=sources.llm_of(values["autotune"]),
            root=root,
            workers=worker_count(environ),
            step_summary=Path(summary) if summary else None,
        )
        settings._check()
        for flag in ("against", "gate_self_test", "prune_baselines"):
            if option(flag) is not None and not settings.gating:  # from an ini file it waits for --autotune
                raise UsageError(
                    f"--{flag.replace('_', '-')} needs latencies, and nothing is timed without --autotune; add "
                    "--autotune=none to time the best known configs, or --autotune to search for better ones"
                )
        return settings

    def _check(self) -> None:
        if self.update_baselines and not self.gating:
            raise UsageError(
                "--update-baselines needs latencies, and nothing is timed without --autotune; run "
                f"pytest --autotune=none --update-baselines={','.join(sorted(self.update_baselines))} "
                "to time the best known configs, or --autotune in place of --autotune=none to search for better ones"
            )

    @property
    def cache_directory(self) -> Path | None:
        """The directory of the cache that this run writes to."""
        return self.autotune_cache[0] if self.autotune_cache else None

    @property
    def gating(self) -> bool:
        """Whether kernels are timed and judged."""
        return self.autotune is not None

    @property
    def searching(self) -> bool:
        """Whether kernels are tuned where the cache has no answer."""
        return self.autotune not in (None, "none")

    def updates(self, verdict: str) -> bool:
        """Whether the baseline of a kernel with this verdict is written.

        A baseline made under another contract counts as none, so "new" selects "incomparable" too.
        """
        selected = "new" if verdict == "incomparable" else verdict
        return not self.update_baselines.isdisjoint(("all", selected))


@dataclass(frozen=True)
class _Sources:
    option: Callable[[str], object]
    ini: Callable[[str], object]
    environ: Mapping[str, str]
    root: Path

    def read(self, row: Option) -> Any:
        if row.flag and (value := self.option(row.name)) is not None:
            return row.parse(Given(value, row.flag, Path.cwd()))
        if (value := self._ini(row)) is not None:
            return row.parse(value)
        if isinstance(row.default, str):
            return row.parse(Given(row.default, row.name, self.root))
        return row.default(self.environ) if row.default else None

    def _ini(self, row: Option) -> Given | None:
        value = self.ini(row.name)
        return None if value is None or value == "" else Given(value, f"ini option {row.name}", self.root)

    def llm_of(self, autotune: Any) -> LLMSettings:
        """The language model's settings; a broken variable of a model that is not asked must not stop the tests."""
        if autotune in (None, "none"):
            return LLMSettings()
        try:
            return self.llm()
        except UsageError:
            from pytest_kerneltune.search import asks_model

            if asks_model(autotune):
                raise
            return LLMSettings()

    def llm(self) -> LLMSettings:
        rows = {row.name.removeprefix("kerneltune_llm_"): row for row in OPTIONS}
        values: dict[str, Any] = {}
        for name, parse in _LLM_PARSERS.items():
            given = self._variable(name) or (self._ini(rows[name]) if name in rows else None)
            values[name] = parse(given) if given else None
        variables = {name: value for name in PROVIDER_VARIABLES if (value := self.environ.get(name, "").strip())}
        return LLMSettings(**values, provider_variables=variables)

    def _variable(self, name: str) -> Given | None:
        variables = [prefix + name.upper() for prefix in LLM_PREFIXES] + [_OTHER_VARIABLES.get(name, "")]
        for variable in filter(None, variables):
            if self.environ.get(variable, "").strip():
                return Given(self.environ[variable], variable, Path.cwd(), secret=True)
        return None
