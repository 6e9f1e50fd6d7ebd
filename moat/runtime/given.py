"""What a run has of its grants. Runs without any load this, and no vault (`granted` makes it)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from moat.dataclass import dataclass
from moat.grants import LoginRule, Rule
from moat.runtime.sandbox import HomeFile


@dataclass(frozen=True, slots=True)
class Granted:
    rules: tuple[Rule, ...]
    env: Mapping[str, str]  # placeholders only
    files: tuple[HomeFile, ...]  # placeholders only
    hosts: tuple[str, ...]  # patterns that `network.policy: strict` opens
    logins: tuple[LoginRule, ...]


NOTHING = Granted((), {}, (), (), ())


def with_more(given: Granted, *, rules: tuple[Rule, ...], hosts: tuple[str, ...]) -> Granted:
    """`given` with rules and open hosts that do not come from a provider's table."""
    return replace(given, rules=(*given.rules, *rules), hosts=(*given.hosts, *hosts))
