"""The `docker` grant with skopeo and a real registry, whose tokens a service sells for the password."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.claude_world import RUNTIMES
from tests.fakes.registry import TokenService, registry
from tests.vault.vendor import Answer, Asked, Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
USER, PASSWORD = "octocat", "real-password-0123456789-ABCDEF"
IDENTITY = "real-identity-token-0123456789-ABCDEF"  # what `docker login` has got in place of the password
REAL, TOKENS = "registry.example.com", "auth.example.com"
PLAIN = "plain.example.com"  # takes the password itself, and shows it to whoever asks
ECHO, FILES = "echo.example.com", "files.example.com"  # shows its token, and redirects to files
FOREIGN, THIEF = "foreign.example.com", "thief.example.com"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
ECHOED = "echoed-token-0123456789-ABCDEFGHIJKLM"
SKOPEO = r"""
mkdir -p image && cd image
printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{}}' >config
sum=$(sha256sum config | cut -d' ' -f1); mv config $sum; printf 'Directory Transport Version: 1.1\n' >version
printf '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"application/vnd.docker.container.image.v1+json","size":%s,"digest":"sha256:%s"},"layers":[]}' \
  "$(stat -c %s $sum)" $sum >manifest.json
cd ..; export HOME=/tmp
copy() { skopeo --insecure-policy copy --quiet "$@" 2>&1; }
echo "push: $(copy dir:image docker://registry.example.com/acme/one:v1 && echo done)"
echo "again: $(copy docker://registry.example.com/acme/one:v1 docker://registry.example.com/acme/two:v1 && echo done)"
echo "pull: $(copy docker://registry.example.com/acme/two:v1 dir:back && cat back/$sum)"
echo "tags: $(skopeo list-tags docker://registry.example.com/acme/one | tr -d ' \n')"
echo "delete: $(skopeo delete docker://registry.example.com/acme/one:v1 2>&1 && echo done)"
echo "denied: $(copy dir:image docker://registry.example.com/other/one:v1 | tr '\n' ' ')"
"""
SHELL = r"""
ask() { name=$1; shift; echo "$name: $(curl -sS "$@" 2>&1)"; }
ask ping -o /dev/null -w '%{http_code}' https://registry.example.com/v2/
ask unknown https://registry.example.com/v2/acme/none/tags/list
ask echo -H 'Authorization: Bearer mine' https://echo.example.com/v2/acme/x/manifests/v1
ask files -L https://echo.example.com/v2/acme/x/blobs/sha256:0
ask plain https://plain.example.com/v2/acme/x/tags/list
ask stranger https://thief.example.com/v2/acme/x/tags/list
ask token "https://auth.example.com/token?service=registry+of+the+tests&scope=repository:acme/one:pull"
env; find ~ /tmp -type f -exec cat {} + 2>/dev/null
true
"""


@dataclass
class World:
    tokens: TokenService
    server: Vendor

    def __call__(self, asked: Asked) -> Answer:
        sent = asked.headers.get("authorization", "")
        if asked.host == TOKENS:
            return self.tokens(asked)
        if asked.host == FOREIGN:
            return 401, {}, {"WWW-Authenticate": f'Bearer realm="https://{THIEF}/token",service="x"'}
        if asked.host == PLAIN:
            return (
                (200, {"sent": sent}) if sent == BASIC else (401, {}, {"WWW-Authenticate": 'Basic realm="x"'})
            )
        if asked.host == ECHO:
            return self._echo(asked, sent)
        return 200, {"sent": sent}

    def _echo(self, asked: Asked, sent: str) -> Answer:
        if asked.path.startswith("/token"):
            return (200, {"access_token": ECHOED}) if sent == BASIC else (401, {})
        if sent != f"Bearer {ECHOED}":
            return 401, {}, {"WWW-Authenticate": f'Bearer realm="https://{ECHO}/token"'}
        if "/blobs/" in asked.path:
            return 307, {}, {"Location": f"https://{FILES}/blob"}
        return 200, {"sent": sent}, {"X-Sent": sent}


@pytest.fixture
def world(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "key"))
    found = World(TokenService(USER, PASSWORD, IDENTITY), Vendor(lambda _: (500, {})))
    hosts = (TOKENS, PLAIN, ECHO, FILES, FOREIGN, THIEF, REAL)
    with vendor(tmp_path / "vendor", found, *hosts) as server:
        pem = tmp_path / "vendor/server.pem"
        with registry(tmp_path / "registry", found.tokens, f"https://{TOKENS}/token", pem) as port:
            server.config(home / ".moat", *hosts[:-1])
            with (home / ".moat/config.yaml").open("a") as file:
                file.write(f'    "{REAL}:443": "127.0.0.1:{port}"\n')
            found.server = server
            yield found


def grant(moat: Moat, host: str, *more: str) -> subprocess.CompletedProcess[str]:
    words = ("--host", host, "--username", USER, "--token-stdin", *more)
    return moat("grant", "docker", *words, input=PASSWORD + "\n")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_images_are_pushed_and_pulled_without_a_login_in_the_sandbox(
    moat: Moat, world: World, home: Path, tmp_path: Path, runtime: str
) -> None:
    """Seen to fail: without `InjectionRule.tokens` the registry gets the password as a token, and refuses it.

    `echo` shows the token when `carry_out` names no secrets.
    """
    refused = grant(moat, REAL)
    assert refused.returncode == 2, refused.stderr
    assert f"add --token-host {TOKENS}" in refused.stderr
    if runtime == "embedded":
        take_over_identity(moat, home)
    else:
        assert grant(moat, REAL, "--token-host", TOKENS).stdout.count(f"Authenticated as {USER}.") == 1
    for host in (PLAIN, ECHO):
        assert grant(moat, host).returncode == 0
    world.tokens.sold.clear()
    world.server.asked.clear()
    (tmp_path / "workspace" / "agent.yaml").write_text("dependencies: [curl]\n")
    script = SHELL + (SKOPEO if runtime == "embedded" else "")  # skopeo is on the host, not in the base image
    grants = [word for host in (REAL, PLAIN, ECHO) for word in ("--grant", f"docker:{host}")]
    done = moat("run", "--runtime", runtime, *grants, "--", "sh", "-c", script, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = (
        done.stdout
        + done.stderr
        + "".join(path.read_text() for path in home.glob(".moat/runs/*/network.jsonl"))
    )
    secrets = [
        PASSWORD,
        IDENTITY,
        BASIC.removeprefix("Basic ").rstrip("="),
        ECHOED,
        *(token for _, token in world.tokens.sold),
    ]
    assert not [secret for secret in secrets if secret in seen]
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert said["ping"] == "200"  # so no client ever looks for a login
    assert "NAME_UNKNOWN" in said["unknown"]
    assert json.loads(said["echo"])["sent"] == f"Bearer {'*' * len(ECHOED)}"
    assert json.loads(said["files"]) == json.loads(said["stranger"]) == {"sent": ""}
    assert set(json.loads(said["plain"])["sent"].removeprefix("Basic ").rstrip("=")) == {"*"}
    assert "UNAUTHORIZED" in said["token"]  # the password goes there from the host alone
    if runtime == "embedded":
        check_skopeo(said, world)


def take_over_identity(moat: Moat, home: Path) -> None:
    (home / ".docker").mkdir()
    login = {"auth": base64.b64encode(b"<token>:").decode(), "identitytoken": IDENTITY}
    logins = {"auths": dict.fromkeys((REAL, PLAIN), login)}
    (home / ".docker/config.json").write_text(json.dumps(logins))
    done = moat("grant", "docker", "--host", REAL, "--token-host", TOKENS, "--method", "import")
    assert "Authenticated as the owner of an identity token." in done.stdout, done.stderr
    done = moat("grant", "docker", "--host", PLAIN, "--method", "import")
    assert (done.returncode, f"{PLAIN} takes no identity token" in done.stderr) == (3, True)


def check_skopeo(said: dict[str, str], world: World) -> None:
    assert (said["push"], said["again"], said["delete"]) == ("done", "done", "done"), said
    assert json.loads(said["pull"])["architecture"] == "amd64"
    assert json.loads(said["tags"])["Tags"] == ["v1"]
    assert "requested access to the resource is denied" in said["denied"] or "unauthorized" in said["denied"]
    scopes = {tuple(asked) for asked, _ in world.tokens.sold}
    assert {
        ("repository:acme/one:pull",),
        ("repository:acme/one:pull,push",),
        ("repository:acme/one:delete",),
    } <= scopes
    assert len(world.tokens.sold) == len(scopes), "one token for each scope, not for each request"


def test_a_registry_cannot_send_its_password_elsewhere(moat: Moat, world: World) -> None:
    """Seen to fail: without the check in `_announce` the thief is asked, with the password."""
    done = grant(moat, FOREIGN, "--token-host", TOKENS)
    assert done.returncode == 2
    assert f"{FOREIGN} wants its password to be sent to {THIEF}" in done.stderr
    assert {asked.host for asked in world.server.asked} == {FOREIGN}
    assert not any("authorization" in asked.headers for asked in world.server.asked)


def test_a_login_of_docker_is_taken_over_from_its_credential_helper(
    moat: Moat, world: World, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "bin" / "docker-credential-acme"
    helper.parent.mkdir()
    helper.write_text(
        f'#!/bin/sh\nread -r key\n[ "$1 $key" = "get {PLAIN}" ] || {{ echo "credentials not found"; exit 1; }}\n'
        f'echo \'{{"ServerURL":"{PLAIN}","Username":"{USER}","Secret":"{PASSWORD}"}}\'\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(helper.parent), prepend=":")
    (home / ".docker").mkdir()
    pair = base64.b64encode(f"{USER}:wrong".encode()).decode()
    config = {"auths": {ECHO: {"auth": pair}}, "credHelpers": {PLAIN: "acme"}}
    (home / ".docker/config.json").write_text(json.dumps(config))
    done = moat("grant", "docker", "--host", PLAIN, "--method", "import")
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert moat("grant", "show", f"docker:{PLAIN}").stdout.count("docker-credential-acme") == 1
    wrong = moat("grant", "docker", "--host", ECHO, "--method", "import")
    assert wrong.returncode != 0
    assert f"{ECHO} does not accept the login" in wrong.stderr
    none = moat("grant", "docker", "--host", REAL, "--token-host", TOKENS, "--method", "import")
    assert f"no tool on this machine has a login for {REAL}" in none.stderr
