"""Writing what the user has decided for good into `~/.moat/config.yaml`: one entry, and nothing else."""

from __future__ import annotations

import io
import re
from typing import Any

from ruamel.yaml import YAML  # noqa: TID253 - this file is imported when a file has to be written
from ruamel.yaml.comments import CommentedMap, CommentedSeq  # noqa: TID253 - as above
from ruamel.yaml.util import load_yaml_guess_indent  # noqa: TID253 - as above

from moat.config.user import load_user
from moat.errors import ConfigError
from moat.paths import Home, locked, write_private
from moat.rules import parse_host_pattern

_INDENTED_KEY = re.compile(r"^( +)[^\s#-]", re.MULTILINE)


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
        changed = with_answer(text, host, allow=allow)
        if changed != text:
            write_private(file, changed.encode())
            try:
                load_user(home)
            except ConfigError:
                write_private(file, text.encode())
                raise


def with_answer(text: str, host: str, *, allow: bool) -> str:
    """The text of the file with the answer in it."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000  # no line is broken anew
    data = yaml.load(text)
    if data is None:
        end = "\n" if text and not text.endswith("\n") else ""
        return text + end + _rendered(yaml, {"ask": {"allow" if allow else "deny": [host]}})
    _, sequence, offset = load_yaml_guess_indent(text)
    mapping = _INDENTED_KEY.search(text)
    yaml.indent(
        mapping=len(mapping[1]) if mapping else 2,
        sequence=sequence or 4,
        offset=2 if offset is None else offset,
    )
    section = data.setdefault("ask", CommentedMap())
    wanted, other = ("allow", "deny") if allow else ("deny", "allow")
    entries = section.setdefault(wanted, CommentedSeq())
    pattern = parse_host_pattern(host)
    if not any(parse_host_pattern(str(entry)) == pattern for entry in entries):
        entries.append(host)
    opposite = section.get(other, ())
    for at in reversed(range(len(opposite))):
        if parse_host_pattern(str(opposite[at])) == pattern:
            del opposite[at]
    if other in section and not opposite:
        del section[other]
    return _rendered(yaml, data)


def _rendered(yaml: YAML, data: Any) -> str:
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()
