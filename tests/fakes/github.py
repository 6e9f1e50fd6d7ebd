"""GitHub, as far as its clients go in the tests: git over HTTPS, with real repositories behind it.

It takes the token as GitHub does, each part in its own way, and shows what it was sent to whoever has no right.
"""

from __future__ import annotations

import base64
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.git_backend import http_backend
from tests.vault.vendor import Answer, Asked

HOSTS = ("github.com", "api.github.com")
LOGIN = "octocat"


@dataclass
class FakeGitHub:
    """Bare repositories below `root`, all of them private; those of `acme/` may be written to."""

    root: Path
    token: str

    def make(self, name: str) -> Path:
        """A new repository, e.g. `acme/tools`."""
        path = self.root / f"{name}.git"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True)
        subprocess.run(["git", "-C", str(path), "config", "uploadpack.allowFilter", "true"], check=True)
        return path

    def head(self, name: str, ref: str) -> str:
        where = ["git", "-C", str(self.root / f"{name}.git")]
        return subprocess.check_output([*where, "rev-parse", ref], text=True).strip()

    def __call__(self, asked: Asked) -> Answer:
        return self._git(asked) if asked.host == "github.com" else self._api(asked)

    def _api(self, asked: Asked) -> Answer:
        if asked.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"message": "Bad credentials"}
        return 200, {"login": LOGIN}

    def _git(self, asked: Asked) -> Answer:
        """Basic and nothing else, like the real one."""
        sent = asked.headers.get("authorization", "")
        text = {"Content-Type": "text/plain", "X-Sent": sent}
        if sent != self.basic:
            return (
                401,
                f"No anonymous access. Sent: {sent}".encode(),
                text | {"WWW-Authenticate": 'Basic realm="GitHub"'},
            )
        owner, name = asked.path.split("/")[1:3]
        if not (self.root / owner / name).is_dir():
            return 404, f"Repository not found. Sent: {sent}".encode(), text
        if owner != "acme" and "git-receive-pack" in asked.path:
            return 403, f"Write access to repository not granted. Sent: {sent}".encode(), text
        done = http_backend(self.root, asked.method, asked.path, asked.headers, asked.body, user=LOGIN)
        return done.status, done.body, done.headers

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"x-access-token:{self.token}".encode()).decode()
