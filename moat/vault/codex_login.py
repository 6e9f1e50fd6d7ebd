"""The ChatGPT login that Codex keeps on this machine: `auth.json` in `~/.codex`, or in `$CODEX_HOME`.

Its refresh token is good for one use, after which Codex would be logged out. So Moat takes the access token
alone and leaves it to Codex to renew it, as it does every few days (`imported`).
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import re
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass
from moat.errors import GrantError
from moat.grants import Secret
from moat.vault.index import timestamp
from moat.vault.toolfile import read_json

PLACE = "~/.codex/auth.json"
_CLAIMS = "https://api.openai.com/auth"
_PLAIN = re.compile(r"[\w.@+-]{1,200}")


@dataclass(frozen=True, slots=True)
class CodexLogin:
    token: Secret
    expires_at: dt.datetime | None
    account: str  # ChatGPT wants it beside the token
    login: str = ""  # the user's address; empty when not told
    plan: str = ""  # `plus`, `pro`…


def auth_file() -> Path:
    base = os.environ.get("CODEX_HOME")
    return (Path(base) if base else Path.home() / ".codex") / "auth.json"


def codex_login(now: dt.datetime) -> CodexLogin | None:
    """None when Codex has no such login, or uses an API key. Raises GrantError: unreadable, expired."""
    data = read_json(auth_file(), hint="log in with `codex login` again") or {}
    match data:
        case {"auth_mode": str(mode)} if mode != "chatgpt":
            return None
        case {"OPENAI_API_KEY": str(key)} if key and "auth_mode" not in data:
            return None
        case {"tokens": {"access_token": str(access)} as tokens} if access:
            login = _login(access, tokens)
        case _:
            return None
    if login.expires_at is not None and login.expires_at <= now:
        raise GrantError(
            f"the ChatGPT login of the Codex on this machine expired at {timestamp(login.expires_at)}",
            hint="run `codex` on this machine, which renews it, then `moat grant codex --method import`",
        )
    return login


def _login(access: str, tokens: dict[str, Any]) -> CodexLogin:
    about = _claims(access)
    identity = _claims(str(tokens.get("id_token") or ""))
    chatgpt = identity.get(_CLAIMS) or about.get(_CLAIMS)
    known = chatgpt if isinstance(chatgpt, dict) else {}
    account = _plain(tokens.get("account_id")) or _plain(known.get("chatgpt_account_id"))
    if not account:
        raise GrantError(
            f"{PLACE} does not say which account it is for", hint="log in with `codex login` again"
        )
    ends = about.get("exp")
    return CodexLogin(
        token=Secret(access),
        expires_at=dt.datetime.fromtimestamp(ends, dt.UTC)
        if isinstance(ends, int) and 0 < ends < 1e11
        else None,
        account=account,
        login=_plain(identity.get("email")),
        plan=_plain(known.get("chatgpt_plan_type")),
    )


def _claims(token: str) -> dict[str, Any]:
    """What a JSON web token says (RFC 7519 §3); nobody here has to believe it."""
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _plain(value: object) -> str:
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else ""
