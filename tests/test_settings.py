"""Command line, ini file and environment made into settings."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.options import OPTIONS
from pytest_kerneltune.settings import LLM_PREFIXES, LLMSettings, Settings, change_environment, environment

ROOT = Path("/project")


def settings(
    option: Mapping[str, object] = {}, ini: Mapping[str, object] = {}, environ: Mapping[str, str] = {}
) -> Settings:
    return Settings.from_sources(option.get, ini.get, environ, ROOT)


def llm(environ: Mapping[str, str], ini: Mapping[str, object] = {}) -> LLMSettings:
    return settings({"autotune": "LLMGuidedSearch"}, ini, environ).llm


def test_nothing_set_gives_the_defaults() -> None:
    found = settings(environ={"KERNELTUNE_CACHE_DIR": "/cache"})
    jobs = len(os.sched_getaffinity(0))
    assert found == Settings(
        autotune=None,
        autotune_effort="quick",
        autotune_budget=None,
        autotune_configs=None,
        autotune_target=None,
        autotune_seed=0,
        autotune_cache=(Path("/cache"),),
        autotune_wait=1800.0,
        autotune_strict=False,
        autotune_cache_limit=1024,
        autotune_force=False,
        autotune_json=None,
        baseline_dir=None,
        update_baselines=frozenset(),
        missing_baseline="warn",
        against=None,
        perf_threshold=0.03,
        gate_self_test=None,
        prune_baselines=False,
        noisy_verdict="warn",
        invalid_verdict="warn",
        incomparable_verdict="warn",
        compile_timeout=60.0,
        run_timeout=30.0,
        compile_jobs=jobs,
        llm=LLMSettings(),
        root=ROOT,
        workers=1,
        step_summary=None,
    )


@pytest.mark.parametrize(("autotune", "gating", "searching"), [(None, 0, 0), ("none", 1, 0), ("RandomSearch", 1, 1)])
def test_what_a_run_does(autotune: str | None, gating: bool, searching: bool) -> None:
    found = settings({"autotune": autotune})
    assert (found.gating, found.searching) == (gating, searching)


def test_the_command_line_wins_over_the_ini_file() -> None:
    ini = {"autotune_seed": "5", "autotune_effort": "full", "autotune_force": "true"}
    found = settings({"autotune_seed": "7"}, ini)
    assert (found.autotune_seed, found.autotune_effort, found.autotune_force) == (7, "full", True)


def test_an_empty_ini_value_is_not_set() -> None:
    assert settings(ini={"autotune_effort": "", "compile_timeout": ""}) == settings()


def test_ini_only_settings_are_not_asked_of_the_command_line() -> None:
    option = {row.name: "9" for row in OPTIONS if row.ini_only}
    assert settings(option, {"compile_jobs": "3"}).compile_jobs == 3
    assert settings(option).run_timeout == settings().run_timeout


def test_relative_paths_start_where_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = settings({"baseline_dir": "here"}, {"autotune_cache": "cache", "autotune_json": "out/report.json"})
    assert found.baseline_dir == tmp_path / "here"
    assert (found.cache_directory, found.autotune_json) == (ROOT / "cache", ROOT / "out/report.json")


def test_the_cache_can_be_off_and_is_the_users_otherwise() -> None:
    assert settings({"autotune_cache": "off"}).cache_directory is None
    assert settings(environ={"XDG_CACHE_HOME": "/xdg"}).cache_directory == Path("/xdg/pytest-kerneltune")


def test_an_error_names_the_place_of_the_value() -> None:
    with pytest.raises(UsageError, match=r"^--autotune-effort: 'fast' is not one of none, quick, full$"):
        settings({"autotune_effort": "fast"}, {"autotune_effort": "full"})
    with pytest.raises(UsageError, match=r"^ini option autotune_effort: 'fast' is not one of none, quick, full$"):
        settings(ini={"autotune_effort": "fast"})
    with pytest.raises(UsageError, match=r"^ini option perf_threshold: '3' is not a threshold"):
        settings(ini={"perf_threshold": "3"})


@pytest.mark.parametrize(
    ("ci", "policy"), [("true", "fail"), ("1", "fail"), ("", "warn"), ("false", "warn"), ("0", "warn")]
)
def test_a_missing_baseline_fails_in_ci(ci: str, policy: str) -> None:
    assert settings(environ={"CI": ci}).missing_baseline == policy
    assert settings({"missing_baseline": "warn"}, environ={"CI": ci}).missing_baseline == "warn"


def test_xdist_workers_share_the_cores() -> None:
    found = settings(environ={"PYTEST_XDIST_WORKER_COUNT": "2"})
    assert (2, max(1, settings().compile_jobs // 2)) == (found.workers, found.compile_jobs)
    assert settings(environ={"PYTEST_XDIST_WORKER_COUNT": "100000"}).compile_jobs == 1


def test_the_step_summary_comes_from_the_environment() -> None:
    assert settings(environ={"GITHUB_STEP_SUMMARY": "/tmp/summary"}).step_summary == Path("/tmp/summary")
    assert settings(environ={"GITHUB_STEP_SUMMARY": ""}).step_summary is None


def test_updating_with_timing_is_fine_wherever_that_is_asked_for() -> None:
    both = settings({"update_baselines": "new", "autotune": "none"})
    assert both.update_baselines == {"new"}
    assert settings({"update_baselines": "new"}, {"autotune": "none"}) == both


@pytest.mark.parametrize(
    ("selected", "written"),
    [
        ("all", {"ok", "new", "improved", "regressed", "incomparable"}),
        ("new", {"new", "incomparable"}),
        ("improved,regressed", {"improved", "regressed"}),
        (None, set()),
    ],
)
def test_which_baselines_an_update_writes(selected: str | None, written: set[str]) -> None:
    found = settings({"autotune": "none", "update_baselines": selected})
    assert {kind for kind in ("ok", "new", "improved", "regressed", "incomparable") if found.updates(kind)} == written


VARIABLES = {
    "PROVIDER": ("anthropic", "anthropic"),
    "MODEL": ("large", "large"),
    "API_KEY": ("sk-1\n", "sk-1"),
    "API_BASE": ("http://localhost:1/v1", "http://localhost:1/v1"),
    "REQUEST_TIMEOUT_S": ("12.5", 12.5),
    "COMPILE_TIMEOUT_S": ("15", 15.0),
    "CA_BUNDLE": ("/ca.pem", Path("/ca.pem")),
    "CLIENT_CERT": ("/cert.pem", Path("/cert.pem")),
    "CLIENT_KEY": ("/key.pem", Path("/key.pem")),
    "MAX_ROUNDS": ("4", 4),
    "SEND_SOURCE": ("0", False),
    "REPLIES": ("/replies.jsonl", Path("/replies.jsonl")),
    "SECOND_STAGE": ("RandomSearch\n", "RandomSearch"),
    "FALLBACK": ("pattern", "pattern"),
    "RECORD": ("/exchanges.json", Path("/exchanges.json")),
    "REPLY_CACHE": ("off", False),
    "TEMPERATURE": ("0.3", 0.3),
    "REASONING_EFFORT": ("low", "low"),
    "MAX_OUTPUT_TOKENS": ("4096", 4096),
    "STREAM": ("no", False),
    "ALLOW_HTTP": ("gateway, other.host,", ("gateway", "other.host")),
    "EXTRA_HEADERS": ('{"x-team": "kernels"}', '{"x-team": "kernels"}'),
    "CLIENT_KEY_PASSWORD": ("open sesame", "open sesame"),
}
MALFORMED = (
    *("REQUEST_TIMEOUT_S", "COMPILE_TIMEOUT_S", "MAX_ROUNDS", "SEND_SOURCE", "FALLBACK", "REPLY_CACHE", "TEMPERATURE"),
    *("REASONING_EFFORT", "MAX_OUTPUT_TOKENS", "STREAM"),
)


@pytest.mark.parametrize("prefix", LLM_PREFIXES)
@pytest.mark.parametrize("suffix", VARIABLES)
def test_each_variable_of_the_language_model(prefix: str, suffix: str) -> None:
    written, value = VARIABLES[suffix]
    assert llm({prefix + suffix: written}).given == {suffix.lower(): value}


def test_our_variables_win_over_those_of_helion_unless_they_are_blank() -> None:
    environ = {"HELION_LLM_MODEL": "theirs", "KERNELTUNE_LLM_MODEL": "ours"}
    assert llm(environ).model == "ours"
    assert llm({**environ, "KERNELTUNE_LLM_MODEL": " "}).model == "theirs"


def test_the_environment_of_the_language_model_wins_over_the_ini_file() -> None:
    ini = {
        "kerneltune_llm_provider": "ollama",
        "kerneltune_llm_model": "small",
        "kerneltune_llm_replies": "replies.jsonl",
    }
    found = llm({"HELION_LLM_MODEL": "large"}, ini)
    assert (found.provider, found.model, found.replies) == ("ollama", "large", ROOT / "replies.jsonl")


def test_the_second_stage_of_a_seeded_search_by_each_of_its_names() -> None:
    ini = {"kerneltune_llm_second_stage": "FiniteSearch"}
    assert llm({}).second_stage is None
    assert llm({}, ini).second_stage == "FiniteSearch"
    helion = {"HELION_HYBRID_SECOND_STAGE_ALGORITHM": "LFBOPatternSearch"}
    assert llm(helion, ini).second_stage == "LFBOPatternSearch"
    assert llm({**helion, "KERNELTUNE_LLM_SECOND_STAGE": "RandomSearch"}, ini).second_stage == "RandomSearch"


@pytest.mark.parametrize("name", ["LLMGuidedSearch", "Sorcery"])
def test_what_cannot_be_a_second_stage_is_refused_with_what_can(name: str) -> None:
    names = "one of FiniteSearch, RandomSearch, "
    with pytest.raises(UsageError, match=f"^ini option kerneltune_llm_second_stage: '{name}' is not {names}"):
        llm({}, {"kerneltune_llm_second_stage": name})
    for variable in ("KERNELTUNE_LLM_SECOND_STAGE", "HELION_HYBRID_SECOND_STAGE_ALGORITHM"):
        with pytest.raises(UsageError, match=f"^{variable}: the value is not {names}"):
            llm({variable: name})


def test_the_fallback_may_stand_in_the_ini_file() -> None:
    assert llm({}, {"kerneltune_llm_fallback": "error"}).fallback == "error"
    with pytest.raises(UsageError, match=r"^ini option kerneltune_llm_fallback: 'none' is not one of seeds, random"):
        llm({}, {"kerneltune_llm_fallback": "none"})


@pytest.mark.parametrize(("written", "ms"), [("40us", 0.04), ("1.5 ms", 1.5), ("800ns", 0.0008), ("2s", 2000.0)])
def test_a_target_latency_has_a_unit(written: str, ms: float) -> None:
    assert settings({"autotune_target": written}).autotune_target == pytest.approx(ms)


@pytest.mark.parametrize("written", ["40", "0us", "-1ms", "1e-3ms", "fast", ""])
def test_what_is_no_latency_is_refused(written: str) -> None:
    with pytest.raises(UsageError, match=r"^--autotune-target: .* is not a latency; write a number with its unit"):
        settings({"autotune_target": written})


def test_providers_own_variables_are_handed_on() -> None:
    environ = {"OPENAI_API_KEY": "sk-o\n", "ANTHROPIC_BASE_URL": "http://a", "ANTHROPIC_API_KEY": "", "HOME": "/h"}
    assert llm(environ).provider_variables == {"OPENAI_API_KEY": "sk-o", "ANTHROPIC_BASE_URL": "http://a"}


@pytest.mark.parametrize("suffix", MALFORMED)
def test_a_malformed_variable_is_named_but_never_its_value(suffix: str) -> None:
    with pytest.raises(UsageError, match=f"^HELION_LLM_{suffix}: the value is not ") as caught:
        llm({f"HELION_LLM_{suffix}": "sk-secret"})
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("autotune", [None, "none", "RandomSearch"])
def test_variables_of_a_model_that_is_not_asked_cannot_fail_a_run(autotune: str | None) -> None:
    environ = {"HELION_LLM_MAX_ROUNDS": "many"}
    assert settings({"autotune": autotune}, environ=environ).llm == LLMSettings()


def test_secrets_are_in_no_repr() -> None:
    environ = {"KERNELTUNE_LLM_API_KEY": "sk-own", "OPENAI_API_KEY": "sk-openai"}
    environ["KERNELTUNE_LLM_API_BASE"] = "https://user:sk-url@host"
    environ["KERNELTUNE_LLM_EXTRA_HEADERS"] = "x-gateway: sk-gateway"
    environ["KERNELTUNE_LLM_CLIENT_KEY_PASSWORD"] = "sk-password"
    found = settings({"autotune": "default"}, environ=environ)
    assert (found.llm.api_key, found.llm.provider_variables["OPENAI_API_KEY"]) == ("sk-own", "sk-openai")
    assert "sk-" not in repr(found) + str(found)


def test_settings_cannot_be_changed_and_can_be_pickled() -> None:
    found = settings({"autotune": "default"}, environ={"OPENAI_API_KEY": "sk"})
    assert pickle.loads(pickle.dumps(found)) == found
    with pytest.raises(FrozenInstanceError):
        found.autotune = None  # type: ignore[misc]


def test_the_environment_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment()
    monkeypatch.setenv("KERNELTUNE_TEST_VARIABLE", "1")
    assert "KERNELTUNE_TEST_VARIABLE" not in before
    assert environment()["KERNELTUNE_TEST_VARIABLE"] == "1"


def test_a_changed_environment_reaches_child_processes_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERNELTUNE_TEST_VARIABLE", "1")
    before = environment()
    change_environment({"KERNELTUNE_TEST_VARIABLE": "2"})
    assert environment() == {**before, "KERNELTUNE_TEST_VARIABLE": "2"}
    child = subprocess.run(["/bin/sh", "-c", "echo $KERNELTUNE_TEST_VARIABLE"], capture_output=True, text=True)
    assert child.stdout == "2\n"
    change_environment({})
    assert environment() == {**before, "KERNELTUNE_TEST_VARIABLE": "2"}


def test_importing_the_settings_imports_nothing_heavy() -> None:
    code = (
        "import sys, pytest_kerneltune.settings; print(*(m for m in sys.modules if m.startswith('pytest_kerneltune.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {f"pytest_kerneltune.{name}" for name in ("errors", "threshold", "options", "settings")} == set(
        done.stdout.split()
    )
