"""The vault as a whole: crashes, two processes at once, the credential source of a live run."""

from __future__ import annotations

import datetime as dt
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import count
from pathlib import Path

import anyio
import pytest

from moat.errors import GrantError, VaultError
from moat.grants import CredentialKind
from moat.paths import Home
from moat.vault import open_vault
from moat.vault.index import read_index, timestamp
from tests.vault.conftest import Make
from tests.vault.dying import dying
from tests.vault.keyring_session import LEAVES_CONNECTIONS, KeyringSession

SECRET = "sk-ant-api03-STORESECRET"


def run(code: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *argv],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_listing_and_info_need_neither_keyring_nor_cryptography(sealed: Home, make: Make) -> None:
    open_vault(sealed).put(make())
    done = run("""
        import sys
        from moat.paths import Home
        from moat.vault import open_vault
        vault = open_vault(Home.from_environment())
        print(vault.list()[0].name, vault.info("claude").kind, vault.store("anthropic"))
        heavy = {"keyring", "cryptography", "secretstorage", "aiohttp", "anyio", "asyncio", "prompt_toolkit"}
        print(sorted(heavy & sys.modules.keys()))
    """)
    assert done.stdout.splitlines() == ["anthropic api-key file", "[]"], done.stderr


def test_opening_and_listing_write_nothing(state: Home) -> None:
    vault = open_vault(state)
    assert vault.list() == ()
    assert vault.handoff() == b""
    assert not state.root.exists()


def test_names_are_canonical(sealed: Home, make: Make) -> None:
    vault = open_vault(sealed)
    vault.put(make(name="claude"))
    assert [info.name for info in vault.list()] == ["anthropic"]
    assert vault.get("claude") == vault.get("anthropic") == make(name="anthropic")
    vault.put(make(name="ssh:github.com"))
    assert (sealed.credentials / "ssh:github.com.enc").is_file()
    assert vault.delete("ssh:github.com").name == "ssh:github.com"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "UPPER", "ssh:../x", "a b", "ssh:", "a\n"])
def test_names_cannot_be_paths(sealed: Home, make: Make, name: str) -> None:
    with pytest.raises(GrantError, match="is not a grant name"):
        open_vault(sealed).put(make(name=name))
    assert not sealed.credentials.exists() or sorted(sealed.credentials.rglob("*.enc")) == []


def test_missing_names_the_command(sealed: Home) -> None:
    for attempt in (open_vault(sealed).get, open_vault(sealed).info, open_vault(sealed).delete):
        with pytest.raises(GrantError, match="no credential 'anthropic'") as caught:
            attempt("claude")
        assert caught.value.hint == "run `moat grant anthropic`"


def test_index_keeps_everything_but_the_secret(sealed: Home, make: Make) -> None:
    when = dt.datetime(2026, 2, 15, 10, 30, tzinfo=dt.UTC)
    credential = make(
        kind=CredentialKind.OAUTH, secret=SECRET, expires_at=when, subscription="claude_pro", scopes="a b"
    )
    open_vault(sealed).put(credential)
    assert open_vault(sealed).info("anthropic") == credential.info
    text = (sealed.credentials / "index.json").read_text()
    assert SECRET not in text
    (entry,) = json.loads(text)["credentials"]
    assert entry["expires_at"] == timestamp(when) == "2026-02-15T10:30:00Z"
    assert entry["hosts"] == ["api.anthropic.com"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"version": 1}', b'{"version": 1, "credentials": [{}]}', b"\xff"]
)
def test_a_damaged_index_is_told(state: Home, content: bytes) -> None:
    state.credentials.mkdir(parents=True)
    (state.credentials / "index.json").write_bytes(content)
    with pytest.raises(VaultError, match="is damaged"):
        open_vault(state).list()


def test_an_index_of_the_future_is_left_alone(sealed: Home, make: Make) -> None:
    sealed.credentials.mkdir(parents=True)
    (sealed.credentials / "index.json").write_text('{"version": 2}')
    with pytest.raises(VaultError, match="newer moat"):
        open_vault(sealed).put(make())
    assert (sealed.credentials / "index.json").read_text() == '{"version": 2}'


@pytest.mark.parametrize("opened", [True, False])
def test_a_crash_writes_no_core(sealed: Home, make: Make, opened: bool) -> None:
    """Of a shell that wants cores. A process without the vault shows that it would: then the kernel says so.

    That a limit of 1 keeps a piped `core_pattern` quiet, and 0 does not, was tried in a virtual machine (Linux 6.1).
    """
    open_vault(sealed).put(make())
    script = f"""
import os, resource, sys
try:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
except ValueError:
    sys.exit(3)
if {opened}:
    from moat.paths import Home
    from moat.vault import open_vault
    open_vault(Home.from_environment()).get("anthropic")
    if resource.getrlimit(resource.RLIMIT_CORE)[0] != 1:
        sys.exit("a program that gathers crashes would get the secret")
os.chdir({str(sealed.root)!r})
os.abort()
"""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", script], os.environ)
    status = os.waitpid(pid, 0)[1]
    if os.waitstatus_to_exitcode(status) == 3:
        pytest.skip("nobody may write a core here: sudo's limit is 0, and this root may not raise it")
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert os.WCOREDUMP(status) is not opened
    for core in sealed.root.glob("core*"):
        core.unlink()


def test_nothing_shows_the_secret(sealed: Home, make: Make) -> None:
    vault = open_vault(sealed)
    vault.put(make(secret=SECRET))
    credential = vault.get("anthropic")
    for text in (repr(credential), str(credential), f"{credential.secret}", repr(vars(vault)), repr(vault)):
        assert SECRET not in text
    with pytest.raises(TypeError):
        pickle.dumps(credential)


# Crashes: the process dies between any two steps of a change.


@pytest.mark.parametrize("store", ["file", "keyring"])
def test_a_crash_while_replacing_leaves_the_old_or_the_new(
    store: str, request: pytest.FixtureRequest, make: Make
) -> None:
    """Whole and with its own info; and the next change removes what the crash left."""
    home, session = _stored_in(store, request)
    vault, seen = open_vault(home), []
    with dying() as dies:
        for step in count(1):
            vault.put(make(secret="old"))
            if not dies(step, "put"):
                break
            found = open_vault(home).get("anthropic")
            assert found.info == open_vault(home).info("anthropic")
            kind = {"old": CredentialKind.API_KEY, "new": CredentialKind.OAUTH}[found.secret.reveal()]
            assert found.info.kind is kind
            seen.append(found.secret.reveal())
    assert seen == sorted(seen, reverse=True)  # all old before the commit, all new after it
    assert set(seen) == {"old", "new"}
    assert len(seen) >= 4
    open_vault(home).put(make(secret="last"))
    _clean(home, session)


def _stored_in(store: str, request: pytest.FixtureRequest) -> tuple[Home, KeyringSession | None]:
    if store == "file":
        return request.getfixturevalue("sealed"), None
    return request.getfixturevalue("state"), request.getfixturevalue("gnome_keyring")


def _clean(home: Home, session: KeyringSession | None) -> None:
    assert read_index(home.credentials / "index.json").pending == ()
    if session is not None:
        assert len(session.entries()) == 1
    else:
        assert [path.name for path in home.credentials.glob("*.enc")] == ["anthropic.enc"]
        assert list(home.credentials.glob(".*.enc")) == []


@pytest.mark.parametrize("store", ["file", "keyring"])
def test_a_crash_while_granting_for_the_first_time(
    store: str, request: pytest.FixtureRequest, make: Make
) -> None:
    home, session = _stored_in(store, request)
    vault = open_vault(home)
    with dying() as dies:
        for step in count(1):
            if not dies(step, "put"):
                break
            for info in open_vault(home).list():
                assert open_vault(home).get(info.name).secret.reveal() == "new"
            vault.put(make(name="anthropic", secret="next"))
            _clean(home, session)
            vault.delete("anthropic")
    assert step >= 4


@pytest.mark.parametrize("store", ["file", "keyring"])
def test_a_crash_while_revoking(store: str, request: pytest.FixtureRequest, make: Make) -> None:
    home, session = _stored_in(store, request)
    vault = open_vault(home)
    with dying() as dies:
        for step in count(1):
            vault.put(make(secret="old"))
            if not dies(step, "delete", "anthropic"):
                break
            for info in open_vault(home).list():
                assert open_vault(home).get(info.name).secret.reveal() == "old"
    assert step >= 3
    vault.put(make(secret="last"))
    _clean(home, session)


# Several processes

MANY = """
    import sys
    import datetime as dt
    from moat.paths import Home
    from moat.grants import *
    from moat.vault import open_vault

    for number in range(4):
        name = f"mcp:{sys.argv[1]}{number}"
        info = CredentialInfo(name, CredentialKind.TOKEN, ("h.example",), dt.datetime.now(dt.UTC))
        open_vault(Home.from_environment()).put(Credential(info, Secret("secret of " + name)))
        info = CredentialInfo("anthropic", CredentialKind.TOKEN, ("h.example",), dt.datetime.now(dt.UTC))
        open_vault(Home.from_environment()).put(Credential(info, Secret("secret of " + sys.argv[1])))
"""


@LEAVES_CONNECTIONS
@pytest.mark.parametrize("store", ["file", "keyring"])
def test_processes_that_grant_at_once_lose_nothing(store: str, request: pytest.FixtureRequest) -> None:
    """Two of them write names of their own and fight for one; a third reads all the time."""
    home: Home = request.getfixturevalue("sealed" if store == "file" else "state")
    if store == "keyring":
        request.getfixturevalue("gnome_keyring")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(MANY), who], stderr=subprocess.PIPE, text=True
        )
        for who in "ab"
    ]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        for info in open_vault(home).list():
            open_vault(home).get(info.name)
            reads += 1
    assert [(writer.wait(), writer.communicate()[1]) for writer in writers] == [(0, ""), (0, "")]
    assert reads > 10
    vault = open_vault(home)
    names = {f"mcp:{who}{number}" for who in "ab" for number in range(4)}
    assert {info.name for info in vault.list()} == names | {"anthropic"}
    assert {vault.get(name).secret.reveal() for name in names} == {f"secret of {name}" for name in names}
    assert vault.get("anthropic").secret.reveal() in {"secret of a", "secret of b"}
    assert read_index(home.credentials / "index.json").pending == ()


def test_a_read_that_meets_a_new_grant_looks_again(
    sealed: Home, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index was read, then another process replaced the secret and removed the old one."""
    from moat.vault.sealed import SealedFiles

    open_vault(sealed).put(make(secret="old"))
    read = SealedFiles.read

    def overtaken(self: SealedFiles, *arguments: object) -> str:
        monkeypatch.setattr(SealedFiles, "read", read)
        open_vault(sealed).put(make(secret="new"))
        return read(self, *arguments)

    monkeypatch.setattr(SealedFiles, "read", overtaken)
    assert open_vault(sealed).get("anthropic").secret.reveal() == "new"


def test_two_first_grants_agree_on_one_key(state: Home, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found no key and made one, with the same passphrase: the later one takes over the earlier's."""
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_PASSPHRASE", "shared")
    first, second = open_vault(state), open_vault(state)
    first.prepare()
    second.prepare()
    first.put(make(secret="one"))
    second.put(make(name="github", secret="two"))
    vault = open_vault(state)
    assert vault.get("anthropic").secret.reveal() == "one"
    assert vault.get("github").secret.reveal() == "two"


def test_a_secret_that_moves_leaves_its_old_store(
    gnome_keyring: KeyringSession, state: Home, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_vault(state).put(make(secret="in the keyring"))
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(state.credentials / "key"))
    open_vault(state).put(make(secret="in a file"))
    assert gnome_keyring.entries() == {}
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "keyring")
    open_vault(state).put(make(secret="back"))
    assert list(state.credentials.glob("*.enc")) == []
    assert open_vault(state).get("anthropic").secret.reveal() == "back"


def test_both_stores_side_by_side(
    gnome_keyring: KeyringSession, state: Home, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each credential is read from where it is, whatever the environment says today."""
    open_vault(state).put(make(secret="in the keyring"))
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(state.credentials / "key"))
    open_vault(state).put(make(name="github", secret="in a file"))
    for choice in ("file", "keyring"):
        monkeypatch.setenv("MOAT_KEYRING_BACKEND", choice)
        assert open_vault(state).get("anthropic").secret.reveal() == "in the keyring"
        assert open_vault(state).get("github").secret.reveal() == "in a file"
    assert open_vault(state).handoff(["anthropic"]) == b""
    assert open_vault(state).handoff(["anthropic", "github"]) != b""


# A supervisor


def test_handoff_opens_without_asking(state: Home, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_PASSPHRASE", "right")
    open_vault(state).put(make(secret=SECRET))
    monkeypatch.delenv("MOAT_PASSPHRASE")
    asked = []

    def ask() -> str:
        asked.append(1)
        return "right"

    handoff = open_vault(state, passphrase=ask).handoff(["claude"])
    assert asked == [1]
    assert SECRET.encode() not in handoff
    vault = open_vault(state, passphrase=ask, handoff=handoff)
    with monkeypatch.context() as patch:
        patch.delattr("moat.vault.key.derive")  # nothing is derived again
        assert vault.get("anthropic").secret.reveal() == SECRET
    assert asked == [1]
    assert open_vault(state).handoff([]) == b""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_credential_source(sealed: Home, make: Make, backend: str) -> None:
    """Cached, and current: a new grant, a revoked one and an expired one count at once."""

    async def scenario() -> None:
        vault = open_vault(sealed)
        other = open_vault(sealed)
        other.put(make(secret="first"))
        assert (await vault.credential("anthropic")).secret.reveal() == "first"
        (sealed.credentials / "anthropic.enc").rename(sealed.credentials / "aside")
        assert (await vault.credential("anthropic")).secret.reveal() == "first"  # from memory
        (sealed.credentials / "aside").rename(sealed.credentials / "anthropic.enc")
        other.put(make(name="github"))  # the index changed, this credential did not
        assert (await vault.credential("anthropic")).secret.reveal() == "first"
        other.put(make(secret="second"))
        assert (await vault.credential("anthropic")).secret.reveal() == "second"
        past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
        other.put(make(secret="third", expires_at=past))
        with pytest.raises(GrantError, match="credential expired: anthropic") as caught:
            await vault.credential("anthropic")
        assert caught.value.hint == "run `moat grant anthropic`"
        other.delete("anthropic")
        with pytest.raises(GrantError, match="no credential 'anthropic'"):
            await vault.credential("anthropic")

    anyio.run(scenario, backend=backend)


def test_a_credential_expires_while_it_is_cached(sealed: Home, make: Make) -> None:
    async def scenario() -> None:
        vault = open_vault(sealed)
        vault.put(make(expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1.5)))
        await vault.credential("anthropic")
        await anyio.sleep(1.6)
        with pytest.raises(GrantError, match="credential expired"):
            await vault.credential("anthropic")

    anyio.run(scenario)


def test_many_requests_read_the_store_once(sealed: Home, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from moat.vault.sealed import SealedFiles

    open_vault(sealed).put(make(secret=SECRET))
    reads, read = [], SealedFiles.read

    def counted(self: SealedFiles, *arguments: object) -> str:
        reads.append(threading.get_ident())
        time.sleep(0.05)
        return read(self, *arguments)

    monkeypatch.setattr(SealedFiles, "read", counted)

    async def scenario() -> None:
        vault = open_vault(sealed)

        async def one() -> None:
            assert (await vault.credential("anthropic")).secret.reveal() == SECRET

        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(one)

    anyio.run(scenario)
    assert len(reads) == 1
    assert reads[0] != threading.get_ident()  # never in the loop's own thread


@LEAVES_CONNECTIONS
def test_the_loop_runs_on_while_a_keyring_is_silent(
    gnome_keyring: KeyringSession, state: Home, make: Make
) -> None:
    import signal

    open_vault(state).put(make())
    os.kill(gnome_keyring.daemon, signal.SIGSTOP)

    async def scenario() -> None:
        vault = open_vault(state)
        with anyio.move_on_after(1) as scope:
            await vault.credential("anthropic")
        assert scope.cancelled_caught

    started = time.monotonic()
    anyio.run(scenario)
    assert time.monotonic() - started < 10
    os.kill(gnome_keyring.daemon, signal.SIGCONT)


def test_a_copied_home_does_not_lose_files(sealed: Home, make: Make, tmp_path: Path) -> None:
    """A restored backup: another inode, another time, the same contents."""
    open_vault(sealed).put(make(secret=SECRET))
    shutil.copytree(sealed.root, tmp_path / "copy")
    shutil.rmtree(sealed.root)
    shutil.copytree(tmp_path / "copy", sealed.root)
    assert open_vault(sealed).get("anthropic").secret.reveal() == SECRET
