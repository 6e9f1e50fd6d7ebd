"""A terminal as people have them: tmux, driven and read by its own commands."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATE = (
    "#{cursor_x},#{cursor_y} shown=#{cursor_flag} alternate=#{alternate_on} keys=#{keypad_cursor_flag},"
    "#{keypad_flag} mouse=#{mouse_any_flag},#{mouse_sgr_flag} wrap=#{wrap_flag} origin=#{origin_flag} "
    "region=#{scroll_region_upper}-#{scroll_region_lower} title=#{pane_title}"
)


class Tmux:
    """One window with a shell in it; a server of its own, which `close` ends."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)

    def open(self, cwd: Path, columns: int, rows: int) -> None:
        shell = "PS1='host> ' exec bash --norc"
        self._do("new-session", "-d", "-x", str(columns), "-y", str(rows), "-c", str(cwd), shell)
        self.prompts("host>")

    def keys(self, *keys: str, pause: float = 0.0) -> None:
        """By tmux' names for them: `Enter`, `C-_`; anything else is typed as it is."""
        for key in keys:
            self._do("send-keys", key)
            time.sleep(pause)

    def line(self, text: str) -> None:
        self._do("send-keys", "-l", text)
        self._do("send-keys", "Enter")

    def resize(self, columns: int, rows: int) -> None:
        self._do("resize-window", "-x", str(columns), "-y", str(rows))

    @property
    def text(self) -> str:
        return self._do("capture-pane", "-p")

    @property
    def state(self) -> str:
        """Every character with its colours, the cursor, and the modes that tmux tells."""
        return self._do("capture-pane", "-e", "-p") + self._do("display-message", "-p", _STATE)

    def until(self, condition: Callable[[], Any], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def shows(self, text: str) -> None:
        self.until(lambda: text in self.text)

    def prompts(self, prompt: str) -> None:
        """The last line begins with `prompt`: what was typed to get there may hold it as well."""
        self.until(lambda: self.text.rstrip().rpartition("\n")[2].startswith(prompt))

    def hides(self, text: str) -> None:
        self.until(lambda: text not in self.text)

    def settled(self, quiet: float = 0.4) -> str:
        """The state, once nothing has changed for a while."""
        before, since = self.state, time.monotonic()
        deadline = since + 20
        while time.monotonic() - since < quiet and time.monotonic() < deadline:
            time.sleep(0.1)
            if (now := self.state) != before:
                before, since = now, time.monotonic()
        return before

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], capture_output=True)

    def _do(self, *command: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k not in {"TMUX", "TMUX_PANE"}}
        done = subprocess.run(
            ["tmux", "-S", self._socket, "-f", "/dev/null", *command],
            capture_output=True,
            text=True,
            env=environment | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
