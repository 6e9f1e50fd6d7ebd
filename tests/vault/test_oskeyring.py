"""The OS keyring: a real gnome-keyring over D-Bus, and every backend that must be refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import secretstorage

from moat.errors import GrantError, VaultError
from moat.paths import Home
from moat.vault import open_vault
from moat.vault.index import Ref
from moat.vault.oskeyring import CHUNK, KeyringStore, call
from tests.vault.conftest import Make, traces
from tests.vault.keyring_session import LEAVES_CONNECTIONS, KeyringSession

SECRET = "sk-ant-api03-KEYRINGSECRET"


def test_put_get_list_delete(gnome_keyring: KeyringSession, state: Home, make: Make) -> None:
    open_vault(state).put(make(secret=SECRET, source="prompt"))
    vault = open_vault(state)
    assert vault.get("anthropic") == make(secret=SECRET, source="prompt")
    assert vault.list() == (make(source="prompt").info,)
    assert vault.store("claude") == "keyring"
    assert vault.location("claude") == "the OS keyring (Secret Service)"
    (account,) = gnome_keyring.entries()
    assert account.startswith("default/anthropic/")
    assert vault.delete("anthropic") == make(source="prompt").info
    assert gnome_keyring.entries() == {}
    with pytest.raises(GrantError, match="no credential 'anthropic'"):
        vault.get("anthropic")


def test_nothing_on_disk_has_the_secret(
    gnome_keyring: KeyringSession, state: Home, home: Path, make: Make
) -> None:
    open_vault(state).put(make(secret=SECRET))
    assert gnome_keyring.files.is_dir()  # the keyring's own files are searched too
    assert traces(SECRET, home) == []


def test_a_new_grant_replaces_the_entry(gnome_keyring: KeyringSession, state: Home, make: Make) -> None:
    vault = open_vault(state)
    vault.put(make(secret="sk-ant-old"))
    vault.put(make(secret="sk-ant-new"))
    assert vault.get("anthropic").secret.reveal() == "sk-ant-new"
    assert len(gnome_keyring.entries()) == 1


def test_long_values_are_chunked(gnome_keyring: KeyringSession, state: Home, make: Make) -> None:
    """The Windows store holds 1280 characters; the same pieces are used everywhere."""
    vault = open_vault(state)
    long = "x" * 5000 + "é☃"
    vault.put(make(secret=long))
    entries = gnome_keyring.entries()
    assert len(entries) > 4
    assert max(map(len, entries.values())) <= CHUNK < 1280
    assert open_vault(state).get("anthropic").secret.reveal() == long
    vault.put(make(secret="short"))
    assert len(gnome_keyring.entries()) == 1
    vault.delete("anthropic")
    assert gnome_keyring.entries() == {}


def test_a_missing_chunk_is_told(gnome_keyring: KeyringSession, state: Home, make: Make) -> None:
    import keyring

    open_vault(state).put(make(secret="x" * 3000))
    account = next(name for name in gnome_keyring.entries() if name.endswith("/1"))
    keyring.delete_password("moat", account)
    with pytest.raises(VaultError, match="has no entry for 'anthropic' any more"):
        open_vault(state).get("anthropic")


def test_profiles_are_apart(
    gnome_keyring: KeyringSession, state: Home, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_vault(state).put(make(secret="at home"))
    monkeypatch.setenv("MOAT_PROFILE", "work")
    assert open_vault(state).list() == ()
    open_vault(state).put(make(secret="at work"))
    assert (state.credentials / "profiles/work/index.json").is_file()
    assert {name.split("/")[0] for name in gnome_keyring.entries()} == {"default", "work"}
    assert open_vault(state).get("anthropic").secret.reveal() == "at work"
    monkeypatch.delenv("MOAT_PROFILE")
    assert open_vault(state).get("anthropic").secret.reveal() == "at home"


@LEAVES_CONNECTIONS
def test_a_keyring_that_is_away_for_a_moment(
    gnome_keyring: KeyringSession, state: Home, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bus turns the first connections away. Fails without the second try in `patiently`."""
    open_vault(state).put(make(secret="kept"))
    connect, refused = secretstorage.dbus_init, iter(range(3))

    def crowded() -> object:
        for _ in refused:
            raise secretstorage.SecretServiceNotAvailableException("the bus is busy")
        return connect()

    monkeypatch.setattr(secretstorage, "dbus_init", crowded)
    assert open_vault(state).get("anthropic").secret.reveal() == "kept"


@LEAVES_CONNECTIONS
def test_a_keyring_that_dies(
    gnome_keyring: KeyringSession, state: Home, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_vault(state).put(make(secret="kept"))
    monkeypatch.setattr("moat.vault.busykeyring.PAUSES", (0.2, 0.3))
    vault = open_vault(state)
    assert vault.get("anthropic").secret.reveal() == "kept"
    (gnome_keyring.files / "login.keyring").rename(gnome_keyring.files / "away")
    os.kill(gnome_keyring.daemon, signal.SIGKILL)
    with pytest.raises(VaultError, match=r"the OS keyring|no OS keyring"):
        open_vault(state).put(make(secret="new"))
    assert open_vault(state).info("anthropic").name == "anthropic"


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "a b"])
def test_profile_names_cannot_leave_the_directory(
    state: Home, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOAT_PROFILE", name)
    with pytest.raises(VaultError, match="is not a profile name"):
        open_vault(state)


def _locked(attempt: Callable[[], object]) -> None:
    with pytest.raises(VaultError, match="the OS keyring is locked") as caught:
        attempt()
    assert "unlock" in str(caught.value.hint)
    assert "MOAT_KEYRING_BACKEND=file" in str(caught.value.hint)


@LEAVES_CONNECTIONS
def test_locked_keyring(gnome_keyring: KeyringSession, state: Home, make: Make) -> None:
    vault = open_vault(state)
    vault.put(make(secret=SECRET))
    index = (state.credentials / "index.json").read_bytes()
    gnome_keyring.lock()
    for attempt in (
        lambda: open_vault(state).get("anthropic"),
        lambda: open_vault(state).put(make(secret="other")),
        lambda: open_vault(state).delete("anthropic"),
        lambda: open_vault(state).prepare(),
    ):
        _locked(attempt)
    assert (state.credentials / "index.json").read_bytes() == index
    assert vault.list() == (make().info,)  # listing needs no keyring


@LEAVES_CONNECTIONS
def test_a_silent_keyring_meets_the_deadline(gnome_keyring: KeyringSession) -> None:
    os.kill(gnome_keyring.daemon, signal.SIGSTOP)
    store = KeyringStore("default", deadline=1.0)
    started = time.monotonic()
    with pytest.raises(VaultError, match="did not answer within 1 s"):
        store.read("anthropic", Ref("keyring", "00"))
    assert time.monotonic() - started < 30
    os.kill(gnome_keyring.daemon, signal.SIGCONT)


def _grant(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moat", "grant", "anthropic", "--token-stdin", "--no-validate"],
        input=SECRET,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


_PLAIN = textwrap.dedent("""
    import json, os, pathlib
    from keyring.backend import KeyringBackend

    class Keyring(KeyringBackend):
        priority = 20

        def _file(self):
            return pathlib.Path(os.environ["HOME"]) / "plain.json"

        def _all(self):
            return json.loads(self._file().read_text()) if self._file().exists() else {}

        def set_password(self, service, username, password):
            self._file().write_text(json.dumps(self._all() | {service + username: password}))

        def get_password(self, service, username):
            return self._all().get(service + username)

        def delete_password(self, service, username):
            values = self._all()
            del values[service + username]
            self._file().write_text(json.dumps(values))
""")


@pytest.fixture
def plain_backend(tmp_path: Path) -> Path:
    """A directory with a backend that works perfectly and keeps everything in plain text."""
    package = tmp_path / "backends"
    package.mkdir()
    (package / "plainfile.py").write_text(_PLAIN)
    # The same class under the name of a good one: the name alone must not be enough.
    (package / "namesake.py").write_text(_PLAIN + "\nKeyring.__module__ = 'keyring.backends.SecretService'\n")
    return package


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ("keyring.backends.null.Keyring", "keyring.backends.null.Keyring is not one that keeps secrets safe"),
        ("keyring.backends.fail.Keyring", "no OS keyring answers here"),
        ("plainfile.Keyring", "plainfile.Keyring is not one that keeps secrets safe"),
        ("namesake.Keyring", "is not one that keeps secrets safe"),
        ("keyring.backends.chainer.ChainerBackend", "is not one that keeps secrets safe"),
        ("no.such.Backend", "the configured keyring backend cannot be loaded"),
    ],
)
def test_backends_that_keep_no_secret_are_refused(
    plain_backend: Path, home: Path, backend: str, told: str
) -> None:
    """Each is really loaded by `keyring`; the plain-text one works and would have stored the key."""
    done = _grant(PYTHON_KEYRING_BACKEND=backend, PYTHONPATH=str(plain_backend))
    assert done.returncode == 3, done
    assert told in done.stderr
    assert "MOAT_KEYRING_BACKEND=file" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert not (home / "plain.json").exists()
    assert traces(SECRET, home) == []


def test_the_plain_backend_does_work_without_us(plain_backend: Path, home: Path) -> None:
    """The defence of the test above is ours: `keyring` itself stores happily."""
    code = "import keyring; keyring.set_password('moat', 'x', 'value')"
    environment = os.environ | {
        "PYTHON_KEYRING_BACKEND": "plainfile.Keyring",
        "PYTHONPATH": str(plain_backend),
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=30)
    assert "value" in (home / "plain.json").read_text()


def test_a_good_backend_is_found_in_a_chain(
    gnome_keyring: KeyringSession, plain_backend: Path, home: Path, state: Home
) -> None:
    """The chain prefers the plain-text backend (priority 20): it must be passed over."""
    config = home / ".config/python_keyring"
    config.mkdir(parents=True)
    (config / "keyringrc.cfg").write_text(
        f"[backend]\nkeyring-path={plain_backend}\ndefault-keyring=keyring.backends.chainer.ChainerBackend\n"
    )
    # Loaded at start-up, the plain-text backend registers itself and joins the chain.
    (plain_backend / "sitecustomize.py").write_text("import plainfile\n")
    done = _grant(PYTHONPATH=str(plain_backend))
    assert done.returncode == 0, done.stderr
    assert len(gnome_keyring.entries()) == 1
    assert not (home / "plain.json").exists()
    assert open_vault(state).store("anthropic") == "keyring"


def test_no_bus_at_all(home: Path) -> None:
    done = _grant()
    assert done.returncode == 3
    assert "no OS keyring answers here" in done.stderr
    assert "MOAT_KEYRING_BACKEND=file" in done.stderr
    assert traces(SECRET, home) == []


def test_a_keyring_that_forgets_fails_the_probe() -> None:
    from moat.vault.oskeyring import _probe

    class Forgetful:
        def set_password(self, *arguments: str) -> None: ...
        def get_password(self, *arguments: str) -> None: ...
        def delete_password(self, *arguments: str) -> None: ...

    with pytest.raises(VaultError, match="did not return what was written"):
        _probe(Forgetful())


def test_an_error_of_a_backend_cannot_quote_the_secret() -> None:
    def loud(secret: str) -> None:
        raise RuntimeError(f"cannot store {secret}")

    with pytest.raises(VaultError) as caught:
        call(loud, SECRET, deadline=5)
    error: BaseException | None = caught.value
    assert SECRET not in f"{error} {error!r} {caught.value.hint}"
    assert error is not None
    assert error.__suppress_context__


def test_what_passes_is_tried_again_and_what_does_not_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The errors are the ones seen when gnome-keyring was asked by several processes under load (busykeyring)."""
    from keyring.errors import InitError, KeyringLocked
    from secretstorage import exceptions

    from moat.vault import busykeyring

    monkeypatch.setattr(busykeyring, "PAUSES", (0.0, 0.0))
    asked: list[str] = []

    def failing(error: BaseException, times: int) -> str:
        asked.append(type(error).__name__)
        if len(asked) <= times:
            raise error
        return "the secret"

    gone = exceptions.SecretServiceNotAvailableException("disconnected without replying")
    no_collection = InitError("Failed to create the collection")
    no_collection.__cause__ = gone
    for error in (gone, no_collection, exceptions.ItemNotFoundException(), TimeoutError()):
        asked.clear()
        assert call(failing, error, 2, deadline=5) == "the secret"
        asked.clear()
        with pytest.raises(VaultError, match="the OS keyring"):
            call(failing, error, 9, deadline=5)
        assert len(asked) == 3  # and no more: a service that is absent is told
    for error in (exceptions.PromptDismissedException(), KeyringLocked(), RuntimeError()):
        asked.clear()
        with pytest.raises(VaultError):
            call(failing, error, 9, deadline=5)
        assert len(asked) == 1  # nobody is asked twice to unlock it
