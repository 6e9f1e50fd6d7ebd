"""Logins to registries that docker and podman keep on this machine, in files or by credential helpers."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass
from moat.errors import GrantError
from moat.grants import Secret
from moat.vault.key import without_passphrase
from moat.vault.providers.docker import HUB
from moat.vault.registry.service import IDENTITY
from moat.vault.toolfile import read_json

_PATIENCE = 120.0  # seconds: a helper may ask the user to unlock something
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", HUB)


@dataclass(frozen=True, slots=True)
class Login:
    where: str
    username: str  # IDENTITY: the password is an identity token
    password: Secret


def find(host: str) -> Login | None:
    """The first login to a registry. Runs a credential helper where one is configured. Raises GrantError."""
    keys = (
        _HUB_KEYS if host == HUB else (host, *(f"https://{host}{end}" for end in ("", "/", "/v1/", "/v2/")))
    )
    for path in _files():
        config = read_json(path, hint="mend it, or give --username") or {}
        login = _helped(config, keys) or _written(path, config, keys)
        if login is not None:
            return login
    return None


def _files() -> Iterator[Path]:
    base = os.environ.get("DOCKER_CONFIG")
    yield (Path(base) if base else Path.home() / ".docker") / "config.json"
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    yield Path.home() / ".config" / "containers" / "auth.json"


def _helped(config: Mapping[str, Any], keys: tuple[str, ...]) -> Login | None:
    """The helper of one registry goes before the one of all."""
    helpers = _table(config.get("credHelpers"))
    wanted = [(str(helpers[key]), key) for key in keys if helpers.get(key)]
    if store := config.get("credsStore"):
        wanted += [(str(store), key) for key in keys]
    for helper, key in wanted:
        if login := _ask(helper, key):
            return login
    return None


def _ask(helper: str, key: str) -> Login | None:
    """What `docker-credential-<helper> get` answers; None: it has nothing. Raises GrantError."""
    program = f"docker-credential-{helper}"
    if not _HELPER.fullmatch(helper):
        raise GrantError("config.json names a credential helper that is no program", hint="mend it")
    try:
        done = subprocess.run(
            [program, "get"],
            input=key.encode(),
            capture_output=True,
            env=without_passphrase(),
            timeout=_PATIENCE,
            check=False,
            cwd="/",
        )
    except FileNotFoundError:
        raise GrantError(f"{program} is not installed", hint="or give --username and the password") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GrantError(f"{program} does not answer ({type(error).__name__})", hint="try again") from None
    if done.returncode != 0:
        return None  # that is also how helpers say that they have none
    try:
        answer = _table(json.loads(done.stdout))
    except ValueError:
        raise GrantError(f"{program} gave an answer that is no JSON", hint="try again") from None
    username, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str) or not secret:
        return None
    return Login(program, username, Secret(secret))


def _written(path: Path, config: Mapping[str, Any], keys: tuple[str, ...]) -> Login | None:
    auths = _table(config.get("auths"))
    for key in keys:
        entry = _table(auths.get(key))
        if entry.get("identitytoken"):
            return Login(str(path), IDENTITY, Secret(str(entry["identitytoken"])))
        try:
            pair = base64.b64decode(str(entry.get("auth", "")), validate=True).decode().rstrip("\0")
        except (binascii.Error, UnicodeDecodeError):
            raise GrantError(f"{path}: the login for {key} is damaged", hint="log in again") from None
        username, _, password = pair.partition(":")
        if password:
            return Login(str(path), username, Secret(password))
    return None


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
