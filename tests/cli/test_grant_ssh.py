"""`moat grant ssh`: which key, for which host, and what is said when that is not enough."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from moat.paths import Home
from moat.vault import open_vault
from moat.vault.ssh import SshGrant
from tests.ssh.world import agent, make_key, run

Moat = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dot_ssh(home: Path) -> Path:
    """A ~/.ssh that knows github.com and git.example.com on port 2222."""
    path = home / ".ssh"
    path.mkdir(mode=0o700)
    host = make_key(path.parent / "host_key")
    key = " ".join(Path(f"{host}.pub").read_text().split()[:2])
    (path / "known_hosts").write_text(f"github.com {key}\n[git.example.com]:2222 {key}\n")
    return path


@pytest.fixture
def short() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mg-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def fingerprint(key: Path) -> str:
    return run("ssh-keygen", "-lf", str(key)).split()[1]


def stored(name: str = "ssh:github.com") -> SshGrant:
    return SshGrant.of(open_vault(Home.from_environment()).info(name))


def test_a_key_file(moat: Moat, dot_ssh: Path) -> None:
    key = make_key(dot_ssh / "work", comment="me@work")
    done = moat("grant", "ssh", "--host", "github.com", "--key", str(key))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"SSH to github.com granted with {fingerprint(key)} ed25519 me@work\n"
        "Use it with: moat run --grant ssh:github.com -- ssh -T git@github.com\n"
    )
    grant = stored()
    assert (grant.hostname, grant.port, grant.user, grant.key_path) == ("github.com", 22, "", str(key))
    index = (Home.from_environment().credentials / "index.json").read_text()
    assert "PRIVATE" not in index
    assert grant.fingerprint == fingerprint(key)


def test_no_store_is_touched(moat: Moat, dot_ssh: Path, home: Path) -> None:
    """Nothing is secret, so neither a keyring nor a passphrase is asked for: this machine has neither."""
    key = make_key(dot_ssh / "work")
    assert moat("grant", "ssh", "--host", "github.com", "--key", str(key)).returncode == 0
    assert [path.name for path in (home / ".moat/credentials").iterdir() if path.suffix == ".enc"] == []


def test_list_show_json_and_revoke(moat: Moat, dot_ssh: Path) -> None:
    key = make_key(dot_ssh / "work")
    done = moat("grant", "ssh", "--host", "github.com", "--key", str(key), "--json")
    told = json.loads(done.stdout)
    assert (told["name"], told["kind"], told["store"]) == ("ssh:github.com", "ssh-key", None)
    assert told["metadata"]["fingerprint"] == fingerprint(key)
    assert moat("grant", "ssh", "--host", "git.example.com", "--key", str(key)).returncode != 0  # port 22
    rows = moat("grant", "list").stdout.splitlines()
    assert rows[1].split()[:3] == ["ssh:github.com", "ssh-key", "-"]
    (listed,) = json.loads(moat("grant", "list", "--json").stdout)
    assert listed["hosts"] == ["github.com:22"]
    shown = moat("grant", "show", "ssh:github.com").stdout
    assert fingerprint(key) in shown
    assert f"key path:    {key}" in shown
    assert "ssh" in moat("grant", "providers").stdout
    done = moat("revoke", "ssh:github.com")
    assert done.returncode == 0
    assert done.stdout.startswith("ssh:github.com removed from ")
    assert key.exists(), "the key itself is the user's"
    assert moat("revoke", "ssh:github.com").returncode == 3


def test_the_short_form(moat: Moat, dot_ssh: Path) -> None:
    key = make_key(dot_ssh / "work")
    assert moat("grant", "ssh:github.com", "--key", str(key)).returncode == 0
    assert stored().host == "github.com"


def test_the_key_that_ssh_would_use(moat: Moat, dot_ssh: Path) -> None:
    """Without an agent and without --key: ~/.ssh/config, else the default names."""
    default, named = make_key(dot_ssh / "id_ed25519"), make_key(dot_ssh / "named")
    assert moat("grant", "ssh", "--host", "github.com").returncode == 0
    assert stored().fingerprint == fingerprint(default)
    (dot_ssh / "config").write_text(
        f"Host gh\n  HostName GitHub.com\n  User git\n  IdentityFile {named}\n"
        "Host git.example.com\n  Port 2222\n  User deploy\n"
    )
    done = moat("grant", "ssh", "--host", "gh")
    assert done.returncode == 0, done.stderr
    assert "ssh -T git@gh" in done.stdout
    grant = stored("ssh:gh")
    assert (grant.host, grant.hostname, grant.user, grant.known_as) == (
        "gh",
        "github.com",
        "git",
        "github.com",
    )
    assert grant.fingerprint == fingerprint(named)
    assert moat("grant", "ssh", "--host", "git.example.com").returncode == 0
    grant = stored("ssh:git.example.com")
    assert (grant.port, grant.user, grant.known_as) == (2222, "deploy", "[git.example.com]:2222")


def test_keys_of_the_agent(moat: Moat, dot_ssh: Path, short: Path) -> None:
    one, two = make_key(dot_ssh / "one"), make_key(dot_ssh / "two", "rsa")
    with agent(short, one, two) as path:
        environment = os.environ | {"SSH_AUTH_SOCK": path}
        two.unlink()
        chosen = moat(
            "grant", "ssh", "--host", "github.com", "--key", fingerprint(Path(f"{two}.pub")), env=environment
        )
        assert chosen.returncode == 0, chosen.stderr
        assert (stored().fingerprint, stored().key_path) == (fingerprint(Path(f"{two}.pub")), "")
        several = moat("grant", "ssh", "--host", "github.com", env=environment)
        assert several.returncode == 2
        assert "holds several keys, and there is no terminal" in several.stderr
        assert f"--key {fingerprint(one)}" in several.stderr
        nobody = moat("grant", "ssh", "--host", "github.com", "--key", "SHA256:nothing", env=environment)
        assert nobody.returncode == 2
        assert fingerprint(one) in nobody.stderr, "what there is"
    gone = moat("run", "--grant", "ssh:github.com", "--", "true", env=environment)
    assert gone.returncode == 3
    assert "the key of ssh:github.com" in gone.stderr
    assert "ssh-add" in gone.stderr


def test_the_agent_of_the_config(moat: Moat, dot_ssh: Path, short: Path) -> None:
    """IdentityAgent: how password managers offer their keys."""
    key = make_key(dot_ssh / "one")
    with agent(short, key) as path:
        key.unlink()
        (dot_ssh / "config").write_text(f"Host *\n  IdentityAgent {path}\n")
        done = moat("grant", "ssh", "--host", "github.com")
        assert done.returncode == 0, done.stderr
        assert stored().agent == path


def test_the_menu(moat_bin: str, dot_ssh: Path, short: Path, tmp_path: Path) -> None:
    one, two = make_key(dot_ssh / "one", comment="at home"), make_key(dot_ssh / "two", comment="at work")
    with agent(short, one, two) as path:
        environment = os.environ | {"SSH_AUTH_SOCK": path, "TERM": "xterm-256color"}
        argv = ["grant", "ssh", "--host", "github.com"]
        with pexpect.spawn(moat_bin, argv, env=environment, dimensions=(40, 120), timeout=20) as terminal:
            terminal.expect_exact("Which key may runs use?")
            terminal.expect_exact(f"1. {fingerprint(one)} ed25519 at home")
            terminal.expect_exact(f"2. {fingerprint(two)} ed25519 at work")
            terminal.expect_exact("[1-2]:")
            time.sleep(0.2)
            terminal.send("7\r")
            terminal.expect_exact("Please enter 1 or 2.")
            time.sleep(0.2)
            terminal.send("2\r")
            terminal.expect_exact(f"granted with {fingerprint(two)}")
            terminal.expect(pexpect.EOF)
    assert stored().fingerprint == fingerprint(two)


def test_an_encrypted_key_needs_an_agent(moat: Moat, dot_ssh: Path, short: Path) -> None:
    key = make_key(dot_ssh / "id_ed25519", passphrase="secret")
    done = moat("grant", "ssh", "--host", "github.com")
    assert done.returncode == 3
    assert "is encrypted" in done.stderr
    assert f"moat: hint: run `ssh-add {key}`" in done.stderr
    assert json.loads(moat("grant", "list", "--json").stdout) == []
    with agent(short) as path:
        environment = os.environ | {"SSH_AUTH_SOCK": path, "SSH_ASKPASS_REQUIRE": "force"}
        askpass = short / "askpass"
        askpass.write_text("#!/bin/sh\necho secret\n")
        askpass.chmod(0o700)
        run("ssh-add", "-q", str(key), env=environment | {"SSH_ASKPASS": str(askpass)})
        done = moat("grant", "ssh", "--host", "github.com", env=environment)
        assert done.returncode == 0, done.stderr
        assert stored().fingerprint == fingerprint(key)


def test_a_host_that_is_not_known(moat: Moat, dot_ssh: Path) -> None:
    make_key(dot_ssh / "id_ed25519")
    done = moat("grant", "ssh", "--host", "gitlab.com")
    assert done.returncode == 3
    assert "no host key of gitlab.com is known (looked in " in done.stderr
    assert "moat: hint: connect once with `ssh git@gitlab.com`, and compare the fingerprint" in done.stderr
    (dot_ssh / "known_hosts").write_text(
        f"@cert-authority gitlab.com {(dot_ssh.parent / 'host_key.pub').read_text()}"
    )
    done = moat("grant", "ssh", "--host", "gitlab.com")
    assert done.returncode == 0, done.stderr


def test_a_host_that_has_become_unknown_stops_the_run(moat: Moat, dot_ssh: Path) -> None:
    key = make_key(dot_ssh / "id_ed25519")
    assert moat("grant", "ssh", "--host", "github.com", "--key", str(key)).returncode == 0
    (dot_ssh / "known_hosts").unlink()
    done = moat("run", "--runtime", "embedded", "--grant", "ssh:github.com", "--", "true")
    assert done.returncode == 3
    assert "no host key of github.com is known" in done.stderr


@pytest.mark.embedded
def test_an_endpoint_at_a_port_that_leads_out_for_ssh_is_refused(moat: Moat, dot_ssh: Path) -> None:
    """Behind it is the run's proxy. Seen to fail with `_check_ports` empty: the run starts."""
    key = make_key(dot_ssh / "id_ed25519")
    assert moat("grant", "ssh", "--host", "github.com", "--key", str(key)).returncode == 0
    words = ("--runtime", "embedded", "--grant", "ssh:github.com", "--port", "web=22", "--", "true")
    done = moat("run", *words)
    assert done.returncode == 2, done.stderr
    assert "an endpoint at port 22, which leads out of the sandbox for an ssh grant" in done.stderr
    assert "moat: hint: let the server listen on another port" in done.stderr


@pytest.mark.parametrize(
    ("argv", "config", "status", "told"),
    [
        (["--host", "192.0.2.1"], "", 2, "is an address, which a sandbox has no route to"),
        (["--host", "-oProxyCommand=x"], "", 2, ""),
        (["--host=-oProxyCommand=x"], "", 2, "is not a host"),
        (["--host", "a b"], "", 2, "is not a host"),
        ([], "", 2, "--host"),
        (
            ["--host", "github.com"],
            "Host github.com\n ProxyJump a.example\n",
            3,
            "through another host (proxyjump",
        ),
        (["--host", "github.com"], "Host *\n ProxyCommand nc %h %p\n", 3, "through a command (proxycommand"),
        (["--host", "github.com"], "nonsense\n", 3, "`ssh -G github.com` failed"),
        (["--host", "github.com", "--key", "missing"], "", 2, "no such file"),
        (["--host", "github.com", "--key", "~/.ssh/known_hosts"], "", 3, "is not a key"),
        (["--host", "github.com"], "", 3, "no SSH key was found"),
    ],
)
def test_what_cannot_be_granted(
    argv: list[str], config: str, status: int, told: str, *, moat: Moat, dot_ssh: Path
) -> None:
    if config:
        (dot_ssh / "config").write_text(config)
    done = moat("grant", "ssh", *argv)
    assert (done.returncode, told in done.stderr) == (status, True), done.stderr
    assert json.loads(moat("grant", "list", "--json").stdout) == []


def test_missing_grants_are_told_with_their_command(moat: Moat, dot_ssh: Path) -> None:
    done = moat("run", "-g", "ssh:github.com", "-g", "ssh:gitlab.com", "-g", "github", "--", "true")
    assert done.returncode == 3
    for line in (
        "error: missing grant: ssh:github.com",
        "error: missing grant: ssh:gitlab.com",
        "hint: run `moat grant ssh --host github.com`",
        "hint: run `moat grant ssh --host gitlab.com`",
        "hint: run `moat grant github`",
    ):
        assert f"moat: {line}" in done.stderr


@pytest.mark.parametrize(
    ("grant", "told"), [("ssh", "ssh needs a host: ssh:<host>"), ("github:x", "did you mean `github`?")]
)
def test_a_grant_with_the_wrong_scope(grant: str, told: str, moat: Moat) -> None:
    done = moat("run", "-g", grant, "--", "true")
    assert done.returncode == 3
    assert told in done.stderr


def test_no_path_of_another_home_is_read(moat: Moat, dot_ssh: Path) -> None:
    """Ssh itself takes the password database's home; a HOME that was moved counts here, as for git."""
    make_key(dot_ssh / "id_ed25519")
    assert moat("grant", "ssh", "--host", "github.com").returncode == 0
    theirs = pwd.getpwuid(os.getuid()).pw_dir
    assert not any(path.startswith(f"{theirs}/") for path in stored().known_hosts)
