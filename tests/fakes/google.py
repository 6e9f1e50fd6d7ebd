"""The hosts of Google that the Gemini CLI asks, for an API key or for a login.

Only the real credential is let in: the key at the Gemini API, or a login's current access token at Code Assist.
A prompt `FAKE_SHELL <command>` makes the model call the tool that runs commands; every other one is repeated.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.fakes.hosts import FakeHosts

API, ASSIST, LOGIN = (
    "generativelanguage.googleapis.com",
    "cloudcode-pa.googleapis.com",
    "oauth2.googleapis.com",
)
HOSTS = (API, ASSIST, LOGIN)
SCOPES = "https://www.googleapis.com/auth/cloud-platform https://www.googleapis.com/auth/userinfo.email"
# The CLI asks a small model first which one should answer; with a login it words that in another way.
_ROUTE = {"complexity_reasoning": "x", "complexity_score": 1, "reasoning": "x", "model_choice": "flash"}
_TIER = {"id": "standard-tier", "name": "Standard", "userDefinedCloudaicompanionProject": False}


@dataclass
class Asked:
    host: str
    path: str
    status: int
    credential: str  # what came as one


@dataclass
class FakeGoogle(FakeHosts):
    hosts = HOSTS

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        host = request.host.partition(":")[0]
        credential = request.headers.get("x-goog-api-key") or request.headers.get("authorization", "")
        text = await request.text()
        self.seen.append(f"{request.headers!r} {request.path_qs} {text}")
        if host == LOGIN:
            answer = self._login(request.path, dict(await request.post()))
        elif host == API and self.api_key and credential == self.api_key:
            answer = _model(request.path, json.loads(text or "{}"))
        elif host == ASSIST and self.access and credential == f"Bearer {self.access}":
            answer = _assist(request.path, json.loads(text or "{}"))
        else:
            answer = web.json_response(
                {"error": {"code": 401, "message": "not a known credential"}}, status=401
            )
        self.asked.append(Asked(host, request.path, answer.status, credential))
        return answer

    def _login(self, path: str, form: dict[str, Any]) -> web.Response:
        if path != "/token" or not self.refresh or form.get("refresh_token") != self.refresh:
            return web.json_response({"error": "invalid_grant"}, status=400)
        self.renewals += 1
        self.access = f"ya29.real-{secrets.token_hex(24)}"
        value = {"access_token": self.access, "expires_in": 3599, "scope": SCOPES, "token_type": "Bearer"}
        return web.json_response(value)


def _assist(path: str, asked: dict[str, Any]) -> web.Response:
    """What a login is used at: another wrapping of the same model."""
    if path.endswith(":loadCodeAssist"):
        return web.json_response(
            {"currentTier": _TIER, "allowedTiers": [_TIER], "cloudaicompanionProject": "project-1"}
        )
    if "enerateContent" in path:
        return _model(path, asked["request"], wrapped=True)
    return web.json_response({})


def _model(path: str, asked: dict[str, Any], *, wrapped: bool = False) -> web.Response:
    if "enerateContent" not in path:
        return web.json_response({"totalTokens": 1})
    content = {"role": "model", "parts": [_said(asked)]}
    value: dict[str, Any] = {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
    }
    if wrapped:
        value = {"response": value, "traceId": "1"}
    if "stream" not in path:
        return web.json_response(value)
    return web.Response(text=f"data: {json.dumps(value)}\r\n\r\n", content_type="text/event-stream")


def _said(asked: dict[str, Any]) -> dict[str, Any]:
    if (asked.get("generationConfig") or {}).get("responseMimeType") == "application/json":
        return {"text": json.dumps(_ROUTE)}
    last = asked["contents"][-1]["parts"]
    if result := next((part["functionResponse"] for part in last if "functionResponse" in part), None):
        return {"text": f"The tool said: {result['response'].get('output')}"}
    prompt = last[-1]["text"]
    if command := re.fullmatch(r"FAKE_SHELL (.*)", prompt, re.DOTALL):
        return {"functionCall": {"name": "run_shell_command", "args": {"command": command[1]}}}
    return {"text": f"You said: {prompt}"}
