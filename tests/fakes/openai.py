"""api.openai.com, chatgpt.com and auth.openai.com, as far as the Codex CLI asks them: WebSocket and REST.

Only the real credential is let in: the API key at the API, or a login's current access token, together with its
account, at ChatGPT. Refresh tokens are good for one use, as OpenAI's are.

A prompt `FAKE_SHELL <command>` makes the model call the tool that runs commands; every other one is repeated.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.fakes.hosts import FakeHosts

API, CHATGPT, LOGIN = "api.openai.com", "chatgpt.com", "auth.openai.com"
HOSTS = (API, CHATGPT, LOGIN)
ACCOUNT = "acc-0f1e2d3c"
_USAGE = {
    "input_tokens": 1,
    "input_tokens_details": None,
    "output_tokens": 1,
    "output_tokens_details": None,
    "total_tokens": 2,
}

# Codex asks where the backend of a login's workspace is, and goes nowhere without an answer.
_ACCOUNTS = {
    "accounts": [
        {
            "id": ACCOUNT,
            "plan_type": "pro",
            "structure": "personal",
            "is_deactivated": False,
            "workspace_backend_origin": f"https://{CHATGPT}",
            "account_routing_override": "NO_CONSTRAINT",
        }
    ],
    "account_ordering": [ACCOUNT],
    "default_account_id": ACCOUNT,
}


@dataclass
class Asked:
    host: str
    method: str
    path: str
    status: int
    authorization: str = ""
    protocol: str = ""  # `websocket` for an upgrade


@dataclass
class FakeOpenAI(FakeHosts):
    hosts = HOSTS

    reused: int = 0  # refresh tokens that came a second time

    def new_login(self) -> dict[str, Any]:
        """Fresh tokens; the ones before are good no longer."""
        self.access = token(exp=int(time.time()) + 3600)
        self.refresh = f"rt_{secrets.token_hex(24)}"
        return {"id_token": identity(), "access_token": self.access, "refresh_token": self.refresh}

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(
            request.host.partition(":")[0],
            request.method,
            request.path,
            200,
            request.headers.get("authorization", ""),
            request.headers.get("upgrade", "").lower(),
        )
        self.asked.append(asked)
        self.seen.append(repr(request.headers) + request.path_qs)
        if asked.host == LOGIN:
            return self._answer(asked, await self._login(request))
        if not self._allowed(asked, request):
            return self._answer(asked, _error(401, "the stand-in does not know this credential"))
        if request.path.endswith("/responses"):
            return await (_websocket if asked.protocol else _stream)(self, request)
        if request.path.endswith("/models"):
            return self._answer(asked, web.json_response({"object": "list", "data": [], "models": []}))
        if request.path == "/backend-api/wham/usage":
            return self._answer(asked, web.json_response({"plan_type": "pro"}))
        if request.path == "/backend-api/wham/accounts/check":
            return self._answer(asked, web.json_response(_ACCOUNTS))
        return self._answer(asked, _error(404, "no such page"))

    @staticmethod
    def _answer(asked: Asked, answer: web.Response) -> web.Response:
        asked.status = answer.status
        return answer

    def _allowed(self, asked: Asked, request: web.Request) -> bool:
        if asked.host == API:
            return bool(self.api_key) and asked.authorization == f"Bearer {self.api_key}"
        if "authorization" not in request.headers:
            return True  # what ChatGPT shows to everybody: nothing here
        account = request.headers.get("chatgpt-account-id")
        return bool(self.access) and asked.authorization == f"Bearer {self.access}" and account == ACCOUNT

    async def _login(self, request: web.Request) -> web.Response:
        body = await request.text()
        fields = json.loads(body) if body.startswith("{") else dict(await request.post())
        if request.path != "/oauth/token" or fields.get("grant_type") != "refresh_token":
            return _error(404, "no such page")
        if not self.refresh or fields.get("refresh_token") != self.refresh:
            self.reused += 1
            return web.json_response({"error": {"code": "refresh_token_reused"}}, status=401)
        self.renewals += 1
        return web.json_response(self.new_login())


def identity(email: str = "octocat@example.test") -> str:
    """An ID token: who has logged in."""
    return token(
        email=email,
        **{"https://api.openai.com/auth": {"chatgpt_account_id": ACCOUNT, "chatgpt_plan_type": "pro"}},
    )


def token(**claims: Any) -> str:
    """A JSON web token, whose signature nobody in the suite looks at."""
    parts = [
        json.dumps({"alg": "RS256", "typ": "JWT"}).encode(),
        json.dumps(claims).encode(),
        secrets.token_bytes(64),
    ]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


# --- the model ------------------------------------------------------------------------------------


async def _stream(fake: FakeOpenAI, request: web.Request) -> web.StreamResponse:
    text = await request.text()
    fake.seen.append(text)
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for event in _events(json.loads(text)):
        await answer.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    return answer


async def _websocket(fake: FakeOpenAI, request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse(max_msg_size=1 << 24)
    await socket.prepare(request)
    async for message in socket:
        fake.seen.append(message.data)
        for event in _events(json.loads(message.data)):
            await socket.send_json(event)
    return socket


def _events(asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"type": "response.created", "response": {"id": "resp_1"}}
    if asked.get("generate", True):
        yield {"type": "response.output_item.done", "item": _said(asked["input"])}
    yield {"type": "response.completed", "response": {"id": "resp_1", "usage": _USAGE}}


def _said(turns: list[dict[str, Any]]) -> dict[str, Any]:
    # Codex also adds items that are nobody's turn, now and then after what was asked.
    last = next(turn for turn in reversed(turns) if turn.get("role") == "user" or "output" in turn)
    if last["type"].endswith("_output"):
        return _message(f"The tool said: {_text(last['output'])}")
    prompt = _text(last["content"])
    if command := re.fullmatch(r"FAKE_SHELL (.*)", prompt, re.DOTALL):
        return _call(command[1])
    return _message(f"You said: {prompt}")


def _call(command: str) -> dict[str, Any]:
    arguments = json.dumps({"cmd": command})
    return {"type": "function_call", "call_id": "call_1", "name": "exec_command", "arguments": arguments}


def _message(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text}]
    return {"type": "message", "id": "msg_1", "role": "assistant", "content": content}


def _text(content: Any) -> str:
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)
