"""What a sandbox gets of the resolved plugins: read-only mounts, and Claude Code's own records of them.

Claude Code 2.1.330 loads at its first prompt what lies in its cache and is written in
installed_plugins.json; a marketplace in a directory is read in place. Nothing else is ready in time: what
it would fetch by itself comes after the first answer. Its own state next to the mounts stays writable.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from moat.dataclass import dataclass
from moat.runtime.plugins.fetch import Fetch
from moat.runtime.plugins.resolve import Market, Plugin, Resolved, State
from moat.runtime.sandbox import HOME, HomeFile, Mount

_PLUGINS = ".claude/plugins"
_OVERRIDES = ".claude/moat-settings.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """`enabled` belongs into the user's settings of the sandbox, `argv` behind `claude`."""

    mounts: tuple[Mount, ...] = ()
    home_files: tuple[HomeFile, ...] = ()
    enabled: Mapping[str, bool] = field(default_factory=dict)
    argv: tuple[str, ...] = ()
    fetches: tuple[Fetch, ...] = ()  # for the run's journal


def deliver(resolved: Resolved, project: Mapping[str, bool]) -> Delivery:
    """`project`: what the workspace's own settings say, which Claude Code reads by itself."""
    markets = {market.named.name: market for market in resolved.marketplaces if market.manifest}
    ready = [p for p in resolved.plugins if p.state is State.READY]
    told = {State.READY: True, State.DISABLED: False}
    enabled = {p.choice.id: told[p.state] for p in resolved.plugins if p.state in told}
    overrides = {name: on for name, on in enabled.items() if project.get(name, on) is not on}
    mounts = [_cache_mount(plugin) for plugin in ready if plugin.inside is None]
    mounts += [_market_mount(market) for market in markets.values() if not market.named.source.remote]
    files = [_manifest_file(market) for market in markets.values() if market.named.source.remote]
    if markets:
        files.append(_json(f"{_PLUGINS}/known_marketplaces.json", _known(markets)))
    if ready:
        files.append(_json(f"{_PLUGINS}/installed_plugins.json", _installed(ready)))
    if overrides:
        # Above the project's settings, which say otherwise and which the sandbox sees.
        files.append(_json(_OVERRIDES, {"enabledPlugins": overrides}))
    return Delivery(
        mounts=tuple(mounts),
        home_files=tuple(files),
        enabled=enabled,
        argv=("--settings", f"{HOME}/{_OVERRIDES}") if overrides else (),
        fetches=resolved.fetches,
    )


def _place(market: str) -> str:
    return f"{HOME}/{_PLUGINS}/marketplaces/{market}"


def _path(plugin: Plugin) -> str:
    choice = plugin.choice
    if plugin.inside is not None:
        return f"{_place(choice.marketplace)}/{plugin.inside}".rstrip("/")
    return f"{HOME}/{_PLUGINS}/cache/{choice.marketplace}/{choice.name}/{plugin.version}"


def _cache_mount(plugin: Plugin) -> Mount:
    assert plugin.tree is not None
    return Mount.of(plugin.tree, _path(plugin), read_only=True)


def _market_mount(market: Market) -> Mount:
    assert market.tree is not None
    return Mount.of(market.tree, _place(market.named.name), read_only=True)


def _manifest_file(market: Market) -> HomeFile:
    assert market.manifest is not None
    # Claude Code looks for it here, wherever it was in the repository.
    place = f"{_PLUGINS}/marketplaces/{market.named.name}/.claude-plugin/marketplace.json"
    return HomeFile(place, market.manifest.data, 0o644)


def _known(markets: Mapping[str, Market]) -> dict[str, Any]:
    return {
        name: {
            "source": market.named.source.for_claude(_place(name)),
            "installLocation": _place(name),
            "lastUpdated": _now(),
        }
        for name, market in markets.items()
    }


def _installed(plugins: list[Plugin]) -> dict[str, Any]:
    return {
        "version": 2,
        "plugins": {
            plugin.choice.id: [
                {
                    "scope": "user",
                    "installPath": _path(plugin),
                    "version": plugin.version,
                    "installedAt": _now(),
                    "lastUpdated": _now(),
                    **({"gitCommitSha": plugin.commit} if plugin.commit else {}),
                }
            ]
            for plugin in plugins
        },
    }


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _json(path: str, value: dict[str, Any]) -> HomeFile:
    return HomeFile(path, json.dumps(value, indent=2).encode())
