"""JSON files in which other tools of this machine's user keep their logins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moat.errors import GrantError

_LIMIT = 1_000_000  # bytes


def read_json(path: Path, *, hint: str) -> Mapping[str, Any] | None:
    """None when there is no such file, empty when it holds no object.

    Raises GrantError for one that cannot be read, with `hint` for one that is not JSON.
    """
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_LIMIT))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise GrantError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        # Not chained: the text of a JSON error may quote the file.
        raise GrantError(f"{path} is not JSON", hint=hint) from None
    return data if isinstance(data, dict) else {}
