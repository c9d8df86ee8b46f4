"""Where secrets must not go: to proxies, into logs, prompts, records, errors and replies."""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.llm import LLMOptions, connect
from pytest_kerneltune.llm.recorded import RecordedReplies
from pytest_kerneltune.llm.redaction import Redaction, secrets_of
from pytest_kerneltune.search import Message
from pytest_kerneltune.search.dialogue import Request

KEY = "sk-secret-0123456789"
HELLO = [Message("user", "Hello.")]
ENCODINGS = [b64encode(f"{before}{KEY}{after}".encode()).decode() for before in ("", ":", "a:") for after in ("", "\n")]


class Server(ThreadingHTTPServer):
    """Answers "Fine.", with ``headers``; with ``refusal`` it refuses in these words. ``received`` is what it was sent:
    paths and contents."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}
        self.refusal = ""

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.path, content.decode()))
        choice = {"message": {"role": "assistant", "content": "Fine."}, "finish_reason": "stop"}
        refusal = self.server.refusal
        reply = json.dumps({"error": {"message": refusal}} if refusal else {"choices": [choice]}).encode()
        self.send_response(401 if refusal else 200)
        for name, value in (self.server.headers | {"content-length": str(len(reply))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    with Server() as one, Server() as other:
        threads = [Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in (one, other)]
        for thread in threads:
            thread.start()
        yield one, other
        for server, thread in zip((one, other), threads, strict=True):
            server.shutdown()
            thread.join()


@pytest.fixture
def server(servers: tuple[Server, Server]) -> Server:
    return servers[0]


@pytest.fixture
def options(server: Server) -> LLMOptions:
    return LLMOptions(provider="chat", model="m", api_base=server.base, api_key=KEY, stream=False)


def answer(options: LLMOptions, messages: list[Message]) -> str:
    model = connect(options)
    try:
        return model.submit(messages).result(20)
    finally:
        model.close()


# Proxies


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_what_stays_on_this_machine_goes_through_no_proxy(
    monkeypatch: pytest.MonkeyPatch, servers: tuple[Server, Server], options: LLMOptions, name: str
) -> None:
    server, proxy = servers
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setenv(name, proxy.base)
    assert answer(options, HELLO) == "Fine."
    assert (len(server.received), proxy.received) == (1, [])
    elsewhere = replace(options, api_base="http://models.invalid", allow_http=("models.invalid",))
    assert answer(elsewhere, HELLO) == "Fine."
    assert [path for path, _ in proxy.received] == ["http://models.invalid/v1/chat/completions"]


# Logs


def test_nothing_of_a_request_is_logged(server: Server, options: LLMOptions, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.headers = {"set-cookie": f"key={KEY}", "www-authenticate": f"Bearer {KEY}", "location": f"/{KEY}"}
    for logger in ("httpx", "httpcore.http11"):
        logging.getLogger(logger).setLevel(logging.DEBUG)
    assert answer(replace(options, api_base=f"{server.base}?key=in-the-address"), HELLO) == "Fine."
    assert "key=in-the-address" in server.received[0][0]
    assert KEY not in caplog.text
    assert "in-the-address" not in caplog.text


def test_the_log_of_other_requests_is_left_alone(
    server: Server, options: LLMOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer(options, HELLO)
    assert not caplog.records
    with httpx.Client(trust_env=False) as client:
        client.post(f"{server.base}/mine", content=b"{}")
    assert {record.name for record in caplog.records} >= {"httpx", "httpcore.http11", "httpcore.connection"}


# Prompts

SECRETS: dict[str, Any] = {
    "api_key": KEY,
    "provider_keys": {"anthropic": "sk-ant-of-another"},
    "extra_headers": "X-Gateway: session=0123456789abcdef; 'quoted' value",
    "client_key_password": "open sesame",
}
PROMPT = f"TOKENS = '{KEY}', 'sk-ant-of-another', '0123456789abcdef', 'open sesame', 'sk-secret-01...'\n{{}}"
STRUCK = "TOKENS = '***', '***', '***', '***', '***...'\n{}"


def test_secrets_in_a_prompt_are_neither_sent_nor_recorded(server: Server, options: LLMOptions, tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    options = replace(options, **SECRETS, record=file, reply_cache=tmp_path / "cache")
    schema = {"type": "object"}
    assert answer(options, Request([Message("system", "Tune."), Message("user", PROMPT)], schema)) == "Fine."
    ((_, sent),) = server.received
    turns = [{"role": "system", "content": "Tune."}, {"role": "user", "content": STRUCK}]
    assert json.loads(sent)["messages"] == turns
    assert json.loads(sent)["response_format"]["json_schema"]["schema"] == schema
    assert json.loads(file.read_text())["exchanges"][0]["messages"] == turns
    # Another key makes no other question.
    other = replace(options, api_key="sk-another-0123456789", record="")
    assert answer(
        other, Request([Message("system", "Tune."), Message("user", PROMPT.replace("sk-secret", "sk-another"))], schema)
    )
    assert len(server.received) == 1


def test_a_prompt_with_secrets_is_found_in_a_recording(server: Server, options: LLMOptions, tmp_path: Path) -> None:
    file = tmp_path / "replies.json"
    question = [Message("user", PROMPT)]
    answer(replace(options, **SECRETS, record=file), question)
    replaying = LLMOptions(replies=file, **SECRETS)
    assert answer(replaying, question) == "Fine."
    assert (
        answer(replace(replaying, api_base="http://[no address", extra_headers="no header"), [Message("user", STRUCK)])
        == "Fine."
    )
    assert RecordedReplies(file).ask([Message("user", STRUCK)]).text == "Fine."
    assert len(server.received) == 1


# Errors and replies


@pytest.mark.parametrize("part", ["0123456789abcdef", "fedcba98", "wordword"])
def test_a_part_of_a_header_that_is_echoed_is_struck_out(server: Server, options: LLMOptions, part: str) -> None:
    server.refusal = f"no session {part} of yours"
    headers = "X-Gateway: session=0123456789abcdef; user:fedcba98,wordword"
    with pytest.raises(LLMError, match=r"no session \*\*\* of yours"):
        answer(replace(options, extra_headers=headers), HELLO)


@pytest.mark.parametrize("code", ENCODINGS)
def test_a_key_in_base64_is_struck_out(server: Server, options: LLMOptions, code: str) -> None:
    server.refusal = f"no access for {code}"
    with pytest.raises(LLMError, match=r"no access for .{0,6}\*\*\*") as failure:
        answer(options, HELLO)
    shown = str(failure.value)
    assert not any(code[i : i + 8] in shown for i in range(len(code) - 7))


def test_words_that_are_no_secrets_stay() -> None:
    redaction = Redaction(secrets_of("test", {"X-Team": "gpu; kernels"}, "https://host/v1?api-version=2025-01-01"))
    text = "a test of gpu kernels"
    assert redaction.messages([Message("user", text)]) == [Message("user", text)]
    assert redaction.reply("on 2025-01-01...") == "on ***..."
    assert list(Redaction([]).messages(HELLO)) == HELLO
