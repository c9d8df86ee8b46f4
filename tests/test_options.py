"""The table of options: what argparse makes of it and how each value is read."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.options import EFFORTS, OPTIONS, Given, Option, default_cache_directory, spelled_out
from pytest_kerneltune.search import DEFAULT_SEARCH, SEARCHES, Effort
from pytest_kerneltune.settings import Settings

ROWS = {row.name: row for row in OPTIONS}
FLAGS = {row.flag for row in OPTIONS if row.flag}


def parsed(*args: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for row in OPTIONS:
        if row.flag:
            parser.add_argument(row.flag, **row.arguments)
    parser.add_argument("paths", nargs="*")
    return parser.parse_intermixed_args(args)  # as pytest does


def read(name: str, text: str, base: Path = Path("/base")) -> object:
    return ROWS[name].parse(Given(text, ROWS[name].flag or name, base))


def test_the_flags_are_those_promised() -> None:
    assert {
        "--against",
        "--autotune",
        "--autotune-effort",
        "--autotune-budget",
        "--autotune-configs",
        "--autotune-seed",
        "--autotune-cache",
        "--autotune-strict",
        "--autotune-wait",
        "--autotune-force",
        "--autotune-target",
        "--autotune-json",
        "--baseline-dir",
        "--update-baselines",
        "--gate-self-test",
        "--missing-baseline",
        "--perf-threshold",
        "--prune-baselines",
    } == FLAGS


def test_every_option_is_a_field_of_the_settings() -> None:
    of_settings = {field.name for field in fields(Settings)}
    assert {row.name for row in OPTIONS if not row.name.startswith("kerneltune_llm_")} <= of_settings


def test_efforts_are_those_of_searches() -> None:
    assert list(Effort) == list(EFFORTS)


def test_an_option_that_is_not_given_is_none() -> None:
    assert vars(parsed()) == {**dict.fromkeys((row.name for row in OPTIONS if row.flag), None), "paths": []}


def test_bare_options_have_the_value_that_they_stand_for() -> None:
    options = parsed("--autotune", "--update-baselines", "--autotune-force")
    assert (options.autotune, options.update_baselines, options.autotune_force) == ("default", "all", "yes")


def test_help_can_be_formatted_and_names_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: 3%)" in shown
    assert all(flag in shown for flag in FLAGS)


@pytest.mark.parametrize("row", OPTIONS, ids=lambda row: row.name)
def test_a_default_is_a_value_that_the_option_takes(row: Option) -> None:
    assert row.help
    for value in (row.default, row.bare):
        if isinstance(value, str) and value:
            row.parse(Given(value, row.name, Path("/base")))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("autotune", "none", "none"),
        ("autotune", "default", DEFAULT_SEARCH),
        ("autotune", "RandomSearch", "RandomSearch"),
        ("autotune_effort", "full", "full"),
        ("autotune_budget", "30", 30.0),
        ("autotune_budget", "1.5s", 1.5),
        ("autotune_budget", "2m", 120.0),
        ("autotune_budget", "2 m", 120.0),
        ("autotune_configs", "1", 1),
        ("autotune_seed", "0", 0),
        ("autotune_cache", "off", ()),
        ("autotune_cache", "there", (Path("/base/there"),)),
        ("autotune_cache", "/there", (Path("/there"),)),
        ("autotune_cache", "own:/shared:~/third", (Path("/base/own"), Path("/shared"), Path.home() / "third")),
        ("autotune_wait", "2m", 120.0),
        ("autotune_strict", "yes", True),
        ("autotune_cache_limit", "0", 0),
        ("autotune_force", "True", True),
        ("autotune_force", "off", False),
        ("autotune_json", "report.json", Path("/base/report.json")),
        ("baseline_dir", "~/there", Path.home() / "there"),
        ("update_baselines", "all", frozenset({"all"})),
        ("update_baselines", "new, improved", frozenset({"new", "improved"})),
        ("missing_baseline", "fail", "fail"),
        ("perf_threshold", "0.5%", 0.005),
        ("noisy_verdict", "fail", "fail"),
        ("invalid_verdict", "warn", "warn"),
        ("incomparable_verdict", "fail", "fail"),
        ("compile_timeout", "1m", 60.0),
        ("run_timeout", "0.5", 0.5),
        ("compile_jobs", "8", 8),
        ("kerneltune_llm_model", " large ", "large"),
    ],
)
def test_good_values(name: str, text: str, value: object) -> None:
    assert read(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("autotune", "Random", "none, " + ", ".join(SEARCHES)),
        ("autotune", "", ", ".join(SEARCHES)),
        ("autotune_effort", "fast", "none, quick, full"),
        ("autotune_budget", "0", "a positive time"),
        ("autotune_budget", "-3", "a positive time"),
        ("autotune_budget", "inf", "a positive time"),
        ("autotune_budget", "1h", "a positive time"),
        ("autotune_configs", "0", "at least 1"),
        ("autotune_configs", "1.5", "a whole number"),
        ("autotune_seed", "-1", "at least 0"),
        ("autotune_cache", "", "a path"),
        ("autotune_cache", __file__, "a directory"),
        ("autotune_force", "maybe", "true"),
        ("autotune_json", str(Path(__file__).parent), "it is a directory"),
        ("baseline_dir", __file__, "a directory"),
        ("baseline_dir", "~nobody-of-this-name/x", "home directory"),
        ("update_baselines", "new,ok", "all, new, improved, regressed"),
        ("update_baselines", "", "all, new, improved, regressed"),
        ("missing_baseline", "skip", "warn, fail"),
        ("perf_threshold", "3", '"3%"'),
        ("noisy_verdict", "skip", "warn, fail"),
        ("invalid_verdict", "pass", "warn, fail"),
        ("incomparable_verdict", "FAIL", "warn, fail"),
        ("compile_timeout", "never", "a positive time"),
        ("run_timeout", "0", "a positive time"),
        ("compile_jobs", "0", "at least 1"),
        ("kerneltune_llm_replies", str(Path(__file__).parent), "it is a directory"),
    ],
)
def test_a_bad_value_is_refused_by_name_with_what_is_allowed(name: str, text: str, allowed: str) -> None:
    with pytest.raises(UsageError, match=re.escape(allowed)) as caught:
        read(name, text)
    assert str(caught.value).startswith(f"{ROWS[name].flag or name}: {text!r} is not")


@pytest.mark.parametrize(("text", "part"), [("own::/shared", ""), (f"own:{__file__}", __file__)])
def test_a_bad_layer_of_the_cache_is_named(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--autotune-cache: {part!r} is not a ")):
        read("autotune_cache", text)


def test_a_directory_may_have_the_separator_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert read("autotune_cache", str(tmp_path / "a:b")) == (tmp_path / "a:b",)


def test_a_secret_value_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        ROWS["autotune_seed"].parse(Given("sk-123", "VARIABLE", Path(), secret=True))
    assert str(caught.value) == "VARIABLE: the value is not a whole number of at least 0"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--autotune", "perf/"], ["--autotune=default", "perf/"]),
        (["perf/", "--autotune"], ["perf/", "--autotune=default"]),
        (["--autotune", "-v"], ["--autotune=default", "-v"]),
        (["--autotune", "RandomSearch", "perf/"], ["--autotune", "RandomSearch", "perf/"]),
        (
            ["--autotune", "none", "--update-baselines", "x.py"],
            ["--autotune", "none", "--update-baselines=all", "x.py"],
        ),
        (["--update-baselines", "new,improved", "x.py"], ["--update-baselines", "new,improved", "x.py"]),
        (["--autotune=none", "x.py"], ["--autotune=none", "x.py"]),
        (["--autotune-force", "x.py"], ["--autotune-force", "x.py"]),
        (["--", "--autotune", "x.py"], ["--", "--autotune", "x.py"]),
        ([], []),
    ],
)
def test_a_path_after_a_bare_option_is_not_its_value(args: list[str], expected: list[str]) -> None:
    assert spelled_out(args) == expected
    assert spelled_out(spelled_out(args)) == expected


def test_spelled_out_arguments_leave_the_path_to_argparse() -> None:
    options = parsed(*spelled_out(["--autotune", "perf/", "--update-baselines", "x.py"]))
    assert (options.autotune, options.update_baselines, options.paths) == ("default", "all", ["perf/", "x.py"])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"KERNELTUNE_CACHE_DIR": "/own", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/own"),
        ({"KERNELTUNE_CACHE_DIR": "", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg/pytest-kerneltune"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/pytest-kerneltune"),
        ({"HOME": "/home/me"}, "/home/me/.cache/pytest-kerneltune"),
        ({}, f"{Path.home()}/.cache/pytest-kerneltune"),
        ({"KERNELTUNE_CACHE_DIR": "~/own"}, f"{Path.home()}/own"),
        ({"KERNELTUNE_CACHE_DIR": "own"}, f"{Path.cwd()}/own"),
    ],
)
def test_the_default_cache_directory(environment: dict[str, str], expected: str) -> None:
    assert default_cache_directory(environment) == Path(expected)
