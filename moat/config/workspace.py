"""`agent.yaml` (or `moat.yaml`): what a run of this workspace is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moat.config import image, network, ports, snapshots
from moat.config.check import Checker, Node, TooMuchError
from moat.config.claude import ClaudeConfig, ClaudeReader
from moat.config.dependencies import parse
from moat.config.mcp import McpReader
from moat.config.model import MountConfig, RunConfig
from moat.config.mounts import parse_mount, refused_target, refused_to_workspace
from moat.config.source import read_document
from moat.errors import ConfigError, UsageError
from moat.regex import regex

FILES = ("agent.yaml", "moat.yaml")

_LABEL = regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL_RULE = "a name: lower-case letters, digits and `-`, at most 63"
_GRANT = regex(r"[a-z][a-z0-9_-]{0,63}(:[A-Za-z0-9][A-Za-z0-9._-]{0,253})?")
_IMAGE = regex(r"[a-z0-9][A-Za-z0-9._/:@-]{0,254}")

_REFUSED = {
    "ask": "belongs in ~/.moat/config.yaml; a workspace must not answer the questions of its own runs",
    "upstream": "belongs in ~/.moat/config.yaml; a workspace must not redirect the traffic of its own runs",
    "endpoints": "belongs in ~/.moat/config.yaml; endpoints of a run are its `ports`",
    "workspaces": "belongs in ~/.moat/config.yaml; a workspace must not vouch for itself",
    "journal": "belongs in ~/.moat/config.yaml; a workspace must not say what is recorded of its own runs",
    "proxy": "belongs in ~/.moat/config.yaml as upstream.proxy; a workspace must not redirect its traffic",
    "codex": "Moat has no sessions of it; run it as a command, with `dependencies: [codex-cli]`",
    "gemini": "Moat has no sessions of it; run it as a command, with `dependencies: [gemini-cli]`",
    "secrets": "they would be real secrets in the sandbox, where the agent can read them; a grant goes to "
    "its hosts only and is never inside: see `moat grant providers`",
    "workspace": "the workspace is always mounted; snapshots bring back what a run has changed",
    "sandbox": "there is no run without a sandbox; `runtime` says what makes it",
    "tracing": "`moat trace` shows what a run asked of the network; nothing traces its processes",
    "clipboard": "the clipboard may hold a password; it stays outside the sandbox",
    "language_servers": "name them in `dependencies`, e.g. npm:typescript-language-server",
}


def load(workspace: Path) -> RunConfig:
    """The configuration in the root of `workspace`, or the defaults when there is none.

    Raises ConfigError with every problem. Both files at once are an error: which one counts would
    be a guess.
    """
    present = [
        workspace / name for name in FILES if (workspace / name).is_symlink() or (workspace / name).exists()
    ]
    if not present:
        return RunConfig()
    if len(present) > 1:
        raise ConfigError(
            ["moat.yaml:1:1: agent.yaml is here as well, and only one of them can count"],
            hint="remove agent.yaml or moat.yaml",
        )
    return load_file(present[0])


def load_file(path: Path) -> RunConfig:
    """The configuration in one file, whose directory is its workspace. Raises ConfigError."""
    workspace = path.parent
    checker = Checker(path.name)
    found: dict[str, Any] = {}
    try:
        if _inside(path, workspace, checker):
            root = read_document(path, checker)
            if root is not None:
                found = _Workspace(checker, workspace).read(root)
    except TooMuchError:
        pass
    checker.finish()
    return RunConfig(path=path, **found)


def _inside(path: Path, workspace: Path, checker: Checker) -> bool:
    """A link out of the workspace would quote a foreign file in our messages."""
    if path.is_symlink() and not path.resolve().is_relative_to(workspace.resolve()):
        checker.problem(1, 1, "a link that leads out of the workspace is not followed")
        return False
    return True


class _Workspace:
    """The schema: one method for each kind of value."""

    def __init__(self, checker: Checker, workspace: Path) -> None:
        self._check = checker
        self._workspace = workspace

    def read(self, root: Node) -> dict[str, Any]:
        mcp = McpReader(self._check)
        known: dict[str, Callable[[Node], object]] = {
            "name": lambda node: self._check.matching(node, "name", _LABEL, _LABEL_RULE),
            "agent": lambda node: self._check.matching(node, "agent", _LABEL, _LABEL_RULE),
            "grants": self._grants,
            "env": lambda value: self._check.variables(value, "env"),
            "mounts": self._mounts,
            "network": lambda node: network.read(self._check, node),
            "runtime": lambda node: self._check.choice(
                node, "runtime", ("docker", "embedded"), later=("podman", "apple")
            ),
            "command": self._command,
            "snapshots": lambda node: snapshots.read(self._check, node),
            "mcp": mcp.read,
            "claude": ClaudeReader(self._check).read,
            "dependencies": self._dependencies,
            "ports": lambda node: ports.read(self._check, node),
            "interactive": lambda node: self._check.boolean(node, "interactive"),
            "version": self._version,
            "hooks": lambda node: image.read_hooks(self._check, node),
            "container": lambda node: image.read_container(self._check, node),
            "services": lambda node: image.read_services(self._check, node),
            "volumes": lambda node: image.read_volumes(self._check, node, refused_target),
            "base_image": lambda node: self._check.matching(
                node, "base_image", _IMAGE, "an image, e.g. debian:bookworm-slim"
            ),
        }
        found = self._check.fields(root, "the file", known, _REFUSED)
        image.check_together(self._check, root, found)
        claude = found.get("claude")
        for name in claude.mcp if isinstance(claude, ClaudeConfig) else ():
            if name in mcp.names:
                self._check.wrong(mcp.names[name], f"{name!r} is an MCP server of claude.mcp as well")
        return found

    def _grants(self, node: Node) -> tuple[str, ...]:
        return self._words(
            node, "grants", "[anthropic, github]", _GRANT, "a grant, e.g. anthropic or ssh:github.com"
        )

    def _version(self, node: Node) -> None:
        """For people; it means nothing to Moat, so `1.0` may be written without quotes."""
        if node.id != "scalar":
            self._check.text(node, "version")

    def _dependencies(self, node: Node) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for item in self._check.items(node, "dependencies", "[node@22, git]"):
            word = self._parsed(item, "an entry of dependencies", lambda text: str(parse(text)))
            if word is not None:
                found[word] = None
        return tuple(found)

    def _words(
        self, node: Node, what: str, example: str, form: re.Pattern[str], rule: str
    ) -> tuple[str, ...]:
        """A list of words without repetition, in the order of the file."""
        found: dict[str, None] = {}
        for item in self._check.items(node, what, example):
            value = self._check.matching(item, f"an entry of {what}", form, rule)
            if value is not None:
                found[value] = None
        return tuple(found)

    def _command(self, node: Node) -> tuple[str, ...]:
        found = [
            self._check.text(item, "an entry of command", integers=True)
            for item in self._check.items(node, "command", "[npm, test]")
        ]
        if node.id == "sequence" and (not found or found[0] == ""):
            self._check.wrong(node, "command must begin with a program")
        return tuple(word for word in found if word is not None)

    def _mounts(self, node: Node) -> tuple[MountConfig, ...]:
        found: dict[str, MountConfig] = {}
        for item in self._check.items(node, "mounts", "[../data:/data:ro]"):
            text = self._check.text(item, "a mount")
            if text is None:
                continue
            try:
                mount = parse_mount(text, self._workspace)
            except UsageError as error:
                self._check.wrong(item, str(error))
                continue
            # What is judged here, and confirmed by the user, is what will be mounted: not where a link
            # leads by then.
            mount = MountConfig(mount.source.resolve(), mount.target, mount.read_only)
            if reason := refused_to_workspace(mount, self._workspace):
                self._check.wrong(item, reason)
                continue
            if mount.target in found:
                self._check.wrong(item, f"two mounts have the target {mount.target}")
            found[mount.target] = mount
        return tuple(found.values())

    def _parsed(self, node: Node, what: str, parse: Callable[[str], str]) -> str | None:
        text = self._check.text(node, what)
        if text is None:
            return None
        try:
            return parse(text)
        except UsageError as error:
            self._check.wrong(node, str(error))
            return None
