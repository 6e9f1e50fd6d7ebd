"""Claude Code: its command line, variables and mounts, so that it starts without a single question.

Checked against 2.1.330. What it reads from HOME is in `claude_home`, where conversations are kept in
`claude_sessions`, which binary is used in `claude_binary`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from moat.config import HostRules, LocalMcpServer, NetworkConfig
from moat.dataclass import dataclass
from moat.grants import CredentialInfo
from moat.runtime.agents import Setup
from moat.runtime.agents.claude_binary import find_claude
from moat.runtime.agents.claude_home import home_files
from moat.runtime.agents.claude_sessions import SANDBOX_PROJECT, shared_directory
from moat.runtime.agents.claude_settings import Carried
from moat.runtime.plugins.deliver import Delivery
from moat.runtime.sandbox import HOME, Mount

BINARY = f"{HOME}/.local/bin/claude"  # in the sandbox: first on PATH, and where its own installer puts it
_NO_SERVERS: Mapping[str, LocalMcpServer] = MappingProxyType({})
_DEPENDENCIES = ("claude-code", "git")
_ENVIRONMENT = {
    "DISABLE_AUTOUPDATER": "1",  # the binary is read-only and not the sandbox's to replace
    "DISABLE_INSTALLATION_CHECKS": "1",  # it looks for an installation in HOME and warns
    # It would download and clone from three hosts at every start of every sandbox.
    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
}
# What the user decided about telemetry on this machine holds in the sandbox as well. Moat itself does
# not decide it: without that traffic Claude Code has no feature flags.
_PRIVACY = (
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "DISABLE_TELEMETRY",
    "DISABLE_ERROR_REPORTING",
    "DISABLE_FEEDBACK_COMMAND",
    "DO_NOT_TRACK",
)


# What it fetches by itself at every start and does well without: nothing to ask a person about.
_BACKGROUND = (
    HostRules("downloads.claude.ai:443", ("deny GET /**",)),
    HostRules("raw.githubusercontent.com:443", ("deny GET /anthropics/claude-code/**",)),
)


def without_needless_questions(network: NetworkConfig) -> NetworkConfig:
    """`network` as it is, and with `policy: ask` the agent's own background traffic refused unasked.

    Behind the user's rules, which are asked first.
    """
    if network.policy != "ask":
        return network
    return replace(network, rules=(*network.rules, *_BACKGROUND))


@dataclass(frozen=True, slots=True, kw_only=True)
class Claude:
    """One session of Claude Code. At most one of `resume` and `session` is given."""

    prompt: str | None = None  # answer this, print, exit; None: interactive
    initial: str | None = None  # first prompt of an interactive session
    session: str | None = None  # UUID of the new conversation
    resume: str | None = None  # UUID of an old one
    ask: bool = False  # confirm each tool (`--noyolo`)
    sync_logs: bool = True  # the host's conversations of the workspace are shared with the sandbox
    home: Path | None = None  # the user's HOME on the host

    @property
    def name(self) -> str:
        return "claude"

    @property
    def grant(self) -> str:
        return "anthropic"

    @property
    def interactive(self) -> bool:
        return self.prompt is None

    def argv(self) -> tuple[str, ...]:
        words = ["claude"]
        if not self.ask:
            words.append("--dangerously-skip-permissions")
        if self.resume:
            words += ["--resume", self.resume]
        if self.session:
            words += ["--session-id", self.session]
        if self.prompt is not None:
            words += ["-p", "--", self.prompt]
        elif self.initial is not None:
            words += ["--", self.initial]
        return tuple(words)

    def setup(
        self,
        *,
        workspace: Path,
        credential: CredentialInfo,
        runtime: str,
        servers: Mapping[str, LocalMcpServer] = _NO_SERVERS,
        carried: Carried | None = None,
        plugins: Delivery | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Setup:
        """`servers`: of MCP, that it starts itself; `carried`: the user's settings; `plugins`: ready ones.

        Raises StartError when the embedded runtime has no Claude Code to show to the sandbox.
        """
        home = self.home or Path.home()
        given = plugins or Delivery()
        mounts = list(given.mounts)
        if self.sync_logs:
            mounts.append(Mount.of(shared_directory(home, workspace), SANDBOX_PROJECT))
        if runtime == "embedded":
            mounts.append(Mount.of(find_claude(home, environ), BINARY, read_only=True))
        chosen = {name: environ[name] for name in _PRIVACY if environ.get(name)}
        return Setup(
            argv=("claude", *given.argv, *self.argv()[1:]),
            env=_ENVIRONMENT | chosen,
            home_files=(
                *home_files(
                    home, credential, carried or Carried(), given.enabled, ask=self.ask, servers=servers
                ),
                *given.home_files,
            ),
            mounts=tuple(mounts),
            dependencies=() if runtime == "embedded" else _DEPENDENCIES,
        )
