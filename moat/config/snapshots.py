"""`snapshots:` of agent.yaml: when copies of the workspace are taken, of what, and how many are kept."""

from __future__ import annotations

from typing import Any

from moat.config.check import Checker, Node
from moat.dataclass import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotConfig:
    """When snapshots are taken, of what, and how many are kept (docs/snapshots.md)."""

    disabled: bool = False
    pre_run: bool = True  # before the sandbox exists
    git_commits: bool = True
    builds: bool = True
    idle: bool = True
    idle_seconds: int = 30
    gitignored: bool = True  # what .gitignore names is kept as well
    exclude: tuple[str, ...] = ()  # further patterns, in the syntax of .gitignore
    max_count: int = 10
    delete_initial: bool = False  # retention may remove the pre-run snapshot


def read(check: Checker, node: Node) -> SnapshotConfig:
    """The section; what is wrong with it is noted in `check`."""
    found: dict[str, Any] = check.fields(
        node,
        "snapshots",
        {
            "disabled": lambda value: check.boolean(value, "snapshots.disabled"),
            "triggers": lambda value: _triggers(check, value),
            "exclude": lambda value: _exclude(check, value),
            "retention": lambda value: _retention(check, value),
        },
        {},
    )
    fields = {"disabled": found.pop("disabled", False)}
    for section in found.values():
        fields |= section
    return SnapshotConfig(**fields)


def _triggers(check: Checker, node: Node) -> dict[str, Any]:
    """`disable_idle: true` of the file is `idle=False` here."""
    names = {
        "disable_pre_run": "pre_run",
        "disable_git_commits": "git_commits",
        "disable_builds": "builds",
        "disable_idle": "idle",
    }
    where = "snapshots.triggers"
    found = check.fields(
        node,
        where,
        {
            **{name: _flag(check, f"{where}.{name}") for name in names},
            "idle_threshold_seconds": lambda value: check.integer(
                value, f"{where}.idle_threshold_seconds", 1, 86400
            ),
        },
        {},
    )
    result: dict[str, Any] = {names[name]: not value for name, value in found.items() if name in names}
    if "idle_threshold_seconds" in found:
        result["idle_seconds"] = found["idle_threshold_seconds"]
    return result


def _flag(check: Checker, what: str) -> Any:
    return lambda value: check.boolean(value, what)


def _exclude(check: Checker, node: Node) -> dict[str, Any]:
    """`ignore_gitignore: false` obeys .gitignore; without the key what it names is kept."""

    def patterns(value: Node) -> tuple[str, ...]:
        what = "an entry of snapshots.exclude.additional"
        items = check.items(value, "snapshots.exclude.additional", '["*.log", "tmp/"]')
        found = [check.text(item, what) for item in items]
        return tuple(text for text in found if text is not None)

    found = check.fields(
        node,
        "snapshots.exclude",
        {
            "ignore_gitignore": lambda value: check.boolean(value, "snapshots.exclude.ignore_gitignore"),
            "additional": patterns,
        },
        {},
    )
    names = {"ignore_gitignore": "gitignored", "additional": "exclude"}
    return {names[name]: value for name, value in found.items()}


def _retention(check: Checker, node: Node) -> dict[str, Any]:
    return check.fields(
        node,
        "snapshots.retention",
        {
            "max_count": lambda value: check.integer(value, "snapshots.retention.max_count", 1, 10_000),
            "delete_initial": lambda value: check.boolean(value, "snapshots.retention.delete_initial"),
        },
        {},
    )
