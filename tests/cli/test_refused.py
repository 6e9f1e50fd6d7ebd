"""Credentials that end, or are not taken any more: said before a run, while it lives, and after it failed.

Seen to fail: without `ExpiryPart` in `parts_of` the journal does not tell; with `Rejections.add` returning at
once the journal does not tell; without `tell_refused` the failed run ends without the command that helps; without
`Credentials._failed` nobody but the agent learns of a credential that was revoked.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moat.grants import Credential, CredentialInfo, CredentialKind, Secret
from moat.journal.entry import entries
from moat.paths import Home
from moat.runtime.rejected import refused
from moat.vault import open_vault
from moat.vault.expiry import span
from moat.vault.key import NewKey
from moat.vault.providers import entry
from tests.vault.vendor import Answer, Asked, Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]


def answer(asked: Asked) -> Answer:
    return {"api.linear.app": 401, "api.vercel.com": 403}.get(asked.host, 200), {}


@pytest.fixture
def ending(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendor]:
    """`linear` ends in ten minutes, `vercel` in three hours, `sentry` in three days."""
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "key"))
    vault = open_vault(Home.from_environment(), new_key=lambda: NewKey(key_file=tmp_path / "key"))
    now = dt.datetime.now(dt.UTC)
    for name, life in {"linear": 10, "vercel": 180, "sentry": 3 * 24 * 60}.items():
        ends = now + dt.timedelta(minutes=life)
        info = CredentialInfo(name, CredentialKind.TOKEN, entry(name).hosts, now, ends)
        vault.put(Credential(info, Secret(f"real-{name}")))
    hosts = ("api.linear.app", "api.vercel.com", "sentry.io")
    with vendor(tmp_path / "vendor", answer, *hosts) as server:
        server.config(home / ".moat", *hosts)
        yield server


@pytest.mark.embedded
def test_it_is_said_before_during_and_after(moat: Moat, ending: Vendor, home: Path) -> None:
    script = """
    for url in https://api.linear.app/graphql https://api.linear.app/x https://api.vercel.com/v2/user https://sentry.io/; do
      curl -sS -o /dev/null "$url"
    done
    sleep 1; exit $1
    """
    grants = ("--grant", "linear", "--grant", "vercel", "--grant", "sentry")
    command = ("run", "--runtime", "embedded", *grants, "--", "sh", "-c", script, "sh")
    failed = moat(*command, "7")
    assert failed.returncode == 7
    lines = failed.stderr.splitlines()
    soon = "moat: warning: the credential linear ends in 10 min: `moat grant linear`"
    # Before the run, and not again at once; three hours are less than a session.
    assert lines.count(soon) == 1
    assert lines.count("moat: warning: the credential vercel ends in 3 h: `moat grant vercel`") == 1
    assert "sentry" not in failed.stderr
    refusal = "moat: warning: api.linear.app does not take the credential linear (401): `moat grant linear`"
    assert lines.count(refusal) == 1  # of two requests
    assert lines[-4:] == [
        "moat: api.linear.app answered 401 to 2 requests with the credential linear: it is not valid there",
        "moat: api.vercel.com answered 403 to a request with the credential vercel: it may lack a permission",
        "moat: hint: moat grant linear",
        "moat: hint: moat grant vercel",
    ]
    (journal,) = home.glob(".moat/runs/*/journal.jsonl")
    told = [
        (e.event, e.data["grant"]) for e in entries(journal) if e.event in {"grant.ending", "grant.rejected"}
    ]
    assert sorted(told) == [("grant.ending", "linear"), ("grant.rejected", "linear")]

    # Who comes later is told as well, as after `moat run -d`.
    for later, status in (("logs", 0), ("attach", 3)):
        asked = moat(later, journal.parent.name)
        assert (asked.returncode, asked.stderr.splitlines()[:4]) == (status, lines[-4:])
    shown = moat("status").stdout
    assert re.search(r"^refused: +api.vercel.com answered 403 to a request", shown, re.MULTILINE)
    assert re.search(r"^fix: +moat grant linear$", shown, re.MULTILINE)

    name = json.loads(moat("status", "--json").stdout)["name"]
    hint = f"moat: hint: {name} had credentials refused: `moat status {name}`\n"
    assert moat("list").stderr == hint

    well = moat(*command, "0")
    assert well.returncode == 0
    assert "answered 401" not in well.stderr  # a run that went well needs no command
    assert "refused" not in moat("status").stdout
    assert moat("list").stderr == hint  # of the one before
    assert json.loads(moat("status", "--json").stdout)["refused"] == []


@pytest.mark.embedded
def test_one_that_is_revoked_is_told_once_and_asked_for_no_more(
    moat: Moat, moat_bin: str, ending: Vendor, tmp_path: Path
) -> None:
    """To the user once, to the agent with every request, to whoever looks later; a new one heals it."""
    script = """
    touch ready; while [ ! -e go ]; do sleep 0.1; done
    for n in 1 2 3; do curl -sS https://sentry.io/; done
    touch asked; while [ ! -e again ]; do sleep 0.1; done
    curl -sS -o /dev/null -w '%{http_code}' https://sentry.io/; exit 5
    """
    work = tmp_path / "work"
    work.mkdir()

    def appears(name: str) -> None:
        deadline = time.monotonic() + 40
        while not (work / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    argv = [moat_bin, "run", str(work), "--runtime", "embedded", "-g", "sentry", "--", "sh", "-c", script]
    # The shell of somebody who looks into crashes. sudo's limit is 0, which not every root may raise.
    cores = ["bash", "-c", 'ulimit -c unlimited 2> /dev/null; exec "$@"', "-", *argv]
    with subprocess.Popen(cores, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        appears("ready")
        limits = Path(f"/proc/{json.loads(moat('status', '--json').stdout)['pid']}/limits").read_text()
        assert re.search("^Max core file size +[01] ", limits, re.MULTILINE)  # of the run's owner
        assert moat("revoke", "sentry").returncode == 0
        (work / "go").touch()
        appears("asked")
        (now,) = [line for line in moat("status").stdout.splitlines() if line.startswith("refused")]
        assert now.endswith("the credential sentry could not be had: no credential 'sentry'")
        moat("grant", "sentry", "--token-stdin", "--no-validate", input="another-one")
        (work / "again").touch()
        out, err = run.communicate(timeout=60)
    assert run.returncode == 5
    assert out.count('"hint": "run `moat grant sentry`"') == 3
    assert out.endswith("200")
    assert (
        err.count("requests with the credential sentry fail: no credential 'sentry': `moat grant sentry`")
        == 1
    )
    assert len(ending.asked) == 1  # nothing went out without it
    assert "refused" not in moat("status").stdout  # it was had at last


def test_what_counts_as_refused() -> None:
    def record(status: int, **more: object) -> dict[str, object]:
        return {"url": "https://api.github.com/x", "status": status, "grants": ["github"], **more}

    records = [record(401), record(403), record(403), record(200), record(404)]
    records += [record(403, denial={"code": "policy"}), {"url": "https://x/", "status": 401}]
    assert refused(json.loads(json.dumps(records))) == {
        ("github", "api.github.com", 401): 1,
        ("github", "api.github.com", 403): 2,
    }


def test_a_span_is_short() -> None:
    spans = [span(dt.timedelta(minutes=minutes)) for minutes in (0.2, 12, 99, 100, 180, 3 * 24 * 60 + 1)]
    assert spans == ["1 min", "12 min", "99 min", "2 h", "3 h", "3 days"]
