"""Writing what the user has decided for good into `~/.moat/config.yaml`: one entry, and nothing else."""

from __future__ import annotations

from typing import Any

from moat.config.rewrite import rewritten
from moat.config.user import load_user
from moat.errors import ConfigError
from moat.paths import Home, locked, write_private
from moat.rules import parse_host_pattern


def remember(home: Home, host: str, *, allow: bool) -> None:
    """Add `host` to `ask.allow` or `ask.deny`, and take it out of the other. Comments and order stay.

    Raises ConfigError for a file with mistakes, which is left alone; OSError when it cannot be written.
    """
    file = home.config_file
    if file.is_symlink():
        word = "allow" if allow else "deny"
        raise ConfigError(
            [f"{file} is a link, which is not written through"], hint=f"add `- {host}` to ask.{word} there"
        )
    with locked(home.root / "config.lock"):
        load_user(home)
        text = file.read_text("utf-8-sig") if file.exists() else ""
        changed = rewritten(text, lambda data: _answer(data, host, allow=allow))
        if changed != text:
            write_private(file, changed.encode())
            try:
                load_user(home)
            except ConfigError:
                write_private(file, text.encode())
                raise


def _answer(data: Any, host: str, *, allow: bool) -> None:
    section = data.setdefault("ask", {})
    wanted, other = ("allow", "deny") if allow else ("deny", "allow")
    entries = section.setdefault(wanted, [])
    pattern = parse_host_pattern(host)
    if not any(parse_host_pattern(str(entry)) == pattern for entry in entries):
        entries.append(host)
    opposite = section.get(other, ())
    for at in reversed(range(len(opposite))):
        if parse_host_pattern(str(opposite[at])) == pattern:
            del opposite[at]
    if other in section and not opposite:
        del section[other]
