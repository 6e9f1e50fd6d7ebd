"""Policy: hosts, ports, rules, and that no spelling of a request gets around a deny."""

from __future__ import annotations

import time

import pytest

from moat.proxy.events import Warned
from moat.proxy.policy import HOST_NAME, Policy
from moat.rules import parse_entry_host, parse_host_pattern, parse_host_rule, parse_rule


def policy(mode="strict", hosts=None, ports=(), *, enforce=True):
    entries = tuple(parse_host_rule(host, rules) for host, rules in (hosts or {}).items())
    return Policy(mode, entries, frozenset(ports), enforce=enforce)


def word(subject, target, method="GET", *, host="a.example", port=443, headers=()) -> str:
    """`allow`, `warn` or `deny`."""
    denial = subject.exchange(host, port, "https", method, target, headers=headers)
    return "allow" if denial is None else "warn" if isinstance(denial, Warned) else "deny"


def allowed(subject, target, method="GET", **more) -> bool:
    return word(subject, target, method, **more) == "allow"


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a.example", [("a.example", 80), ("a.example", 443)],
         [("a.example", 8080), ("b.a.example", 443), ("xa.example", 443), ("a.example.evil", 443)]),
        ("A.Example.", [("a.example", 443)], [("example", 443)]),
        ("a.example:8080", [("a.example", 8080)], [("a.example", 80), ("a.example", 443)]),
        ("*.a.example", [("b.a.example", 443), ("c.b.a.example", 80)],
         [("a.example", 443), ("xa.example", 443), ("b.a.example", 22), ("b.a.example.evil", 443)]),
        ("*.a.example:22", [("b.a.example", 22)], [("b.a.example", 443), ("a.example", 22)]),
        ("192.0.2.1", [("192.0.2.1", 443)], [("192.0.2.10", 443), ("1.192.0.2.1", 443)]),
        ("[2001:DB8::1]", [("2001:db8::1", 443)], [("2001:db8::11", 443), ("2001:db8::1", 444)]),
        ("[2001:db8::1]:9", [("2001:db8::1", 9)], [("2001:db8::1", 443)]),
        ("xn--bcher-kva.example", [("xn--bcher-kva.example", 443)], []),
    ],
)  # fmt: skip
def test_host_patterns(pattern, yes, no):
    compiled = parse_host_pattern(pattern)
    assert [site for site in yes if not compiled.matches(*site)] == []
    assert [site for site in no if compiled.matches(*site)] == []
    assert parse_host_pattern(str(compiled)) == compiled


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.", "**.a.example", "*.*.a.example", "a.*.example", "a.example*", "*a.example", "sts.*.example",
     "https://a.example", "a.example/x", "a.example:", "a.example:0", "a.example:443x", "a.example:99999",
     "a.example:*", "a.example:80,443", "a.example:80-90", "2001:db8::1", "*.192.0.2.1", "*.[::1]", "user@a.example",
     "a b", "a..example", "127.1", "0x7f.1", "é.example", " a.example", "a.example "],
)  # fmt: skip
def test_bad_host_patterns_are_errors(text):
    """An invalid port was once ignored upstream, which widened the pattern to 80 and 443."""
    with pytest.raises(ValueError, match=r"\S"):
        parse_host_pattern(text)


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("*", [("a.example", 80), ("b", 443), ("192.0.2.1", 443), ("::1", 443)], [("a.example", 8080)]),
        ("*:*", [("a.example", 80), ("::1", 22)], []),
        ("*:8443", [("a.example", 8443)], [("a.example", 443)]),
        ("a.example:*", [("a.example", 1), ("a.example", 443)], [("b.a.example", 443)]),
        ("*.a.example:*", [("b.a.example", 22)], [("a.example", 22), ("xa.example", 22)]),
        ("[::1]:*", [("::1", 5)], [("::2", 5)]),
    ],
)
def test_entries_may_be_about_every_host_or_port(text, yes, no):
    """A credential's host may not: `parse_host_pattern` refuses them all."""
    pattern = parse_entry_host(text)
    assert [site for site in yes if not pattern.matches(*site)] == []
    assert [site for site in no if pattern.matches(*site)] == []
    assert parse_entry_host(str(pattern)) == pattern
    with pytest.raises(ValueError, match=r"\*|port"):
        parse_host_pattern(text)


@pytest.mark.parametrize(
    "text", ["", "*.", "**", "*.*", "a.*", "a.example:443:*", "a.example:**", "*:0", "*:x", "*:70000"]
)
def test_bad_entries_are_errors(text):
    with pytest.raises(ValueError, match=r"\S"):
        parse_host_rule(text, ["allow GET /"])


def test_every_host_is_not_opened_by_a_star():
    with pytest.raises(ValueError, match="permissive"):
        parse_host_rule("*")
    subject = policy("strict", {"a.example": ["allow * /**"], "*": ["allow GET /public/**"]})
    assert allowed(subject, "/x", "POST")
    assert allowed(subject, "/public/x", host="b.example")
    assert not allowed(subject, "/public/x", "POST", host="b.example")
    assert not allowed(subject, "/x", host="b.example")
    assert not allowed(subject, "/public/x", host="b.example", port=8443)
    assert not allowed(subject, "/public/x", host=HOST_NAME, port=80)  # nor a port of the user's machine


@pytest.mark.parametrize(
    "text",
    ["", "allow", "allow GET", "allow /x", "permit GET /x", "ALLOW GET /x", "allow get /x", "allow GET x",
     "allow GET /x /y", "allow G*T /x", "allow GET,POST /x", "allow GET /x*", "allow GET /../x", "deny * *",
     "allow 1 /x", "allow - /x"],
)  # fmt: skip
def test_bad_rules_are_errors(text):
    with pytest.raises(ValueError, match=r"\S"):
        parse_rule(text)


def test_rules_spell_themselves():
    assert str(parse_rule("allow  GET   /a/**")) == "allow GET /a/**"
    assert str(parse_rule("deny * /a/")) == "deny * /a"
    assert str(parse_rule("deny VERSION-CONTROL /")) == "deny VERSION-CONTROL /"


def test_strict_allows_listed_hosts_only():
    subject = policy("strict", {"a.example": [], "*.b.example": [], "c.example:8443": []})
    for site in [("a.example", 443), ("x.b.example", 80), ("c.example", 8443)]:
        assert subject.authority(*site) is None
    for site in [
        ("b.example", 443),
        ("a.example", 8443),
        ("c.example", 443),
        ("evil.example", 443),
        ("::1", 443),
    ]:
        denial = subject.authority(*site)
        assert denial is not None
        assert denial.code == "policy"
        assert denial.rule == "network.policy: strict"


def test_permissive_allows_hosts_but_not_the_users_machine():
    subject = policy("permissive", ports=[5432])
    assert subject.authority("anything.example", 9999) is None
    assert allowed(subject, "/%zz")
    assert subject.authority(HOST_NAME, 5432) is None
    denial = subject.authority(HOST_NAME, 5433)
    assert denial is not None
    assert denial.rule == "network.host"
    assert "5433" in denial.hint
    assert subject.exchange(HOST_NAME, 80, "http", "GET", "/") is not None
    strict = policy("strict", {HOST_NAME: []}, ports=[5432])
    assert strict.authority(HOST_NAME, 5432) is None
    assert strict.authority(HOST_NAME, 443) is not None  # naming the host does not open its ports
    assert strict.exchange(HOST_NAME, 5432, "http", "GET", "/") is None


def test_the_first_matching_rule_wins_then_the_mode():
    rules = ["allow GET /repos/**", "deny * /repos/x/**", "allow POST /repos/x/issues", "deny DELETE /**"]
    for mode, otherwise in (("strict", False), ("permissive", True)):
        subject = policy(mode, {"a.example": rules})
        assert allowed(subject, "/repos/x/secret")
        assert not allowed(subject, "/repos/x/issues", "POST")
        assert not allowed(subject, "/other", "DELETE")
        assert allowed(subject, "/other") is otherwise
        assert subject.authority("a.example", 443) is None  # the CONNECT itself is fine


def test_methods_of_allow_are_exact_and_of_deny_are_not():
    subject = policy("permissive", {"a.example": ["deny DELETE /**"]})
    assert not allowed(subject, "/x", "delete")
    strict = policy("strict", {"a.example": ["allow GET /**"]})
    assert not allowed(strict, "/x", "get")
    assert not allowed(strict, "/x", "HEAD")


# All of these reach /admin/x on some server.
ADMIN = [
    "/admin/x", "/admin/x/", "/admin", "/admin/", "/admin/x?y", "//admin/x", "/./admin/x", "/public/../admin/x",
    "/public/%2e%2e/admin/x", "/public/.%2e/admin/x", "/public/..%2fadmin/x", "/public%2f..%2fadmin%2fx",
    "/%61dmin/x", "/%61%64%6d%69%6e/x", "/admin%2fx", "/%2fadmin/x", "/%2Fadmin/x", "/admin\\x", "\\admin\\x",
    "/admin%5cx", "/public\\..\\admin\\x", "/admin;a=b/x", "/;/admin/x", "/public/..;/admin/x", "/admin/x;y",
    "/%2561dmin/x", "/%252561dmin/x", "/public/%252e%252e/admin/x", "/admin%252fx", "/Admin/x", "/ADMIN/x",
    "/%41dmin/x", "/admin//x", "/admin/./x", "/admin/y/../x", "/%EF%BD%81dmin/x", "/admin%EF%BC%8Fx",
    "/%c0%afadmin/x", "/public/%c0%ae%c0%ae/admin/x", "/%u0061dmin/x", "/%%61dmin", "/admin%00/x", "/admin%0a/x",
    "/admin%3fx", "/admin%23x", "*", "http://a.example/admin/x",
]  # fmt: skip


@pytest.mark.parametrize("target", ADMIN)
def test_no_spelling_gets_around_a_deny(target):
    subject = policy("permissive", {"a.example": ["deny * /admin/**"]})
    assert not allowed(subject, target)
    assert not allowed(policy("strict", {"a.example": ["deny * /admin/**", "allow * /**"]}), target)


@pytest.mark.parametrize("target", ADMIN)
def test_no_spelling_gets_out_of_an_allow(target):
    assert not allowed(policy("strict", {"a.example": ["allow * /public/**"]}), target)


@pytest.mark.parametrize(
    "target", ["/", "/x/admin", "/administrator", "/x%2Fy", "/@scope%2fname", "/a;b", "/%20"]
)
def test_honest_paths_pass_next_to_a_deny(target):
    assert allowed(policy("permissive", {"a.example": ["deny * /admin/**"]}), target)


@pytest.mark.parametrize("target", ["/%zz", "/%c0%af", "/%00", "*"])
def test_odd_paths_pass_where_no_path_rule_applies(target):
    assert allowed(policy("strict", {"a.example": []}), target)


@pytest.mark.parametrize(
    ("header", "passes"),
    [
        ((b"X-HTTP-Method-Override", b"DELETE"), False),
        ((b"x-http-method", b" delete "), False),
        ((b"X-Method-Override", b"PATCH"), True),
        ((b"X-Original-URL", b"/admin"), False),
        ((b"X-Rewrite-Url", b"/"), False),
        ((b"X_HTTP_Method_Override", b"DELETE"), False),
        ((b"X-Original_URL", b"/admin"), False),
        ((b"X-Other", b"DELETE"), True),
    ],
)
def test_headers_that_change_method_or_path(header, passes):
    subject = policy("permissive", {"a.example": ["deny DELETE /**"]})
    assert allowed(subject, "/x", "POST", headers=(header,)) is passes
    assert allowed(policy("permissive"), "/x", "POST", headers=(header,))


@pytest.mark.parametrize(
    ("query", "passes"),
    [("_method=delete", False), ("a=b&_METHOD=DELETE", False), ("%5fmethod=DELETE", False), ("_method=patch", True),
     ("_m%65thod=DELETE", False), ("%5f%6d%65%74%68%6f%64=DELETE", False),
     (".method=DELETE", False), ("[method=DELETE", False), ("%20_method=DELETE", False), ("_method%00x=DELETE", False),
     ("x_method=delete", True), ("q=_method%3Ddelete", True), ("a.method=delete", True), ("_methods=delete", True)],
)  # fmt: skip
def test_a_query_that_names_the_method(query, passes):
    subject = policy("permissive", {"a.example": ["deny DELETE /**"]})
    assert allowed(subject, f"/x?{query}", "POST") is passes


# --- warnings ------------------------------------------------------------------------------------


def test_a_warn_decides_nothing():
    rules = ["warn POST /admin/**", "allow POST /admin/x", "deny POST /admin/**", "warn DELETE /**"]
    for mode, otherwise in (("strict", "deny"), ("permissive", "warn")):
        subject = policy(mode, {"a.example": rules})
        assert word(subject, "/admin/x", "POST") == "warn"
        assert word(subject, "/admin/y", "POST") == "deny"
        assert word(subject, "/x", "DELETE") == otherwise
        assert word(subject, "/Admin/x", "post") != "allow"
    denial = policy("permissive", {"a.example": rules}).exchange("a.example", 443, "https", "DELETE", "/x")
    assert denial is not None
    assert denial.rule == "a.example: warn DELETE /**"


def test_a_policy_that_warns_lets_through_what_rules_and_mode_refuse():
    subject = policy("strict", {"a.example": ["deny * /admin/**", "allow * /**"]}, enforce=False)
    assert word(subject, "/x") == "allow"
    assert word(subject, "/admin") == "warn"
    assert word(subject, "/%zz") == "warn"
    assert word(subject, "/", host="b.example") == "warn"
    assert isinstance(subject.authority("b.example", 443), Warned)
    assert word(subject, "/", host=HOST_NAME, port=80) == "deny"  # a port of the user's machine is no host


def test_a_policy_says_when_it_has_nothing_to_say():
    """Then an exchange does not even ask."""
    assert policy("permissive").site("a.example", 443).silent
    assert policy("strict", {"a.example": []}).site("a.example", 443).silent
    assert not policy("strict").site("a.example", 443).silent
    assert not policy("permissive", {"*": ["deny TRACE /**"]}).site("a.example", 443).silent


def test_an_entry_without_rules_does_not_undo_one_with():
    """Grants add the hosts of a credential as entries without rules."""
    hosts = {"*.example": [], "a.example": ["allow GET /x"], "A.EXAMPLE": []}
    for order in (hosts, dict(reversed(hosts.items()))):
        subject = policy("strict", order)
        assert allowed(subject, "/x")
        assert not allowed(subject, "/y")
        assert allowed(subject, "/y", host="b.example")


def test_rules_of_all_matching_entries_apply_in_order():
    subject = policy("strict", {"*.example": ["deny DELETE /**"], "a.example": ["allow * /x/**"]})
    assert not allowed(subject, "/x", "DELETE")
    assert allowed(subject, "/x", "POST")
    assert not allowed(subject, "/y", "POST")


def test_where_everything_is_open_a_rule_covers_every_port():
    subject = policy("permissive", {"a.example": ["deny * /admin/**"], "b.example:80": ["deny * /**"]})
    assert not allowed(subject, "/admin", port=8443)
    assert not allowed(subject, "/", host="b.example", port=80)
    assert allowed(subject, "/", host="b.example", port=443)


def test_a_deep_path_does_not_hold_up_the_proxy():
    """Without the bound on segments this takes half a minute, and everything in the run waits."""
    subject = policy("permissive", {"a.example": ["deny GET /**/x/**/y/**"] * 50})
    started = time.process_time()
    assert allowed(subject, "/a;b/%2e" + "/a" * 100)
    assert not allowed(subject, "/a;%2561" * 2000)
    assert time.process_time() - started < 5


def test_denials_tell_what_and_why_and_what_the_user_can_do():
    subject = policy("strict", {"a.example": ["deny * /admin/**"]})
    denial = subject.exchange("a.example", 443, "https", "GET", "/admin/x?token=abc")
    assert denial is not None
    assert denial.code == "policy"
    assert denial.reason == "GET https://a.example/admin/x is not allowed by this run's network policy"
    assert denial.rule == "a.example: deny * /admin/**"
    other = subject.authority("b.example", 8443)
    assert other is not None
    assert "b.example:8443" in other.reason
    assert "`- b.example:8443`" in other.hint
    odd = subject.exchange("a.example", 8443 - 8000, "https", "GET", "/%zz")
    assert odd is not None
    assert "more than one way" in odd.reason
    for each in (denial, other):
        assert "network.rules" in each.hint
        assert "agent.yaml" in each.hint
        assert "not a fault to work around" in each.hint
