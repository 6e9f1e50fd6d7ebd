"""Writing a learned policy into a workspace's agent.yaml: the entries that are not there yet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from moat.config.network import NetworkConfig
from moat.config.rewrite import rewritten
from moat.config.workspace import FILES, load, load_file
from moat.errors import ConfigError
from moat.paths import replace_file
from moat.rules import parse_entry_host


def adopt(workspace: Path, network: NetworkConfig) -> tuple[Path, tuple[str, ...]]:
    """Add the hosts, rules and ports of `network`; `policy: permissive` becomes `strict`.

    Returns the file, and the hosts that it has entries for already: those are left as they are. Raises
    ConfigError for a file with mistakes, which is left alone; OSError.
    """
    path = load(workspace).path or workspace / FILES[0]
    if path.is_symlink():
        raise ConfigError([f"{path.name} is a link, which is not written through"])
    text = path.read_text("utf-8-sig") if path.exists() else ""
    kept: list[str] = []
    changed = rewritten(text, lambda data: kept.extend(_merge(data, network)))
    if changed != text:
        _replace(path, changed)
        try:
            load_file(path)
        except ConfigError:
            _replace(path, text)
            raise
    return path, tuple(kept)


def _merge(data: Any, network: NetworkConfig) -> list[str]:
    """Returns the hosts that have an entry already."""
    section = data.setdefault("network", {})
    if section.get("policy", "permissive") == "permissive":
        section["policy"] = network.policy
    rules = section.setdefault("rules", [])
    known = [parse_entry_host(str(host)) for entry in rules for host in _hosts(entry)]
    kept = []
    for entry in network.rules:
        wanted = parse_entry_host(entry.host)
        if any(there.matches(wanted.host, wanted.port or 443) for there in known):
            kept.append(entry.host)
        else:
            rules.append({entry.host: list(entry.rules)} if entry.rules else entry.host)
    if not rules:
        del section["rules"]
    ports = section.setdefault("host", [])
    ports.extend(port for port in network.host if port not in ports)
    if not ports:
        del section["host"]
    return kept


def _hosts(entry: Any) -> list[str]:
    return list(entry) if isinstance(entry, dict) else [entry]


def _replace(path: Path, text: str) -> None:
    """Write the file anew, with the mode and owner that it had; a crash leaves the old one or the new one."""
    like = os.stat(path) if path.exists() else None
    owner = like or os.stat(path.parent)

    def prepare(fd: int) -> None:
        os.fchmod(fd, like.st_mode & 0o777 if like else 0o644)
        if os.geteuid() == 0:
            os.fchown(fd, owner.st_uid, owner.st_gid)

    replace_file(path, text.encode(), prepare)
