"""Vault tests: stores of their own, a real gnome-keyring, and the search for a secret where none may be."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.paths import Home
from tests.vault.keyring_session import KeyringSession, keyring_session

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.fixture
def state() -> Home:
    return Home.from_environment()


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch, state: Home) -> Home:
    """The user has chosen sealed files with a key file."""
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(state.credentials / "key"))
    return state


@pytest.fixture
def gnome_keyring(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyringSession]:
    with keyring_session(home, monkeypatch) as session:
        yield session


Make = Callable[..., Credential]


@pytest.fixture
def make() -> Make:
    def credential(
        name: str = "anthropic",
        secret: str = "sk-ant-api03-REAL",
        kind: CredentialKind = CredentialKind.API_KEY,
        *,
        expires_at: dt.datetime | None = None,
        **metadata: str,
    ) -> Credential:
        info = CredentialInfo(name, kind, ("api.anthropic.com",), NOW, expires_at, metadata)
        return Credential(info, Secret(secret))

    return credential


def traces(secret: str, *places: Path) -> list[Path]:
    """Files below `places` that hold `secret`, plain, in base64 or in hex."""
    forms = (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="), secret.encode().hex().encode())
    files = [file for place in places for file in sorted(place.rglob("*")) if file.is_file()]
    return [file for file in files if any(form in file.read_bytes() for form in forms)]
