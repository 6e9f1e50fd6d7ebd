"""`moat grant NAME` for vendors whose credential is one token, and for providers of the user's own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from moat.paths import Home
from moat.vault import open_vault
from moat.vault.providers import entries, provider
from moat.vault.providers.declared import Declared
from tests.vault.vendor import Answer, Asked, Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
SECRET = "REAL+secret/of.a~vendor-0123456789"
DECLARED = {
    row.name: found for row in entries() if row.injected and isinstance(found := provider(row.name), Declared)
}
CHECKED = {name: found for name, found in DECLARED.items() if found.check is not None}


def host_of(found: Declared, scope: str | None = None) -> str:
    assert found.check is not None
    return found.check.host.format(host=scope or found.hosts[0].removeprefix("*."))


HOSTS = {host_of(found): found for found in CHECKED.values()} | {"npm.example.com": CHECKED["npm"]}


def path_of(found: Declared) -> str:
    assert found.check is not None
    return found.check.path.replace("${token}", SECRET)


def accept(asked: Asked) -> Answer:
    """What the vendor wants: the secret in its own header, or path, and only there."""
    found = HOSTS[asked.host]
    assert found.check is not None
    injection = found.injection
    prefix = {"bearer": "Bearer ", "token": "token ", "raw": "", "basic": "Basic "}[injection.scheme]
    if "header" in injection.surfaces:
        right = asked.headers.get(injection.header) == prefix + SECRET
    else:
        right = unquote(asked.path) == path_of(found) and SECRET not in str(asked.headers)
    if not right:
        return found.check.rejected[0], {"error": f"{SECRET} is wrong"}
    answer: object = "octo.cat"
    for key in reversed(found.check.login):
        answer = {key: answer}
    return 200, answer if found.check.login else {}


@pytest.fixture
def vendors(tmp_path: Path, home: Path) -> Iterator[Vendor]:
    with vendor(tmp_path / "vendor", accept, *HOSTS) as server:
        server.config(home / ".moat", *HOSTS)
        yield server


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "key"))
    for found in DECLARED.values():
        for name in found.sources:
            monkeypatch.delenv(name, raising=False)


def quiet(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_every_vendor_is_asked_and_the_token_stored(moat: Moat, vendors: Vendor) -> None:
    for name, found in DECLARED.items():
        done = quiet(moat("grant", name, "--token-stdin", input=SECRET[:9] + "\n" + SECRET[9:] + "\n"))
        assert done.returncode == 0, done.stderr
        assert f"The credential goes to {', '.join(found.hosts)} and nowhere else." in done.stdout
        assert f"The proxy puts it {found.injection.shown}." in done.stdout
        if found.check is None:
            assert "Not validated" in done.stdout
        else:
            assert ("Authenticated as octo.cat." in done.stdout) == bool(found.check.login)
            assert unquote(vendors.asked[-1].path) == path_of(found)
            assert vendors.asked[-1].path.count("/") == found.check.path.count("/")
        stored = open_vault(Home.from_environment()).get(name)
        assert stored.secret.reveal() == SECRET
        assert stored.info.hosts == found.hosts
    assert len(vendors.asked) == len(CHECKED)


def test_how_a_credential_is_sent_is_told() -> None:
    told = {name: found.injection.shown for name, found in DECLARED.items()}
    assert told["vercel"] == "in the header authorization (Bearer)"
    assert told["linear"] == "in the header authorization (as it is)"
    assert told["pypi"] == "in the header authorization (Basic, __token__)"
    assert told["telegram"] == "in the path"


def test_a_token_that_the_vendor_refuses_is_not_stored(moat: Moat, vendors: Vendor) -> None:
    for name in CHECKED:
        done = moat("grant", name, "--token-stdin", input="a-wrong-one")
        assert done.returncode == 3, name
        assert "does not accept this token" in done.stderr
        assert SECRET not in done.stderr  # though the vendor's answer held it
    assert open_vault(Home.from_environment()).list() == ()
    assert len(vendors.asked) == len(CHECKED)


def test_a_token_of_another_vendor_is_shown_to_nobody(moat: Moat, vendors: Vendor) -> None:
    """Pasted into the wrong window it would be in another vendor's logs. Fails without `vendor_of`."""
    for name in ("openai", "gitlab", "telegram"):
        done = moat("grant", name, "--token-stdin", input="sk-ant-api03-not-for-you")
        assert (done.returncode, "one for anthropic (moat grant anthropic)" in done.stderr) == (2, True), name
    assert "it is too short" in moat("grant", "sentry", "--token-stdin", input="2").stderr
    assert vendors.asked == []
    # A registry that is not npm's own takes what it likes.
    argv = ("grant", "npm", "--host", "npm.example.com", "--token-stdin", "--no-validate")
    assert moat(*argv, input="ghp_" + "a" * 36).returncode == 0


@pytest.mark.usefixtures("vendors")
def test_from_a_variable(moat: Moat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEAR_API_KEY", SECRET)
    done = quiet(moat("grant", "linear", "--json"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["name"], told["hosts"]) == ("linear", ["api.linear.app"])
    assert told["metadata"] == {"login": "octo.cat", "source": "LINEAR_API_KEY"}


@pytest.mark.usefixtures("vendors")
def test_a_variable_is_for_the_vendor_s_own_host(moat: Moat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_TOKEN", SECRET)
    done = moat("grant", "npm", "--host", "npm.example.com")
    assert done.returncode == 2
    assert "no credential for npm:npm.example.com given" in done.stderr


@pytest.mark.parametrize("host", ["com", ".com", "localhost", "a..b"])
def test_a_host_is_a_whole_one(moat: Moat, host: str) -> None:
    """`*.com` would be the hosts of a Datadog grant for `com`. Fails without `_check_host`."""
    done = moat("grant", "datadog", "--host", host, "--token-stdin", "--no-validate", input=SECRET)
    assert done.returncode in {2, 3}
    assert open_vault(Home.from_environment()).list() == ()


def test_a_registry_of_npmrc_comes_with_its_paths_and_scopes(
    moat: Moat, vendors: Vendor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_TOKEN", SECRET)
    (home / ".npmrc").write_text(
        "//registry.npmjs.org/:_authToken=${NOT_SET}\n"
        "@acme:registry=https://npm.example.com/a/\n"
        "//npm.example.com/a/:_authToken=${ACME_TOKEN}\n"
        "registry=http://plain.example.com/\n"
    )
    done = quiet(moat("grant", "npm", "--host", "NPM.example.com", "--method", "import"))
    assert done.returncode == 0, done.stderr
    info = open_vault(Home.from_environment()).info("npm:npm.example.com")
    assert info.hosts == ("npm.example.com",)
    assert info.metadata == {
        "source": "~/.npmrc",
        "login": "octo.cat",
        "paths": "/a/",
        "routes": "@acme:registry=https://npm.example.com/a/",
    }
    assert vendors.asked[-1].path == "/a/-/whoami"
    none = moat("grant", "npm", "--method", "import")  # npm would send the text of an unset variable
    assert none.returncode == 3
    assert "no tool on this machine has a login for npm" in none.stderr


def test_codex_s_own_key(moat: Moat, vendors: Vendor, home: Path) -> None:
    (home / ".codex").mkdir()
    (home / ".codex" / "auth.json").write_text(json.dumps({"OPENAI_API_KEY": SECRET}))
    done = quiet(moat("grant", "codex", "--method", "import"))
    assert done.returncode == 0, done.stderr
    assert open_vault(Home.from_environment()).info("openai").metadata["source"] == "~/.codex/auth.json"
    (home / ".codex" / "auth.json").write_text("{" + SECRET)
    broken = quiet(moat("grant", "codex", "--method", "import"))
    assert (broken.returncode, "is not JSON" in broken.stderr) == (3, True)
    assert len(vendors.asked) == 1


def test_gt_s_own_token(moat: Moat, vendors: Vendor, home: Path) -> None:
    (home / ".config" / "graphite").mkdir(parents=True)
    (home / ".config" / "graphite" / "auth").write_text(json.dumps({"authToken": SECRET}))
    done = quiet(moat("grant", "gt", "--method", "import"))
    assert done.returncode == 0, done.stderr
    assert (
        open_vault(Home.from_environment()).info("graphite").metadata["source"] == "~/.config/graphite/auth"
    )
    assert vendors.asked[-1].headers["authorization"] == f"token {SECRET}"
    assert (vendors.asked[-1].method, vendors.asked[-1].path) == ("POST", "/v1/graphite/check-auth")


# providers of the user's own

ACME = """\
summary: Acme API
hosts: [api.acme.example]
inject: {header: X-Acme-Key, scheme: raw}
placeholder: {prefix: acme_, length: 64}
env: [ACME_KEY]
source_env: [ACME_KEY]
"""


def own(home: Path, text: str, name: str = "acme") -> Path:
    path = home / ".moat" / "providers" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_provider_of_one_s_own(moat: Moat, home: Path) -> None:
    own(home, ACME)
    assert "1 of your own, all well: acme" in moat("grant", "providers", "--validate").stdout
    assert "Acme API" in moat("grant", "providers").stdout
    done = quiet(moat("grant", "acme", "--token-stdin", input=SECRET))
    assert done.returncode == 0, done.stderr
    found = provider("acme")
    info = open_vault(Home.from_environment()).info("acme")
    placeholder = found.placeholder(info, "T" * 16)
    assert (placeholder[:25], len(placeholder)) == ("acme_moat" + "T" * 16, 64)
    (rule,) = found.rules(info, placeholder)
    assert (rule.header, rule.scheme, rule.hosts) == ("x-acme-key", "raw", ("api.acme.example",))
    assert (rule.surfaces, rule.occurrences) == (("header",), 1)
    own(home, ACME.replace("{header: X-Acme-Key, scheme: raw}", "{surfaces: [query, body], occurrences: 3}"))
    (rule,) = provider("acme").rules(info, placeholder)
    assert (rule.header, rule.surfaces, rule.occurrences) == ("", ("query", "body"), 3)


def test_an_edited_provider_does_not_move_a_credential(moat: Moat, home: Path) -> None:
    own(home, ACME)
    assert moat("grant", "acme", "--token-stdin", input=SECRET).returncode == 0
    own(home, ACME.replace("[api.acme.example]", "[api.acme.example, evil.example]"))
    done = quiet(moat("run", "--runtime", "embedded", "--grant", "acme", "--", "true"))
    assert done.returncode == 3
    assert "acme was granted for api.acme.example, and its provider now says evil.example too" in done.stderr
    assert "grant again: `moat grant acme`" in done.stderr


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hosts: []", ":1:1: hosts are missing"),
        (
            "hosts: [api.acme.example:8443]",
            ":1:9: 'api.acme.example:8443': a credential goes to port 443 only",
        ),
        ("hosts: ['*']", ":1:9: '*': '*' is possible only as a leading"),
        (ACME + "inject: {}", ":7:1: duplicate key 'inject'"),
        (ACME.replace("X-Acme-Key", "Host"), ":3:18: no credential belongs into 'Host'"),
        (ACME.replace("X-Acme-Key", '"X Y"'), ":3:18: 'X Y' is not the name of a header"),
        (ACME.replace("raw", "magic"), "inject.scheme must be one of bearer, token, basic, raw"),
        (ACME + "sumary: x", "unknown key 'sumary'; did you mean 'summary'?"),
        (ACME + "validate: {url: http://a.example}", "validate.url must be https://host/path"),
        (ACME + "validate: {url: https://a.example/me}", "a.example is none of `hosts`"),
        (ACME.replace("64", "8"), "placeholder.length must be between 64 and 512"),
        ("hosts: [a", ":1:10:"),
        (ACME.replace("raw", "raw, surfaces: [path]"), "inject.header, scheme and username need `header`"),
        (ACME.replace("raw", "raw, surfaces: [header, cookie]"), "must be one of header, path, query, body"),
        (ACME.replace("raw", "raw, surfaces: []"), "inject.surfaces needs one of header, path"),
        (ACME.replace("raw", "raw, occurrences: 2"), "inject.occurrences counts in path, query and body"),
        (ACME.replace("raw", "raw, surfaces: [body], occurrences: 0"), "must be between 1 and 100"),
    ],
)
def test_what_is_wrong_with_a_file_of_one_s_own(moat: Moat, home: Path, text: str, problem: str) -> None:
    path = own(home, text)
    for argv in (("grant", "providers", "--validate"), ("grant", "acme", "--token-stdin")):
        done = moat(*argv, input=SECRET)
        assert done.returncode == 2
        assert str(path) in done.stderr
        assert problem in done.stderr
    assert moat("grant", "linear", "--help").returncode == 0  # the others are not affected


def test_a_file_that_others_can_write_is_not_trusted(moat: Moat, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as open_to_all:
        Path(open_to_all).chmod(0o755)
        own(Path(open_to_all), ACME).chmod(0o622)
        (Path(open_to_all) / ".moat").chmod(0o755)
        monkeypatch.setenv("MOAT_HOME", f"{open_to_all}/.moat")
        done = moat("grant", "acme", "--token-stdin", input=SECRET)
    assert "others can write the file" in done.stderr


def test_names_of_moat_s_own_are_taken(moat: Moat, home: Path) -> None:
    own(home, ACME.replace("api.acme.example", "evil.example"), "github")
    done = moat("grant", "providers", "--validate")
    assert (done.returncode, "github is a provider of Moat's own" in done.stderr) == (2, True)
    assert provider("github").entry.hosts[0] == "api.github.com"
