"""`moat grant mcp` and `moat grant oauth`, as a user: a real MCP server and a real authorization server.

How each defence was shown to fail: with the comparison of `state` in `login._judge` left out the stranger's code is
taken; with the comparison of `iss` left out the login of another server is; with the S256 check left out the login
without PKCE goes on; with `_covers` returning True the metadata of another server is used.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from moat.paths import Home
from moat.vault import open_vault
from moat.vault.oauth.tokens import Tokens
from tests.fakes.mcp_server import McpService
from tests.fakes.oauth_server import ISSUER, RESOURCE, AuthorizationServer, call_back, visit
from tests.fakes.pki import make_pki
from tests.vault.vendor import Answer, Asked, vendor

pytestmark = pytest.mark.timeout(120)
TOKEN = "lin_api_REALTOKENSECRET"


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")


# --- mcp ----------------------------------------------------------------------------------------------------------


def test_a_token_is_bound_to_the_host_of_the_url(moat, home):
    done = moat(
        "grant",
        "mcp",
        "internal",
        "--url",
        "https://mcp.internal.test:8443/mcp",
        "--token-stdin",
        input=f"Bearer {TOKEN}\n",
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == "Credential for mcp.internal.test:8443 saved to ~/.moat/credentials/mcp:internal.enc\n"
    )
    found = open_vault(Home.from_environment()).get("mcp:internal")
    assert (found.secret.reveal(), found.info.hosts) == (TOKEN, ("mcp.internal.test:8443",))
    shown = json.loads(moat("grant", "show", "mcp:internal", "--json").stdout)
    assert (shown["hosts"], shown["metadata"]) == (
        ["mcp.internal.test:8443"],
        {"url": "https://mcp.internal.test:8443/mcp"},
    )
    for file in (home / ".moat").rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes()
    assert moat("revoke", "mcp:internal").returncode == 0


def test_a_well_known_name_and_the_workspaces_own_server_need_no_url(moat, tmp_path):
    done = moat("grant", "mcp:linear", "--token-stdin", "--json", input=TOKEN)
    assert json.loads(done.stdout)["hosts"] == ["mcp.linear.app"]
    (tmp_path / "workspace/agent.yaml").write_text(
        'mcp: [{name: own, url: "https://own.test/mcp", auth: {grant: "mcp:own"}}]\n'
    )
    done = moat("grant", "mcp", "own", "--token-stdin", "--json", input=TOKEN)
    assert json.loads(done.stdout)["hosts"] == ["own.test"]


def test_a_workspace_does_not_say_what_a_known_name_means(moat, tmp_path):
    (tmp_path / "workspace/agent.yaml").write_text(
        'mcp: [{name: x, url: "https://evil.test/mcp", auth: {grant: "mcp:linear"}}]\n'
    )
    done = moat("grant", "mcp", "linear", "--token-stdin", input=TOKEN)
    assert done.returncode == 2
    assert (
        "the URL of the MCP server is one of https://evil.test/mcp, https://mcp.linear.app/mcp" in done.stderr
    )


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (("mcp",), "NAME"),
        (("mcp", "x"), "the URL of the MCP server is not known"),
        (("mcp", "x", "--url", "http://a.test/"), "only https:// is possible"),
        (("mcp", "x", "--url", "http://localhost:1/"), "a credential never goes over plain http"),
        (("mcp", "x", "--url", "https://a.test/"), "no terminal to ask at"),
        (("mcp", "x y", "--url", "https://a.test/"), "is not a grant name"),
        (("oauth", "x"), "the URL of the MCP server is not known"),
        (("oauth", "x", "--url", "https://a.test/", "--client-secret-stdin"), "needs --client-id"),
    ],
)
def test_what_cannot_be_granted_is_told(moat, argv, error):
    done = moat("grant", *argv)
    assert done.returncode in {2, 3}
    assert error in done.stderr
    assert "Traceback" not in done.stderr


# --- oauth --------------------------------------------------------------------------------------------------------


@dataclass
class Place:
    """An MCP server that demands OAuth, and the server that gives tokens for it."""

    moat_bin: str
    server: AuthorizationServer
    service: McpService
    ca: Path

    @contextmanager
    def granting(self, *argv: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """`moat grant oauth` under way, and the address that it shows."""
        words = [self.moat_bin, "grant", "oauth", "example", "--url", RESOURCE, *argv]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                address = ""
                while not address:
                    line = process.stdout.readline()
                    assert line, process.stderr.read()
                    address = line.strip() if line.startswith("  https://") else ""
                yield process, address
            finally:
                process.kill()

    def visit(self, address: str) -> tuple[int, str]:
        return visit(address, port=self.server.port, ca=self.ca)


def configure(home: Path, ca: Path, ports: dict[str, int]) -> None:
    place = home / ".moat"
    place.mkdir(mode=0o700, exist_ok=True)
    lines = ["upstream:", f"  ca_bundle: {ca}", "  connect_to:"]
    lines += [f'    "{host}:443": "127.0.0.1:{port}"' for host, port in ports.items()]
    (place / "config.yaml").write_text("\n".join(lines) + "\n")
    (place / "config.yaml").chmod(0o600)


@pytest.fixture
def place(moat_bin, home, tmp_path) -> Iterator[Place]:
    directory = tmp_path / "pki"
    directory.mkdir()
    ca, leaf = make_pki(directory, ["mcp.example.test", "auth.example.test"])
    with AuthorizationServer(leaf) as server:
        options = {"token_verifier": server, "auth": server.settings()}
        with McpService(certificate=leaf, options=options) as service:
            configure(home, ca, {"mcp.example.test": service.port, "auth.example.test": server.port})
            yield Place(moat_bin, server, service, ca)


def stored() -> Tokens:
    return Tokens.decode(open_vault(Home.from_environment()).get("oauth:example").secret, "oauth:example")


def test_a_login_is_found_out_registered_made_and_stored(place, moat, home):
    with place.granting("--no-browser") as (process, address):
        query = {name: value for name, (value,) in parse_qs(urlsplit(address).query).items()}
        assert address.startswith(f"{ISSUER}/authorize?")
        assert query["resource"] == RESOURCE
        assert (query["code_challenge_method"], query["response_type"], query["scope"]) == (
            "S256",
            "code",
            "tools",
        )
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/callback", query["redirect_uri"])
        # What strangers send to the port does not count.
        assert call_back(query["redirect_uri"] + "?code=stolen&state=guessed")[0] == 400
        assert call_back(query["redirect_uri"].replace("callback", "") + "?code=x")[0] == 404
        status, page = place.visit(address)
        assert (status, "Logged in" in page) == (200, True)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err.count("Traceback")) == (0, 0), err
    assert "Logged in; saved to ~/.moat/credentials/oauth:example.enc" in out
    (client,) = place.server.clients.values()
    assert (client.client_name, client.token_endpoint_auth_method) == ("Moat", "none")
    tokens = stored()
    assert tokens.access in place.server.access
    assert tokens.refresh in place.server.refresh
    info = open_vault(Home.from_environment()).info("oauth:example")
    assert (info.hosts, info.expires_at) == (("mcp.example.test",), None)
    for text in (out, err, moat("grant", "show", "oauth:example", "--json").stdout):
        assert tokens.access not in text
        assert tokens.refresh not in text
    for file in (home / ".moat").rglob("*"):
        assert not file.is_file() or b"real-" not in file.read_bytes()


@pytest.mark.embedded
def test_the_login_of_one_profile_is_renewed_in_no_other(place, moat, home, tmp_path, monkeypatch):
    """Made, renewed in a run, and begun anew but given up.

    Seen to fail: with one directory for all profiles in `open_vault` the second login replaces the first.
    """
    for profile in ("default", "work"):
        with place.granting("--no-browser", "--profile", profile) as (process, address):
            assert place.visit(address)[0] == 200
            process.communicate(timeout=30)
            assert process.returncode == 0
    at_home = stored()
    monkeypatch.setenv("MOAT_PROFILE", "work")
    vault = open_vault(Home.from_environment())
    old = stored()
    assert old.access != at_home.access
    due = replace(old, obtained_at=old.obtained_at - 3600)
    vault.put(replace(vault.get("oauth:example"), secret=due.encode()))
    monkeypatch.setenv("MOAT_PROFILE", "default")
    before = {
        file.name: file.read_bytes() for file in (home / ".moat/credentials").iterdir() if file.is_file()
    }
    project = tmp_path / "project"
    project.mkdir()
    (project / "agent.yaml").write_text(
        f"mcp:\n  - name: example\n    url: {RESOURCE}\n    auth:\n      grant: oauth:example\n"
    )
    ask = f"curl -sS -w '%{{http_code}}\\n' -o answer {RESOURCE}"
    script = f"{ask}; while [ ! -e ended ]; do sleep 0.1; done; for n in 1 2 3; do {ask}; cat answer; done"
    words = ("run", str(project), "--runtime", "embedded", "--profile", "work", "--", "sh", "-c", script)
    with subprocess.Popen(
        [place.moat_bin, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout.readline() == "400\n"  # the token is taken; it speaks no MCP
        renewed = set(place.server.access)
        assert place.server.renewals == 1
        assert before == {
            file.name: file.read_bytes() for file in (home / ".moat/credentials").iterdir() if file.is_file()
        }
        place.server.end_login()
        (project / "ended").touch()
        out, err = run.communicate(timeout=60)
    assert err.count("the login oauth:example is not accepted any more") == 1, err
    assert err.count(f": `moat grant oauth example --profile work --url {RESOURCE}`\n") == 1
    assert place.server.reused == 1  # and asked for no more
    assert out.count("moat grant oauth example") == 3, out  # the agent, each time
    with place.granting("--no-browser", "--profile", "work") as (process, _):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
    assert stored() == at_home
    monkeypatch.setenv("MOAT_PROFILE", "work")
    assert stored().access in renewed
    assert stored().access != old.access


def test_a_browser_is_opened_where_there_is_one(place, tmp_path, monkeypatch):
    log = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf "%s %s" "$1" "$PWD" > {log}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    with place.granting() as (process, address):
        assert place.visit(address)[0] == 200
        process.communicate(timeout=30)
    assert log.read_text() == f"{address} /"


def test_an_answer_of_another_server_is_not_taken(place):
    """RFC 9207: the code of one server must not be sent to another."""
    for iss in ("https://evil.test", None):
        place.server.iss = iss
        with place.granting("--no-browser") as (process, address):
            assert place.visit(address)[0] == 400
            _, err = process.communicate(timeout=30)
            assert process.returncode == 3
        assert "moat: error: the answer" in err
    assert place.server.access == {}


def test_a_refused_login_is_told(place):
    with place.granting("--no-browser") as (process, address):
        query = {name: value for name, (value,) in parse_qs(urlsplit(address).query).items()}
        answer = f"?error=access_denied&state={query['state']}&iss={ISSUER}"
        assert call_back(query["redirect_uri"] + answer)[0] == 400
        _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "moat: error: the login was refused (access_denied)\n" in err


def test_a_server_without_a_login_says_so(place, moat):
    place.service.secret = None
    with McpService(certificate=place.server.certificate) as free:
        configure(Path.home(), place.ca, {"mcp.example.test": free.port})
        done = moat("grant", "oauth", "example", "--url", RESOURCE, "--no-browser")
    assert done.returncode == 3
    assert "mcp.example.test asks for no login" in done.stderr


# --- servers that lie ---------------------------------------------------------------------------------------------

PRM = {"resource": RESOURCE, "authorization_servers": [ISSUER]}
GOOD = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
    "registration_endpoint": f"{ISSUER}/register",
    "code_challenge_methods_supported": ["S256"],
}


@pytest.mark.parametrize(
    ("about", "metadata", "error"),
    [
        (
            {"resource": "https://bank.test/mcp"},
            {},
            "the metadata of mcp.example.test is about another server",
        ),
        (
            {"resource": "https://mcp.example.test/other"},
            {},
            "the metadata of mcp.example.test is about another server",
        ),
        (
            {"authorization_servers": ["http://auth.example.test"]},
            {},
            "is not the URL of an authorization server",
        ),
        ({}, {"issuer": "https://bank.test"}, "auth.example.test says that it is 'https://bank.test'"),
        ({}, {"code_challenge_methods_supported": ["plain"]}, "does not offer PKCE (S256)"),
        (
            {},
            {"token_endpoint": "http://auth.example.test/token"},
            "the token_endpoint of the authorization server is not an https URL",
        ),
        ({}, {"authorization_endpoint": "file:///etc/passwd"}, "is not an https URL"),
        ({}, {"registration_endpoint": None, "x": 1}, "has no usable registration_endpoint"),
        ({}, {"padding": "x" * 1_100_000}, "auth.example.test answers with more than 1048576 bytes"),
        ({}, {"redirect": "https://other.example.test/"}, "auth.example.test redirects to another place"),
    ],
)
def test_a_server_that_lies_about_itself_gets_no_login(moat, tmp_path, about, metadata, error):
    home = Path.home()

    def answer(asked: Asked) -> Answer:
        if asked.path == "/mcp":
            return 401, {}
        if asked.path.startswith("/.well-known/oauth-protected-resource"):
            return 200, PRM | about
        if asked.path.startswith("/.well-known/oauth-authorization-server"):
            if "redirect" in metadata:
                return 302, {}, {"Location": metadata["redirect"]}
            return 200, GOOD | metadata
        return 404, {}

    hosts = ("mcp.example.test", "auth.example.test", "other.example.test")
    with vendor(tmp_path / "vendor", answer, *hosts) as liar:
        liar.config(home / ".moat", *hosts)
        done = moat("grant", "oauth", "example", "--url", RESOURCE, "--no-browser")
        assert done.returncode == 3, done.stdout
        assert error in done.stderr
        assert "Traceback" not in done.stderr
        assert {asked.path for asked in liar.asked}.isdisjoint({"/register", "/token", "/authorize"})
        assert [asked for asked in liar.asked if asked.host == "other.example.test"] == []
    assert list((home / ".moat").rglob("*.enc")) == []


def test_a_server_that_registers_nobody_takes_a_client_of_the_users(moat, home, tmp_path, moat_bin):
    """A confidential client: its secret goes to the token endpoint alone, as Basic."""
    asked_for: list[Asked] = []

    def answer(asked: Asked) -> Answer:
        if asked.path == "/mcp":
            return 401, {}
        if asked.path.startswith("/.well-known/oauth-protected-resource"):
            return 200, PRM
        if asked.path.startswith("/.well-known/oauth-authorization-server"):
            known = {key: value for key, value in GOOD.items() if key != "registration_endpoint"}
            return 200, known | {"token_endpoint_auth_methods_supported": ["client_secret_basic"]}
        asked_for.append(asked)
        return 200, {"access_token": "real-access", "token_type": "Bearer", "expires_in": 60}

    hosts = ("mcp.example.test", "auth.example.test")
    with vendor(tmp_path / "vendor", answer, *hosts) as server:
        server.config(home / ".moat", *hosts)
        words = ["grant", "oauth", "example", "--url", RESOURCE, "--no-browser"]
        done = moat(*words)
        assert "auth.example.test registers no clients by itself" in done.stderr
        with subprocess.Popen(
            [moat_bin, *words, "--client-id", "me", "--client-secret-stdin"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            process.stdin.write("s:cret")
            process.stdin.close()
            address = ""
            while not address.startswith("  https://"):
                address = process.stdout.readline()
                assert address, process.stderr.read()
            query = {name: value for name, (value,) in parse_qs(urlsplit(address.strip()).query).items()}
            assert "cret" not in address
            assert call_back(f"{query['redirect_uri']}?code=c0de&state={query['state']}")[0] == 200
            assert process.wait(30) == 0, process.stderr.read()
    (token,) = asked_for
    assert token.headers["authorization"] == "Basic " + base64.b64encode(b"me:s%3Acret").decode()
    form = {name: value for name, (value,) in parse_qs(token.body.decode()).items()}
    assert (form["code"], form["resource"], "client_secret" in form) == ("c0de", RESOURCE, False)
    # Without a refresh token the login has an end that is known.
    info = open_vault(Home.from_environment()).info("oauth:example")
    assert info.expires_at is not None
