"""A stand-in of the Anthropic API: a real TLS server that refuses anything but the one credential.

In a test:      with FakeAnthropic(api_key="sk-…") as fake: … fake.port, fake.ca_file, fake.received
By hand:        python -m tests.fakes.anthropic --cert-dir DIR --port 8443 --api-key sk-ant-api03-…

What it answers is decided by the last prompt of the conversation:

    FAKE_TOOL Bash {"command": "ls"}    asks for that tool, then tells what the tool said
    FAKE_SLOW 20                        writes 20 words, four in a second
    anything else                       "You said: …", with the number of prompts so far

It answers every endpoint that Claude Code 2.1.330 uses; an unknown one gets 404. A request with the
wrong credential, or none where one is needed, gets 401 and is remembered like every other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import ssl
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.fakes.pki import make_pki

HOSTS = (
    "api.anthropic.com",
    "platform.claude.com",
    "downloads.claude.ai",
    "claude.ai",
    "raw.githubusercontent.com",
    "github.com",
)
CREDENTIAL_HOSTS = {"api.anthropic.com"}
OAUTH_BETA = "oauth-2025-04-20"
# Claude Code sends these without a credential.
OPEN = ("/api/hello", "/v1/oauth/hello", "/api/directory/", "/api/web/domain_info", "/api/event_logging/")
MAX_HEAD = 64 * 1024


@dataclass(frozen=True)
class Received:
    """One request as it came over the wire, and the status that it got."""

    host: str
    method: str
    path: str  # with the query
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    status: int

    @property
    def text(self) -> str:
        head = "".join(f"{name}: {value}\n" for name, value in self.headers.items())
        return f"{self.method} {self.path}\n{head}\n{self.body.decode('utf-8', 'replace')}"


@dataclass(frozen=True)
class Answer:
    status: int
    value: Any = None  # JSON, unless `events` is given
    events: Callable[[], AsyncIterator[tuple[str, dict[str, Any]]]] | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class FakeAnthropic:
    """Exactly one of `api_key` and `oauth_token` is accepted. `port` 0 takes a free one."""

    api_key: str | None = None
    oauth_token: str | None = None
    directory: Path | None = None  # for ca.pem and the server's certificate; None: a temporary one
    host: str = "127.0.0.1"
    port: int = 0
    on_request: Callable[[Received], None] = lambda _: None
    received: list[Received] = field(default_factory=list)
    answered: list[Received] = field(default_factory=list)  # to the end

    def __post_init__(self) -> None:
        if (self.api_key is None) == (self.oauth_token is None):
            raise ValueError("give api_key or oauth_token")
        self._cleanup = contextlib.ExitStack()
        if self.directory is None:
            self.directory = Path(
                self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="fake-api-"))
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca_file, self._leaf = make_pki(self.directory, HOSTS)

    @property
    def secret(self) -> str:
        return self.api_key or self.oauth_token or ""

    def messages(self) -> list[Received]:
        """The accepted calls of the model, without the token counts."""
        return [r for r in self.received if urlsplit(r.path).path == "/v1/messages" and r.status == 200]

    def connect_to(self) -> dict[str, str]:
        """For `upstream.connect_to` of the user's configuration."""
        return {f"{name}:443": f"{self.host}:{self.port}" for name in HOSTS}

    # --- running it -----------------------------------------------------------------------------

    async def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._leaf)
        context.set_alpn_protocols(["http/1.1"])
        server = await asyncio.start_server(
            self._connection, self.host, self.port, ssl=context, limit=MAX_HEAD
        )
        self.port = server.sockets[0].getsockname()[1]
        ready()
        async with server:
            await server.serve_forever()

    def __enter__(self) -> Self:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(started,), name="fake-anthropic", daemon=True)
        self._thread.start()
        assert started.wait(10), "the fake API did not start"
        return self

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self.serve(started.set))
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        rest = asyncio.all_tasks(self._loop)
        for task in rest:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # what was aborted is closed
        self._loop.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        self._cleanup.close()

    # --- HTTP -----------------------------------------------------------------------------------

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ssl.SSLError):
            pass  # the client left, which clients may
        except asyncio.CancelledError:
            # The server is closed; a cancelled handler would be logged as an error by asyncio. A client that
            # is still there (its test has failed) must not be told of in a later test.
            writer.transport.abort()
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        body = await self._body(reader, headers)
        answer = self._answer(method, path, headers, body)
        record = Received(headers.get("host", ""), method, path, headers, body, answer.status)
        self.received.append(record)
        self.on_request(record)
        await _write(writer, answer)
        self.answered.append(record)
        return headers.get("connection", "").lower() != "close"

    @staticmethod
    async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                parts.append((await reader.readexactly(size + 2))[:-2])
            await reader.readuntil(b"\r\n")
            return b"".join(parts)
        return await reader.readexactly(int(headers.get("content-length", "0")))

    # --- what is answered -----------------------------------------------------------------------

    def _answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        path = urlsplit(target).path
        if headers.get("host", "").partition(":")[0] not in CREDENTIAL_HOSTS | {"platform.claude.com"}:
            return Answer(404, {})
        if path.startswith(OPEN):
            return Answer(200, {"can_fetch": True} if path.endswith("domain_info") else {})
        if not self._allowed(path, headers):
            # Without x-should-retry Claude Code tries an API key eleven times, for three minutes.
            error = {"type": "authentication_error", "message": "the fake API does not know this credential"}
            return Answer(401, {"type": "error", "error": error}, headers=(("x-should-retry", "false"),))
        if (method, path) == ("POST", "/v1/messages"):
            return _model(json.loads(body))
        return _fixed(path)

    def _allowed(self, path: str, headers: Mapping[str, str]) -> bool:
        if headers.get("host", "").partition(":")[0] not in CREDENTIAL_HOSTS:
            return False
        if self.api_key is not None:
            return headers.get("x-api-key") == self.api_key and "authorization" not in headers
        beta = OAUTH_BETA in headers.get("anthropic-beta", "") or path != "/v1/messages"
        bearer = headers.get("authorization") == f"Bearer {self.oauth_token}"
        return beta and bearer and "x-api-key" not in headers


def _fixed(path: str) -> Answer:
    if path == "/v1/messages/count_tokens":
        return Answer(200, {"input_tokens": 10})
    if path == "/v1/models":
        return Answer(200, {"data": [{"type": "model", "id": "claude-sonnet-4-5"}], "has_more": False})
    if path == "/api/claude_code/policy_limits":
        return Answer(200, {"restrictions": {}})  # `{}` alone is asked for four more times
    if path == "/api/oauth/profile":
        account = {
            "uuid": "00000000-0000-4000-8000-000000000001",
            "email": "agent@example.test",
            "display_name": "A",
        }
        organization = {"uuid": "00000000-0000-4000-8000-000000000002", "organization_type": "claude_max"}
        return Answer(200, {"account": account, "organization": organization})
    if path == "/api/claude_code/settings" or not path.startswith("/api/"):
        return Answer(404, {"type": "error", "error": {"type": "not_found_error", "message": path}})
    return Answer(200, {})


def _model(request: dict[str, Any]) -> Answer:
    """An answer of the model to `request`, streamed when it asks for that."""
    prompts = [text for text in map(_prompt, request["messages"]) if text]
    result = _last_result(request["messages"])
    tool = re.match(r"FAKE_TOOL (\S+) (\{.*\})", prompts[-1], re.DOTALL) if prompts else None
    block: dict[str, Any]
    if tool and result is None:
        block = {
            "type": "tool_use",
            "id": f"toolu_{len(prompts):06}",
            "name": tool[1],
            "input": json.loads(tool[2]),
        }
    elif result is not None:
        block = {"type": "text", "text": f"The tool said: {result}"}
    elif slow := re.match(r"FAKE_SLOW (\d+)", prompts[-1] if prompts else ""):
        words = " ".join(f"word{n}" for n in range(1, int(slow[1]) + 1))
        block = {"type": "text", "text": words, "_delay": 0.25}
    else:
        text = prompts[-1] if prompts else "nothing"
        block = {"type": "text", "text": f"You said: {text} (prompt {len(prompts)})"}
    delay = block.pop("_delay", 0)
    message = {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "model": request.get("model", "claude"),
        "content": [block],
        "stop_reason": "tool_use" if block["type"] == "tool_use" else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }
    if request.get("stream"):
        return Answer(200, events=lambda: _events(message, block, delay))
    return Answer(200, message)


async def _events(
    message: dict[str, Any], block: dict[str, Any], delay: float
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    yield "message_start", {"message": message | {"content": [], "stop_reason": None}}
    if block["type"] == "tool_use":
        yield "content_block_start", {"index": 0, "content_block": block | {"input": {}}}
        yield (
            "content_block_delta",
            {
                "index": 0,
                "delta": {"type": "input_json_delta", "partial_json": json.dumps(block["input"])},
            },
        )
    else:
        yield "content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}
        for word in re.findall(r"\S+\s*", block["text"]):
            await asyncio.sleep(delay)
            yield "content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": word}}
    yield "content_block_stop", {"index": 0}
    yield (
        "message_delta",
        {
            "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": 5},
        },
    )
    yield "message_stop", {}


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _prompt(message: dict[str, Any]) -> str | None:
    """What a person typed in this message; reminders that Claude Code adds are left out."""
    if message["role"] != "user" or any(block["type"] == "tool_result" for block in _blocks(message)):
        return None
    texts = [block["text"].strip() for block in _blocks(message) if block["type"] == "text"]
    typed = [text for text in texts if text and not text.startswith("<")]
    return typed[-1] if typed else None


def _last_result(messages: list[dict[str, Any]]) -> str | None:
    """What the tool said since the last prompt. Claude Code may add messages of its own after it."""
    for message in reversed(messages):
        if _prompt(message):
            return None
        if (result := _tool_result(message)) is not None:
            return result
    return None


def _tool_result(message: dict[str, Any]) -> str | None:
    for block in _blocks(message):
        if block["type"] == "tool_result":
            content = block.get("content", "")
            return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
    return None


async def _write(writer: asyncio.StreamWriter, answer: Answer) -> None:
    head = [f"HTTP/1.1 {answer.status} Fake", "request-id: req_fake"]
    head += [f"{name}: {value}" for name, value in answer.headers]
    if answer.events is None:
        body = json.dumps(answer.value).encode()
        head += ["content-type: application/json", f"content-length: {len(body)}"]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await writer.drain()
        return
    head += ["content-type: text/event-stream; charset=utf-8", "transfer-encoding: chunked"]
    writer.write("\r\n".join([*head, "", ""]).encode())
    async for name, value in answer.events():
        event = f"event: {name}\ndata: {json.dumps({'type': name} | value)}\n\n".encode()
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fakes.anthropic", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--cert-dir", type=Path, required=True, help="where ca.pem is written")
    parser.add_argument("--log", type=Path, help="append every request to this file, one JSON object a line")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--api-key", help="accept this API key")
    which.add_argument("--oauth-token", help="accept this subscription token")
    options = parser.parse_args()

    def note(request: Received) -> None:
        sys.stderr.write(f"{request.status} {request.method} {request.host}{request.path}\n")
        if options.log:
            with options.log.open("a") as log:
                log.write(
                    json.dumps(vars(request) | {"body": request.body.decode("utf-8", "replace")}) + "\n"
                )

    fake = FakeAnthropic(
        api_key=options.api_key,
        oauth_token=options.oauth_token,
        directory=options.cert_dir,
        port=options.port,
        on_request=note,
    )

    def ready() -> None:
        sys.stdout.write(f"fake Anthropic API on {fake.host}:{fake.port}, its CA is {fake.ca_file}\n")
        sys.stdout.write("for ~/.moat/config.yaml:\n\nupstream:\n")
        sys.stdout.write(f"  ca_bundle: {fake.ca_file}\n  connect_to:\n")
        sys.stdout.writelines(f"    {json.dumps(k)}: {json.dumps(v)}\n" for k, v in fake.connect_to().items())
        sys.stdout.flush()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(fake.serve(ready))


if __name__ == "__main__":
    main()
