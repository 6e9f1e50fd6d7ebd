"""Checking a credential with its vendor: a real TLS server that accepts the right key only."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from moat.config import UpstreamConfig, load_user
from moat.errors import GrantError
from moat.grants import CredentialKind, Grant, Secret
from moat.paths import Home
from moat.vault.providers import provider
from moat.vault.providers.declared import Declared
from moat.vault.validate import Outcome, Verdict, check_anthropic, check_declared, check_github
from tests.vault.vendor import Answer, Asked, Vendor, vendor

KEY = "sk-ant-api03-RIGHT"
TOKEN = "sk-ant-oat01-RIGHT"
HOSTS = ("api.anthropic.com", "api.github.com")


def accept_the_right_one(asked: Asked) -> Answer:
    if asked.path == "/v1/messages" and (
        asked.headers.get("x-api-key") == KEY or asked.headers.get("authorization") == f"Bearer {TOKEN}"
    ):
        return 200, {"type": "message"}
    if asked.path == "/user" and asked.headers.get("authorization") == "Bearer ghp_right":
        return 200, {"login": "octocat"}
    return 401, {"error": {"message": f"bad: {asked.headers}"}}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Vendor]:
    with vendor(tmp_path / "vendor", accept_the_right_one, *HOSTS) as server:
        yield server


@pytest.fixture
def upstream(api: Vendor, state: Home) -> UpstreamConfig:
    api.config(state.root, *HOSTS)
    return load_user(state).upstream


def anthropic(
    secret: str, upstream: UpstreamConfig, kind: CredentialKind = CredentialKind.API_KEY
) -> Verdict:
    return asyncio.run(check_anthropic(kind, Secret(secret), upstream))


def test_no_login_of_a_netrc_is_sent(api: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen failing with aiohttp's `trust_env`: a GitHub token ended in a ValueError."""
    (tmp_path / "netrc").write_text("default login me password of-somewhere-else\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{api.proxy_port}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    upstream = UpstreamConfig(ca_bundle=api.ca)
    assert anthropic(KEY, upstream) == Verdict(Outcome.VALID)
    found = asyncio.run(check_github(Secret("ghp_right"), upstream))
    assert found == Verdict(Outcome.VALID, login="octocat")
    assert [asked.headers.get("authorization") for asked in api.asked] == [None, "Bearer ghp_right"]


def test_the_right_api_key(api: Vendor, upstream: UpstreamConfig) -> None:
    assert anthropic(KEY, upstream) == Verdict(Outcome.VALID)
    (asked,) = api.asked
    assert (asked.host, asked.method, asked.path) == ("api.anthropic.com", "POST", "/v1/messages")
    assert asked.headers["anthropic-version"] == "2023-06-01"
    assert asked.headers["user-agent"] == "moat"
    assert "authorization" not in asked.headers
    body = json.loads(asked.body)
    assert body["max_tokens"] == 1
    assert len(body["messages"]) == 1


def test_the_right_token(api: Vendor, upstream: UpstreamConfig) -> None:
    assert anthropic(TOKEN, upstream, CredentialKind.OAUTH) == Verdict(Outcome.VALID)
    (asked,) = api.asked
    assert asked.headers["anthropic-beta"] == "oauth-2025-04-20"
    assert "x-api-key" not in asked.headers


def test_the_wrong_key_is_rejected_and_never_repeated(api: Vendor, upstream: UpstreamConfig) -> None:
    """The server's answer quotes the key; our verdict does not."""
    verdict = anthropic("sk-ant-api03-WRONG", upstream)
    assert verdict.outcome is Outcome.REJECTED
    assert verdict.reason == "Anthropic does not accept this API key (HTTP 401)"
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        ((403, {"error": {"message": "x"}}), Outcome.REJECTED, "no permission to use the API (HTTP 403)"),
        (
            (400, {"error": {"message": "Your credit balance is too low"}}),
            Outcome.REJECTED,
            "the account has no credits left (HTTP 400)",
        ),
        ((400, {"error": {"message": "bad model"}}), Outcome.UNKNOWN, "api.anthropic.com answered HTTP 400"),
        ((400, "no object"), Outcome.UNKNOWN, "HTTP 400"),
        ((400, b"[" * 60_000), Outcome.UNKNOWN, "HTTP 400"),
        ((429, {}), Outcome.UNKNOWN, "HTTP 429"),
        ((500, {"error": {"message": f"no such key: {KEY}"}}), Outcome.UNKNOWN, "HTTP 500"),
        ((302, {}), Outcome.UNKNOWN, "HTTP 302"),
    ],
)
def test_other_answers(tmp_path: Path, state: Home, answer: Answer, outcome: Outcome, reason: str) -> None:
    with vendor(tmp_path / "vendor", lambda _: answer, *HOSTS) as server:
        server.config(state.root, *HOSTS)
        verdict = anthropic(KEY, load_user(state).upstream)
    assert verdict.outcome is outcome
    assert reason in verdict.reason
    assert KEY not in verdict.reason, (
        "what a vendor says may quote it: seen to fail with the answer in `_unknown`"
    )


def test_github_tells_the_login(api: Vendor, upstream: UpstreamConfig) -> None:
    verdict = asyncio.run(check_github(Secret("ghp_right"), upstream))
    assert verdict == Verdict(Outcome.VALID, login="octocat")
    (asked,) = api.asked
    assert (asked.host, asked.method, asked.path) == ("api.github.com", "GET", "/user")
    assert asked.headers["accept"] == "application/vnd.github+json"
    assert asyncio.run(check_github(Secret("ghp_wrong"), upstream)).outcome is Outcome.REJECTED


def test_an_answer_that_comes_in_pieces_is_whole(api: Vendor, upstream: UpstreamConfig) -> None:
    """Seen failing: the login was not told."""
    api.pause = 0.1
    assert asyncio.run(check_github(Secret("ghp_right"), upstream)).login == "octocat"


@pytest.mark.parametrize("login", ["a b", "x\x1b[31m", "", None, 7, "a" * 200])
def test_a_strange_login_is_not_shown(tmp_path: Path, state: Home, login: object) -> None:
    with vendor(tmp_path / "vendor", lambda _: (200, {"login": login}), *HOSTS) as server:
        server.config(state.root, *HOSTS)
        verdict = asyncio.run(check_github(Secret("ghp_right"), load_user(state).upstream))
    assert verdict == Verdict(Outcome.VALID, login="")


@pytest.mark.parametrize("login", ["x\x1b[31m", "a\nb", 7, "a" * 200])
def test_no_vendor_writes_on_the_terminal_as_a_login(tmp_path: Path, state: Home, login: object) -> None:
    """Seen to fail with `_login` returning every text."""
    grant = provider("vercel")
    assert isinstance(grant, Declared)
    assert grant.check is not None
    with vendor(
        tmp_path / "vendor", lambda _: (200, {"user": {"username": login}}), "api.vercel.com"
    ) as server:
        server.config(state.root, "api.vercel.com")
        upstream = load_user(state).upstream
        verdict = asyncio.run(check_declared(grant, grant.check, Grant("vercel"), Secret("right"), upstream))
    assert verdict == Verdict(Outcome.VALID, login="")


def test_an_untrusted_server_never_gets_the_key(api: Vendor, upstream: UpstreamConfig) -> None:
    """connect_to without the CA: the certificate is refused before a byte of the request is sent."""
    bare = UpstreamConfig(connect_to=upstream.connect_to)
    verdict = anthropic(KEY, bare)
    assert verdict.outcome is Outcome.UNKNOWN
    assert "certificate is not trusted" in verdict.reason
    assert api.asked == []


def test_a_certificate_for_another_name_is_refused(tmp_path: Path, state: Home) -> None:
    with vendor(tmp_path / "vendor", accept_the_right_one, "other.example") as server:
        server.config(state.root, *HOSTS)
        verdict = anthropic(KEY, load_user(state).upstream)
        assert server.asked == []
    assert "certificate is not trusted" in verdict.reason


def test_through_a_proxy(api: Vendor) -> None:
    upstream = UpstreamConfig(ca_bundle=api.ca, proxy=f"http://127.0.0.1:{api.proxy_port}")
    assert anthropic(KEY, upstream) == Verdict(Outcome.VALID)
    assert [asked.host for asked in api.asked] == ["api.anthropic.com"]


def test_through_the_proxy_and_ca_of_the_shell(api: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{api.proxy_port}")
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", str(api.ca))
    assert anthropic(KEY, UpstreamConfig()) == Verdict(Outcome.VALID)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    detour = MappingProxyType({("api.anthropic.com", 443): ("127.0.0.1", port)})
    verdict = anthropic(KEY, UpstreamConfig(connect_to=detour))
    assert verdict.outcome is Outcome.UNKNOWN
    assert verdict.reason == "api.anthropic.com cannot be reached (connection refused)"


def test_a_name_that_is_none() -> None:
    """Seen to fail: `ClientConnectorDNSError`."""
    from moat.vault.client import https_client, reaching

    async def ask(host: str) -> None:
        with reaching(host):
            async with https_client(UpstreamConfig(), host) as session:
                await session.get(f"https://{host}")

    with pytest.raises(GrantError, match=r"cannot be reached \(its name cannot be resolved\)"):
        asyncio.run(ask("nowhere.invalid"))


def test_a_proxy_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free.getsockname()[1]}")
        assert (
            "the proxy of HTTPS_PROXY or upstream.proxy does not answer"
            in anthropic(KEY, UpstreamConfig()).reason
        )


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from moat.vault import client

    monkeypatch.setattr(client, "TIMEOUT", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        detour = MappingProxyType({("api.anthropic.com", 443): silent.getsockname()})
        verdict = anthropic(KEY, UpstreamConfig(connect_to=detour))
    assert verdict == Verdict(Outcome.UNKNOWN, "api.anthropic.com cannot be reached (no answer in time)")
