"""What the tests of Codex and of the Gemini CLI stand on: a user who has granted, and a workspace with the real program.

Nothing leaves the machine: the policy of the workspace is strict, and what the grants open leads to stand-ins.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Moat = Callable[..., subprocess.CompletedProcess[str]]
AT = "/opt/agent"  # where the program is in the sandbox
# Everything that the sandbox can tell of itself, by its agent's own tool.
DUMP = "env >dump; cat /proc/[0-9]*/environ >>dump 2>/dev/null; find ~ /tmp -type f -exec cat {} + >>dump 2>/dev/null"


def with_key_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vault in sealed files."""
    import base64
    import secrets

    key = home / "key"
    key.write_bytes(base64.b64encode(secrets.token_bytes(32)))
    key.chmod(0o600)
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(key))


def workspace(tmp_path: Path, program: str) -> Path:
    """The `moat` fixture's workspace, with the directory of `program` at `AT`. Codex insists on a repository."""
    place = tmp_path / "workspace"
    place.mkdir(exist_ok=True)
    subprocess.run(["git", "init", "--quiet", str(place)], check=True)
    directory = os.path.realpath(Path(program).resolve().parent)
    (place / "agent.yaml").write_text(
        f"network: {{policy: strict}}\nmounts: [{json.dumps(f'{directory}:{AT}:ro')}]\n"
    )
    return place


def run(moat: Moat, grant: str, runtime: str, script: str) -> str:
    """What `sh -c script` printed in a sandbox with `grant`; it must have gone well."""
    done = moat("run", "--runtime", runtime, "--grant", grant, "--", "sh", "-c", script, timeout=240)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
