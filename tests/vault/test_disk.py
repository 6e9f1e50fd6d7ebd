"""Sealed files on a disk that refuses: full, read-only, or with a limit on files. What was there stays.

The disk is a small tmpfs of a mount namespace, so that even root meets it.

Seen to fail: with `write_private` writing the file in place a full disk leaves a broken credential; without the
`except OSError` of `Vault._changing` the error names no place and no remedy.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moat.paths import Home
from tests.namespaces import apart

# In the namespace: a home with one credential, then the disk changes, then a grant is tried, then it is repaired.
_SCRIPT = r"""
set -eu
mount -t tmpfs -o size=256k,mode=0700 tmpfs "$MOAT_HOME"
grant() { printf %%s "$2" | "$PYTHON" -m moat grant "$1" --token-stdin --no-validate >/dev/null; }
grant github ghp_BEFORE
(%(spoil)s)
set +e
grant github ghp_AFTER; echo "replacing: $?"
grant linear lin_api_NEW; echo "new: $?"
"$PYTHON" -m moat revoke github; echo "revoking: $?"
set -e
"$PYTHON" -c "
from moat.paths import Home
from moat.vault import open_vault
vault = open_vault(Home.from_environment())
print('kept:', vault.get('github').secret.reveal(), [info.name for info in vault.list()])"
(%(repair)s)
grant github ghp_AFTER; grant linear lin_api_NEW
ls -A "$MOAT_HOME/credentials"
"""
FULL = ('dd if=/dev/zero of="$MOAT_HOME/ballast" bs=4k 2>/dev/null || true', 'rm "$MOAT_HOME/ballast"')
READ_ONLY = ('mount -o remount,ro "$MOAT_HOME"', 'mount -o remount,rw "$MOAT_HOME"')


@pytest.mark.parametrize(
    ("disk", "reason"),
    [(FULL, "No space left on device"), (READ_ONLY, "Read-only file system")],
    ids=["full", "read-only"],
)
def test_a_disk_that_refuses_loses_nothing(
    sealed: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: tuple[str, str], reason: str
) -> None:
    sealed.root.mkdir(mode=0o700)
    monkeypatch.setenv("MOAT_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("PYTHON", sys.executable)
    script = _SCRIPT % {"spoil": disk[0], "repair": disk[1]}
    done = subprocess.run(
        [*apart("--mount"), "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "replacing: 3",
        "new: 3",
        "revoking: 3",
        "kept: ghp_BEFORE ['github']",
        *(".lock", "github.enc", "index.json", "linear.enc"),  # and nothing half-written
    ]
    complaint = f"moat: error: the credential store cannot be changed: {reason}"
    assert done.stderr.splitlines().count(complaint) == 3, done.stderr
    assert done.stderr.count("moat: hint: nothing in it was lost") == 3
    assert "Traceback" not in done.stderr
