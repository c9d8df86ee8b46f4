"""The table of providers: names, what is inferred from models and keys, addresses."""

from __future__ import annotations

import pytest

from pytest_kerneltune.llm.access import endpoint
from pytest_kerneltune.llm.bodies import Ask, Part, merged
from pytest_kerneltune.llm.providers import PROVIDERS, Provider, provider_named, provider_of_key, provider_of_model
from pytest_kerneltune.search import Message

NAMES = ["openai", "anthropic", "chat", "openrouter", "ollama"]


def named(name: str) -> Provider:
    row = provider_named(name)
    assert row is not None
    return row


def test_rows_are_complete() -> None:
    assert [row.name for row in PROVIDERS] == NAMES
    names = [name for row in PROVIDERS for name in (row.name, *row.aliases)]
    assert len(set(names)) == len(names)
    for row in PROVIDERS:
        url = endpoint(row.base or "https://mine.example", row.path, "key")
        assert url.endswith(row.path)
        assert row.sign("key-1").popitem()[1].endswith("key-1")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("openai", "openai"),
        ("openai_responses", "openai"),
        ("OpenAI-Responses", "openai"),
        ("anthropic", "anthropic"),
        ("claude", "anthropic"),
        ("chat", "chat"),
        ("openai-chat", "chat"),
        ("openai_chat", "chat"),
        (" chat-completions ", "chat"),
        ("vllm", "chat"),
        ("llama.cpp", "chat"),
        ("litellm", "chat"),
        ("OpenRouter", "openrouter"),
        ("ollama", "ollama"),
    ],
)
def test_providers_have_other_names(name: str, row: str) -> None:
    assert named(name).name == row


@pytest.mark.parametrize("name", ["", "nobody", "open"])
def test_other_names_are_nobodys(name: str) -> None:
    assert provider_named(name) is None


OPENROUTER_KEY = "sk-or-v1-0123"


@pytest.mark.parametrize(
    ("model", "keys", "row"),
    [
        ("gpt-5.5", [], "openai"),
        ("GPT-5.5", [], "openai"),
        ("o3", [], "openai"),
        ("o4-mini", [OPENROUTER_KEY], "openai"),
        ("codex-mini", [], "openai"),
        ("chatgpt-latest", [], "openai"),
        ("ft:gpt-4o:org::id", [], "openai"),
        ("openai/gpt-5.5", [], "openai"),
        ("openai/gpt-5.5", ["sk-proj-x", OPENROUTER_KEY], "openrouter"),
        ("claude-opus-5-5", [OPENROUTER_KEY], "anthropic"),
        ("anthropic/claude-x", ["sk-ant-x"], "anthropic"),
        ("anthropic/claude-x", [OPENROUTER_KEY], "openrouter"),
        ("deepseek/deepseek-r1:free", [OPENROUTER_KEY], "openrouter"),
        ("openrouter/auto", [], "openrouter"),
        ("qwen3:8b", [], "ollama"),
        ("llama3.2:3b-instruct-q4_K_M", [], "ollama"),
        ("deepseek-r1:70b", [OPENROUTER_KEY], "ollama"),
        ("gemma3:latest", [], "ollama"),
        ("gpt-oss:20b", [], "ollama"),
        ("hf.co/someone/Llama-3.2-GGUF:Q4_K_M", [], "ollama"),
        ("qwen", [], None),
        ("meta-llama/Llama-3.3-70B-Instruct", [], None),
        ("deepseek/deepseek-r1:free", [], None),
        ("anthropic.claude-x-v2:0", [], None),
        ("", [OPENROUTER_KEY], None),
    ],
)
def test_a_models_name_tells_its_provider(model: str, keys: list[str], row: str | None) -> None:
    found = provider_of_model(model, keys)
    assert (found.name if found else None) == row


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("sk-proj-x", "openai"),
        ("sk-ant-api03-x", "anthropic"),
        (" sk-or-v1-x", "openrouter"),
        ("anything", "openai"),
        ("", "openai"),
    ],
)
def test_a_key_tells_its_provider(key: str, row: str) -> None:
    assert provider_of_key(key).name == row


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("localhost", "http://localhost:11434/api/chat"),
        ("127.0.0.1:9999", "http://127.0.0.1:9999/api/chat"),
        (" 0.0.0.0 ", "http://127.0.0.1:11434/api/chat"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080/api/chat"),
        ("http://0.0.0.0:8080/", "http://127.0.0.1:8080/api/chat"),
        (":8080", "http://127.0.0.1:8080/api/chat"),
        ("[::1]", "http://[::1]:11434/api/chat"),
        ("[::]:8080", "http://[::1]:8080/api/chat"),
        ("gpu-box", "http://gpu-box:11434/api/chat"),
        ("gpu-box/ollama", "http://gpu-box:11434/ollama/api/chat"),
        ("https://ollama.example", "https://ollama.example/api/chat"),
        ("http://gpu-box", "http://gpu-box/api/chat"),
        ("http://localhost:11434/api", "http://localhost:11434/api/chat"),
    ],
)
def test_ollamas_host_needs_neither_scheme_nor_port(host: str, url: str) -> None:
    row = named("ollama")
    assert endpoint(row.address(host), row.path, "") == url


def parts(provider: str, ask: Ask) -> dict[str, Part]:
    messages = [Message("system", "Tune."), Message("user", "A kernel.")]
    return {part.name: part for part in named(provider).format.parts(messages, ask, {"type": "object"})}


@pytest.mark.parametrize("provider", NAMES)
def test_nothing_is_said_of_what_the_user_left_open(provider: str) -> None:
    asked = parts(provider, Ask("m", stream=False))
    assert {"temperature", "effort", "stream"}.isdisjoint(asked)
    assert "schema" in asked


def test_the_models_that_need_it_are_told_to_cache_at_openrouter() -> None:
    assert parts("openrouter", Ask("anthropic/claude-x"))["cache"].forms == ({"cache_control": {"type": "ephemeral"}},)
    assert "cache" not in parts("openrouter", Ask("openai/gpt-5.5"))


def test_fields_are_merged_into_objects_and_replace_all_else() -> None:
    body = {"a": {"x": 1, "y": [1]}, "b": 2}
    assert merged(body, {"a": {"y": [2], "z": 3}, "b": {"c": 4}}) == {"a": {"x": 1, "y": [2], "z": 3}, "b": {"c": 4}}
    assert body == {"a": {"x": 1, "y": [1]}, "b": 2}
