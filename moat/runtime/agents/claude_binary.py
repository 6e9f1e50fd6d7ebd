"""Claude Code on the host, as the one native program that can be shown to a sandbox.

npm, the native installer and version managers put links and scripts on PATH; behind them is a single
ELF of a few hundred megabytes that needs nothing but glibc.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from moat.errors import StartError

_MIN_BYTES = 20_000_000  # a version manager's shim is an ELF too, of a few megabytes
_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def find_claude(home: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The native program of the host's `claude`. Raises StartError with the command that installs it."""
    seen = []
    for candidate in _candidates(home, environ):
        native = _native(candidate)
        if native is not None:
            return native
        seen.append(candidate)
    hint = (
        "npm install -g @anthropic-ai/claude-code\n"
        "or, without npm: curl -fsSL https://claude.ai/install.sh | bash\n"
        "or use `--runtime docker`, whose image brings its own"
    )
    if seen:
        raise StartError(f"{seen[0]} is not the native Claude Code program that a sandbox can run", hint=hint)
    raise StartError("Claude Code is not installed on this machine", hint=hint)


def _candidates(home: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    found = shutil.which("claude", path=environ.get("PATH"))
    if found:
        yield Path(found)
    for place in (home / ".local/bin/claude", home / ".claude/local/node_modules/.bin/claude"):
        if place.exists():
            yield place


def _native(candidate: Path) -> Path | None:
    """The ELF behind `candidate`: itself, or the platform package next to npm's launcher."""
    target = candidate.resolve()
    machine = _MACHINES.get(platform.machine(), platform.machine())
    package = f"claude-code-linux-{machine}"
    places = [target]
    for directory in target.parents[:3]:  # …/@anthropic-ai/claude-code/bin/claude.exe
        places.append(directory.parent / package / "claude")
        places.append(directory / "node_modules" / "@anthropic-ai" / package / "claude")
    return next((place for place in places if _is_program(place)), None)


def _is_program(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return file.read(4) == b"\x7fELF" and size >= _MIN_BYTES and os.access(path, os.X_OK)
    except OSError:
        return False
