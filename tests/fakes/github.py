"""GitHub, as far as its clients go in the tests: git over HTTPS with real repositories, and what `gh` asks the API.

It takes the token as GitHub does, each part in its own way, and shows what it was sent to whoever has no right.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.git_backend import http_backend
from tests.vault.vendor import Answer, Asked

GIT, API, UPLOADS, RAW = "github.com", "api.github.com", "uploads.github.com", "raw.githubusercontent.com"
OBJECTS = "objects.githubusercontent.com"  # its URLs are signed
HOSTS = (GIT, API, UPLOADS, RAW, OBJECTS)
LOGIN = "octocat"
REPOSITORY = {
    "id": "R_1", "name": "tools", "owner": {"id": "O_1", "login": "acme"}, "description": "private tools",
    "hasIssuesEnabled": True, "hasWikiEnabled": False, "viewerPermission": "WRITE", "parent": None,
    "defaultBranchRef": {"name": "main"}, "mergeCommitAllowed": True, "rebaseMergeAllowed": True,
    "squashMergeAllowed": True, "isPrivate": True,
}  # fmt: skip


@dataclass
class FakeGitHub:
    """Bare repositories below `root`, all of them private; those of `acme/` may be written to."""

    root: Path
    token: str
    pulls: list[dict[str, Any]] = field(default_factory=list)  # as GraphQL shows them
    assets: dict[str, bytes] = field(default_factory=dict)  # of the only release, `v1`

    def make(self, name: str) -> Path:
        """A new repository, e.g. `acme/tools`."""
        path = self.root / f"{name}.git"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True)
        subprocess.run(["git", "-C", str(path), "config", "uploadpack.allowFilter", "true"], check=True)
        return path

    def head(self, name: str, ref: str) -> str:
        where = ["git", "-C", str(self.root / f"{name}.git")]
        return subprocess.check_output([*where, "rev-parse", ref], text=True).strip()

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"x-access-token:{self.token}".encode()).decode()

    def __call__(self, asked: Asked) -> Answer:
        sent = asked.headers.get("authorization", "")
        if asked.host == OBJECTS:
            return self._object(asked, sent)
        if asked.host == GIT:
            return self._git(asked, sent)
        if sent != f"Bearer {self.token}":
            return 401, {"message": f"Bad credentials. Sent: {sent}"}
        if asked.path == "/graphql":
            return self._graphql(json.loads(asked.body))
        return self._rest(asked, sent)

    def _git(self, asked: Asked, sent: str) -> Answer:
        """Basic and nothing else, like the real one."""
        text = {"Content-Type": "text/plain", "X-Sent": sent}
        if sent != self.basic:
            wanted = {"WWW-Authenticate": 'Basic realm="GitHub"'}
            return 401, f"No anonymous access. Sent: {sent}".encode(), text | wanted
        owner, name = asked.path.split("/")[1:3]
        if not (self.root / owner / name).is_dir():
            return 404, f"Repository not found. Sent: {sent}".encode(), text
        if owner != "acme" and "git-receive-pack" in asked.path:
            return 403, f"Write access to repository not granted. Sent: {sent}".encode(), text
        done = http_backend(self.root, asked.method, asked.path, asked.headers, asked.body, user=LOGIN)
        return done.status, done.body, done.headers

    def _object(self, asked: Asked, sent: str) -> Answer:
        """A store with signed URLs takes no second authorisation."""
        if sent:
            return 400, b"Only one auth mechanism allowed"
        return 200, self.assets[asked.path.split("/")[-1].partition("?")[0]]

    def _rest(self, asked: Asked, sent: str) -> Answer:
        scopes = {"X-OAuth-Scopes": "gist, read:org, repo", "X-Sent": sent}
        url = urlsplit(asked.path)
        if asked.host == RAW:
            return 200, f"raw for {sent}".encode(), scopes
        if asked.host == UPLOADS:
            name = parse_qs(url.query)["name"][0]
            self.assets[name] = asked.body
            return 201, {"name": name, "state": "uploaded"}, scopes
        if url.path in {"/", "/user"}:
            return 200, {"login": LOGIN, "sent": sent}, scopes
        if url.path == "/repos/acme/tools/releases/tags/v1":
            return 200, self._release(), scopes
        if found := re.fullmatch(r"/repos/acme/tools/releases/assets/(.+)", url.path):
            return 302, b"", {"Location": f"https://{OBJECTS}/{found[1]}?signature=xyz"}
        return 404, {"message": f"Not Found. Sent: {sent}"}, scopes

    def _release(self) -> dict[str, Any]:
        base = f"https://{API}/repos/acme/tools/releases"
        assets = [
            {"name": name, "url": f"{base}/assets/{name}", "size": len(data)}
            for name, data in self.assets.items()
        ]
        upload = f"https://{UPLOADS}/repos/acme/tools/releases/1/assets{{?name,label}}"
        return {
            "id": 1,
            "tag_name": "v1",
            "name": "v1",
            "url": f"{base}/1",
            "upload_url": upload,
            "assets": assets,
        }

    def _graphql(self, sent: dict[str, Any]) -> Answer:
        found = re.search(r"\b(?:query|mutation) (\w+)", sent["query"])
        known: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "UserCurrent": lambda _: {"viewer": {"login": LOGIN}},
            "RepositoryInfo": lambda _: {"repository": REPOSITORY},
            "RepositoryNetwork": lambda _: {"viewer": {"login": LOGIN}, "repo_000": REPOSITORY},
            "RepositoryReleaseByTag": lambda _: {"repository": {"release": None}},  # asked for drafts
            "PullRequestList": lambda _: self._pull_requests(),
            "PullRequestForBranch": lambda _: self._pull_requests(),
            "PullRequestCreate": lambda variables: self._pull_request(variables["input"]),
        }
        name = found[1] if found else ""
        if name not in known:
            return 200, {"errors": [{"message": f"unknown query {name}: {sent['query']}"}]}
        return 200, {"data": known[name](sent.get("variables", {}))}

    def _pull_requests(self) -> dict[str, Any]:
        nodes = {"totalCount": len(self.pulls), "nodes": self.pulls, "pageInfo": {"hasNextPage": False}}
        return {"repository": {"pullRequests": nodes, "defaultBranchRef": {"name": "main"}}}

    def _pull_request(self, wanted: dict[str, Any]) -> dict[str, Any]:
        number = len(self.pulls) + 1
        made = {
            "number": number, "title": wanted["title"], "state": "OPEN", "headRefName": wanted["headRefName"],
            "url": f"https://{GIT}/acme/tools/pull/{number}", "isDraft": False, "isCrossRepository": False,
            "createdAt": "2026-01-02T03:04:05Z", "headRepositoryOwner": {"id": "O_1", "login": "acme"},
        }  # fmt: skip
        self.pulls.append(made)
        return {"createPullRequest": {"pullRequest": {"id": f"PR_{number}", "url": made["url"]}}}
