"""Sealed files: what is on disk, and everything that can be done to it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moat.errors import VaultError
from moat.grants import Secret
from moat.paths import Home
from moat.vault import open_vault
from moat.vault.key import NewKey
from moat.vault.seal import BrokenSealError, Header, read_header, seal, unseal
from tests.vault.conftest import Make, traces

SECRET = "sk-ant-api03-SEALEDSECRET"
KEY = bytes(range(32))
CHEAP = 1 << 12  # of scrypt
HEADER = Header("anthropic", "default", "0123", "ab" * 16)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_round_trip_and_modes(sealed: Home, home: Path, make: Make) -> None:
    os.umask(0o000)  # a careless umask opens nothing
    try:
        open_vault(sealed).put(make(secret=SECRET))
    finally:
        os.umask(0o022)
    assert open_vault(sealed).get("anthropic") == make(secret=SECRET)
    assert open_vault(sealed).location("anthropic") == "~/.moat/credentials/anthropic.enc"
    files = [path for path in sealed.root.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {".lock", "anthropic.enc", "index.json", "key"}
    assert {mode(path) for path in files} == {0o600}
    assert {mode(path) for path in (sealed.root, sealed.credentials)} == {0o700}
    assert traces(SECRET, home) == []


def test_profiles_have_files_of_their_own(sealed: Home, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    open_vault(sealed).put(make(secret="at home"))
    monkeypatch.setenv("MOAT_PROFILE", "work")
    open_vault(sealed).put(make(secret="at work"))
    directory = sealed.credentials / "profiles/work"
    assert (directory / "anthropic.enc").is_file()
    assert {mode(path) for path in (sealed.credentials, directory.parent, directory)} == {0o700}
    shutil.copy(sealed.credentials / "anthropic.enc", directory / "anthropic.enc")
    with pytest.raises(VaultError, match="holds 'anthropic' of profile 'default'"):
        open_vault(sealed).get("anthropic")


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _swap(path: Path) -> None:
    shutil.copy(path.with_name("github.enc"), path)


def _rename(path: Path) -> None:
    """The other file under this name, its header edited to fit: the tag covers the header."""
    data = path.with_name("github.enc").read_bytes()
    ours, theirs = (read_header(file.read_bytes())[0] for file in (path, path.with_name("github.enc")))
    path.write_bytes(data.replace(b'"github"', b'"anthropic"').replace(theirs.id.encode(), ours.id.encode()))


TAMPERING: dict[str, tuple[Callable[[Path], None], str]] = {
    "swapped with another credential": (_swap, "it holds 'github'"),
    "renamed, header edited": (_rename, "its seal is broken"),
    "first byte": (lambda path: _flip(path, 0), "it is not a sealed file"),
    "header": (lambda path: _flip(path, 20), "altered"),
    "nonce": (lambda path: _flip(path, read_header(path.read_bytes())[1]), "its seal is broken"),
    "ciphertext": (lambda path: _flip(path, -20), "its seal is broken"),
    "tag": (lambda path: _flip(path, -1), "its seal is broken"),
    "last byte cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "its seal is broken"),
    "cut in the nonce": (
        lambda path: path.write_bytes(path.read_bytes()[: read_header(path.read_bytes())[1] + 5]),
        "its seal is broken",
    ),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:30]), "it is not a sealed file"),
    "byte added": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "its seal is broken"),
    "empty": (lambda path: path.write_bytes(b""), "it is not a sealed file"),
    "removed": (lambda path: path.unlink(), "is gone"),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_told(sealed: Home, make: Make, what: str) -> None:
    """Shown to fail: with the header left out of the associated data, `renamed` opens the wrong secret."""
    vault = open_vault(sealed)
    vault.put(make(secret=SECRET))
    vault.put(make(name="github", secret="ghp_other"))
    tamper, told = TAMPERING[what]
    tamper(sealed.credentials / "anthropic.enc")
    with pytest.raises(VaultError, match=told) as caught:
        open_vault(sealed).get("anthropic")
    assert "moat grant anthropic" in str(caught.value.hint)
    assert SECRET not in str(caught.value)
    assert open_vault(sealed).get("github").secret.reveal() == "ghp_other"


def test_an_older_file_put_back_is_told(sealed: Home, make: Make) -> None:
    vault = open_vault(sealed)
    vault.put(make(secret="old"))
    old = (sealed.credentials / "anthropic.enc").read_bytes()
    vault.put(make(secret="new"))
    (sealed.credentials / "anthropic.enc").write_bytes(old)
    with pytest.raises(VaultError, match="another version than the index says"):
        open_vault(sealed).get("anthropic")


def test_every_single_bit_counts() -> None:
    whole = seal(KEY, HEADER, b"payload")
    assert unseal(KEY, whole) == b"payload"
    for at in range(len(whole) * 8):
        broken = bytearray(whole)
        broken[at // 8] ^= 1 << (at % 8)
        with pytest.raises(BrokenSealError):
            unseal(KEY, bytes(broken))
    for end in range(len(whole)):
        with pytest.raises(BrokenSealError):
            unseal(KEY, whole[:end])


def test_sealing_twice_gives_different_bytes() -> None:
    assert len({seal(KEY, HEADER, b"payload") for _ in range(50)}) == 50


# Passphrases


@pytest.fixture
def by_passphrase(state: Home, monkeypatch: pytest.MonkeyPatch, make: Make) -> Home:
    """Made with the passphrase `right`, which nothing but the files knows any more; and a guess is cheap."""
    monkeypatch.setattr("moat.vault.key._SCRYPT_N", CHEAP)
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_PASSPHRASE", "right")
    open_vault(state).put(make(secret=SECRET))
    monkeypatch.delenv("MOAT_PASSPHRASE")
    monkeypatch.delenv("MOAT_KEYRING_BACKEND")
    return state


def test_passphrase_from_the_environment(by_passphrase: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not (by_passphrase.credentials / "key").exists()
    monkeypatch.setenv("MOAT_PASSPHRASE", "right")
    assert open_vault(by_passphrase).get("anthropic").secret.reveal() == SECRET


def test_passphrase_from_a_descriptor(by_passphrase: Home) -> None:
    read, write = os.pipe()
    os.write(write, b"right\n")
    os.close(write)
    environment = os.environ | {"MOAT_PASSPHRASE_FD": str(read), "MOAT_PASSPHRASE": "wrong"}
    code = (
        "from moat.vault import key, open_vault; from moat.paths import Home\n"
        f"key._SCRYPT_N = {CHEAP}\n"
        "print(open_vault(Home.from_environment()).get('anthropic').secret.reveal())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        pass_fds=[read],
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(read)
    assert done.stdout.strip() == SECRET, done.stderr


def test_a_bad_descriptor_is_told(by_passphrase: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_PASSPHRASE_FD", "999")
    with pytest.raises(VaultError, match="MOAT_PASSPHRASE_FD=999 cannot be read"):
        open_vault(by_passphrase).get("anthropic")


def test_wrong_passphrase_names_the_fix(
    by_passphrase: Home, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOAT_PASSPHRASE", "wrong")
    before = (by_passphrase.credentials / "index.json").read_bytes()
    for attempt in (
        lambda: open_vault(by_passphrase).get("anthropic"),
        lambda: open_vault(by_passphrase).put(make(name="github")),  # would be sealed with another key
        lambda: open_vault(by_passphrase).handoff(),
    ):
        with pytest.raises(VaultError, match="wrong passphrase") as caught:
            attempt()
        assert "check MOAT_PASSPHRASE" in str(caught.value.hint)
        assert "moat revoke" in str(caught.value.hint)
    assert (by_passphrase.credentials / "index.json").read_bytes() == before


def test_a_typed_passphrase_has_three_tries(by_passphrase: Home) -> None:
    answers = iter(["no", "neither", "right"])
    vault = open_vault(by_passphrase, passphrase=lambda: next(answers))
    assert vault.get("anthropic").secret.reveal() == SECRET
    assert vault.get("anthropic").secret.reveal() == SECRET  # not asked again
    with pytest.raises(VaultError, match="wrong passphrase"):
        open_vault(by_passphrase, passphrase=lambda: "no").get("anthropic")


def test_nobody_to_ask(by_passphrase: Home) -> None:
    with pytest.raises(VaultError, match="need their passphrase") as caught:
        open_vault(by_passphrase).get("anthropic")
    assert "MOAT_PASSPHRASE" in str(caught.value.hint)


def test_the_choice_is_remembered(by_passphrase: Home, make: Make) -> None:
    """MOAT_KEYRING_BACKEND is gone, and there is no keyring: the next credential is sealed as well."""
    vault = open_vault(by_passphrase, passphrase=lambda: "right")
    vault.put(make(name="github", secret="ghp_x"))
    assert vault.store("github") == "file"
    assert (by_passphrase.credentials / "github.enc").is_file()


def test_a_lost_passphrase_ends_with_its_last_file(
    by_passphrase: Home, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_vault(by_passphrase).delete("anthropic")  # needs no passphrase
    assert not (by_passphrase.credentials / "anthropic.enc").exists()
    monkeypatch.setenv("MOAT_PASSPHRASE", "another")
    open_vault(by_passphrase).put(make(secret="anew"))
    assert open_vault(by_passphrase).get("anthropic").secret.reveal() == "anew"


def test_files_need_a_choice_of_key(state: Home, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    with pytest.raises(VaultError, match="need a passphrase or a key file") as caught:
        open_vault(state).put(make())
    assert "MOAT_KEY_FILE" in str(caught.value.hint)
    assert not state.credentials.exists()


def test_an_empty_passphrase_is_refused(state: Home, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    with pytest.raises(VaultError, match="the passphrase is empty"):
        open_vault(state, new_key=lambda: NewKey(passphrase=Secret(""))).put(make())


def test_unknown_backend_choice(state: Home, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "plaintext")
    with pytest.raises(VaultError, match="MOAT_KEYRING_BACKEND=plaintext is unknown"):
        open_vault(state).put(make())


# Key files


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o610, 0o601, 0o644, 0o666])
def test_an_open_key_file_is_refused(sealed: Home, make: Make, bits: int) -> None:
    open_vault(sealed).put(make())
    key = sealed.credentials / "key"
    key.chmod(bits)
    with pytest.raises(VaultError, match="is open to other users") as caught:
        open_vault(sealed).get("anthropic")
    assert caught.value.hint == f"chmod 600 {key}"
    key.chmod(0o400)
    assert open_vault(sealed).get("anthropic") == make()


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o666])
def test_a_sealed_file_that_others_can_read_is_refused(
    by_passphrase: Home, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passphrase can be guessed by whoever has the file. Nothing is lost: the command that fixes it is told."""
    monkeypatch.setenv("MOAT_PASSPHRASE", "right")
    file = by_passphrase.credentials / "anthropic.enc"
    file.chmod(bits)
    with pytest.raises(VaultError, match=r"anthropic\.enc is open to other users") as caught:
        open_vault(by_passphrase).get("anthropic")
    assert caught.value.hint == f"chmod 600 {file}"
    file.chmod(0o600)
    assert open_vault(by_passphrase).get("anthropic").secret.reveal()


def test_a_key_file_of_another_user_is_refused(sealed: Home, make: Make) -> None:
    open_vault(sealed).put(make())
    if os.getuid() != 0:
        pytest.fail("the suite runs as root, so that files of other users can be made")
    os.chown(sealed.credentials / "key", 12345, -1)
    with pytest.raises(VaultError, match="belongs to another user"):
        open_vault(sealed).get("anthropic")


def test_an_existing_key_file_is_never_replaced(sealed: Home, make: Make) -> None:
    key = sealed.credentials / "key"
    open_vault(sealed).put(make())
    before = key.read_bytes()
    open_vault(sealed).delete("anthropic")
    open_vault(sealed).put(make())
    assert key.read_bytes() == before


def test_a_lost_key_file_is_told_and_not_made_again(sealed: Home, make: Make) -> None:
    open_vault(sealed).put(make())
    (sealed.credentials / "key").unlink()
    for attempt in (
        lambda: open_vault(sealed).get("anthropic"),
        lambda: open_vault(sealed).put(make(name="github")),
    ):
        with pytest.raises(VaultError, match="is gone"):
            attempt()
    assert not (sealed.credentials / "key").exists()


@pytest.mark.parametrize("content", [b"", b"short", b"!" * 44, b"QUJD\n"])
def test_a_broken_key_file_is_told(sealed: Home, make: Make, content: bytes) -> None:
    open_vault(sealed).put(make())
    (sealed.credentials / "key").write_bytes(content)
    with pytest.raises(VaultError, match="is not a key file"):
        open_vault(sealed).get("anthropic")


def test_another_key_file_is_told(
    sealed: Home, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moat.vault.key import create_key_file

    open_vault(sealed).put(make())
    create_key_file(tmp_path / "other")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "other"))
    with pytest.raises(VaultError, match="the key file does not fit"):
        open_vault(sealed).get("anthropic")


def test_a_key_file_elsewhere_is_remembered(
    state: Home, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "elsewhere"))
    open_vault(state).put(make())
    monkeypatch.delenv("MOAT_KEY_FILE")
    assert open_vault(state).get("anthropic") == make()


def test_the_whole_home_can_be_moved(
    sealed: Home, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_vault(sealed).put(make())
    monkeypatch.delenv("MOAT_KEY_FILE")
    moved = tmp_path / "moved"
    shutil.move(sealed.root, moved)
    assert open_vault(Home(moved)).get("anthropic") == make()


@pytest.mark.parametrize("choice", ["passphrase", "key file"])
def test_who_gives_up_after_the_choice_of_a_key_leaves_nothing(
    state: Home, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, choice: str
) -> None:
    """Seen to fail with the key made in `prepare`: the file of a key that protects nothing is left."""
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    key = NewKey(passphrase=Secret("open")) if choice == "passphrase" else NewKey(key_file=tmp_path / "key")
    vault = open_vault(state, new_key=lambda: key)
    vault.prepare()
    assert not state.root.exists()
    assert not (tmp_path / "key").exists()
    vault.put(make())
    assert vault.get("anthropic") == make()
