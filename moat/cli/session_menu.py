"""The menu that the chord opens over an attached program: what Moat can do with the run, one key each.

It reads keys and shows lines; the terminal is lent by `Display`, and what a choice means for the attachment
is told by the `Action` that it returns.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from moat import errors
from moat.cli.display import Display, size
from moat.cli.keys import Action, decode
from moat.cli.output import fitted
from moat.cli.verdict import BY_KEY, Decision
from moat.journal import parse_line
from moat.paths import Home
from moat.runtime.handle import RunHandle

_TICK = 1.0  # seconds after which what is shown may be out of date
_REST = 0.05  # seconds in which the rest of a sequence comes
_TRACE_END = 64 * 1024  # bytes of network.jsonl that are looked at
_SNAPSHOT_SECONDS = 300.0
# Not `-m moat`, which looks in the current directory first: most often that is a workspace, the agent's.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv.pop(1)); import moat.cli as c; sys.exit(c.main(sys.argv[1:]))"
)
# What a terminal sends: pasted text, keys with a number, mouse reports of the first kind, other sequences,
# characters.
_TOKEN = re.compile(
    rb"\x1b\[200~.*?(?:\x1b\[201~|\Z)|(?P<key>\x1b\[[\d;:]*[u~])|\x1b\[M...|\x1b\[[0-?]*[ -/]*[@-~]"
    rb"|\x1bO.|(?P<character>.)",
    re.DOTALL,
)

Read = Callable[[float], bytes]
"""What was typed, or nothing when nothing is within so many seconds. Raises EOFError."""


class SessionMenu:
    def __init__(self, handle: RunHandle, display: Display, read: Read, *, read_only: bool) -> None:
        self._handle = handle
        self._display = display
        self._read = read
        self._read_only = read_only
        self._typed: list[str] = []
        self._offered = ""  # the host that the menu, as it is on the screen, would answer for
        self._directory = Home.from_environment().run(handle.id)

    def run(self) -> Action | Decision | None:
        """Until something is chosen. None: the menu was left. Raises EOFError when the terminal is gone."""
        try:
            return self._choose()
        finally:
            self._display.uncover()

    def _choose(self) -> Action | Decision | None:
        while True:
            match self._key(self._main):
                case "d":
                    return Action.DETACH
                case "k" if not self._read_only:
                    if self._confirmed(f"Stop {self._handle.name}?"):
                        return Action.STOP
                case "s" if not self._read_only:
                    self._page(self._snapshot())
                case "t":
                    self._key(self._network)
                case key if key in BY_KEY and self._is_asked:
                    decision = Decision(self._offered, BY_KEY[key])
                    if self._noted(decision):
                        return decision
                case "c" if not self._read_only:
                    return Action.CHORD
                case "?" | "h":
                    self._page(_HELP)
                case "q" | "\x1b" | "\x03":
                    return None

    def _main(self) -> list[str]:
        self._offered = self._asked
        own = [] if self._read_only else ["k  stop the run", "s  take a snapshot"]
        last = [] if self._read_only else ["c  send the key itself to the program"]
        return [
            f"moat: {self._handle.name}",
            "",
            *(_answers(self._offered) if self._offered else []),
            "d  detach; the run goes on",
            *own,
            "t  what it asks of the network",
            *last,
            "?  help",
            "",
            "Esc  back to the program",
        ]

    @property
    def _asked(self) -> str:
        """The host that waits for an answer which a key may give now; else nothing."""
        return "" if self._read_only else self._display.bar.chosen or ""

    @property
    def _is_asked(self) -> bool:
        """The question that is shown is still the first: it may have been withdrawn for another one."""
        return self._offered != "" and self._offered == self._asked

    def _noted(self, decision: Decision) -> bool:
        """Whether an answer for always is in the user's file; if not, this was told."""
        if wrong := decision.verdict.note(decision.host):
            self._page(["moat: not answered", "", *wrong.splitlines()])
        return not wrong

    # --- pages -----------------------------------------------------------------------------------

    def _page(self, lines: list[str]) -> None:
        self._key(lambda: [*lines, "", "any key: back"])

    def _confirmed(self, question: str) -> bool:
        return self._key(lambda: [question, "", "y  yes", "n  no"]) in {"y", "Y"}

    def _network(self) -> list[str]:
        """The newest exchanges, as many as there is room for."""
        room = size()
        found = [
            fitted(line, room.columns - 4) for line in _last_exchanges(self._directory / "network.jsonl")
        ]
        newest = found[-max(1, room.rows - 6) :] or ["no request yet"]
        return [f"moat: network of {self._handle.name}", "", *newest, "", "any key: back"]

    def _snapshot(self) -> list[str]:
        """Take one in a process of its own: what it says, or why it failed."""
        title = f"moat: snapshot of {self._handle.name}"
        self._display.cover([title, "", "taking it…"])
        words = ["snapshot", self._handle.id, "--label", "from the menu"]
        command = [sys.executable, "-P", "-c", _PROGRAM, str(Path(errors.__file__).parent.parent), *words]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SNAPSHOT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [title, "", f"it took longer than {_SNAPSHOT_SECONDS:.0f} s"]
        return [title, "", *(done.stdout + done.stderr).replace("moat: ", "").splitlines()]

    # --- keys ------------------------------------------------------------------------------------

    def _key(self, lines: Callable[[], list[str]]) -> str:
        """Show `lines`, again whenever they or the window change; returns the next key that is pressed."""
        shown: tuple[object, ...] = ()
        while not self._typed:
            now = (size(), lines())
            if now != shown:
                self._display.cover(now[1])
                shown = now
            data = self._read(_TICK)
            if data.rfind(b"\x1b", -16) >= 0:
                data += self._read(_REST)
            self._typed += keys_of(data)
        return self._typed.pop(0)


def keys_of(data: bytes) -> Iterator[str]:
    """The characters of keys that were pressed; whatever else a terminal sends is no key of a menu."""
    for token in _TOKEN.finditer(data):
        code: int | None = None
        if token["character"]:
            code = token["character"][0]
        elif token["key"]:
            code, modifiers, released = decode(token["key"])
            if released or modifiers > 1:  # more than Shift
                continue
        if code is not None and code < 128:
            yield chr(code)


def _answers(host: str) -> list[str]:
    return [
        f"a  allow {host} for this run",
        "   o  once   m  for 10 minutes   A  always",
        f"n  deny {host} for this run",
        "   N  always",
        "",
    ]


def _last_exchanges(path: Path) -> Iterator[str]:
    from moat.cli.trace import describe

    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TRACE_END))
            data = file.read()
    except FileNotFoundError:
        return
    for line in data.splitlines():
        record = parse_line(line)
        if record is not None and "url" in record:
            yield from describe(record)


_HELP = [
    "moat: help",
    "",
    "The key and then d or k, quickly: detach or stop without this menu.",
    "The key twice: once for the program.",
    "What the program prints while the menu is open is shown afterwards.",
    "",
    "moat attach       from another terminal: also several at a time,",
    "                  --read-only to watch, --steal to take over",
    "moat logs -f      what it printed",
    "moat trace --network -f   what it asks of the network",
    "moat snapshot list, moat review   what it changed, and the way back",
]
