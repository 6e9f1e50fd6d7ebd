"""What the tests of vendors' own clients share: how their scripts tell what was said, and where no secret may be."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.vault.conftest import traces

# `say NAME COMMAND…` prints one line: `NAME: ` and what the command said.
SAY = r"""
say() { printf '%s: %s\n' "$1" "$(shift; "$@" 2>&1 | tr '\n' ' ')"; }
export PATH=/opt/bin:$PATH
"""
# What a secret could be in besides files of the workspace goes there: home, environments and arguments.
LEFT = "\ncp -a ~ home; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline >processes 2>/dev/null; true\n"


def said(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """By name what was said. The script must have ended well."""
    assert done.returncode == 0, done.stderr + done.stdout
    return {name: text.strip() for name, text in (line.split(": ", 1) for line in done.stdout.splitlines())}


def assert_unseen(
    secrets: Iterable[str], done: subprocess.CompletedProcess[str], workspace: Path, home: Path
) -> None:
    """No secret, plain or as part of `Basic`, in what was printed, left in the workspace or recorded of the run."""
    for secret in secrets:
        pairs = [base64.b64encode(f"{'.' * shift}{secret}".encode())[4:-4].decode() for shift in range(3)]
        for form in (secret, *pairs):
            assert form not in done.stdout + done.stderr
            assert traces(form, workspace, *home.glob(".moat/runs/*")) == []
