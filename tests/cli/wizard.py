"""`moat grant` at a real terminal, for the tests of its wizards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pexpect
import pyte

from moat.grants import CredentialKind
from moat.paths import Home
from moat.vault import open_vault
from tests.vault.vendor import Answer, Asked

KEY = "sk-ant-api03-" + "REALAPIKEY" * 9
TOKEN = "sk-ant-oat01-" + "AbCd_-9" * 13 + "WXYZ"
GITHUB = "ghp_REALgithubTOKEN0123456789abcdefghijkl"
HOSTS = ("api.anthropic.com", "platform.claude.com", "api.github.com")
Start = Callable[..., "Terminal"]
_PATIENCE = 60  # seconds: on a machine under load, a program may take that long to begin


class Terminal(pexpect.spawn):
    """`moat …` on a terminal of that many lines and columns, and what a person sees on it."""

    def __init__(
        self, moat_bin: str, *argv: str, size: tuple[int, int] = (40, 120), **environment: str
    ) -> None:
        env = os.environ | {"TERM": "xterm-256color"} | environment
        super().__init__(moat_bin, list(argv), env=env, dimensions=size, timeout=_PATIENCE)
        self.raw = b""
        self.screen = pyte.Screen(size[1], size[0])
        self._stream = pyte.ByteStream(self.screen)

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> bytes:
        data: bytes = super().read_nonblocking(size, timeout)
        self.raw += data
        self._stream.feed(data)
        return data

    def sees(self, *texts: str) -> None:
        for text in texts:
            self.expect_exact(text.encode())

    def shows(self, *texts: str) -> None:
        """What is drawn piece by piece: all of `texts` are on the screen at one time."""
        deadline = time.monotonic() + _PATIENCE
        while not all(text in self.shown() for text in texts):
            assert time.monotonic() < deadline, self.shown()
            with contextlib.suppress(pexpect.TIMEOUT):
                self.expect(r".+", timeout=0.2)

    def types(self, text: str) -> None:
        time.sleep(0.15)  # the prompt is shown a moment before it reads
        self.send(text)

    def ends(self, status: int = 0) -> None:
        self.expect(pexpect.EOF)
        self.wait()
        assert self.exitstatus == status, self.shown()

    def shown(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).strip("\n")


@contextlib.contextmanager
def terminals(moat_bin: str) -> Iterator[Start]:
    """Starts them, and ends those that are left. No secret was on any of them, nor is one in a file."""
    started = []

    def spawn(*argv: str, **options: Any) -> Terminal:
        started.append(Terminal(moat_bin, *argv, **options))
        return started[-1]

    yield spawn
    for terminal in started:
        terminal.close(force=True)
        for secret in (KEY, TOKEN):  # not shown, not even in pieces
            assert secret.encode() not in terminal.raw
            assert secret[20:60].encode() not in re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]|\s", b"", terminal.raw)
    open_files = [path for path in (Home.from_environment().root).rglob("*") if path.is_file()]
    assert all(secret.encode() not in path.read_bytes() for path in open_files for secret in (KEY, TOKEN))


def api(asked: Asked) -> Answer:
    if asked.path == "/v1/oauth/token":
        code = json.loads(asked.body)
        if code.get("code") != "thecode":
            return 400, {"error": "invalid_grant"}
        return 200, {
            "token_type": "Bearer",
            "access_token": TOKEN,
            "expires_in": 31536000,
            "scope": "user:inference",
        }
    given = asked.headers.get("x-api-key") or asked.headers.get("authorization", "").removeprefix("Bearer ")
    if asked.path in {"/v1/messages", "/user"} and given not in {KEY, TOKEN, GITHUB}:
        return 401, {"error": {"message": given}}
    return 200, {"login": "octocat"}


def stored() -> tuple[str, CredentialKind, str]:
    found = open_vault(Home.from_environment()).get("anthropic")
    return found.secret.reveal(), found.info.kind, found.info.metadata["source"]


def nothing_stored() -> bool:
    """Not a row, not a sealed file, and no key for one that was never made."""
    home = Home.from_environment()
    return open_vault(home).list() == () and not list(home.credentials.glob("*"))
