"""Providers of the user's own: `~/.moat/providers/NAME.yaml`, each a `Declared`.

    summary: Acme API
    hosts: [api.acme.example]
    inject: {header: x-api-key, scheme: raw}
    env: [ACME_KEY]
    validate: {url: "https://api.acme.example/me", login: user.name}

Never read from a workspace: who writes such a file decides where a credential goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

from moat.errors import ConfigError, GrantError, UsageError
from moat.grants import Surface
from moat.paths import Home
from moat.rules import parse_host_pattern
from moat.vault.providers.declared import Declared, Injection, Shape
from moat.vault.providers.model import Check

if TYPE_CHECKING:
    from moat.config.check import Checker, Node

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")  # of a grant
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")  # RFC 9110 §5.6.2
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,40}")
_KEYS = re.compile(r"[^.\s]{1,64}(\.[^.\s]{1,64}){0,7}")
_SCHEMES = ("bearer", "token", "basic", "raw")
_SURFACES = get_args(Surface)
# Headers that say where a message goes or where it ends, or that belong to the next hop.
_NEVER = frozenset({
    "host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect",
    "keep-alive",
})  # fmt: skip


def names() -> tuple[str, ...]:
    """Names of the user's own providers, sorted. A file whose name Moat uses itself is none (`problems`)."""
    from moat.vault.providers import is_built_in

    return tuple(path.stem for path in _files() if _NAME.fullmatch(path.stem) and not is_built_in(path.stem))


def load(name: str) -> Declared:
    """The provider of one file. Raises ConfigError with every problem of it."""
    from moat.config.check import Checker, TooMuchError  # 20 ms, for who has such files
    from moat.config.source import read_document, trusted

    path = _directory() / f"{name}.yaml"
    checker = Checker(str(path))
    found: dict[str, Any] = {}
    try:
        if trusted(path, checker) and (root := read_document(path, checker)) is not None:
            found = _Reader(checker).read(root)
    except TooMuchError:
        pass
    if not found.get("hosts"):
        checker.problem(1, 1, "hosts are missing: the credential has to be bound to some")
    checker.finish()
    return Declared(name=name, **({"summary": name} | found))


def problems() -> tuple[str, ...]:
    """What is wrong with the user's provider files, as `file:line:col: text`."""
    from moat.vault.providers import is_built_in

    found: list[str] = []
    for path in _files():
        if not _NAME.fullmatch(path.stem):
            found.append(f"{path}:1:1: {path.stem!r} is not a grant name")
        elif is_built_in(path.stem):
            found.append(f"{path}:1:1: {path.stem} is a provider of Moat's own; give it another name")
        else:
            try:
                load(path.stem)
            except ConfigError as error:
                found += error.problems
    return tuple(found)


def _directory() -> Path:
    return Home.from_environment().providers


def _files() -> Iterator[Path]:
    try:
        yield from sorted(path for path in _directory().iterdir() if path.suffix == ".yaml")
    except FileNotFoundError:
        return
    except OSError as error:
        raise GrantError(f"{_directory()} cannot be read: {error.strerror}") from error


def _is_one_of(host: str, patterns: Iterable[str]) -> bool:
    return any(parse_host_pattern(pattern).names(host) for pattern in patterns)


class _Reader:
    def __init__(self, checker: Checker) -> None:
        self._check = checker
        self._asked: tuple[Node, str] | None = None  # where `validate` sends the credential

    def read(self, root: Node) -> dict[str, Any]:
        known: dict[str, Callable[[Node], object]] = {
            "summary": lambda node: self._check.text(node, "summary"),
            "hosts": lambda node: self._hosts(node, "hosts"),
            "opens": lambda node: self._hosts(node, "opens"),
            "inject": self._injection,
            "placeholder": self._shape,
            "source_env": lambda node: self._variables(node, "source_env"),
            "env": lambda node: self._variables(node, "env"),
            "validate": self._validate,
            "where": lambda node: self._check.text(node, "where"),
        }
        taken = {"name": "the file's own name is the provider's"}
        found: dict[str, Any] = dict(self._check.fields(root, "the file", known, taken))
        hosts = found.get("hosts") or ()
        if self._asked is not None and hosts and not _is_one_of(self._asked[1], hosts):
            node, host = self._asked
            self._check.wrong(
                node, f"validate.url: {host} is none of `hosts`, which alone get the credential"
            )
        renamed = {
            "inject": "injection",
            "placeholder": "shape",
            "source_env": "sources",
            "env": "variables",
            "validate": "check",
        }
        return {renamed.get(key, key): value for key, value in found.items()}

    def _hosts(self, node: Node, what: str) -> tuple[str, ...]:
        from moat.config import parse_host

        found = []
        for item in self._check.items(node, what, f"{what}: [api.example.com]"):
            text = self._check.text(item, f"an entry of {what}")
            if text is None:
                continue
            try:
                host = parse_host(text)
            except UsageError as error:
                self._check.wrong(item, str(error))
                continue
            if ":" in host:
                self._check.wrong(item, f"{text!r}: a credential goes to port 443 only; leave the port out")
            found.append(host)
        return tuple(found)

    def _variables(self, node: Node, what: str) -> tuple[str, ...]:
        return tuple(
            text
            for item in self._check.items(node, what, f"{what}: [ACME_TOKEN]")
            if (
                text := self._check.matching(item, f"an entry of {what}", _VARIABLE, "the name of a variable")
            )
        )

    def _injection(self, node: Node) -> Injection:
        known: dict[str, Callable[[Node], object]] = {
            "header": self._header,
            "scheme": lambda value: self._check.choice(value, "inject.scheme", _SCHEMES),
            "username": lambda value: self._check.text(value, "inject.username"),
            "surfaces": self._surfaces,
            "occurrences": lambda value: self._check.integer(value, "inject.occurrences", 1, 100),
        }
        found: dict[str, Any] = self._check.fields(node, "inject", known, {})
        if found.get("username") and found.get("scheme") != "basic":
            self._check.wrong(node, "inject.username belongs to `scheme: basic`")
        surfaces = found.get("surfaces", ("header",))
        if "header" not in surfaces and {"header", "scheme", "username"} & found.keys():
            self._check.wrong(node, "inject.header, scheme and username need `header` among the surfaces")
        if "occurrences" in found and not {"path", "query", "body"} & set(surfaces):
            self._check.wrong(
                node, "inject.occurrences counts in path, query and body; name one as a surface"
            )
        return Injection(**found)

    def _surfaces(self, node: Node) -> tuple[str, ...] | None:
        named = (
            self._check.choice(item, "an entry of inject.surfaces", _SURFACES)
            for item in self._check.items(node, "inject.surfaces", "inject.surfaces: [path]")
        )
        found = tuple(dict.fromkeys(name for name in named if name is not None))
        if not found:
            self._check.wrong(node, f"inject.surfaces needs one of {', '.join(_SURFACES)}")
            return None
        return found

    def _header(self, node: Node) -> str | None:
        name = self._check.matching(node, "inject.header", _TOKEN, "the name of a header")
        if name is not None and (name.lower() in _NEVER or name.lower().startswith("proxy-")):
            self._check.wrong(node, f"no credential belongs into {name!r}")
            return None
        return name and name.lower()

    def _shape(self, node: Node) -> Shape:
        known: dict[str, Callable[[Node], object]] = {
            "prefix": lambda value: self._check.matching(
                value, "placeholder.prefix", _PREFIX, "letters, digits, - and _ (at most 40)"
            ),
            # The longest prefix and the run's own part have to fit.
            "length": lambda value: self._check.integer(value, "placeholder.length", 64, 512),
        }
        found: dict[str, Any] = self._check.fields(node, "placeholder", known, {})
        return Shape(**found)

    def _validate(self, node: Node) -> Check | None:
        known: dict[str, Callable[[Node], object]] = {
            "url": self._url,
            "method": lambda value: self._check.choice(value, "validate.method", ("GET", "POST")),
            "login": self._login,
        }
        found: dict[str, Any] = self._check.fields(node, "validate", known, {})
        if "url" not in found:
            self._check.wrong(node, "validate.url is missing")
            return None
        host, path = found.pop("url")
        return Check(host, path, **found)

    def _url(self, node: Node) -> tuple[str, str] | None:
        text = self._check.text(node, "validate.url")
        if text is None:
            return None
        url = urlsplit(text)
        if url.scheme != "https" or not url.hostname or url.netloc != url.hostname or url.fragment:
            self._check.wrong(node, "validate.url must be https://host/path, without a port")
            return None
        self._asked = node, url.hostname
        return url.hostname, (url.path or "/") + (f"?{url.query}" if url.query else "")

    def _login(self, node: Node) -> tuple[str, ...] | None:
        text = self._check.matching(node, "validate.login", _KEYS, "keys joined by dots, e.g. user.name")
        return None if text is None else tuple(text.split("."))
