"""`moat vault export` and `import`: a file that age itself can open, and nobody without the key.

Seen to fail: with the names of `here` not asked an import replaces what the user has; without the look at commands a
file from somebody else decides what is run on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from moat.cli.vault import _objection
from moat.errors import VaultError
from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.paths import Home
from moat.vault import Vault, open_vault
from moat.vault.export import Exported, seal, unseal
from moat.vault.key import NewKey
from moat.vault.origin import Origin
from tests.vault.conftest import NOW, Make, make, traces
from tests.vault.dying import dying

Moat = Callable[..., subprocess.CompletedProcess[str]]
SECRET = "ghp_EXPORTED-0123456789"
__all__ = ["make"]  # a fixture of the vault's


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Make) -> Vault:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "key"))
    found = open_vault(Home.from_environment(), new_key=lambda: NewKey(key_file=tmp_path / "key"))
    found.put(make(name="github", secret=SECRET, login="octo"))
    elsewhere = Origin.command("cat /kept").metadata
    found.note(CredentialInfo("linear", CredentialKind.TOKEN, ("api.linear.app",), NOW, None, elsewhere))
    return found


def another_machine(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"MOAT_HOME": str(tmp_path / "other"), "MOAT_KEY_FILE": str(tmp_path / "other-key")}


def test_age_opens_it_and_so_does_the_other_machine(
    moat: Moat, vault: Vault, home: Path, tmp_path: Path
) -> None:
    key, file = tmp_path / "age.key", tmp_path / "credentials.age"
    subprocess.run(["age-keygen", "-o", key], check=True, capture_output=True)
    recipient = subprocess.run(
        ["age-keygen", "-y", key], check=True, capture_output=True, text=True
    ).stdout.strip()
    done = moat("vault", "export", str(file), "--recipient", recipient)
    assert (done.returncode, done.stdout) == (0, f"2 credentials in {file}: github, linear\n"), done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert traces(SECRET, home, tmp_path) == []
    opened = subprocess.run(["age", "-d", "-i", key, file], check=True, capture_output=True, text=True).stdout
    assert [row["secret"] for row in json.loads(opened)["credentials"]] == [SECRET, None]
    assert moat("vault", "export", str(file), "-r", recipient).stderr.startswith(
        f"moat: error: {file} exists already"
    )

    there = another_machine(tmp_path)
    taken = moat("vault", "import", str(file), "-i", str(key), env=there)
    assert (taken.returncode, taken.stdout) == (0, "github imported\n"), taken.stderr
    assert (
        "linear left out: it would run a command on this machine, for api.linear.app (--sources): cat /kept"
        in taken.stderr
    )
    assert traces(SECRET, tmp_path / "other") == []
    again = json.loads(
        moat("vault", "import", str(file), "-i", str(key), "--sources", "--json", env=there).stdout
    )
    assert again == {"imported": ["linear"], "left": {"github": "it is granted here already (--replace)"}}
    shown = json.loads(moat("grant", "show", "github", "--json", env=there).stdout)
    assert (shown["store"], shown["hosts"], shown["metadata"]) == (
        "file",
        ["api.anthropic.com"],
        {"login": "octo"},
    )


def test_a_passphrase_through_a_pipe(moat: Moat, vault: Vault, tmp_path: Path) -> None:
    file = tmp_path / "credentials.age"
    (tmp_path / "right").write_text("correct horse\n")
    (tmp_path / "wrong").write_text("battery staple\n")
    with (tmp_path / "right").open() as right:
        fd = right.fileno()
        done = moat("vault", "export", "-", "--passphrase-fd", str(fd), pass_fds=[fd], text=False)
    assert done.returncode == 0, done.stderr
    file.write_bytes(done.stdout)
    for name, status, said in (("wrong", 3, "cannot be opened: another key or passphrase"), ("right", 0, "")):
        with (tmp_path / name).open() as passphrase:
            fd = passphrase.fileno()
            taken = moat(
                *("vault", "import", str(file), "--passphrase-fd", str(fd)),
                pass_fds=[fd],
                env=another_machine(tmp_path),
            )
        assert (taken.returncode, said in taken.stderr) == (status, True), taken.stderr
        assert "horse" not in taken.stderr + taken.stdout
    for words in (("export", str(tmp_path / "x")), ("import", str(file))):
        asked = moat("vault", *words)
        assert (asked.returncode, "no terminal to ask for the passphrase" in asked.stderr) == (2, True)
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_not_right_changes_nothing(moat: Moat, vault: Vault, tmp_path: Path) -> None:
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    key = Secret(str(identity))
    whole = seal([Exported(vault.info("github"), Secret(SECRET))], (str(identity.to_public()),))
    assert unseal(whole, key, identity=True)[0].secret == Secret(SECRET)
    (tmp_path / "key.txt").write_text(f"# a comment\n{identity}\n")
    flipped = bytearray(whole)
    flipped[-20] ^= 1
    other = pyrage.encrypt(b'{"format": "moat-credentials/2", "credentials": []}', [identity.to_public()])
    for data, message in [
        (whole[:-30], "cannot be opened"),
        (bytes(flipped), "cannot be opened"),
        (b"", "cannot be opened"),
        (b"nonsense", "cannot be opened"),
        (other, "holds no credentials of Moat"),
    ]:
        (tmp_path / "file").write_bytes(data)
        done = moat("vault", "import", str(tmp_path / "file"), "-i", str(tmp_path / "key.txt"), "--replace")
        assert (done.returncode, message in done.stderr) == (3, True), done.stderr
        assert "Traceback" not in done.stderr
    assert vault.get("github").secret == Secret(SECRET)
    (tmp_path / "none.txt").write_text("AGE-SECRET-KEY-1BROKEN\n")
    done = moat("vault", "import", str(tmp_path / "file"), "-i", str(tmp_path / "none.txt"))
    assert (done.returncode, "names no key that can be used" in done.stderr) == (2, True)
    done = moat("vault", "export", str(tmp_path / "y"), "-r", "age1nonsense")
    assert (done.returncode, "is no public key" in done.stderr) == (2, True)
    assert not (tmp_path / "y").exists()


ROW = {"name": "linear", "kind": "token", "hosts": ["api.linear.app"], "created_at": "2026-01-01T00:00:00Z",
       "expires_at": None, "metadata": {}, "secret": "x"}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"created_at": "0001-01-01T00:00:00+23:59"}, "holds no credentials of Moat"),
        ({"expires_at": "9999-12-31T23:59:59-23:59"}, "holds no credentials of Moat"),
        ({"metadata": {"from": "env://X"}}, "is damaged"),
        ({"metadata": {"from": "env://X", "ttl": "x"}}, "is damaged"),
        (None, "holds no credentials of Moat"),
    ],
    ids=["before", "after", "unsaid", "wrong", "deep"],
)
def test_rows_that_no_export_writes_are_told(row: dict[str, object] | None, problem: str) -> None:
    """Who has a public key can make a file for it. Seen failing: tracebacks, after other rows were stored."""
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    text = {"format": "moat-credentials/1", "credentials": [{**ROW, **(row or {})}]}
    data = json.dumps(text).encode() if row is not None else b"[" * 100_000
    sealed = pyrage.encrypt(data, [identity.to_public()])
    options = argparse.Namespace(replace=True, sources=True)
    try:
        (found,) = unseal(sealed, Secret(str(identity)), identity=True)
        told = _objection(found.info, (), options)
    except VaultError as error:
        told = str(error)
    assert problem in told


def test_a_full_disk_leaves_no_half_a_file(moat_bin: str, vault: Vault, tmp_path: Path) -> None:
    del vault
    import pyrage

    recipient = str(pyrage.x25519.Identity.generate().to_public())
    done = subprocess.run(
        ["sh", "-c", f"ulimit -f 0; exec {moat_bin} vault export {tmp_path}/full.age -r {recipient}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert done.stderr.startswith("moat: error: File too large"), done.stderr
    assert not (tmp_path / "full.age").exists()


def test_killed_at_any_step_no_file_is_half_and_no_credential_lost(
    vault: Vault, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail with the file written in its place, and with an import that removes before it stores."""
    import pyrage

    identity, file = pyrage.x25519.Identity.generate(), tmp_path / "all.age"
    key = tmp_path / "key.txt"
    key.write_text(str(identity))
    with dying("fdopen", "fsync") as dies:
        for step in count(1):
            done = not dies(step, "moat", "export", str(file), "-r", str(identity.to_public()))
            if file.exists():
                assert len(unseal(file.read_bytes(), Secret(str(identity)), identity=True)) == 2
            if done:
                break
            file.unlink(missing_ok=True)
    assert step >= 3
    vault.put(Credential(vault.info("github"), Secret("ghp_MEANWHILE")))
    with dying() as dies:
        for step in count(1):
            done = not dies(step, "moat", "import", str(file), "-i", str(key), "--replace", "--sources")
            now = open_vault(Home.from_environment())
            assert now.get("github").secret.reveal() in ({SECRET} if done else {SECRET, "ghp_MEANWHILE"})
            assert Origin.of(now.info("linear")) is not None
            if done:
                break
    assert step >= 5
    assert traces(SECRET, home, tmp_path) == []


@pytest.mark.parametrize("reference", ["env://AWS_SECRET_ACCESS_KEY", "op://Private/github/token"])
def test_what_this_machine_would_give_is_held_back(reference: str) -> None:
    """Seen to fail with commands held back alone: the sender's own host would get a variable of the receiver's."""
    origin = Origin.reference(reference).metadata
    info = CredentialInfo("linear", CredentialKind.TOKEN, ("evil.example",), NOW, None, origin)
    for sources, reason in ((False, "for evil.example (--sources)"), (True, "")):
        options = argparse.Namespace(replace=False, sources=sources)
        assert reason in _objection(info, (), options)
        assert bool(_objection(info, (), options)) is not sources
