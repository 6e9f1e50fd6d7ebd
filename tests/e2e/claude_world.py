"""What the tests of `moat claude` stand on: the real Claude Code, the fake API, a user with a workspace.

Nothing of Moat is imported to do the work: everything goes through the installed command, as a user's
shell would. Only the stored credential of some tests is put into the vault by its API, because no real
provider can be asked for an expired one.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pexpect
import pyte
import pytest

from tests.fakes.anthropic import FakeAnthropic

RUNTIMES = [
    pytest.param("embedded", marks=pytest.mark.embedded),
    pytest.param("docker", marks=pytest.mark.docker),
]
KINDS = ("api-key", "oauth")
PREFIX = {"api-key": "sk-ant-api03-", "oauth": "sk-ant-oat01-"}
# Each is in a question that Claude Code asks a newcomer; none may be on the screen.
DIALOGS = (
    "Choose the text style",
    "Let's get started",
    "Select login method",
    "Browser didn't open",
    "Do you trust",
    "Is this a project you created",
    "Detected a custom API key",
    "Bypass Permissions mode, Claude Code will not ask",
    "Make auto mode your default",
    "Auto-update failed",
    "Enter to confirm",
    "Unable to connect",
    "installMethod",
)


@dataclass
class World:
    """A user with a home, a workspace, and a stored credential that the fake API accepts."""

    moat_bin: str
    home: Path
    workspace: Path
    fake: FakeAnthropic
    secret: str
    kind: str
    environment: dict[str, str] = field(default_factory=dict)

    def moat(self, *argv: str, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"cwd": self.workspace, "capture_output": True, "text": True} | options
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            [self.moat_bin, *argv], env=self.environment, timeout=timeout, check=False, **options
        )

    def claude(self, *argv: str, runtime: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.moat("claude", "--runtime", runtime, *argv, **options)

    def answer(self, *argv: str, runtime: str, **options: Any) -> str:
        """What `moat claude … -p` printed; it must have gone well."""
        done = self.claude(*argv, runtime=runtime, **options)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def sessions(self) -> list[str]:
        """The UUIDs of the host's conversations for this workspace, oldest first."""
        found = (self.home / ".claude" / "projects").glob("*/*.jsonl")
        return [path.stem for path in sorted(found, key=lambda path: path.stat().st_mtime)]

    def runs(self) -> list[dict[str, Any]]:
        """The records of all runs, newest first."""
        found = [json.loads(p.read_text()) for p in (self.home / ".moat" / "runs").glob("*/run.json")]
        return sorted(found, key=lambda run: run["created_at"], reverse=True)

    def terminal(self, *argv: str) -> Terminal:
        return Terminal([self.moat_bin, *argv], cwd=self.workspace, environment=self.environment)


class Terminal:
    """A program on a terminal of 40 x 110, and what a person sees there."""

    def __init__(self, argv: list[str], *, cwd: Path, environment: dict[str, str]) -> None:
        self.screen = pyte.Screen(110, 40)
        self._stream = pyte.ByteStream(self.screen)
        self.child = pexpect.spawn(
            argv[0],
            argv[1:],
            cwd=str(cwd),
            env=environment | {"TERM": "xterm-256color"},
            dimensions=(40, 110),
            timeout=10,
        )
        self.child.delaybeforesend = None

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display if line.strip())

    def send(self, keys: str) -> None:
        self.child.send(keys)

    def type(self, text: str) -> None:
        """Type a line. Claude Code takes a burst that ends in Enter for a paste, so Enter comes alone."""
        self.send(text)
        self.wait_for(text[:40])
        self.send("\r")

    def wait_for(self, text: str, *, timeout: float = 60) -> None:
        """Until `text` is on the screen. Fails with the screen."""
        deadline = time.monotonic() + timeout
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} did not appear:\n{self.text}"
            assert self._read(), f"the program ended before {text!r} appeared:\n{self.text}"

    def settle(self, quiet: float = 1.0, *, timeout: float = 20) -> None:
        """Until nothing was drawn for `quiet` seconds."""
        deadline = time.monotonic() + timeout
        last = time.monotonic()
        while time.monotonic() - last < quiet and time.monotonic() < deadline:
            before = self.text
            if not self._read():
                return
            if self.text != before:
                last = time.monotonic()

    def wait_end(self, *, timeout: float = 30) -> int:
        """Until the program has ended; its exit status."""
        deadline = time.monotonic() + timeout
        while self._read():
            assert time.monotonic() < deadline, f"it did not end:\n{self.text}"
        self.child.wait()
        status = self.child.exitstatus
        return 128 + self.child.signalstatus if status is None else status

    def close(self) -> None:
        self.child.close(force=True)

    def _read(self) -> bool:
        """Draw what has come; False when the program has ended."""
        try:
            self._stream.feed(self.child.read_nonblocking(65536, 0.2))
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        return True


class StandIn(Protocol):
    """A vendor on loopback."""

    @property
    def ca_file(self) -> Path: ...

    def connect_to(self) -> Mapping[str, str]: ...


def configure(
    home: Path, fake: StandIn, *, roots: bytes = b"", detours: Mapping[str, str] | None = None
) -> None:
    """`~/.moat/config.yaml` that leads to the fake, as the README's newcomer writes it."""
    place = home / ".moat"
    place.mkdir(mode=0o700, exist_ok=True)
    bundle = place / "test-roots.pem"
    bundle.write_bytes(fake.ca_file.read_bytes() + roots)
    lines = ["upstream:", f"  ca_bundle: {json.dumps(str(bundle))}", "  connect_to:"]
    ways = {**fake.connect_to(), **(detours or {})}
    lines += [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in ways.items()]
    (place / "config.yaml").write_text("\n".join([*lines, ""]))
    (place / "config.yaml").chmod(0o600)
