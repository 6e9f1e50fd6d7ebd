"""`~/.moat/config.yaml`: what the user says about this machine. Never read from a workspace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from moat.chord import DEFAULT, Chord, parse
from moat.config import ask, endpoints, output
from moat.config.check import Checker, Node, TooMuchError
from moat.config.journal import JournalReader
from moat.config.model import UpstreamConfig, UserClaudeConfig, UserConfig, UserWorkspacesConfig
from moat.config.source import read_document, trusted
from moat.errors import UsageError
from moat.paths import Home
from moat.regex import regex

_ENDPOINT = regex(
    r"(?:\[(?P<ip6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]{1,253})):(?P<port>[1-9][0-9]{0,4})"
)
_LATER = "not supported yet"
_REFUSED = dict.fromkeys(("debug", "mounts"), _LATER) | {"proxy": "write upstream.proxy"}


def load_user(home: Home) -> UserConfig:
    """The user's configuration, or the defaults when there is none. Raises ConfigError with every problem."""
    path = home.config_file
    if not path.exists():
        return UserConfig()
    checker = Checker(str(path))
    found: dict[str, Any] = {}
    try:
        if trusted(path, checker):
            root = read_document(path, checker)
            if root is not None:
                known: dict[str, Callable[[Node], object]] = {
                    "upstream": _Upstream(checker, path).read,
                    "ask": lambda node: ask.read(checker, node),
                    "endpoints": lambda node: endpoints.read(checker, node),
                    "chord": lambda node: _chord(checker, node),
                    "journal": JournalReader(checker, path.parent).read,
                    "output": lambda node: output.read(checker, node),
                    "claude": lambda node: _claude(checker, node),
                    "workspaces": lambda node: _workspaces(checker, node),
                }
                found = checker.fields(root, "the file", known, _REFUSED)
    except TooMuchError:
        pass
    checker.finish()
    return UserConfig(path=path, **found)


def _chord(checker: Checker, node: Node) -> Chord:
    text = checker.text(node, "chord")
    try:
        return DEFAULT if text is None else parse(text)
    except UsageError as error:
        checker.wrong(node, f"{error}: {error.hint}")
        return DEFAULT


def _claude(checker: Checker, node: Node) -> UserClaudeConfig:
    known = {"host_hooks": lambda value: checker.boolean(value, "claude.host_hooks")}
    found: dict[str, Any] = checker.fields(node, "claude", known, {})
    return UserClaudeConfig(**found)


def _workspaces(checker: Checker, node: Node) -> UserWorkspacesConfig:
    known = {
        "unconfirmed": lambda value: checker.choice(value, "workspaces.unconfirmed", ("pass", "refuse")),
    }
    found: dict[str, Any] = checker.fields(node, "workspaces", known, {})
    return UserWorkspacesConfig(**found)


class _Upstream:
    def __init__(self, checker: Checker, path: Path) -> None:
        self._check = checker
        self._directory = path.parent

    def read(self, node: Node) -> UpstreamConfig:
        known: dict[str, Callable[[Node], object]] = {
            "ca_bundle": self._ca_bundle,
            "proxy": self._proxy,
            "connect_to": self._connect_to,
        }
        found: dict[str, Any] = self._check.fields(node, "upstream", known, {})
        return UpstreamConfig(**found)

    def _ca_bundle(self, node: Node) -> Path | None:
        text = self._check.text(node, "upstream.ca_bundle")
        if text is None:
            return None
        path = self._directory / Path(text).expanduser()
        try:
            pem = path.read_bytes()
        except OSError as error:
            self._check.wrong(node, f"{text}: {error.strerror or error}")
            return None
        if b"-----BEGIN CERTIFICATE-----" not in pem:
            self._check.wrong(node, f"{text} holds no PEM certificate")
            return None
        return path

    def _proxy(self, node: Node) -> str | None:
        text = self._check.text(node, "upstream.proxy")
        if text is None:
            return None
        try:
            url = urlsplit(text)
            fits = (
                url.scheme == "http" and url.hostname and url.port and url.path in {"", "/"} and not url.query
            )
        except ValueError:
            fits = False
        if not fits:
            # The URL may hold a password: it is not repeated.
            self._check.wrong(node, "upstream.proxy must be http://[user:password@]host:port")
            return None
        return text

    def _connect_to(self, node: Node) -> MappingProxyType[tuple[str, int], tuple[str, int]]:
        found: dict[tuple[str, int], tuple[str, int]] = {}
        for key, key_node, value_node in self._check.pairs(node, "upstream.connect_to"):
            origin = self._endpoint(key, key_node)
            value = self._check.text(value_node, "an entry of upstream.connect_to")
            target = None if value is None else self._endpoint(value, value_node)
            if origin and target:
                found[origin] = target
        return MappingProxyType(found)

    def _endpoint(self, text: str, node: Node) -> tuple[str, int] | None:
        match = _ENDPOINT.fullmatch(text)
        if match is None or int(match["port"]) > 65535:
            self._check.wrong(node, f"{text!r} is not host:port")
            return None
        return (match["ip6"] or match["host"]).lower(), int(match["port"])
