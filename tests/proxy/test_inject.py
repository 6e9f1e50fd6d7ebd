"""Injection: precedence, what is replaced, what is stripped and merged, and what never happens."""

from __future__ import annotations

import base64
import datetime as dt

import pytest
from hypothesis import given, settings, strategies as st

from moat.grants import Credential, CredentialInfo, CredentialKind, InjectionRule, Secret
from moat.proxy.fields import join_fields, split_fields
from moat.proxy.inject import InjectionError, apply, needed
from moat.proxy.site_rules import InjectionTable, equip, inspectable

PH_A = "sk-ant-oat01-placeholderAAAA"
PH_B = "sk-ant-api03-placeholderBBBB"
PH_G = "ghp_placeholderGGGGGGGG"
API = "api.example"

OAUTH = InjectionRule(
    "anthropic", (API,), "authorization", "bearer", placeholder=PH_A, strip=("x-api-key",),
    merge=(("anthropic-beta", "oauth-2025"),),
)  # fmt: skip
KEY = InjectionRule("console", (API,), "x-api-key", "raw", placeholder=PH_B)
GIT = InjectionRule("github", ("github.example",), "authorization", "basic", "x-access-token", PH_G)
GITHUB_API = InjectionRule(
    "github", ("api.github.example", "*.api.github.example"), "authorization", placeholder=PH_G
)


def credential(name: str, secret: str | None = None) -> Credential:
    info = CredentialInfo(name, CredentialKind.TOKEN, (API,), dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    return Credential(info, Secret(f"REAL-{name}" if secret is None else secret))


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


def inject(rules, headers, host=API, secrets=None):
    """What goes upstream for host over https: (fields in lower case, grants, result)."""
    compiled = InjectionTable(rules).site(host, 443, "https").rules
    headers = tuple(
        (name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers
    )
    names = needed(compiled, headers)
    found = {name: credential(name, (secrets or {}).get(name)) for name in names}
    result = apply(compiled, headers, found)
    assert set(result.grants) == set(names)
    fields = sorted((name.lower().decode(), value.decode("latin-1")) for name, value in result.headers)
    return fields, names, result


def test_a_credential_is_added_when_nothing_was_sent():
    fields, grants, result = inject([KEY], [("Accept", "*/*")])
    assert fields == [("accept", "*/*"), ("x-api-key", "REAL-console")]
    assert grants == ("console",)
    assert result.names == {b"x-api-key"}


@pytest.mark.parametrize("sent", [PH_A, f"Bearer {PH_A}", "Bearer something-else", "", f"Token {PH_A}"])
def test_a_header_that_a_rule_owns_is_replaced(sent):
    fields, _, _ = inject([OAUTH], [("Authorization", sent), ("AUTHORIZATION", "again")])
    assert fields == [("anthropic-beta", "oauth-2025"), ("authorization", "Bearer REAL-anthropic")]


def test_basic_for_git():
    sent = [("Authorization", basic(f"someone:{PH_G}"))]
    for headers in (sent, []):
        fields, _, result = inject([GIT], headers, "github.example")
        assert fields == [("authorization", basic("x-access-token:REAL-github").decode())]
        assert basic("x-access-token:REAL-github")[6:].rstrip(b"=") in result.secrets
        assert b"REAL-github" in result.secrets


def test_all_credentials_with_distinct_headers_are_added_when_none_was_sent():
    fields, grants, _ = inject([OAUTH, KEY], [])
    assert fields == [
        ("anthropic-beta", "oauth-2025"), ("authorization", "Bearer REAL-anthropic"), ("x-api-key", "REAL-console"),
    ]  # fmt: skip
    assert grants == ("anthropic", "console")


def test_only_the_owner_of_a_sent_header_is_used():
    fields, grants, _ = inject([OAUTH, KEY], [("X-Api-Key", PH_B)])
    assert fields == [("x-api-key", "REAL-console")]
    assert grants == ("console",)
    fields, grants, _ = inject([OAUTH, KEY], [("Authorization", f"Bearer {PH_A}")])
    assert fields == [("anthropic-beta", "oauth-2025"), ("authorization", "Bearer REAL-anthropic")]
    assert grants == ("anthropic",)


@pytest.mark.parametrize("rules", [[OAUTH, KEY], [KEY, OAUTH]])
def test_strip_never_removes_an_injected_header(rules):
    """Both were sent: the bearer rule strips x-api-key as the client sent it, not as the other rule set it."""
    fields, _, _ = inject(rules, [("authorization", PH_A), ("x-api-key", PH_B)])
    assert ("x-api-key", "REAL-console") in fields
    assert ("authorization", "Bearer REAL-anthropic") in fields
    assert len([name for name, _ in fields if name == "x-api-key"]) == 1


def test_strip_removes_what_the_client_sent():
    fields, grants, _ = inject([OAUTH], [("X-API-Key", PH_A), ("x-api-key", "other")])
    assert fields == [("anthropic-beta", "oauth-2025"), ("authorization", "Bearer REAL-anthropic")]
    assert grants == ("anthropic",)


@pytest.mark.parametrize(
    ("sent", "winner"),
    [([], "one"), ([("authorization", "Bearer PH-two")], "two"), ([("authorization", "Bearer PH-one")], "one"),
     ([("authorization", "Bearer unknown")], "one"), ([("authorization", basic("u:PH-two"))], "two")],
)  # fmt: skip
def test_ties_on_one_header(sent, winner):
    """The one whose placeholder was sent; else the first."""
    rules = [
        InjectionRule(name, (API,), "authorization", placeholder=f"PH-{name}") for name in ("one", "two")
    ]
    fields, grants, _ = inject(rules, sent)
    assert fields == [("authorization", f"Bearer REAL-{winner}")]
    assert grants == (winner,)


def test_placeholders_in_other_headers_are_replaced_where_they_stand():
    fields, grants, result = inject(
        [KEY],
        [
            ("X-Custom", f"a={PH_B}; b={PH_B}"),
            ("Other-Auth", basic(f"u:{PH_B}")),
            ("X-Plain", basic("u:p") + b" x"),
        ],
    )
    assert fields == [
        ("other-auth", basic("u:REAL-console").decode()), ("x-api-key", "REAL-console"),
        ("x-custom", "a=REAL-console; b=REAL-console"), ("x-plain", basic("u:p").decode() + " x"),
    ]  # fmt: skip
    assert grants == ("console",)
    assert result.names == {b"other-auth", b"x-api-key", b"x-custom"}
    assert basic("u:REAL-console")[6:].rstrip(b"=") in result.secrets


def test_a_placeholder_brings_in_its_rule_next_to_the_owner_of_a_sent_header():
    fields, grants, _ = inject([OAUTH, KEY], [("authorization", PH_A), ("x-other", PH_B)])
    assert ("x-other", "REAL-console") in fields
    assert ("x-api-key", "REAL-console") not in fields
    assert grants == ("anthropic", "console")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([], "oauth-2025"),
        ([("Anthropic-Beta", "a,b")], "a,b,oauth-2025"),
        ([("anthropic-beta", "a, oauth-2025 , b")], "a,oauth-2025,b"),
        ([("anthropic-beta", "a"), ("x", "y"), ("ANTHROPIC-BETA", "b,a")], "a,b,oauth-2025"),
        ([("anthropic-beta", "")], "oauth-2025"),
    ],
)
def test_merge_appends_without_duplicates(sent, expected):
    fields, _, _ = inject([OAUTH], sent)
    assert [value for name, value in fields if name == "anthropic-beta"] == [expected]


@pytest.mark.parametrize(
    ("host", "port", "scheme", "bound"),
    [
        (API, 443, "https", True), (API, 443, "http", False), (API, 80, "http", False), (API, 8443, "https", False),
        ("x." + API, 443, "https", False), ("x" + API, 443, "https", False), ("example", 443, "https", False),
        (API + ".evil.example", 443, "https", False), ("evil.example", 443, "https", False),
    ],
)  # fmt: skip
def test_rules_apply_to_bound_hosts_over_tls_only(host, port, scheme, bound):
    """Plain http once got the credential in clear text upstream; here not even on port 443."""
    table = InjectionTable([KEY])
    assert bool(table.site(host, port, scheme).rules) is bound
    headers = ((b"x-api-key", PH_B.encode()),)
    assert (table.site(host, port, scheme).leaks(b"/", join_fields(headers)) is None) is bound


def test_wildcard_hosts_and_ports():
    table = InjectionTable([GITHUB_API, InjectionRule("p", ("p.example",), "x", "raw", ports=(443, 8443))])
    assert table.site("a.b.api.github.example", 443, "https").rules
    assert not table.site("github.example", 443, "https").rules
    assert table.site("p.example", 8443, "https").rules
    assert not table.site("p.example", 80, "https").rules


def test_bad_rules_are_errors():
    with pytest.raises(ValueError, match=r"\*"):
        InjectionTable([InjectionRule("x", ("*",), "x")])


ELSEWHERE = [
    ([("Authorization", f"Bearer {PH_G}")], b"/"),
    ([("X-Anything", f"a{PH_G}b")], b"/"),
    ([("Cookie", f"t={PH_G}")], b"/"),
    ([(PH_G, "x")], b"/"),
    ([("Authorization", basic(f"u:{PH_G}"))], b"/"),
    ([("Authorization", basic(f"u:{PH_G}").rstrip(b"="))], b"/"),
    ([("Authorization", b"basic  " + base64.urlsafe_b64encode(f"u?>:{PH_G}".encode()))], b"/"),
    ([("X", PH_G.replace("_", "%5F"))], b"/"),
    ([], b"/x?token=" + PH_G.encode()),
    ([], b"/" + PH_G.encode() + b"/x"),
    ([], b"/?t=" + PH_G.replace("g", "%67").encode()),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "target"), ELSEWHERE)
def test_a_placeholder_on_its_way_elsewhere_is_refused(headers, target):
    table = InjectionTable([GIT, GITHUB_API, KEY])
    headers = tuple(
        (name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers
    )
    denial = table.site("evil.example", 443, "https").leaks(target, join_fields(headers))
    assert denial is not None
    assert denial.code == "credential-host"
    assert "github" in denial.reason
    assert "evil.example" in denial.reason
    assert PH_G not in f"{denial}"
    for host in ("github.example", "api.github.example"):
        at_home = table.site(host, 443, "https").leaks(target, join_fields(headers))
        if target == b"/":
            assert at_home is None
        else:  # its header is set, and nothing is put in a target
            assert at_home is not None
            assert (at_home.code, PH_G in f"{at_home}") == ("credential-surface", False)
    assert (
        InjectionTable([KEY]).site("evil.example", 443, "https").leaks(target, join_fields(headers)) is None
    )


def test_requests_without_placeholders_go_anywhere():
    table = InjectionTable([GIT, KEY, InjectionRule("none", ("n.example",), "x")])
    headers = ((b"Authorization", basic("u:p")), (b"X", b"Basic !!!"), (b"Y", b"basic a"), (b"Z", b"100%"))
    assert table.site("evil.example", 443, "https").leaks(b"/%zz", join_fields(headers)) is None
    assert InjectionTable([]).site("evil.example", 80, "http").leaks(b"/", join_fields(headers)) is None


@pytest.mark.parametrize("secret", ["", "S3\r\nX: y", "S3\nb", "S3\x00b", " S3", "S3 ", "S3\x7f", "S3\x1bb"])
def test_a_secret_that_breaks_its_line_is_an_error(secret):
    with pytest.raises(InjectionError) as caught:
        inject([KEY], [], secrets={"console": secret})
    assert caught.value.hint == "store it again: moat grant console"
    assert "S3" not in f"{caught.value!r} {caught.value.hint}"


def test_every_echoed_form_is_to_be_scrubbed():
    _, _, result = inject([GIT], [], "github.example", {"github": "p/w+é="})
    assert result.secrets == (
        "p/w+é=".encode(),
        base64.b64encode("x-access-token:p/w+é=".encode()).rstrip(b"="),
    )


def test_only_needed_credentials_are_asked_for():
    compiled = InjectionTable([OAUTH, KEY]).site(API, 443, "https").rules
    assert needed(compiled, ()) == ("anthropic", "console")
    assert needed(compiled, ((b"X-API-KEY", b"x"),)) == ("console",)
    assert needed((), ((b"x-api-key", b"x"),)) == ()
    with pytest.raises(InjectionError, match="was not fetched"):
        apply(compiled, (), {})


# --- what is remembered for an authority -----------------------------------------------------------

NAMES = st.sampled_from(
    ["Authorization", "authorization", "X-API-Key", "anthropic-beta", "Range", "X-A", "X-B"]
)
VALUES = st.sampled_from([
    f"Bearer {PH_A}", f"bearer {PH_G}", PH_B, PH_A, "x", "", "a, oauth-2025", f"z{PH_G}z", "bytes=0-5",
    "Basic " + base64.b64encode(f"u:{PH_G}".encode()).decode(), "Basic !!!", " spaced \t",
])  # fmt: skip
RULES = [OAUTH, KEY, InjectionRule("github", (API,), "x-b", "basic", "u", PH_G)]


def plainly(rules, fields: bytes, credentials) -> tuple:
    """What `inject` alone makes of a request: the definition."""
    result = apply(rules, split_fields(fields), credentials)
    headers = inspectable(result.headers) if result.secrets else result.headers
    return sorted(headers), result.grants, set(result.secrets), result.names


@settings(max_examples=400)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.booleans())
def test_what_is_remembered_is_what_inject_would_do(fields, changed) -> None:
    """Fast and plain way differ in nothing, the second time and with another credential either."""
    site = InjectionTable(RULES).site(API, 443, "https")
    block = b"".join(b"\r\n%b: %b" % (name.encode(), value.encode()) for name, value in fields)
    for attempt in range(3):
        secret = "T0P" if changed and attempt == 2 else "REAL"
        fitting = site.fitting(block)
        names = fitting.draft.credentials
        found = [credential(name, f"{secret}-{name}") for name in names]
        equipped = equip(fitting, found)
        by_name = dict(zip(names, found, strict=True))
        expected = plainly(site.rules, block, by_name)
        got = (sorted(split_fields(equipped.fields)), equipped.grants, set(equipped.secrets), equipped.names)
        assert got == expected


def test_what_no_rule_touches_is_not_taken_apart() -> None:
    site = InjectionTable(RULES).site(API, 443, "https")
    first = site.fitting(b"\r\nX-A: 1\r\nAuthorization: Bearer x")
    second = site.fitting(b"\r\nAuthorization: Bearer x\r\nX-A: 2")
    assert first.draft is second.draft
    assert second.others == b"\r\nX-A: 2"
    third = site.fitting(b"\r\nAuthorization: Bearer x\r\nX-A: " + PH_A.encode())
    assert third.draft is not first.draft
    assert third.others == b""
