"""A user, a workspace and a git server over TLS: what the tests of plugins stand on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moat.config import UpstreamConfig, load
from moat.paths import Home
from moat.runtime.plugins.declared import Declarations, declarations
from moat.runtime.plugins.prepare import resolver
from moat.runtime.plugins.resolve import Plugin, Resolved
from tests.fakes.git_https import HOST, GitServer, commit
from tests.fakes.plugins import write_marketplace


@dataclass
class Kit:
    """`user` is a HOME, `workspace` a project; both are empty at first."""

    user: Path
    workspace: Path
    server: GitServer
    sources: Path  # working trees of what the server serves

    def publish(self, repository: str = "acme/tools.git", **options: Any) -> str:
        """A marketplace on the server; its commit."""
        work = self.sources / repository.replace("/", "-")
        write_marketplace(work, **options)
        return self.push(work, repository)

    def push(self, work: Path, repository: str) -> str:
        bare = self.server.directory / repository
        bare.parent.mkdir(parents=True, exist_ok=True)
        return commit(work, bare)

    def config(self, text: str) -> None:
        (self.workspace / "agent.yaml").write_text(text)

    def settings(self, place: str, value: dict[str, Any]) -> None:
        """`place` is `host`, `user` or `project`."""
        path = {
            "host": self.user / ".claude/settings.json",
            "known": self.user / ".claude/plugins/known_marketplaces.json",
            "installed": self.user / ".claude/plugins/installed_plugins.json",
            "user": self.user / ".moat/claude/settings.json",
            "project": self.workspace / ".claude/settings.json",
        }[place]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))

    def trust_server(self) -> None:
        """The user's own git trusts the server and finds it under every name."""
        (self.user / ".gitconfig").write_text(
            f"[http]\n\tsslCAInfo = {self.server.ca_file}\n"
            f'[url "https://localhost:{self.server.port}/"]\n'
            f"\tinsteadOf = https://{HOST}:{self.server.port}/\n\tinsteadOf = https://github.com/\n"
        )

    @property
    def upstream(self) -> UpstreamConfig:
        """Moat's own way to the server; the test's stands for a public address."""
        port = self.server.port
        return UpstreamConfig(ca_bundle=self.server.ca_file, connect_to={(HOST, port): ("127.0.0.1", port)})

    def declared(self) -> Declarations:
        return declarations(
            user_home=self.user,
            home=Home(self.user / ".moat"),
            workspace=self.workspace,
            config=load(self.workspace),
        )

    def resolve(
        self,
        *,
        upstream: UpstreamConfig | None = None,
        declared: Declarations | None = None,
        **options: Any,
    ) -> Resolved:
        made = resolver(
            home=Home(self.user / ".moat"),
            user_home=self.user,
            workspace=self.workspace,
            declared=declared or self.declared(),
            upstream=self.upstream if upstream is None else upstream,
            **options,
        )
        return made.resolve()

    def plugin(self, **options: Any) -> Plugin:
        """The only plugin, with nothing wrong."""
        resolved = self.resolve(**options)
        assert [problem.text for problem in resolved.problems] == []
        (plugin,) = resolved.plugins
        return plugin

    def problem(self, **options: Any) -> str:
        """The text of the only problem."""
        (problem,) = self.resolve(**options).problems
        return problem.text


def greeting(plugin: Plugin) -> str:
    """The word in what the plugin says."""
    assert plugin.tree is not None
    return (plugin.tree / "commands" / "greet.md").read_text().split("GREETING ")[1].split()[0]
