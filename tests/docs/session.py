"""A reader of a document: one shell in a home of its own, who types what is shown and looks at the answer."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.blocks import Block, Step, steps
from tests.docs.shown import begins, matches

STEP_SECONDS = 150


@dataclass
class Place:
    """Where a document is followed. A world may change all of it before the first command."""

    home: Path
    workspace: Path  # an empty directory; the session starts in it
    moat_bin: str
    environment: dict[str, str] = field(default_factory=dict)
    instead: dict[str, str] = field(
        default_factory=dict
    )  # text of the document -> of this machine: a free port

    def here(self, text: str) -> str:
        for theirs, ours in self.instead.items():
            text = text.replace(theirs, ours)
        return text


class Shell:
    """One bash. Each command is sourced, so that variables and the directory stay as in a terminal."""

    def __init__(self, place: Place, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        self._count = 0
        status, theirs = os.pipe()
        self._status = os.fdopen(status, buffering=1)
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            cwd=place.workspace,
            env=place.environment,
            pass_fds=[theirs],
            start_new_session=True,
            text=True,
        )
        self._theirs = theirs
        self._type("__status=0")

    def run(self, command: str, *, wait: bool = True) -> tuple[Path, int | None]:
        """Where the output of `command` goes, and its exit status; None when it was not waited for."""
        self._count += 1
        script = self._directory / f"{self._count}.sh"
        output = self._directory / f"{self._count}.out"
        script.write_text(command + "\n")
        line = f". {script} >{output} 2>&1 </dev/null {self._theirs}>&-"
        if not wait:
            self._type(f"{line} &")
            return output, None
        self._type(f"(exit $__status); {line}; __status=$?; echo $__status >&{self._theirs}")
        ready, _, _ = select.select([self._status], [], [], STEP_SECONDS)
        assert ready, f"no end within {STEP_SECONDS} s: {command}\n{output.read_text(errors='replace')}"
        return output, int(self._status.readline())

    def _type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._status.close()
        os.close(self._theirs)


class Session:
    """Follows the blocks of one document."""

    def __init__(self, place: Place, scratch: Path, document: Path) -> None:
        self._place = place
        self._scratch = scratch
        self._document = document
        self._shell = Shell(place, scratch / "shell")
        self._others: list[Shell] = []

    def follow(self, block: Block) -> None:
        """Do what the reader does with this block. Fails with the line, what was shown and what came."""
        if block.file:
            self._write(block.file, self._place.here(block.text))
        elif "background" in block.words:
            self._others.append(Shell(self._place, self._scratch / f"other-{len(self._others)}"))
            *first, last = steps(block)
            self._all(first, self._others[-1])
            self._leave_running(last, self._others[-1])
        elif block.runs:
            self._all(steps(block), self._shell)

    def close(self) -> None:
        for shell in (self._shell, *self._others):
            shell.close()
        end_processes_of(self._place.home)

    def _write(self, name: str, text: str) -> None:
        """Where the reader's shell stands now."""
        output, _ = self._shell.run("pwd -P")
        path = Path(output.read_text().rstrip("\n"), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _all(self, todo: list[Step], shell: Shell) -> None:
        for step, following in itertools.zip_longest(todo, todo[1:]):
            output, status = shell.run(self._place.here(step.command))
            printed = output.read_text(errors="replace").splitlines()
            refused = any(line.startswith("moat: error:") for line in step.shown)
            if following is None or "echo $?" not in following.command:
                assert bool(status) == refused, self._report(step, printed, f"exit status {status}")
            if any(line.strip() for line in step.shown):
                assert matches(step.shown, printed), self._report(step, printed, "it printed something else")

    def _leave_running(self, step: Step, shell: Shell) -> None:
        output, _ = shell.run(self._place.here(step.command), wait=False)
        deadline = time.monotonic() + STEP_SECONDS
        while not output.exists() or not begins(step.shown, output.read_text(errors="replace").splitlines()):
            printed = output.read_text(errors="replace").splitlines() if output.exists() else []
            assert time.monotonic() < deadline, self._report(step, printed, "it does not print this")
            time.sleep(0.1)

    def _report(self, step: Step, printed: list[str], what: str) -> str:
        shown = step.shown if any(step.shown) else ["(nothing is shown)"]
        lines = [
            f"{self._document.name}:{step.line}: {what}",
            f"$ {step.command}",
            "--- the document shows",
            *shown,
            "--- it printed",
            *printed,
        ]
        return "\n".join(lines)


def end_processes_of(home: Path) -> None:
    """End what was started with this HOME (supervisors outlive their shell)."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 10
        for pid in _processes_of(home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while _processes_of(home) and time.monotonic() < deadline:
            time.sleep(0.1)


def _processes_of(home: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if f"HOME={home}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
