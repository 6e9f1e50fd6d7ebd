"""Changing one thing in a YAML file of the user's: comments, order and quotes of the rest stay."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.util import load_yaml_guess_indent

_INDENTED_KEY = re.compile(r"^( +)[^\s#-]", re.MULTILINE)


def rewritten(text: str, change: Callable[[Any], None]) -> str:
    """`text` after `change` was done to its mapping, which behaves like a dict of dicts and lists.

    The file must have been read without complaint before (`load_file`, `load_user`).
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000  # no line is broken anew
    yaml.indent(mapping=2, sequence=4, offset=2)
    data = yaml.load(text)
    if data is None:
        data = CommentedMap()
        change(data)
        end = "\n" if text and not text.endswith("\n") else ""
        return text + end + _rendered(yaml, data)
    _, sequence, offset = load_yaml_guess_indent(text)
    mapping = _INDENTED_KEY.search(text)
    yaml.indent(
        mapping=len(mapping[1]) if mapping else 2,
        sequence=sequence or 4,
        offset=2 if offset is None else offset,
    )
    change(data)
    return _rendered(yaml, data)


def _rendered(yaml: YAML, data: Any) -> str:
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()
