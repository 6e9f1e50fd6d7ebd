"""What a marketplace and a plugin say of themselves. The text is a stranger's; only a few words count."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from moat.dataclass import dataclass
from moat.runtime.plugins.json_file import UnreadableError, parse_object, read_object
from moat.runtime.plugins.source import MANIFEST, Source, SourceError, plugin_source

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class ManifestError(Exception):
    """Why a manifest cannot be used, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketplaceManifest:
    data: bytes  # as it is, for the sandbox
    entries: Mapping[str, Mapping[str, Any]]
    plugin_root: str | None
    root: str  # the directory in the tree that relative sources start from

    def entry(self, name: str) -> Mapping[str, Any]:
        """Raises ManifestError when there is no such plugin."""
        if name in self.entries:
            return self.entries[name]
        near = get_close_matches(name, self.entries, n=1)
        raise ManifestError(f"it has no plugin {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))

    def source(self, name: str) -> Source | str:
        """Where the plugin is; a path is relative to the tree of the marketplace. Raises ManifestError."""
        try:
            found = plugin_source(self.entry(name).get("source"), self.plugin_root)
        except SourceError as error:
            raise ManifestError(f"plugin {name!r}: {error}") from None
        return posixpath.join(self.root, found).rstrip("/") if isinstance(found, str) else found


def read_marketplace(tree: Path, path: str = "") -> MarketplaceManifest:
    """The manifest of the marketplace in `tree`. Raises ManifestError."""
    where = path or MANIFEST
    place = tree / where
    try:
        if not place.is_file():
            raise ManifestError(f"it has no {where}")
        if not place.resolve().is_relative_to(tree.resolve()):
            raise ManifestError(f"{where} is a link that leads out of it")
        data = place.read_bytes()
        value = parse_object(data)
    except (OSError, UnreadableError) as error:
        raise ManifestError(f"its {where} is {error}") from None
    plugins = value.get("plugins")
    if not isinstance(plugins, list):
        raise ManifestError(f"its {where} has no list of `plugins`")
    entries = {item["name"]: item for item in plugins if isinstance(item, dict) and _named(item)}
    metadata = value.get("metadata")
    root = metadata.get("pluginRoot") if isinstance(metadata, dict) else None
    directory = posixpath.dirname(where)
    if posixpath.basename(directory) == ".claude-plugin":
        directory = posixpath.dirname(directory)
    return MarketplaceManifest(
        data=data,
        entries=entries,
        plugin_root=root if isinstance(root, str) and root else None,
        root=directory,
    )


def read_version(plugin: Path, entry: Mapping[str, Any]) -> str | None:
    """The plugin's version as it names a directory; None when it has none. Raises ManifestError."""
    manifest = plugin / ".claude-plugin" / "plugin.json"
    try:
        value = read_object(manifest, inside=plugin)
    except UnreadableError as error:
        raise ManifestError(f"its plugin.json is {error}") from None
    for found in (value.get("version"), entry.get("version")):
        if isinstance(found, str) and _VERSION.fullmatch(found):
            return found
    return None


def _named(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get("name"), str)
