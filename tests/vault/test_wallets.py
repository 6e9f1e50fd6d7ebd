"""Keyrings that misbehave: a Secret Service shaped like KWallet's, and a store with the limit of Windows.

Seen to fail: without the probe of `KeyringStore.open` a wallet that forgets is entrusted with the credential; with
`CHUNK` above 1280 the store with the limit of Windows refuses; with the text of a foreign error passed on, the one that
quotes the secret is in the message.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moat.errors import VaultError
from moat.grants import Secret
from moat.paths import Home
from moat.vault import open_vault
from moat.vault.index import Ref
from moat.vault.oskeyring import CHUNK, KeyringStore, split
from tests.conftest import REPOSITORY
from tests.vault.conftest import Make, traces
from tests.vault.keyring_session import LEAVES_CONNECTIONS

SECRET = "sk-ant-api03-WALLETSECRET"
pytestmark = LEAVES_CONNECTIONS


@contextlib.contextmanager
def wallet(mode: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The session bus of this process is one with such a wallet."""
    # Each attempt meets the same answer: nothing is gained by waiting between them.
    monkeypatch.setattr("moat.vault.busykeyring.PAUSES", (0.05, 0.05))
    process = subprocess.Popen(
        ["dbus-run-session", "--", sys.executable, "-m", "tests.vault.secret_service", mode],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", process.stdout.readline().strip())
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=10)
        for thread in threading.enumerate():
            if thread.name.startswith("moat-keyring"):
                thread.join(10)
        gc.collect()


def test_one_that_works(state: Home, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is the misbehaviour of a wallet that is otherwise used as any other."""
    with wallet("well", monkeypatch):
        vault = open_vault(state)
        long = SECRET * 200
        vault.put(make(secret=long))
        vault.put(make(name="github", secret="ghp_x"))
        again = open_vault(state)
        assert again.get("anthropic").secret.reveal() == long
        assert again.location("github") == "the OS keyring (Secret Service)"
        again.delete("anthropic")
        assert again.get("github").secret.reveal() == "ghp_x"


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("dismiss", "the OS keyring is locked"),
        ("dismiss-first", "the OS keyring failed"),
        ("dies", "the OS keyring|no OS keyring answers here"),
        ("refuses", "the OS keyring failed"),
        ("forgets", "the OS keyring did not return what was written to it"),
        ("garbles", "the OS keyring did not return what was written to it"),
    ],
)
def test_one_that_does_not(
    state: Home, make: Make, monkeypatch: pytest.MonkeyPatch, mode: str, told: str
) -> None:
    with wallet(mode, monkeypatch):
        with pytest.raises(VaultError, match=told) as caught:
            open_vault(state).put(make(secret=SECRET))
        said = f"{caught.value} {caught.value.hint}"
        assert "MOAT_KEYRING_BACKEND=file" in said
        assert SECRET not in said
        assert open_vault(state).list() == ()
        assert traces(SECRET, Path.home()) == []


def test_a_dialog_that_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with wallet("hangs", monkeypatch):
        before = time.monotonic()
        with pytest.raises(VaultError, match="did not answer within 1 s"):
            KeyringStore("default", deadline=1.0).check()
        assert time.monotonic() - before < 30


class Windows:
    """The Credential Manager: 2560 bytes of UTF-16 for a value, and an error of its own for more."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], str] = {}

    def set_password(self, service: str, account: str, value: str) -> None:
        if len(value.encode("utf-16-le")) > 2560:
            raise OSError(1783, "CredWrite", "The stub received bad data")
        self.values[service, account] = value

    def get_password(self, service: str, account: str) -> str | None:
        return self.values.get((service, account))

    def delete_password(self, service: str, account: str) -> None:
        del self.values[service, account]


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    backend = Windows()

    def opened(self: Any, *, probe: bool) -> None:
        del probe
        self._backend = backend

    monkeypatch.setattr(KeyringStore, "open", opened)
    return backend


@pytest.mark.parametrize("secret", ["x" * 20_000, "\U0001f511" * 700, "é" * 1300, "y" * CHUNK, "z" * 2560])
def test_values_over_the_limit_of_windows(state: Home, make: Make, windows: Windows, secret: str) -> None:
    vault = open_vault(state)
    vault.put(make(secret="short"))
    vault.put(make(secret=secret))
    assert len(windows.values) > 1
    assert open_vault(state).get("anthropic").secret.reveal() == secret
    vault.delete("anthropic")
    assert windows.values == {}


def test_the_limit_is_real(windows: Windows) -> None:
    with pytest.raises(OSError, match="bad data"):
        windows.set_password("moat", "x", "x" * 1281)
    store = KeyringStore("default")
    store.write("anthropic", Ref("keyring", "00", len(split("x" * 5000))), Secret("x" * 5000))
    assert max(map(len, windows.values.values())) == CHUNK
