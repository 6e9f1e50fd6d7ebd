"""The fenced blocks of a document, and the commands with their shown output that are in them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)(?P<words>(?: +\S+)*) *$")


@dataclass(frozen=True)
class Block:
    language: str
    words: tuple[str, ...]  # after the language: `run`, `file=agent.yaml`
    line: int  # of its first line of text, from 1
    text: str

    @property
    def file(self) -> str | None:
        """The file that a reader writes this text into."""
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), None)

    @property
    def runs(self) -> bool:
        return self.language == "console" and bool({"run", "background"} & set(self.words))


@dataclass
class Step:
    """One command as it is typed, and the lines shown below it."""

    line: int
    command: str
    shown: list[str] = field(default_factory=list)


def blocks(document: Path) -> list[Block]:
    """All fenced blocks that name a language, in order; indented ones (of lists) without their indent."""
    found, opened, text = [], None, []
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if opened is None:
            opened, start, text = _FENCE.match(line), number + 1, []
        elif line.strip() == "```":
            words = tuple(opened["words"].split())
            found.append(Block(opened["language"], words, start, "".join(f"{x}\n" for x in text)))
            opened = None
        else:
            text.append(line.removeprefix(opened["indent"]))
    assert opened is None, f"{document.name}: a fence is not closed"
    return found


def steps(block: Block) -> list[Step]:
    """The `$ ` lines with what belongs to each: here-documents, continued lines, then the output."""
    found: list[Step] = []
    open_command = False
    for number, line in enumerate(block.text.splitlines(), block.line):
        if open_command:
            found[-1].command += "\n" + line.removeprefix("> ")
            open_command = _unfinished(found[-1].command)
        elif line.startswith("$ "):
            found.append(Step(number, line.removeprefix("$ ")))
            open_command = _unfinished(found[-1].command)
        else:
            assert found, f"line {number}: output before the first command"
            found[-1].shown.append(line)
    assert not open_command, f"line {found[-1].line}: the command is not finished"
    return found


def _unfinished(command: str) -> bool:
    """Whether bash would ask for more lines."""
    if command.endswith("\\"):
        return True
    done = subprocess.run(["bash", "-n"], input=command + "\n", capture_output=True, text=True, check=False)
    return "here-document" in done.stderr or "unexpected end of file" in done.stderr or "EOF" in done.stderr
