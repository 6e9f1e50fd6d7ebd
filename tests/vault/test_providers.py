"""What a grant means: placeholders, rules, files and variables, and never a secret."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import pytest

from moat.errors import GrantError
from moat.grants import CredentialKind, Grant, SigningRule
from moat.paths import Home
from moat.vault.providers import Entry, Held, canonical, entries, entry, grant_hosts, provider, yaml_file
from tests.docs.blocks import blocks
from tests.providers_page import PAGE, page
from tests.vault.conftest import Make

TOKEN = "Ab3dEf9hIjKlMnOp"


@pytest.mark.parametrize("row", [row for row in entries() if row.injected], ids=lambda row: row.name)
def test_every_provider_keeps_to_its_hosts(row: Entry, make: Make) -> None:
    found = provider(row.name)
    assert found.entry == row
    for scope in (None, "host.example.com") if row.scope else (None,):
        name = str(Grant(row.name, scope))
        info = replace(make(name=name).info, hosts=row.bound(scope))
        placeholder = found.placeholder(info, TOKEN)
        assert TOKEN in placeholder
        assert re.fullmatch(r"[A-Za-z0-9_:-]+", placeholder)
        for rule in found.rules(info, placeholder):
            assert set(rule.hosts) <= set(info.hosts)  # a credential goes nowhere else
            assert rule.credential == name
            shown = rule.key if isinstance(rule, SigningRule) else rule.placeholder
            assert shown == placeholder
            assert rule.ports == (443,)
            if not isinstance(rule, SigningRule):
                assert rule.header not in rule.strip
                assert bool(rule.header) is ("header" in rule.surfaces)
        held = [Held(info, placeholder)]
        told = "".join([*found.environment(held).values(), *(data.decode() for _, data in found.files(held))])
        # A tool inside has to find it; of a registry of images it needs none.
        assert placeholder in told or row.name == "docker"


def test_the_page_of_providers_is_made_from_them() -> None:
    """`python -m tests.providers_page` writes it."""
    assert PAGE.read_text() == page()


def test_the_example_of_a_provider_of_one_s_own_is_accepted(state: Home) -> None:
    (example,) = [block for block in blocks(PAGE) if block.file == "~/.moat/providers/acme.yaml"]
    state.providers.mkdir(parents=True)
    (state.providers / "acme.yaml").write_text(example.text)
    assert yaml_file.problems() == ()
    assert provider("acme").entry.summary == "Acme API"


def test_two_registries_share_one_npmrc(make: Make) -> None:
    npm = provider("npm")
    first = make(name="npm").info
    second = make(
        name="npm:npm.example.com", paths="/a/\n/b/", routes="@acme:registry=https://npm.example.com/a/"
    ).info
    held = [
        Held(replace(first, hosts=("registry.npmjs.org",)), "one"),
        Held(replace(second, hosts=("npm.example.com",)), "two"),
    ]
    ((path, data),) = npm.files(held)
    assert path == ".npmrc"
    assert data.decode().splitlines() == [
        "//registry.npmjs.org/:_authToken=one",
        "@acme:registry=https://npm.example.com/a/",
        "//npm.example.com/a/:_authToken=two",
        "//npm.example.com/b/:_authToken=two",
    ]


def test_anthropic_by_api_key(make: Make) -> None:
    anthropic, info = provider("anthropic"), make().info
    placeholder = anthropic.placeholder(info, TOKEN)
    assert placeholder.startswith("sk-ant-api03-")
    # Claude Code remembers the last 20 characters of a key that was approved: no run's own.
    assert placeholder[-20:] == anthropic.placeholder(info, "x" * 16)[-20:]
    (rule,) = anthropic.rules(info, placeholder)
    assert (rule.hosts, rule.header, rule.scheme) == (("api.anthropic.com",), "x-api-key", "raw")
    assert rule.strip == ("authorization",)
    assert rule.merge == ()
    assert anthropic.environment([Held(info, placeholder)]) == {"ANTHROPIC_API_KEY": placeholder}
    assert anthropic.files([Held(info, placeholder)]) == ()


def test_anthropic_by_subscription(make: Make) -> None:
    anthropic = provider("claude")
    info = make(
        kind=CredentialKind.OAUTH,
        subscription="pro",
        scopes="user:profile user:inference",
        rate_limit_tier="t1",
    ).info
    placeholder = anthropic.placeholder(info, TOKEN)
    assert placeholder.startswith("sk-ant-oat01-")
    (rule,) = anthropic.rules(info, placeholder)
    assert (rule.hosts, rule.header, rule.scheme) == (("api.anthropic.com",), "authorization", "bearer")
    assert rule.strip == ("x-api-key",)
    assert rule.merge == (("anthropic-beta", "oauth-2025-04-20"),)
    # The variable would make Claude Code forget the plan.
    assert anthropic.environment([Held(info, placeholder)]) == {}
    ((path, content),) = anthropic.files([Held(info, placeholder)])
    assert path == ".claude/.credentials.json"
    login = json.loads(content)["claudeAiOauth"]
    assert login.keys() == {
        *("accessToken", "refreshToken", "expiresAt", "scopes", "subscriptionType", "rateLimitTier")
    }
    assert login["accessToken"] == placeholder
    assert login["subscriptionType"] == "pro"
    assert login["rateLimitTier"] == "t1"
    assert set(login["scopes"]) == {"user:profile", "user:inference"}
    assert login["expiresAt"] / 1000 > time.time() + 300 * 86400


def test_anthropic_setup_token_claims_no_more_than_it_can(make: Make) -> None:
    info = make(kind=CredentialKind.OAUTH, source="setup-token").info
    ((_, content),) = provider("anthropic").files([Held(info, "sk-ant-oat01-p")])
    login = json.loads(content)["claudeAiOauth"]
    assert login["scopes"] == ["user:inference"]
    assert login["subscriptionType"] == "max"
    assert login["refreshToken"] == login["accessToken"].replace("-oat", "-ort")
    assert "rateLimitTier" not in login


def test_github(make: Make) -> None:
    github, info = provider("gh"), make(name="github", kind=CredentialKind.TOKEN).info
    placeholder = github.placeholder(info, TOKEN)
    assert re.fullmatch(r"ghp_[A-Za-z0-9]{36}", placeholder)
    by_host = {host: rule for rule in github.rules(info, placeholder) for host in rule.hosts}
    assert by_host["api.github.com"].scheme == by_host["uploads.github.com"].scheme == "bearer"
    assert (by_host["github.com"].scheme, by_host["github.com"].username) == ("basic", "x-access-token")
    assert "objects.githubusercontent.com" not in by_host  # signed URLs: a second authorisation breaks them
    assert github.environment([Held(info, placeholder)]) == {
        "GH_TOKEN": placeholder,
        "GITHUB_TOKEN": placeholder,
        "GIT_TERMINAL_PROMPT": "0",
    }


@pytest.mark.parametrize("token", ["x", "y" * 16, "z" * 32])
def test_github_placeholder_has_one_length(make: Make, token: str) -> None:
    placeholder = provider("github").placeholder(make().info, token)
    assert len(placeholder) == 40
    assert token in placeholder


def test_names_and_aliases() -> None:
    assert canonical("claude") == "anthropic"
    assert canonical("gh") == "github"
    assert canonical("ssh:github.com") == "ssh:github.com"
    assert grant_hosts("claude") == ("api.anthropic.com", "*.anthropic.com")
    assert grant_hosts("github") == ("github.com", "*.github.com", "*.githubusercontent.com")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("anthropc", "did you mean `anthropic`?"),
        ("cluade", "did you mean `claude`?"),
        ("githb", "did you mean `github`?"),
        ("zzz", "`moat grant providers` lists them"),
    ],
)
def test_unknown_providers(name: str, hint: str) -> None:
    for find in (provider, entry, grant_hosts):
        with pytest.raises(GrantError, match=f"no provider '{name}'") as caught:
            find(name)
        assert caught.value.hint == hint
