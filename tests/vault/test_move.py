"""Credentials move between the OS keyring and sealed files, and whatever happens on the way, none is lost.

Seen to fail: with the old secret removed before the index names the new one, the killed processes below lose it;
without the comparison in `Vault.move` a token that was renewed meanwhile is replaced by the old one;
without the reading back a store that keeps something else is believed.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from moat.errors import VaultError
from moat.grants import CredentialInfo, CredentialKind, Secret
from moat.paths import Home
from moat.vault import Vault, open_vault
from moat.vault.index import StoreName, read_index
from moat.vault.key import NewKey
from moat.vault.oskeyring import KeyringStore
from moat.vault.sealed import SealedFiles
from tests.vault.conftest import NOW, Make, traces
from tests.vault.dying import dying
from tests.vault.keyring_session import KeyringSession

SECRETS = {"anthropic": "sk-ant-api03-MOVED", "github": "ghp_MOVED", "mcp:acme": "x" * 5000 + "MOVED"}


def vault_of(state: Home) -> Vault:
    return open_vault(state, new_key=lambda: NewKey(key_file=state.credentials / "key"))


def fill(vault: Vault, make: Make) -> None:
    for name, secret in SECRETS.items():
        vault.put(make(name=name, secret=secret))
    vault.note(CredentialInfo("ssh:github.com", CredentialKind.SSH_KEY, ("github.com",), NOW))


def whole(vault: Vault) -> None:
    for name, secret in SECRETS.items():
        assert vault.get(name).secret == Secret(secret), name


def test_there_and_back(state: Home, home: Path, make: Make, gnome_keyring: KeyringSession) -> None:
    vault = vault_of(state)
    fill(vault, make)
    names = [info.name for info in vault.list()]
    assert [vault.move(name, "file") for name in names] == [True, True, True, False]
    assert {vault.store(name) for name in SECRETS} == {"file"}
    assert gnome_keyring.entries() == {}
    whole(vault_of(state))
    vault.put(make(name="linear", secret="new-LINEAR"))  # the choice is remembered
    assert (vault.store("linear"), vault.move("linear", "file")) == ("file", False)

    fresh = vault_of(state)
    assert [fresh.move(name, "keyring") for name in names] == [True, True, True, False]
    assert sorted(path.name for path in state.credentials.glob("*.enc")) == ["linear.enc"]
    assert fresh.move("linear", "keyring")
    assert list(state.credentials.glob("*.enc")) == list(state.credentials.glob(".*.enc")) == []
    assert read_index(state.credentials / "index.json").sealing is None
    whole(vault_of(state))
    assert traces("MOVED", home) == []


def test_a_locked_keyring_is_told_and_nothing_moves(
    state: Home, make: Make, gnome_keyring: KeyringSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyringStore, "open", _locked)
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    vault = vault_of(state)
    fill(vault, make)
    before = {path: path.read_bytes() for path in state.credentials.iterdir() if path.is_file()}
    with pytest.raises(VaultError, match="locked"):
        vault.move("github", "keyring")
    assert {path: path.read_bytes() for path in state.credentials.iterdir() if path.is_file()} == before
    del gnome_keyring


def _locked(self: KeyringStore, *, probe: bool) -> None:
    del self, probe
    raise VaultError("the OS keyring is locked")


def test_a_store_that_keeps_something_else_is_not_believed(
    sealed: Home, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = vault_of(sealed)
    vault.put(make(name="github", secret="ghp_OLD"))
    with monkeypatch.context() as patch:
        patch.setattr(SealedFiles, "written", lambda *_: "something else")
        with pytest.raises(VaultError, match="did not return what was written"):
            vault.put(make(name="github", secret="ghp_NEW"))
    assert vault_of(sealed).get("github").secret == Secret("ghp_OLD")
    vault.put(make(name="github", secret="ghp_NEW"))
    assert [path.name for path in sealed.credentials.glob(".*.enc")] == [], "the failed one was cleaned up"


def test_what_is_renewed_meanwhile_is_moved_as_it_is_then(
    state: Home, make: Make, gnome_keyring: KeyringSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading and the writing of a move another process stores a newer token."""
    vault, other = vault_of(state), vault_of(state)
    vault.put(make(name="github", secret="ghp_FIRST"))
    load, renewed = Vault._load, []

    def then_renewed(self: Vault, name: str) -> Any:
        found = load(self, name)
        if not renewed:
            renewed.append(name)
            other.put(make(name="github", secret="ghp_SECOND"))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Vault, "_load", then_renewed)
        assert vault.move("github", "file")
    assert vault_of(state).get("github").secret == Secret("ghp_SECOND")
    assert gnome_keyring.entries() == {}


WAYS: tuple[tuple[StoreName, StoreName], ...] = (("keyring", "file"), ("file", "keyring"))


def test_killed_at_any_step_it_is_in_one_place_or_the_other(
    state: Home, make: Make, gnome_keyring: KeyringSession
) -> None:
    vault = vault_of(state)
    vault.put(make(name="github", secret=SECRETS["github"]))
    with dying() as dies:
        for here, to in WAYS:
            for step in count(1):
                vault.move("github", here)
                done = not dies(step, "move", to)
                assert vault_of(state).get("github").secret == Secret(SECRETS["github"]), (to, step)
                if done:
                    break
            assert step >= 5
            assert vault_of(state).store("github") == to
    # What the dead left behind is gone with the last change, in both places.
    assert list(state.credentials.glob("*.enc")) == list(state.credentials.glob(".*.enc")) == []
    assert len(gnome_keyring.entries()) == 1
