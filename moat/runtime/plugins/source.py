"""Where a marketplace or a plugin is: a value made of JSON that anybody may have written."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from moat.config import Marketplace
from moat.config.plugins import check_git_url, check_ref, check_repository, redacted
from moat.dataclass import dataclass
from moat.errors import UsageError

MANIFEST = ".claude-plugin/marketplace.json"
OFFICIAL = "claude-plugins-official"  # Claude Code knows this one without being told

_COMMIT = re.compile(r"[0-9a-f]{40}")
# What else Claude Code takes, and why this machine does not fetch it.
_UNFETCHED = {
    "npm": "a package is not a commit that can be pinned, and may bring scripts that npm runs",
    "archive": "an archive is not a commit that can be pinned",
    "command": "a command that somebody else names would run on this machine",
}


class SourceError(Exception):
    """The reason why a source cannot be used, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`location` is `owner/repo`, a git URL or an absolute path, as `kind` says.

    `other` is a kind that Moat does not fetch; only the host's own copy of such a thing can be used.
    """

    kind: Literal["github", "git", "directory", "other"]
    location: str
    ref: str | None = None  # branch, tag or commit
    commit: str | None = None  # exactly this one, whatever `ref` is
    path: str = ""  # inside the repository: of the manifest, or of the plugin

    @property
    def urls(self) -> tuple[str, ...]:
        """Where git finds it; tried in this order."""
        if self.kind == "github":
            return (f"https://github.com/{self.location}.git", f"git@github.com:{self.location}.git")
        return (self.location,) if self.kind == "git" else ()

    @property
    def remote(self) -> bool:
        return self.kind in {"github", "git"}

    @property
    def host(self) -> str:
        """Of the first URL; empty for what is on this machine."""
        first = next(iter(self.urls), "")
        return (
            (urlsplit(first).hostname or "") if "://" in first else first.partition("@")[2].partition(":")[0]
        )

    def __str__(self) -> str:
        version = self.commit[:12] if self.commit else self.ref
        where = f"{self.kind} {redacted(self.location)}"
        return f"{where} at {version}" if version else where

    def for_claude(self, place: str) -> dict[str, Any]:
        """As Claude Code writes it in its own files; `place` is where the sandbox has it."""
        if not self.remote:
            return {"source": "directory", "path": place}
        key = "repo" if self.kind == "github" else "url"
        found = {"source": self.kind, key: redacted(self.location)}
        return found | ({"ref": self.ref} if self.ref else {})


def configured(marketplace: Marketplace, workspace: Path) -> Source:
    """A marketplace of agent.yaml, which has been checked.

    A directory is the one that it is now, without links: what the user is asked about is what is copied.
    """
    location = marketplace.location
    if marketplace.source == "directory":
        place = Path(location).expanduser()
        return Source(kind="directory", location=os.path.realpath(workspace / place))
    kind: Literal["github", "git"] = "github" if marketplace.source == "github" else "git"
    return Source(kind=kind, location=location, ref=marketplace.ref)


def marketplace_source(value: object, base: Path, *, own: bool) -> Source:
    """The `source` object of settings.json or known_marketplaces.json. Raises SourceError.

    Relative paths are below `base`. `own`: the user's own file, where a URL may hold a credential.
    """
    if not isinstance(value, Mapping):
        raise SourceError("`source` is not an object")
    kind = _text(value, "source")
    path = _inside(value.get("path"), "path") if kind in {"github", "git"} and value.get("path") else ""
    if kind == "github":
        return _checked("github", _text(value, "repo"), value, path, own=own)
    if kind == "git":
        return _checked("git", _text(value, "url"), value, path, own=own)
    if kind == "directory":
        place = Path(_text(value, "path")).expanduser()
        return Source(kind="directory", location=str(place if place.is_absolute() else base / place))
    return Source(kind="other", location=kind)


def plugin_source(value: object, root: object) -> Source | str:
    """The `source` of a plugin's entry: a path inside its marketplace, or another place.

    `root` is the marketplace's `metadata.pluginRoot`, below which bare names lie. Raises SourceError.
    """
    if isinstance(value, str):
        if not value.startswith("./") and not isinstance(root, str):
            raise SourceError(f"the source {value!r} does not begin with ./")
        return _inside(value if value.startswith("./") else f"{root}/{value}", "source")
    if not isinstance(value, Mapping):
        raise SourceError("`source` is neither a path nor an object")
    kind = _text(value, "source")
    if kind == "github":
        return _checked("github", _text(value, "repo"), value, "", own=False)
    if kind in {"url", "git-subdir"}:
        path = _inside(_text(value, "path"), "path") if kind == "git-subdir" else ""
        url = _text(value, "url")
        shorthand = "://" not in url and "@" not in url
        return _checked("github" if shorthand else "git", url, value, path, own=False)
    raise SourceError(f"plugins from {kind!r} are not fetched by Moat: {unfetched(kind)}")


def unfetched(kind: str) -> str:
    """Why Moat does not fetch this kind of source, and what the user can do."""
    reason = _UNFETCHED.get(kind, "only commits of git repositories are")
    return f"{reason}; install it with Claude Code on this machine, and sessions have that copy"


def _checked(
    kind: Literal["github", "git"], location: str, value: Mapping[str, Any], path: str, *, own: bool
) -> Source:
    try:
        if kind == "github":
            location = check_repository(location)
        else:
            check_git_url(redacted(location) if own and urlsplit(location).scheme == "https" else location)
        ref = check_ref(_text(value, "ref")) if value.get("ref") is not None else None
    except (UsageError, ValueError) as error:
        raise SourceError(str(error)) from None
    commit = value.get("sha")
    if commit is not None and not (isinstance(commit, str) and _COMMIT.fullmatch(commit)):
        raise SourceError("`sha` is not a commit of 40 hexadecimal digits")
    return Source(kind=kind, location=location, ref=ref, commit=commit, path=path)


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str) or not found or not found.isprintable():
        raise SourceError(f"`{key}` is missing or no text")
    return found


def _inside(value: object, what: str) -> str:
    """A path that stays inside its repository, normalised; empty for the root. Raises SourceError."""
    if not isinstance(value, str) or "\0" in value or "\\" in value:
        raise SourceError(f"`{what}` is no path")
    path = posixpath.normpath(value)
    if path.startswith(("/", "../")) or path == ".." or value.startswith("/"):
        raise SourceError(f"the {what} {value!r} leads out of the repository")
    return "" if path == "." else path
