"""Arguments of API calls: what is not what it can be is named, and nothing begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

import moat.runtime
from moat.arguments import check, check_range, listed, mapped
from moat.dataclass import dataclass
from moat.errors import ArgumentError, UsageError
from moat.grants import InjectionRule
from moat.proxy import Budget, Limits, Policy, Proxy, RunCA, Upstream, UpstreamOptions
from moat.runtime import (
    BudgetConfig,
    HostRules,
    Marketplace,
    Mount,
    NetworkConfig,
    PluginsConfig,
    Size,
    SnapshotConfig,
)


@dataclass(frozen=True, slots=True)
class Inner:
    word: Literal["a", "b"] = "a"
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Outer:
    inner: tuple[Inner, ...] = ()
    pair: tuple[str, int] = ("", 0)
    named: Mapping[str, Inner] | None = None
    share: float = 1.0


FITS: list[tuple[object, Any]] = [
    (Outer((Inner("b", 3),), ("x", 1), {"n": Inner()}, 2), Outer),
    ([Inner()], Sequence[Inner]),
    ([Inner()], tuple[Inner, ...]),
    ({1, 2}, frozenset[int]),
    (len, Callable[[str], int] | None),
    (None, Callable[[str], int] | None),
    (True, str | bool),
]
DOES_NOT: list[tuple[object, Any, str]] = [
    (Inner("c"), Inner, "x.word must be 'a' or 'b', not 'c'"),  # type: ignore[arg-type]
    (Inner("a", True), Inner, "x.number must be int or None, not bool"),
    (Inner("a", 1.0), Inner, "x.number must be int or None, not float"),  # type: ignore[arg-type]
    (Outer((Inner("c"),)), Outer, "x.inner[0].word must be 'a' or 'b', not 'c'"),  # type: ignore[arg-type]
    (Outer("ab"), Outer, "x.inner must be a list of Inner, not str"),  # type: ignore[arg-type]
    (Outer(pair=("a",)), Outer, "x.pair must be tuple[str, int], not tuple"),  # type: ignore[arg-type]
    (Outer(pair=("a", "b")), Outer, "x.pair[1] must be int, not str"),  # type: ignore[arg-type]
    (Outer(named={"n": "secret"}), Outer, "x.named['n'] must be Inner, not str"),  # type: ignore[dict-item]
    (Outer(named={1: Inner()}), Outer, "a key of x.named must be str, not int"),  # type: ignore[dict-item]
    (Outer(share="1"), Outer, "x.share must be float, not str"),  # type: ignore[arg-type]
    (Inner, Inner, "x must be Inner, not type"),
    ("f", Callable[[], int] | None, "x must be callable or None, not str"),
    ("ab", Sequence[Inner | Outer], "x must be a list of Inner or Outer, not str"),
]


@pytest.mark.parametrize(("value", "kind"), FITS)
def test_what_fits(value: object, kind: Any) -> None:
    check("x", value, kind)


@pytest.mark.parametrize(("value", "kind", "wrong"), DOES_NOT)
def test_what_does_not_fit_is_named(value: object, kind: Any, wrong: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check("x", value, kind)
    assert str(caught.value) == wrong
    assert isinstance(caught.value, UsageError)
    assert isinstance(caught.value, ValueError)


def test_lists_mappings_and_ranges() -> None:
    assert listed("x", iter("ab")) == ("a", "b")
    assert mapped("x", {"a": 1}) == {"a": 1}
    for wrong in ("text", b"bytes", 5, None, {"a": 1}):
        with pytest.raises(ArgumentError, match="x must be a list"):
            listed("x", wrong)
    with pytest.raises(ArgumentError, match="x must be a mapping, not list"):
        mapped("x", [("a", 1)])
    check_range("x", 1, 1, 2)
    with pytest.raises(ArgumentError, match="x must be from 1 to 2, not 3"):
        check_range("x", 3, 1, 2)
    with pytest.raises(ArgumentError, match="x must be at least 0, not nan"):
        check_range("x", float("nan"), 0)


def _network(**fields: Any) -> dict[str, Any]:
    return {"network": NetworkConfig(**fields)}


# What was seen: words after the first three let everything pass that they were to refuse, or kept nothing.
STARTS: list[tuple[str, dict[str, Any]]] = [
    ("network.mode must be 'enforce' or 'warn'", _network(mode="Enforce")),
    ("network.unreadable must be", _network(unreadable="Withhold")),
    ("network.body_leaks must be", _network(body_leaks="refused")),
    ("snapshots.exclude must be a list", {"snapshots": SnapshotConfig(exclude="*.o")}),  # type: ignore[arg-type]
    ("network.policy must be", _network(policy="Strict")),
    ("network must be NetworkConfig", {"network": "strict"}),
    ("network.rules\\[0\\] must be HostRules", _network(rules=["pypi.org"])),
    ("network.rules\\[0\\].rules must be a list", _network(rules=[HostRules("a", "deny * /")])),  # type: ignore[arg-type]
    ("network.host\\[0\\] must be int", _network(host=("80",))),
    ("network.host\\[0\\] must be from 1 to 65535", _network(host=(0,))),
    ("network: policy ask and mode warn", _network(policy="ask", mode="warn")),
    ("network.budgets\\[0\\].requests must", _network(budgets=(BudgetConfig(requests="5"),))),  # type: ignore[arg-type]
    ("argv must be a list, not str", {"argv": "true"}),
    ("argv must be a list with", {"argv": []}),
    ("argv\\[1\\] must be str, not int", {"argv": ["sleep", 5]}),
    ("workspace must be a path, not None", {"workspace": None}),
    ("workspace must be a path, which", {"workspace": "a\0b"}),
    ("grants must be a list, not str", {"grants": "github"}),
    ("grants\\[0\\] must be str", {"grants": [None]}),
    ("env must be a mapping", {"env": ["A=b"]}),
    ("env\\['A'\\] must be str, not int", {"env": {"A": 1}}),
    ("mounts must be a list", {"mounts": Mount(Path("/usr"), "/mnt")}),
    ("mounts\\[0\\] must be a Mount, not str", {"mounts": ["/usr:/mnt"]}),
    ("mounts\\[0\\].read_only must be bool", {"mounts": [Mount(Path("/usr"), "/mnt", "no")]}),  # type: ignore[arg-type]
    ("name must be str or None", {"name": 5}),
    ("runtime must be str or None", {"runtime": b"docker"}),
    ("tty must be Size or None, not tuple", {"tty": (80, 24)}),
    ("stdin must be bool", {"stdin": "no"}),
    ("ports must be a mapping, not list", {"ports": [3000]}),
    ("ports\\['web'\\] must be int", {"ports": {"web": "3000"}}),
    ("dependencies must be a list", {"dependencies": "node"}),
    ("base_image must be str or None", {"base_image": 5}),
    ("snapshots must be SnapshotConfig", {"snapshots": True}),
    ("snapshots.max_count must be from 1", {"snapshots": SnapshotConfig(max_count=0)}),
    ("snapshots.idle_seconds must be from 1", {"snapshots": SnapshotConfig(idle_seconds=-1)}),
    ("plugins.plugins must be a mapping", {"plugins": PluginsConfig(plugins=["x@y"])}),  # type: ignore[arg-type]
    (
        "plugins.marketplaces\\['a'\\].ref must be str or None",
        {"plugins": PluginsConfig(marketplaces={"a": Marketplace(source="git", location="x", ref=5)})},  # type: ignore[arg-type]
    ),
    ("home must be Home or None", {"home": "/somewhere"}),
    ("progress must be callable", {"progress": None}),
    ("decider must be callable", {"decider": True}),
]


@pytest.mark.parametrize(("wrong", "options"), STARTS)
def test_what_start_does_not_take_is_named(wrong: str, options: dict[str, Any], home: Path) -> None:
    given = {"argv": ["true"], "workspace": home.parent, **options}
    with pytest.raises(ArgumentError, match=wrong):
        moat.runtime.start(given.pop("argv"), **given)
    assert not (home / ".moat").exists(), "nothing was begun"


def test_a_terminal_has_a_size() -> None:
    for columns in (-1, 65536, "80", 80.0, None, True):
        with pytest.raises(ArgumentError, match="columns of a terminal must be a whole number"):
            Size(columns, 24)  # type: ignore[arg-type]


RULE: dict[str, Any] = {"credential": "demo", "hosts": ("api.test",), "header": "authorization"}
# What was seen: without a password for everybody on the machine, then rules that did nothing.
OPENS: list[tuple[str, dict[str, Any]]] = [
    ("token must be str or bool, not None", {"token": None}),
    ("rules\\[0\\].surfaces must be a list", {"rules": [InjectionRule(**RULE, surfaces="header")]}),
    ("rules\\[0\\].ports\\[0\\] must be int", {"rules": [InjectionRule(**RULE, ports=("443",))]}),
    ("rules\\[0\\].scheme must be", {"rules": [InjectionRule(**RULE, scheme="Basic")]}),
    ("rules\\[0\\] must be InjectionRule or SigningRule", {"rules": ["demo"]}),
    ("port must be int", {"port": "8080"}),
    ("port must be from 0 to 65535", {"port": 70000}),
    ("policy must be Policy", {"policy": "strict"}),
    ("policy.hosts must be a list of HostRule", {"policy": Policy(hosts="api.test")}),  # type: ignore[arg-type]
    ("credentials must be a mapping or", {"credentials": ["demo"]}),
    ("credentials\\['demo'\\] must be str, not bytes", {"credentials": {"demo": b"real-token"}}),
    ("budgets\\[0\\].host must be HostPattern", {"budgets": [Budget(host="api.test")]}),  # type: ignore[arg-type]
    ("decider must be callable", {"decider": "x"}),
    ("upstream must be UpstreamOptions", {"upstream": None}),
    ("a key of upstream.connect_to", {"upstream": UpstreamOptions(connect_to={"a": "b"})}),  # type: ignore[dict-item]
    ("limits.head must be int", {"limits": Limits(head="64k")}),  # type: ignore[arg-type]
    ("record must be", {"record": 5}),
    ("grace must be float", {"grace": None}),
    ("grace must be at least 0", {"grace": -1}),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("wrong", "options"), OPENS)
async def test_what_a_proxy_does_not_take_is_named(wrong: str, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=wrong):
        async with Proxy.open(**options):
            pytest.fail("it must not listen")


@pytest.mark.anyio
async def test_what_the_parts_of_a_proxy_do_not_take() -> None:
    with pytest.raises(ArgumentError, match="mode must be 'permissive', 'strict' or 'ask', not 'Strict'"):
        Policy("Strict")  # type: ignore[arg-type]
    for bound in ("requests", "requests_per_minute", "bytes_per_minute", "upload", "download", "response"):
        with pytest.raises(ArgumentError, match=f"{bound} must be at least 1, not 0"):
            Budget(**{bound: 0})
    for option, word in (("unreadable", "Withhold"), ("body_leaks", "Refuse"), ("token", 5)):
        with pytest.raises(ArgumentError, match=f"{option} must be"):
            Proxy(
                policy=Policy(),
                ca=RunCA.generate("x"),
                upstream=Upstream(UpstreamOptions()),
                on_event=print,
                **{option: word},  # type: ignore[arg-type]
            )
