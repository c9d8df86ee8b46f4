"""Asking over HTTP, against a server on loopback that misbehaves in every way."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.llm.access import endpoint
from pytest_kerneltune.llm.http import MAX_BYTES, HttpModel
from pytest_kerneltune.llm.providers import PROVIDERS, Answer, Provider, provider_named
from pytest_kerneltune.search import Message
from pytest_kerneltune.search.dialogue import Request

KEY = "sk-secret-0123456789"
TRUST = ssl.create_default_context()
TEXT = '{"configs": [{"TILE": 32}]}'
SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
QUESTION = Request(
    [
        Message("system", "Tune."),
        Message("user", "A kernel."),
        Message("assistant", "{}"),
        Message("user", "Once more."),
    ],
    SCHEMA,
)


@dataclass
class Received:
    """A request as the server saw it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append(
            Received(self.path, {k.lower(): v for k, v in self.headers.items()}, json.loads(content))
        )
        step = self.server.steps.pop(0) if len(self.server.steps) > 1 else self.server.steps[0]
        try:
            step(self)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""


Step = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps: list[Step] = []
        self.received: list[Received] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the game."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@dataclass
class Asking:
    """A model of a provider at the server; ``pauses`` are the waits between attempts, which cost no time."""

    model: HttpModel
    pauses: list[float] = field(default_factory=list)

    def ask(self, messages: Sequence[Message] = QUESTION) -> Answer:
        return self.model.ask(messages)

    def fails(self, messages: Sequence[Message] = QUESTION) -> str:
        """The error's text, of which nothing may give the key away."""
        with pytest.raises(LLMError) as failure:
            self.model.ask(messages)
        text = str(failure.value)
        assert KEY not in text
        assert failure.value.__cause__ is None
        assert failure.value.__context__ is None
        assert text.isprintable()
        assert len(text) < 600
        return text


@pytest.fixture
def asking(server: Server) -> Iterator[Callable[..., Asking]]:
    opened: list[HttpModel] = []

    def make(provider: str = "openai", key: str = KEY, timeout_s: float = 100.0) -> Asking:
        row = row_of(provider)
        pauses: list[float] = []

        def clock() -> float:
            return time.monotonic() + sum(pauses)

        model = HttpModel(
            row,
            "the-model",
            key,
            endpoint(server.base, row.path, key),
            timeout_s=timeout_s,
            max_output_tokens=1000,
            verify=TRUST,
            clock=clock,
            sleep=pauses.append,
            jitter=lambda: 0.0,
        )
        opened.append(model)
        return Asking(model, pauses)

    yield make
    for model in opened:
        model.close()


def row_of(name: str) -> Provider:
    row = provider_named(name)
    assert row is not None
    return row


def sends(status: int, body: object = None, **headers: str) -> Step:
    """A whole response: ``body`` as JSON, or bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def step(handler: Handler) -> None:
        handler.send_response(status)
        kinds = {"content-type": "application/json", "content-length": str(len(content))}
        for name, value in (kinds | {k.replace("_", "-"): v for k, v in headers.items()}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return step


def responses(text: str = TEXT, **more: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    output = [{"type": "reasoning", "summary": []}, {"type": "message", "role": "assistant", "content": content}]
    return {"status": "completed", "output": output, "usage": {"input_tokens": 70, "output_tokens": 30}} | more


def messages(text: str = TEXT, **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 10, "cache_read_input_tokens": 60, "output_tokens": 30}
    content = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}]
    return {"type": "message", "content": content, "stop_reason": "end_turn", "usage": usage} | more


def error(message: str, **more: str) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


OK = sends(200, responses())


def reset(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def breaks_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"status": ')
    hang_up(handler)


def gibberish(handler: Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    hang_up(handler)


def silent(handler: Handler) -> None:
    time.sleep(2)
    handler.close_connection = True


def trickling(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    block = b" " * (1 << 20)
    for _ in range(64):
        handler.wfile.write(block)


# What is sent and read


def test_openai_request_and_reply(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [OK]
    assert asking("openai").ask() == Answer(TEXT, 70, 30)
    (request,) = server.received
    assert request.path == "/v1/responses"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert "x-api-key" not in request.headers
    assert request.body == {
        "model": "the-model",
        "instructions": "Tune.",
        "input": [
            {"role": "user", "content": "A kernel."},
            {"role": "assistant", "content": "{}"},
            {"role": "user", "content": "Once more."},
        ],
        "max_output_tokens": 1000,
        "store": False,
        "text": {"format": {"type": "json_schema", "name": "configs", "strict": True, "schema": SCHEMA}},
    }


def test_anthropic_request_and_reply(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(200, messages())]
    assert asking("anthropic").ask() == Answer(TEXT, 70, 30)
    (request,) = server.received
    assert request.path == "/v1/messages"
    assert request.headers["x-api-key"] == KEY
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in request.headers
    assert request.body["system"] == "Tune."
    assert [m["role"] for m in request.body["messages"]] == ["user", "assistant", "user"]
    assert request.body["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}


@pytest.mark.parametrize("provider", [p.name for p in PROVIDERS])
def test_without_key_or_schema_neither_is_sent(server: Server, asking: Callable[..., Asking], provider: str) -> None:
    server.steps = [sends(200, responses() | messages())]
    assert asking(provider, key="").ask([Message("user", "Hello.")]).text == TEXT
    (request,) = server.received
    assert {"authorization", "x-api-key"}.isdisjoint(request.headers)
    assert {"text", "output_config", "instructions", "system"}.isdisjoint(request.body)


@pytest.mark.parametrize(
    ("provider", "payload", "expected"),
    [
        ("openai", {"output": responses()["output"]}, Answer(TEXT)),
        ("openai", responses() | {"output": responses()["output"] * 2}, Answer(TEXT * 2, 70, 30)),
        (
            "openai",
            responses(status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            Answer(TEXT, 70, 30, "cut off (max_output_tokens)"),
        ),
        ("anthropic", messages(stop_reason="max_tokens"), Answer(TEXT, 70, 30, "cut off (max_tokens)")),
        ("anthropic", messages(usage=None), Answer(TEXT)),
        (
            "anthropic",
            messages() | {"content": [None, "x", {"type": "new"}, {"type": "text", "text": TEXT}]},
            Answer(TEXT, 70, 30),
        ),
    ],
)
def test_unusual_answers(
    server: Server, asking: Callable[..., Asking], provider: str, payload: object, expected: Answer
) -> None:
    server.steps = [sends(200, payload)]
    assert asking(provider).ask() == expected


@pytest.mark.parametrize(
    ("provider", "payload", "complaint"),
    [
        (
            "openai",
            {"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}]},
            "refused to answer: No.",
        ),
        (
            "anthropic",
            {"content": [], "stop_reason": "refusal", "stop_details": {"explanation": "cyber"}},
            "refused to answer: cyber",
        ),
        (
            "openai",
            {"status": "incomplete", "output": [], "incomplete_details": {"reason": "content_filter"}},
            "content_filter",
        ),
        (
            "openai",
            {
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
                "usage": {"output_tokens": 999},
            },
            "spent its output tokens of 999 before",
        ),
        (
            "anthropic",
            {"content": [{"type": "thinking"}], "stop_reason": "max_tokens"},
            "spent its output tokens before",
        ),
        ("openai", {"status": "queued", "output": []}, "no answer \\(queued\\)"),
        ("anthropic", {"content": None}, "holds no text"),
        ("anthropic", {"content": "text"}, "holds no text"),
        ("openai", {}, "holds no text"),
    ],
)
def test_replies_without_an_answer_say_why(
    server: Server, asking: Callable[..., Asking], provider: str, payload: object, complaint: str
) -> None:
    server.steps = [sends(200, payload)]
    with pytest.raises(LLMError, match=complaint):
        asking(provider).ask()
    assert len(server.received) == 1


# Retries


@pytest.mark.parametrize(
    ("fault", "pause"),
    [
        (sends(429, error("slow down"), retry_after="7"), 7.0),
        (sends(429, error("slow down"), retry_after="0.25"), 0.25),
        (sends(429, error("slow down"), retry_after_ms="250"), 0.25),
        (sends(429, error("slow down"), llm_provider_retry_after="3"), 0.5),
        (sends(429, error("slow down"), retry_after="soon"), 0.5),
        (sends(429, error("slow down")), 0.5),
        (sends(408, error("timeout")), 0.5),
        (sends(500, error("oops")), 0.5),
        (sends(502, b"<html>Bad gateway</html>", content_type="text/html"), 0.5),
        (sends(503, error("Loading model")), 0.5),
        (sends(529, error("Overloaded", type="overloaded_error")), 0.5),
        (sends(400, error("odd"), x_should_retry="true"), 0.5),
        (sends(200, error("try later", type="overloaded_error")), 0.5),
        (sends(200, responses(status="failed", error={"code": "server_error", "message": "oops"})), 0.5),
        (reset, 0.5),
        (hang_up, 0.5),
        (breaks_off, 0.5),
        (gibberish, 0.5),
    ],
)
def test_passing_faults_are_retried(server: Server, asking: Callable[..., Asking], fault: Step, pause: float) -> None:
    server.steps = [fault, OK]
    model = asking()
    assert model.ask().text == TEXT
    assert model.pauses == [pause]


def test_a_gateway_may_pass_on_how_long_to_wait(server: Server, asking: Callable[..., Asking]) -> None:
    def step(handler: Handler) -> None:
        handler.send_response(429)
        handler.send_header("llm_provider-retry-after", "3")
        handler.send_header("content-length", "0")
        handler.end_headers()

    server.steps = [step, OK]
    model = asking()
    model.ask()
    assert model.pauses == [3.0]


def test_a_date_to_retry_after_is_honoured(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(429, error("slow down"), retry_after=formatdate(time.time() + 20, usegmt=True)), OK]
    model = asking()
    model.ask()
    assert 15 < model.pauses[0] <= 20


def test_pauses_grow_and_attempts_are_limited(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(500, error("oops", type="server_error"))]
    model = asking()
    assert model.fails() == "openai answered 500: server_error, oops; tried 4 times"
    assert model.pauses == [0.5, 1.0, 2.0]
    assert len(server.received) == 4


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (sends(429, error("You exceeded your current quota", code="insufficient_quota")), "insufficient_quota"),
        (sends(400, error("bad request")), "openai answered 400: bad request"),
        (sends(404, error("no such model", code="model_not_found")), "model_not_found, no such model"),
        (sends(401, error("wrong key")), "openai refused the key (401): wrong key"),
        (sends(403, {"error": "no access"}), "openai refused the key (403): no access"),
        (sends(500, error("oops"), x_should_retry="false"), "openai answered 500: oops"),
        (sends(429, error("slow down"), retry_after="9999"), "asks to wait 9999 s, which is too long"),
        (sends(200, error("bad input", code="invalid_prompt")), "reported an error: invalid_prompt, bad input"),
        (sends(307, b"", location="https://elsewhere.example/v1?key=1"), "redirects to elsewhere.example (307)"),
        (sends(302, b"", location="http://[bad"), "openai could not be asked"),
        (sends(200, b"<html>Sign in</html>", content_type="text/html"), "something that is no reply (text/html)"),
        (sends(200, b""), "sent nothing"),
        (sends(204, b""), "sent nothing"),
        (sends(200, []), "something that is no reply"),
        (sends(200, b'{"status": "comp'), "something that is no reply"),
        (sends(200, b"\xff\xfe\xff"), "something that is no reply"),
        (sends(200, b"[" * 100_000), "something that is no reply"),
        (sends(200, b'{"a": ' + b"9" * 10_000 + b"}"), "something that is no reply"),
        (sends(200, b"data: {}\n\n", content_type="text/event-stream"), "text/event-stream"),
        (sends(418, {"detail": "teapot"}), "answered 418: teapot"),
        (sends(422, b"plain words"), "answered 422: plain words"),
    ],
)
def test_lasting_faults_are_not_retried(
    server: Server, asking: Callable[..., Asking], fault: Step, complaint: str
) -> None:
    server.steps = [fault]
    model = asking()
    assert complaint in model.fails()
    assert len(server.received) == 1
    assert model.pauses == []


def test_no_retry_starts_that_would_pass_the_deadline(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(503, error("busy"), retry_after="4")]
    model = asking(timeout_s=10)
    assert "no time for another attempt within 10 s" in model.fails()
    assert model.pauses == [4.0, 4.0]


def test_nobody_listening_is_retried_and_reported(server: Server, asking: Callable[..., Asking]) -> None:
    model = asking()
    server.server_close()
    text = model.fails()
    assert "openai could not be asked (ConnectError" in text
    assert text.endswith("tried 4 times")


@pytest.mark.parametrize("step", [silent, trickling])
def test_the_deadline_is_for_the_whole_reply(server: Server, asking: Callable[..., Asking], step: Step) -> None:
    server.steps = [step]
    assert asking(timeout_s=0.3).fails() == "openai gave no complete reply within 0.3 s"
    assert len(server.received) == 1


def test_a_kept_connection_that_died_is_replaced(server: Server, asking: Callable[..., Asking]) -> None:
    def last_one(handler: Handler) -> None:
        OK(handler)
        handler.close_connection = True

    server.steps = [last_one, OK]
    model = asking()
    assert [model.ask().text, model.ask().text] == [TEXT, TEXT]


# Sizes and secrets


def test_an_endless_reply_is_cut_short(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [endless]
    assert asking().fails() == f"openai sent more than {MAX_BYTES >> 20} MiB"


def test_a_compressed_bomb_is_cut_short(server: Server, asking: Callable[..., Asking]) -> None:
    bomb = gzip.compress(b" " * (64 << 20), 1)
    server.steps = [sends(200, bomb, content_encoding="gzip")]
    assert "sent more than" in asking().fails()


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_a_key_that_the_server_echoes_is_struck_out(server: Server, asking: Callable[..., Asking], status: int) -> None:
    server.steps = [sends(status, error(f"\x1b[31mwrong key {KEY}\r\n given", type=KEY))]
    text = asking().fails()
    assert "wrong key ***" in text


def test_a_key_in_a_reply_is_struck_out(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(200, responses(f"your key is {KEY}"))]
    assert asking().ask().text == "your key is ***"


def test_a_long_error_is_cut(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(400, error("x" * 100_000))]
    assert asking().fails().endswith("x...")


def test_a_malformed_key_is_not_quoted(server: Server, asking: Callable[..., Asking]) -> None:
    for key in (f"{KEY}\n", f"{KEY}\u00e9"):
        text = asking(key=key).fails()
        assert text.startswith("openai could not be asked (")
    assert server.received == []


def test_nothing_shows_the_key(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [OK]
    model = asking().model
    assert KEY not in repr(model)


# Structured output


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_the_schema_is_asked_without(
    server: Server, asking: Callable[..., Asking], provider: str, status: int
) -> None:
    refuses = sends(status, error("Unknown parameter: 'text.format'", code="unknown_parameter"))
    server.steps = [refuses, sends(200, responses() | messages())]
    model = asking(provider)
    assert model.ask().text == TEXT
    assert model.ask().text == TEXT
    field_name = {"openai": "text", "anthropic": "output_config"}[provider]
    assert [field_name in r.body for r in server.received] == [True, False, False]
    assert model.pauses == []


def test_a_server_that_refuses_all_is_asked_twice_at_most(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(400, error("unsupported format"))]
    model = asking()
    assert model.fails() == "openai answered 400: unsupported format"
    assert len(server.received) == 2


# TLS


def test_a_certificate_nobody_vouches_for_is_not_retried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1/responses"
        accepted: list[bool] = []

        def refuse() -> None:
            connection, _ = listener.accept()
            accepted.append(True)
            with connection:
                connection.recv(1)
                connection.sendall(b"\x15\x03\x01\x00\x02\x02\x30")  # a TLS alert: unknown certificate authority

        thread = Thread(target=refuse, daemon=True)
        thread.start()
        model = HttpModel(row_of("openai"), "m", KEY, url, timeout_s=5, max_output_tokens=10, verify=TRUST)
        with pytest.raises(LLMError, match="check the CA bundle and the client certificate"):
            model.ask(QUESTION)
        model.close()
        thread.join(5)
        assert accepted == [True]


def test_the_client_does_not_follow_redirects_by_default() -> None:
    # The rule that custom headers stay on their host rests on it.
    with httpx.Client() as client:
        assert client.follow_redirects is False
