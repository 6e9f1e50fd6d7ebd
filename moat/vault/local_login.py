"""Credentials that other tools keep on this machine: Claude Code's login, the token of `gh`."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass
from moat.errors import GrantError
from moat.grants import Secret
from moat.vault.index import timestamp
from moat.vault.key import without_passphrase

_KEYCHAIN_ITEM = "Claude Code-credentials"
_DEADLINE = 60  # seconds; the macOS keychain and gh may ask the user


@dataclass(frozen=True, slots=True)
class ClaudeLogin:
    """What Claude Code keeps of a subscription's login."""

    token: Secret
    subscription: str  # `max`, `pro`…; empty when not told
    expires_at: dt.datetime | None
    scopes: tuple[str, ...] = ()
    rate_limit_tier: str = ""


def claude_login(now: dt.datetime) -> ClaudeLogin:
    """The login of the Claude Code on this machine. Raises GrantError: none, unreadable, expired."""
    for place, text in _places():
        login = _parse(text, place)
        if login is None:
            continue
        if login.expires_at is not None and login.expires_at <= now:
            raise GrantError(
                f"the Claude Code credentials on this machine expired at {timestamp(login.expires_at)}",
                hint="run `claude` on this machine to refresh them, then `moat grant anthropic` again",
            )
        return login
    raise GrantError(
        "No Claude Code credentials found",
        hint=(
            "install Claude Code and log in, then run `moat grant anthropic` again\n"
            'or use an API key: export ANTHROPIC_API_KEY="sk-ant-..." && moat grant anthropic'
        ),
    )


def gh_token() -> Secret | None:
    """The token that GitHub's `gh` holds for github.com; None without gh or without a login."""
    program = shutil.which("gh")
    if program is None:
        return None
    # gh would hand back the variable instead of its own login.
    environment = {key: value for key, value in os.environ.items() if key not in {"GH_TOKEN", "GITHUB_TOKEN"}}
    token = _output([program, "auth", "token", "--hostname", "github.com"], environment)
    return Secret(token) if token else None


def _places() -> list[tuple[str, str]]:
    """(where, text) of every place that has something."""
    found = []
    if sys.platform == "darwin" and os.environ.get("MOAT_KEYRING_BACKEND") != "file":
        text = _output(["security", "find-generic-password", "-s", _KEYCHAIN_ITEM, "-w"], dict(os.environ))
        if text:
            found.append(("the macOS keychain", text))
    base = os.environ.get("CLAUDE_CONFIG_DIR")
    path = (Path(base) if base else Path.home() / ".claude") / ".credentials.json"
    try:
        found.append((str(path), path.read_text("utf-8")))
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        raise GrantError(f"{path} cannot be read", hint=f"check its owner and mode: ls -l {path}") from None
    return found


def _parse(text: str, place: str) -> ClaudeLogin | None:
    """The login in Claude Code's JSON, or None when it holds none. Raises GrantError."""
    try:
        data = json.loads(text)["claudeAiOauth"]
        return _login(data) if data.get("accessToken") else None
    except KeyError:
        return None
    except (ValueError, TypeError, AttributeError, OverflowError):
        # Not chained: the text of a JSON error may quote the file.
        raise GrantError(
            f"{place} is not what Claude Code writes", hint="run `claude` on this machine and log in again"
        ) from None


def _login(data: dict[str, Any]) -> ClaudeLogin:
    expires = data.get("expiresAt")  # milliseconds since the epoch
    return ClaudeLogin(
        token=Secret(str(data["accessToken"])),
        subscription=str(data.get("subscriptionType") or ""),
        expires_at=dt.datetime.fromtimestamp(expires / 1000, dt.UTC) if expires else None,
        scopes=tuple(str(scope) for scope in data.get("scopes") or ()),
        rate_limit_tier=str(data.get("rateLimitTier") or ""),
    )


def _output(command: list[str], environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            env=without_passphrase(environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
