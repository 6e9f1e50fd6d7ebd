"""Graphite's API, as far as `gt submit` goes. It takes one token and shows it in what it answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.vault.vendor import Answer, Asked

HOST = "api.graphite.com"


@dataclass
class FakeGraphite:
    token: str
    submitted: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, asked: Asked) -> Answer:
        sent = asked.headers.get("authorization", "")
        if sent != f"token {self.token}":
            return 401, {"message": f"sent {sent}"}
        name = asked.path.partition("?")[0].removeprefix("/v1/graphite/")
        return 200, self._answer(name, asked.body) | {"sent": sent}, {"X-Sent": sent}

    def _answer(self, name: str, body: bytes) -> dict[str, Any]:
        if name == "check-auth":
            return {"githubLogin": "octocat", "canSubmitPrs": True}
        if name == "cli/is-repo-synced":
            return {"result": {"status": "SYNCED"}}
        if name == "cli/pull-request-info":
            return {"result": {"status": "ok", "prs": []}}
        if name == "cli/submit/pre-submit-pull-requests":
            return {"result": {"retargetedPrs": []}}
        if name == "submit/pull-requests":
            return {"prs": [self._made(wanted) for wanted in json.loads(body)["prs"]]}
        return {}  # its traces, feature flags and updates

    def _made(self, wanted: dict[str, Any]) -> dict[str, Any]:
        self.submitted.append(wanted)
        number = len(self.submitted)
        return {
            "head": wanted["head"], "prNumber": number, "status": "created", "repoOwner": "acme", "repoName": "tools",
            "prURL": f"https://app.graphite.com/github/pr/acme/tools/{number}",
        }  # fmt: skip
