"""Asking over HTTP, against a server on loopback that misbehaves in every way."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Event, Thread, Timer
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.llm.access import endpoint
from pytest_kerneltune.llm.exchange import MAX_BYTES
from pytest_kerneltune.llm.http import HttpModel
from pytest_kerneltune.llm.providers import Answer, Ask, Provider, provider_named
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
        self.released = Event()  # what waits for ever waits for this
        self.received: list[Received] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def has_heard(self) -> int:
        """How many requests it saw; waits for one that may be on its way."""
        until = time.monotonic() + 30
        while not self.received and time.monotonic() < until:
            time.sleep(0.01)
        return len(self.received)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the game."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@dataclass
class Asking:
    """A model of a provider at the server; ``pauses`` are the waits between attempts, which cost no time.

    A clock that does not run goes on in pauses only.
    """

    model: HttpModel
    pauses: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    def ask(self, messages: Sequence[Message] = QUESTION) -> Answer:
        return self.model.ask(messages, write=self.pieces.append)

    def fails(self, messages: Sequence[Message] = QUESTION, deadline: float | None = None) -> str:
        """The error's text, of which nothing may give the key away."""
        with pytest.raises(LLMError) as failure:
            self.model.ask(messages, deadline)
        text = str(failure.value)
        assert KEY not in text
        assert failure.value.__cause__ is None
        assert failure.value.__context__ is None
        assert text.isprintable()
        assert len(text) <= 300
        return text


@pytest.fixture
def asking(server: Server) -> Iterator[Callable[..., Asking]]:
    opened: list[HttpModel] = []

    def make(
        provider: str = "openai",
        key: str = KEY,
        timeout_s: float = 100.0,
        headers: Mapping[str, str] | None = None,
        runs: bool = True,
        **settings: Any,
    ) -> Asking:
        row = row_of(provider)
        pauses: list[float] = []

        def clock() -> float:
            return time.monotonic() * runs + sum(pauses)

        model = HttpModel(
            row,
            Ask("the-model", **{"max_output_tokens": 1000, "stream": False, **settings}),
            key,
            endpoint(server.base, row.path, key),
            timeout_s=timeout_s,
            verify=TRUST,
            headers=headers or {},
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


def chat(text: object = TEXT, finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": 70, "completion_tokens": 30}} | more


def ollama(text: str = TEXT, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "thinking": "hm"}
    return {"message": message, "done": True, "done_reason": "stop", "prompt_eval_count": 70, "eval_count": 30} | more


REPLIES: dict[str, Callable[..., dict[str, Any]]] = {
    "openai": responses,
    "anthropic": messages,
    "chat": chat,
    "openrouter": chat,
    "ollama": ollama,
}


def responses_events(*texts: str) -> list[dict[str, Any]]:
    deltas = [{"type": "response.output_text.delta", "delta": text} for text in texts]
    started = {"type": "response.created", "response": {"status": "in_progress", "output": []}}
    return [started, *deltas, {"type": "response.completed", "response": responses("".join(texts))}]


def messages_events(*texts: str) -> list[dict[str, Any]]:
    usage = {"input_tokens": 10, "cache_read_input_tokens": 60, "cache_creation_input_tokens": None, "output_tokens": 1}
    thinking = {"type": "thinking_delta", "thinking": "hm"}
    return [
        {"type": "message_start", "message": {"type": "message", "content": [], "usage": usage}},
        {"type": "content_block_delta", "index": 0, "delta": thinking},
        {"type": "ping"},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": t}} for t in texts),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 30}},
        {"type": "message_stop"},
    ]


def chat_events(*texts: str) -> list[dict[str, Any]]:
    return [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        *({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 70, "completion_tokens": 30}},
    ]


def ollama_events(*texts: str) -> list[dict[str, Any]]:
    return [*({"message": {"content": text}, "done": False} for text in texts), ollama("")]


EVENTS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "openai": responses_events,
    "anthropic": messages_events,
    "chat": chat_events,
    "openrouter": chat_events,
    "ollama": ollama_events,
}


def framed(provider: str, event: dict[str, Any]) -> bytes:
    """An event as the provider sends it."""
    text = json.dumps(event)
    if provider == "ollama":
        return f"{text}\n".encode()
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {text}\n\n".encode()


def streams(provider: str, events: Sequence[dict[str, Any]], end: Callable[[Handler], None] | None = None) -> Step:
    """A streamed response of some events; ``end`` does what follows them."""

    def step(handler: Handler) -> None:
        start_stream(handler, provider)
        for event in events:
            handler.wfile.write(framed(provider, event))
        if end is not None:
            end(handler)
        elif provider in ("chat", "openrouter"):
            handler.wfile.write(b"data: [DONE]\n\n")

    return step


def start_stream(handler: Handler, provider: str = "chat") -> None:
    handler.close_connection = True
    handler.send_response(200)
    handler.send_header("content-type", "application/x-ndjson" if provider == "ollama" else "text/event-stream")
    handler.end_headers()


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
    stalls(handler)
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

TURNS = [
    {"role": "user", "content": "A kernel."},
    {"role": "assistant", "content": "{}"},
    {"role": "user", "content": "Once more."},
]
CONVERSATION = [{"role": "system", "content": "Tune."}, *TURNS]
NAMED_SCHEMA = {"type": "json_schema", "json_schema": {"name": "configs", "strict": True, "schema": SCHEMA}}
MARK = {"cache_control": {"type": "ephemeral"}}
BODIES: dict[str, dict[str, Any]] = {
    "openai": {
        "instructions": "Tune.",
        "input": TURNS,
        "max_output_tokens": 1000,
        "store": False,
        "text": {"format": {"type": "json_schema", "name": "configs", "strict": True, "schema": SCHEMA}},
    },
    "anthropic": {
        "system": [{"type": "text", "text": "Tune.", **MARK}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "A kernel.", **MARK}]}, *TURNS[1:]],
        "max_tokens": 1000,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    },
    "chat": {"messages": CONVERSATION, "max_completion_tokens": 1000, "response_format": NAMED_SCHEMA},
    "openrouter": {
        "messages": CONVERSATION,
        "max_completion_tokens": 1000,
        "response_format": NAMED_SCHEMA,
        "provider": {"require_parameters": True},
    },
    "ollama": {
        "messages": CONVERSATION,
        "options": {"num_predict": 1000, "num_ctx": 8192},
        "format": SCHEMA,
        "stream": False,
    },
}
WHERE = {
    "openai": "/v1/responses",
    "anthropic": "/v1/messages",
    "chat": "/v1/chat/completions",
    "openrouter": "/v1/chat/completions",
    "ollama": "/api/chat",
}


@pytest.mark.parametrize("provider", BODIES)
def test_a_question_and_its_answer(server: Server, asking: Callable[..., Asking], provider: str) -> None:
    server.steps = [sends(200, REPLIES[provider]())]
    assert asking(provider).ask() == Answer(TEXT, 70, 30)
    (request,) = server.received
    assert request.path == WHERE[provider]
    request.body.pop("prompt_cache_key", None)
    assert request.body == {"model": "the-model", **BODIES[provider]}
    credentials = {name: request.headers.get(name) for name in ("authorization", "x-api-key", "anthropic-version")}
    bearer = {"authorization": f"Bearer {KEY}", "x-api-key": None, "anthropic-version": None}
    signed = {"authorization": None, "x-api-key": KEY, "anthropic-version": "2023-06-01"}
    assert credentials == (signed if provider == "anthropic" else bearer)


@pytest.mark.parametrize("provider", BODIES)
def test_without_key_or_schema_neither_is_sent(server: Server, asking: Callable[..., Asking], provider: str) -> None:
    server.steps = [sends(200, REPLIES[provider]())]
    assert asking(provider, key="").ask([Message("user", "Hello.")]).text == TEXT
    (request,) = server.received
    assert {"authorization", "x-api-key"}.isdisjoint(request.headers)
    assert {"text", "output_config", "response_format", "format", "instructions", "system"}.isdisjoint(request.body)


@pytest.mark.parametrize(
    ("provider", "fields"),
    [
        ("openai", {"temperature": 0.5, "reasoning": {"effort": "minimal"}}),
        ("anthropic", {"temperature": 0.5, "thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
        ("chat", {"temperature": 0.5, "reasoning_effort": "minimal"}),
        ("openrouter", {"temperature": 0.5, "reasoning": {"effort": "minimal"}}),
        ("ollama", {"think": "low", "options": {"num_predict": 1000, "num_ctx": 8192, "temperature": 0.5}}),
    ],
)
def test_temperature_and_effort_go_where_the_provider_takes_them(
    server: Server, asking: Callable[..., Asking], provider: str, fields: dict[str, Any]
) -> None:
    server.steps = [sends(200, REPLIES[provider]())]
    asking(provider, temperature=0.5, effort="minimal").ask([Message("user", "Hello.")])
    (request,) = server.received
    assert request.body | fields == request.body


@pytest.mark.parametrize(
    ("provider", "fields"), [("anthropic", {"thinking": {"type": "disabled"}}), ("ollama", {"think": False})]
)
def test_reasoning_can_be_switched_off(
    server: Server, asking: Callable[..., Asking], provider: str, fields: dict[str, Any]
) -> None:
    server.steps = [sends(200, REPLIES[provider]())]
    asking(provider, effort="none").ask()
    assert server.received[0].body | fields == server.received[0].body


def test_requests_of_one_conversation_name_the_same_cache(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [OK]
    model = asking()
    for question in (QUESTION, QUESTION[:2], [*QUESTION[:1], Message("user", "Another kernel.")]):
        model.ask(question)
    first, second, other = (request.body["prompt_cache_key"] for request in server.received)
    assert first == second != other
    assert len(first) <= 64


def test_a_long_question_gets_room_at_ollama(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(200, ollama())]
    asking("ollama").ask([Message("user", "x" * 60_000)])
    assert server.received[0].body["options"]["num_ctx"] == 32768


def test_extra_headers_are_sent_and_replace_the_providers(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(200, messages())]
    asking("anthropic", headers={"X-Team": "kernels", "Anthropic-Version": "2026-10-21"}).ask()
    asking("anthropic", headers={"Authorization": "Bearer from-a-gateway"}).ask()
    first, second = (request.headers for request in server.received)
    assert (first["x-team"], first["anthropic-version"], first["x-api-key"]) == ("kernels", "2026-10-21", KEY)
    assert second["authorization"] == "Bearer from-a-gateway"
    assert "x-api-key" not in second


def test_the_digest_tells_questions_apart_and_nothing_else(asking: Callable[..., Asking]) -> None:
    model = asking().model
    same = [asking(key="sk-other-key-000").model, asking(stream=True).model, asking(headers={"x-a": "bcde"}).model]
    assert {m.digest(QUESTION) for m in [model, *same]} == {model.digest(QUESTION)}
    others = [asking("chat"), asking(temperature=0.5), asking(effort="low"), asking(max_output_tokens=10)]
    digests = [model.digest(QUESTION), model.digest(QUESTION[:2]), *(m.model.digest(QUESTION) for m in others)]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)


@pytest.mark.parametrize(
    ("provider", "payload", "expected"),
    [
        ("openai", {"output": responses()["output"]}, Answer(TEXT)),
        ("openai", responses() | {"output": responses()["output"] * 2}, Answer(TEXT * 2, 70, 30)),
        (
            "openai",
            responses(status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            Answer(TEXT, 70, 30, "cut off (max_output_tokens); raise KERNELTUNE_LLM_MAX_OUTPUT_TOKENS"),
        ),
        (
            "anthropic",
            messages(stop_reason="max_tokens"),
            Answer(TEXT, 70, 30, "cut off (max_tokens); raise KERNELTUNE_LLM_MAX_OUTPUT_TOKENS"),
        ),
        ("anthropic", messages(usage=None), Answer(TEXT)),
        (
            "anthropic",
            messages() | {"content": [None, "x", {"type": "new"}, {"type": "text", "text": TEXT}]},
            Answer(TEXT, 70, 30),
        ),
        ("chat", chat([{"type": "text", "text": TEXT}, {"type": "image"}]), Answer(TEXT, 70, 30)),
        (
            "chat",
            chat(finish="length"),
            Answer(TEXT, 70, 30, "cut off (length); raise KERNELTUNE_LLM_MAX_OUTPUT_TOKENS"),
        ),
        ("chat", chat(usage={"prompt_tokens": True, "completion_tokens": "30"}), Answer(TEXT)),
        ("ollama", {"message": {"content": TEXT}, "done": True}, Answer(TEXT)),
        (
            "ollama",
            ollama(done_reason="length"),
            Answer(TEXT, 70, 30, "cut off (length); raise KERNELTUNE_LLM_MAX_OUTPUT_TOKENS"),
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
            r"spent its output tokens \(999\) before .* raise KERNELTUNE_LLM_MAX_OUTPUT_TOKENS",
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
        ("chat", {"choices": []}, "holds no choices"),
        ("chat", {"choices": [None]}, "holds no text"),
        ("chat", chat(None), "holds no text"),
        ("chat", chat(7), "holds no text"),
        ("chat", chat("", "content_filter"), "no answer \\(content_filter\\)"),
        ("chat", {"choices": [{"message": {"content": None, "refusal": "No."}}]}, "refused to answer: No."),
        (
            "chat",
            chat(
                None, "length", usage={"completion_tokens": 99, "completion_tokens_details": {"reasoning_tokens": 98}}
            ),
            r"output tokens \(99, 98 of them on reasoning\)",
        ),
        ("openrouter", {"choices": [{"error": {"code": 400, "message": "odd"}}]}, "reported an error: 400, odd"),
        ("ollama", ollama("", done_reason="length"), "spent its output tokens"),
        ("ollama", {"error": "model is broken"}, "reported an error: model is broken"),
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
        (sends(200, b"data: {}\n\n", content_type="text/event-stream"), 0.5),
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
    server.steps = [sends(429, error("slow down"), retry_after=formatdate(time.time() + 50, usegmt=True)), OK]
    model = asking()
    model.ask()
    assert 20 < model.pauses[0] <= 50


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
        (
            sends(401, error("wrong key")),
            "refused the key (401): wrong key; check OPENAI_API_KEY or KERNELTUNE_LLM_API_KEY",
        ),
        (sends(403, {"error": "no access"}), "openai refused access (403): no access; check what the key allows"),
        (sends(500, error("oops"), x_should_retry="false"), "openai answered 500: oops"),
        (sends(429, error("slow down"), retry_after="9999"), "asks to wait 9999 s, which is too long"),
        (sends(200, error("bad input", code="invalid_prompt")), "reported an error: invalid_prompt, bad input"),
        (sends(307, b"", location="https://elsewhere.example/v1?key=1"), "redirects to elsewhere.example (307)"),
        (sends(302, b"", location="http://[bad"), "redirects to [bad (302)"),
        (
            sends(302, b"", location="http://elsewhere:port/"),
            "redirects to elsewhere:port (302), which is not followed",
        ),
        (sends(308, b"", location=f"//{KEY}@h\x7f:-1"), "redirects to h :-1 (308), which is not followed"),
        (sends(200, b"", x_flood="x" * 200_000), "sent headers that are too long to be read; check KERNELTUNE_LLM_API"),
        (sends(413, b"too large"), "answered 413: too large; set KERNELTUNE_LLM_SEND_SOURCE=0, or ask a model with a"),
        (sends(400, error("odd", code="context_length_exceeded")), "set KERNELTUNE_LLM_SEND_SOURCE=0, or ask a model"),
        (sends(400, error("prompt is too long: 9 tokens > 8 maximum")), "set KERNELTUNE_LLM_SEND_SOURCE=0"),
        (sends(200, error("Your input exceeds the context window of this model.")), "KERNELTUNE_LLM_SEND_SOURCE=0"),
        (sends(200, b"<html>Sign in</html>", content_type="text/html"), "something that is no reply (text/html)"),
        (sends(200, b""), "sent nothing"),
        (sends(204, b""), "sent nothing"),
        (sends(200, []), "something that is no reply"),
        (sends(200, b'{"status": "comp'), "something that is no reply"),
        (sends(200, b"\xff\xfe\xff"), "something that is no reply"),
        (sends(200, b"[" * 100_000), "something that is no reply"),
        (sends(200, b'{"a": ' + b"9" * 10_000 + b"}"), "something that is no reply"),
        (
            sends(400, b"<html><title>400 No required SSL certificate was sent</title>", content_type="text/html"),
            "a web page (400 No required SSL certificate was sent); it may want a certificate",
        ),
        (sends(400, error("Invalid model name")), "check KERNELTUNE_LLM_MODEL"),
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
    server.steps = [sends(503, error("busy"), retry_after="40")]
    model = asking(timeout_s=100)
    assert "no time for another attempt within 100 s" in model.fails()
    assert model.pauses == [40.0, 40.0]


def test_nobody_listening_is_retried_and_reported(server: Server, asking: Callable[..., Asking]) -> None:
    model = asking("ollama")
    server.server_close()
    text = model.fails()
    assert "ollama could not be asked (ConnectError" in text
    assert text.endswith(f"is the server running at {server.base.removeprefix('http://')}?; tried 4 times")


def test_too_many_requests_are_for_another_time(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(429, error("slow down"))]
    assert asking().fails() == "openai answered 429: slow down; try again later; tried 4 times"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dead_proxy_is_named_and_its_password_is_not(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    nobody = socket.socket()  # has the port, and does not listen
    nobody.bind(("127.0.0.1", 0))
    place = f"127.0.0.1:{nobody.getsockname()[1]}"
    for name in ("https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://user:secret-of-proxy@{place}")
    url = "https://models.invalid/v1/responses"
    model = HttpModel(row_of("openai"), Ask("m"), KEY, url, timeout_s=60, verify=TRUST, sleep=lambda _: None)
    with nobody, pytest.raises(LLMError, match=f"check the proxy {scheme}://{place} ") as failure:
        model.ask(QUESTION)
    model.close()
    assert "secret-of-proxy" not in str(failure.value)
    assert "models.invalid" not in str(failure.value)


def test_a_proxy_that_lets_nothing_through_is_named(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    for name in ("https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", server.base)
    url = "https://models.invalid/v1/responses"
    model = HttpModel(row_of("openai"), Ask("m"), KEY, url, timeout_s=60, verify=TRUST, sleep=lambda _: None)
    with pytest.raises(LLMError, match=rf"ProxyError: 501 .*; check the proxy {server.base} \(HTTPS_PROXY,"):
        model.ask(QUESTION)
    model.close()


@pytest.mark.skipif(find_spec("socksio") is not None, reason="the package that is to be missing is there")
def test_a_proxy_that_needs_a_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(LLMError, match=r"pip install httpx\[socks\]") as failure:
        HttpModel(row_of("openai"), Ask("m"), KEY, "https://models.invalid", timeout_s=60, verify=TRUST)
    assert failure.value.__context__ is None


@pytest.mark.parametrize(
    ("provider", "key", "status", "advice"),
    [
        ("anthropic", KEY, 401, "refused the key (401): odd; check ANTHROPIC_API_KEY or KERNELTUNE_LLM_API_KEY"),
        ("chat", "", 401, "chat wants a key (401): odd; check OPENAI_API_KEY or KERNELTUNE_LLM_API_KEY"),
        ("ollama", "", 404, "check KERNELTUNE_LLM_MODEL, and that KERNELTUNE_LLM_API_BASE serves /api/chat"),
        ("openrouter", KEY, 402, "openrouter answered 402: odd; the account's quota or credit is spent"),
    ],
)
def test_an_error_says_what_to_check(
    server: Server, asking: Callable[..., Asking], provider: str, key: str, status: int, advice: str
) -> None:
    server.steps = [sends(status, error("odd"))]
    assert advice in asking(provider, key=key).fails()
    assert len(server.received) == 1


def test_a_bad_gateway_between_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nonsense://user:secret-of-proxy@127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(LLMError, match="HTTP_PROXY") as failure:
        HttpModel(row_of("openai"), Ask("m"), KEY, "https://models.invalid", timeout_s=60, verify=TRUST)
    assert "secret" not in str(failure.value)
    assert failure.value.__context__ is None


@pytest.mark.parametrize("step", [silent, trickling])
def test_the_deadline_is_for_the_whole_reply(server: Server, asking: Callable[..., Asking], step: Step) -> None:
    server.steps = [step]
    assert asking(timeout_s=0.3).fails() == (
        "openai gave no complete reply within 0.3 s; KERNELTUNE_LLM_REQUEST_TIMEOUT_S sets the limit"
    )
    assert server.has_heard() == 1


def test_the_deadline_is_for_a_reply_that_stalls_half_way(server: Server, asking: Callable[..., Asking]) -> None:
    def half(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b"{")
        stalls(handler)

    server.steps = [half]
    assert "no complete reply within 0.5 s" in asking(timeout_s=0.5).fails()
    assert not server.released.is_set()
    server.released.set()


def test_the_deadline_is_for_headers_that_trickle(server: Server, asking: Callable[..., Asking]) -> None:
    def slow_headers(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not server.released.wait(0.05):
            handler.wfile.write(b"X-More: 1\r\n")

    server.steps = [slow_headers]
    assert "no complete reply within 0.5 s" in asking(timeout_s=0.5).fails()
    server.released.set()


def test_a_deadline_of_the_caller_holds_for_all_attempts(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(503, error("busy"), retry_after="40")]
    model = asking(runs=False)
    assert "no time for another attempt within 50 s" in model.fails(deadline=50.0)
    assert model.pauses == [40.0]
    late = model.fails(deadline=40.0)
    assert late == "openai gave no complete reply within 0 s; --autotune-budget sets the limit"
    assert len(server.received) == 2


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


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "gzip"])
def test_a_reply_packed_in_another_way_is_not_read(
    server: Server, asking: Callable[..., Asking], encoding: str
) -> None:
    server.steps = [sends(200, responses(), content_encoding=encoding)]
    assert "packed in another way than asked for" in asking().fails()


def test_a_compressed_bomb_is_cut_short(server: Server, asking: Callable[..., Asking]) -> None:
    bomb = gzip.compress(b" " * (64 << 20), 1)
    server.steps = [sends(200, bomb, content_encoding="gzip")]
    assert "sent more than" in asking().fails()


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_a_key_that_the_server_echoes_is_struck_out(server: Server, asking: Callable[..., Asking], status: int) -> None:
    server.steps = [sends(status, error(f"\x1b[31mwrong key {KEY}\r\n given", type=KEY))]
    text = asking().fails()
    assert "wrong key ***" in text


@pytest.mark.parametrize(
    "spelling", [str, quote, lambda text: json.dumps(text)[1:-1], lambda text: f"\x1b[1m{text}\r\n"]
)
def test_extra_headers_that_the_server_echoes_are_struck_out(
    server: Server, asking: Callable[..., Asking], spelling: Callable[[str], str]
) -> None:
    value = 'Bearer "token" /+&=0123'
    server.steps = [sends(401, f"You sent {spelling(value)} and {spelling(value.split()[-1])}.".encode())]
    text = asking(headers={"Authorization": value}).fails()
    assert "0123" not in text
    assert "*** and ***" in text


def test_a_short_key_is_struck_out_where_it_is_a_word(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(401, error("key test is not among the latest"))]
    assert "key *** is not among the latest" in asking(key="test").fails()


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


# What a server refuses is left out


@pytest.mark.parametrize("status", [200, 500])
def test_a_server_that_fails_to_stream_is_asked_for_a_whole_reply(
    server: Server, asking: Callable[..., Asking], status: int
) -> None:
    failure = b'data: {"error": {"message": "Error processing stream start", "code": "500"}}\n\ndata: [DONE]\n\n'
    server.steps = [sends(status, failure, content_type="text/event-stream"), OK]
    model = asking(stream=True)
    assert model.ask().text == TEXT
    assert ["stream" in request.body for request in server.received] == [True, False]
    assert model.pauses == []


def test_a_server_that_refuses_the_schema_is_asked_without(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(422, error("Unknown parameter: 'text.format'", code="unknown_parameter")), OK]
    model = asking()
    assert model.ask().text == TEXT
    assert model.ask().text == TEXT
    assert ["text" in r.body for r in server.received] == [True, False, False]
    assert model.pauses == []


@pytest.mark.parametrize(
    ("provider", "complaint", "fields"),
    [
        ("openai", error("Unsupported parameter: 'temperature' is not supported with this model."), {"temperature"}),
        ("openai", error("Unsupported value", param="reasoning.effort"), {"reasoning"}),
        ("openai", error("Unknown parameter: 'prompt_cache_key'."), {"prompt_cache_key"}),
        ("openai", error("Your organization must be verified to stream", param="stream"), {"stream"}),
        ("openai", error("max_output_tokens is too large"), {"max_output_tokens"}),
        ("openai", error("Unknown parameter: 'store'."), {"store"}),
        ("openai", error("odd", code="unknown_parameter"), {"text"}),
        ("anthropic", error("temperature: Extra inputs are not permitted"), {"temperature"}),
        ("anthropic", error("stream: Extra inputs are not permitted"), {"stream"}),
        ("anthropic", error("adaptive thinking is not supported on this model"), {"thinking"}),
        ("chat", error("json_schema is not supported", param="response_format"), set()),
        ("chat", error("Unrecognized request argument supplied: reasoning_effort"), {"reasoning_effort"}),
        ("chat", error("Unrecognized request argument supplied: max_completion_tokens"), {"max_completion_tokens"}),
        ("chat", {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs"}]}, {"stream_options"}),
        ("chat", {"object": "error", "message": {"detail": [{"loc": ["body", "stream_options"]}]}}, {"stream_options"}),
        ("ollama", {"error": "model does not support thinking"}, {"think"}),
        ("ollama", {"error": "invalid JSON schema in format"}, {"format"}),
    ],
)
def test_a_field_that_a_server_refuses_is_left_out(
    server: Server, asking: Callable[..., Asking], provider: str, complaint: object, fields: set[str]
) -> None:
    server.steps = [sends(400, complaint), sends(200, REPLIES[provider]())]
    model = asking(provider, temperature=0.5, effort="low", stream=True)
    assert model.ask().text == TEXT
    first, second = (set(request.body) for request in server.received)
    assert first - second == fields
    assert model.pauses == []


@pytest.mark.parametrize(
    ("provider", "refusals", "remark"),
    [
        ("openai", ["temperature"], "ok; asked without temperature, which the server refuses"),
        (
            "openai",
            ["reasoning", "temperature"],
            "ok; asked without reasoning effort and temperature, which the server refuses",
        ),
        ("openai", ["max_output_tokens"], "ok; asked without a limit of output tokens, which the server refuses"),
        ("anthropic", ["thinking", "effort"], "ok; asked without reasoning effort, which the server refuses"),
        ("anthropic", ["thinking"], "ok"),
        ("chat", ["max_completion_tokens"], "ok"),
        ("openai", ["text.format"], "ok"),
        ("openai", ["stream"], "ok"),
    ],
)
def test_what_a_user_set_and_a_server_refuses_is_said_once(
    server: Server, asking: Callable[..., Asking], provider: str, refusals: list[str], remark: str
) -> None:
    refused = [sends(400, error(f"Unsupported parameter: '{name}'")) for name in refusals]
    server.steps = [*refused, sends(200, REPLIES[provider]())]
    model = asking(provider, temperature=0.5, effort="low", stream=True)
    assert [model.ask().remark for _ in range(2)] == [remark, "ok"]


def test_an_older_name_or_a_simpler_form_is_tried_first(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [
        sends(400, error("Unknown parameter: 'max_completion_tokens'")),
        sends(400, error("json_schema is unavailable", param="response_format")),
        sends(400, error("System role not supported")),
        sends(200, chat()),
    ]
    assert asking("chat").ask().text == TEXT
    body = server.received[-1].body
    assert body["max_tokens"] == 1000
    assert body["response_format"] == {"type": "json_object"}
    assert body["messages"] == [{"role": "user", "content": "Tune.\n\nA kernel."}, *TURNS[1:]]


def test_a_marked_prompt_is_sent_plain_where_marks_are_refused(server: Server, asking: Callable[..., Asking]) -> None:
    complaint = error("system.0.cache_control: Extra inputs are not permitted", type="invalid_request_error")
    server.steps = [sends(400, complaint), sends(200, messages())]
    assert asking("anthropic").ask().text == TEXT
    body = server.received[-1].body
    assert (body["system"], body["messages"]) == ("Tune.", TURNS)


def test_a_model_of_fewer_output_tokens_is_asked_for_fewer(server: Server, asking: Callable[..., Asking]) -> None:
    server.steps = [sends(400, error("max_tokens: 16000 > 8192, the maximum for the model")), sends(200, messages())]
    assert asking("anthropic", max_output_tokens=16_000).ask().text == TEXT
    assert [request.body["max_tokens"] for request in server.received] == [16_000, 4096]


def test_without_a_route_for_the_schema_openrouter_is_asked_without(
    server: Server, asking: Callable[..., Asking]
) -> None:
    complaint = error("No endpoints found that can handle the requested parameters.")
    server.steps = [sends(404, complaint), sends(404, complaint), sends(200, chat())]
    assert asking("openrouter").ask().text == TEXT
    assert "provider" not in server.received[-1].body


@pytest.mark.parametrize("complaint", ["unsupported format", "unexpected field", "stream cache effort schema tokens"])
def test_a_server_that_refuses_all_is_asked_a_few_times_only(
    server: Server, asking: Callable[..., Asking], complaint: str
) -> None:
    server.steps = [sends(400, error(complaint))]
    model = asking(stream=True, effort="low")
    assert model.fails() == f"openai answered 400: {complaint}"
    asked = len(server.received)
    assert asked < 8
    model.fails()
    assert len(server.received) == asked + 1


# Streams

PIECES = [TEXT[:5], TEXT[5:11], TEXT[11:]]


def begun(provider: str, *texts: str) -> list[dict[str, Any]]:
    """A stream's events up to the last text."""
    events = EVENTS[provider](*texts)
    return events[: next(i for i, event in enumerate(events) if texts[-1] in strings(event)) + 1]


def strings(value: Any) -> list[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in strings(item)]


@pytest.mark.parametrize("provider", EVENTS)
def test_a_stream_gives_the_answer_that_a_whole_reply_would(
    server: Server, asking: Callable[..., Asking], provider: str
) -> None:
    server.steps = [streams(provider, EVENTS[provider](*PIECES))]
    model = asking(provider, stream=True)
    assert model.ask() == Answer(TEXT, 70, 30)
    assert "".join(model.pieces) == TEXT
    (request,) = server.received
    assert request.body["stream"] is True
    if WHERE[provider].endswith("completions"):
        assert request.body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("provider", EVENTS)
def test_text_is_there_before_the_reply_has_ended(server: Server, asking: Callable[..., Asking], provider: str) -> None:
    written = Event()
    in_time: list[bool] = []
    events = EVENTS[provider](*PIECES)
    before = begun(provider, *PIECES[:1])

    def waits_for_the_reader(handler: Handler) -> None:
        in_time.append(written.wait(30))
        for event in events[len(before) :]:
            handler.wfile.write(framed(provider, event))

    server.steps = [streams(provider, before, waits_for_the_reader)]
    model = asking(provider, stream=True).model
    assert model.ask(QUESTION, write=lambda _: written.set()).text == TEXT
    assert in_time == [True]


@pytest.mark.parametrize("provider", EVENTS)
def test_a_whole_reply_is_fine_where_a_stream_was_asked_for(
    server: Server, asking: Callable[..., Asking], provider: str
) -> None:
    server.steps = [sends(200, json.dumps(REPLIES[provider](), indent=2).encode())]
    assert asking(provider, stream=True).ask() == Answer(TEXT, 70, 30)


@pytest.mark.parametrize("provider", EVENTS)
def test_a_stream_is_fine_where_none_was_asked_for(
    server: Server, asking: Callable[..., Asking], provider: str
) -> None:
    content = b"".join(framed(provider, event) for event in EVENTS[provider](*PIECES))
    server.steps = [sends(200, content)]
    assert asking(provider).ask() == Answer(TEXT, 70, 30)


def test_a_packed_stream_is_unpacked(server: Server, asking: Callable[..., Asking]) -> None:
    content = b"".join(framed("chat", event) for event in chat_events(*PIECES))
    server.steps = [sends(200, gzip.compress(content), content_encoding="gzip")]
    assert asking("chat", stream=True).ask() == Answer(TEXT, 70, 30)


def ends(handler: Handler) -> None:
    """Nothing more comes."""


def stalls(handler: Handler) -> None:
    handler.server.released.wait(30)


@pytest.mark.parametrize(
    ("provider", "end", "remark"),
    [
        *((provider, end, "connection lost") for provider in EVENTS for end in (ends, reset)),
        *((provider, stalls, "out of time") for provider in ("chat", "ollama")),
    ],
)
def test_what_arrived_of_a_broken_stream_is_the_answer(
    server: Server,
    asking: Callable[..., Asking],
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
    end: Step,
    remark: str,
) -> None:
    arrived = Event()

    class OnArrival(Timer):
        """The end of the time, when all that comes has come."""

        def run(self) -> None:
            arrived.wait(30)
            if not self.finished.is_set():
                self.function()

    if end is stalls:
        monkeypatch.setattr("threading.Timer", OnArrival)

    def after_arrival(handler: Handler) -> None:
        arrived.wait(30)
        end(handler)

    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece)
        if "".join(pieces) == "".join(PIECES[:2]):
            arrived.set()

    server.steps = [streams(provider, begun(provider, *PIECES[:2]), after_arrival)]
    answer = asking(provider, stream=True).model.ask(QUESTION, write=write)
    server.released.set()
    advice = "; KERNELTUNE_LLM_REQUEST_TIMEOUT_S sets the limit" if end is stalls else ""
    assert (answer.text, answer.remark) == ("".join(PIECES[:2]), f"cut off ({remark}){advice}")
    assert len(server.received) == 1


@pytest.mark.parametrize("provider", EVENTS)
@pytest.mark.parametrize("end", [ends, reset])
def test_a_stream_that_breaks_before_any_text_is_asked_for_again(
    server: Server, asking: Callable[..., Asking], provider: str, end: Step
) -> None:
    server.steps = [
        streams(provider, EVENTS[provider]()[:1] if provider != "ollama" else [{"done": False}], end),
        streams(provider, EVENTS[provider](*PIECES)),
    ]
    model = asking(provider, stream=True)
    assert model.ask().text == TEXT
    assert model.pauses == [0.5]


ERRORS: dict[str, dict[str, Any]] = {
    "openai": {"type": "error", "code": "server_error", "message": "Overloaded"},
    "anthropic": {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    "chat": {"error": {"code": 502, "message": "Overloaded"}},
    "openrouter": {"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "Overloaded"}}]},
    "ollama": {"error": "server overloaded"},
}


@pytest.mark.parametrize("provider", ERRORS)
def test_an_error_in_a_stream(server: Server, asking: Callable[..., Asking], provider: str) -> None:
    server.steps = [
        streams(provider, [ERRORS[provider]]),
        streams(provider, [*begun(provider, PIECES[0]), ERRORS[provider], *EVENTS[provider](*PIECES)]),
    ]
    model = asking(provider, stream=True)
    answer = model.ask()
    assert model.pauses == [0.5]
    assert answer.text == PIECES[0]
    assert answer.remark.startswith("cut off (")
    assert "verloaded" in answer.remark


def test_a_failed_response_is_no_answer(server: Server, asking: Callable[..., Asking]) -> None:
    failed = {"status": "failed", "error": {"code": "invalid_prompt", "message": "odd"}, "output": []}
    server.steps = [streams("openai", [{"type": "response.failed", "response": failed}])]
    assert asking(stream=True).fails() == "openai reported an error: invalid_prompt, odd"


def test_a_stream_cut_off_by_the_model_says_so(server: Server, asking: Callable[..., Asking]) -> None:
    cut = responses(status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    server.steps = [streams("openai", [{"type": "response.incomplete", "response": cut}])]
    assert asking(stream=True).ask() == Answer(
        TEXT, 70, 30, "cut off (max_output_tokens); raise KERNELTUNE_LLM_MAX_OUTPUT_TOKENS"
    )


@pytest.mark.parametrize("provider", ["openai", "anthropic", "chat", "ollama"])
def test_nobody_waits_for_a_connection_to_close_after_the_end(
    server: Server, asking: Callable[..., Asking], provider: str
) -> None:
    def lingers(handler: Handler) -> None:
        if provider == "chat":
            handler.wfile.write(b"data: [DONE]\n\n")
        stalls(handler)

    server.steps = [streams(provider, EVENTS[provider](*PIECES), lingers)]
    assert asking(provider, stream=True).ask() == Answer(TEXT, 70, 30)
    assert not server.released.is_set()
    server.released.set()


def test_an_endless_stream_is_cut_off(server: Server, asking: Callable[..., Asking]) -> None:
    block = framed("chat", {"choices": [{"delta": {"content": "x" * 100_000}}]})

    def endless_stream(handler: Handler) -> None:
        for _ in range(1000):
            handler.wfile.write(block)

    server.steps = [streams("chat", [], endless_stream)]
    answer = asking("chat", stream=True).ask()
    assert answer.remark == "cut off (more than 8 MiB)"
    assert 0 < len(answer.text) < MAX_BYTES


@pytest.mark.parametrize("provider", ["chat", "openrouter", "ollama", "openai"])
def test_a_stream_of_comments_alone_is_asked_for_again(
    server: Server, asking: Callable[..., Asking], provider: str
) -> None:
    def keeps_alive(handler: Handler) -> None:
        handler.wfile.write(b": PROCESSING\n\n" * 3)

    server.steps = [streams(provider, [], keeps_alive)]
    model = asking(provider, stream=True)
    assert model.fails() == f"{provider} broke off before it wrote an answer; tried 4 times"
    assert model.pauses == [0.5, 1.0, 2.0]


def test_a_stream_is_closed_once_no_more_is_wanted(server: Server, asking: Callable[..., Asking]) -> None:
    gone = Event()

    def goes_on_and_on(handler: Handler) -> None:
        block = framed("chat", {"choices": [{"delta": {"content": " and so on"}}]})
        try:
            while not server.released.wait(0.001):
                handler.wfile.write(block)
        except OSError:
            gone.set()

    pieces: list[str] = []

    def write(piece: str) -> bool:
        pieces.append(piece)
        return len(pieces) < 5

    server.steps = [streams("chat", chat_events(TEXT)[:2], goes_on_and_on)]
    answer = asking("chat", stream=True).model.ask(QUESTION, write=write)
    assert answer.text == "".join(pieces)
    assert answer.remark == "ok; the rest of an endless reply was not read"
    assert gone.wait(30)


def test_a_stream_that_has_ended_is_complete_whether_or_not_more_was_wanted(
    server: Server, asking: Callable[..., Asking]
) -> None:
    server.steps = [sends(200, b"".join(framed("chat", event) for event in chat_events(*PIECES)) + b"data: [DONE]\n\n")]
    model = asking("chat", stream=True).model
    assert model.ask(QUESTION, write=lambda _: False) == Answer(TEXT, 70, 30)


@pytest.mark.parametrize("at", [1, 9, len(KEY) - 1, len(KEY)])
def test_a_key_in_the_pieces_of_a_stream_is_struck_out(server: Server, asking: Callable[..., Asking], at: int) -> None:
    server.steps = [streams("chat", chat_events("a ", KEY[:at], KEY[at:], " b sk-", "not", " sk-"))]
    model = asking("chat", stream=True)
    assert model.ask().text == "a *** b sk-not sk-"
    assert "".join(model.pieces) == "a *** b sk-not sk-"


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
        model = HttpModel(row_of("openai"), Ask("m"), KEY, url, timeout_s=60, verify=TRUST)
        with pytest.raises(LLMError, match=r"unknown ca.* check KERNELTUNE_LLM_CLIENT_CERT"):
            model.ask(QUESTION)
        model.close()
        thread.join(60)
        assert accepted == [True]


def test_the_client_does_not_follow_redirects_by_default() -> None:
    # The rule that custom headers stay on their host rests on it.
    with httpx.Client() as client:
        assert client.follow_redirects is False
