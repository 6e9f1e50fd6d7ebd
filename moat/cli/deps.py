"""`moat deps list|info`: what `dependencies:` in agent.yaml may name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moat.cli.output import emit, emit_json, table
from moat.cli.parser import Parser
from moat.config.dependencies import BY_NAME, ENTRIES, Dependency, Entry, Kind, parse
from moat.config.elsewhere import ELSEWHERE, Elsewhere, elsewhere
from moat.paths import Home
from moat.runtime.deps import onhost

EMBEDDED = {
    Kind.NPM: "fetched and mounted",
    Kind.WHEEL: "fetched and mounted",
    Kind.NODE_TOOL: "installed in ~/.moat/cache and mounted",
    Kind.PYTHON_TOOL: "installed in ~/.moat/cache and mounted, for this machine's python3",
    Kind.DEBIAN: "must be installed on this machine, whose /usr the sandbox sees: it has no image",
    Kind.PYTHON: "must be installed on this machine, whose /usr the sandbox sees: it has no image",
    Kind.SERVICE: "cannot be had, a service is a container: use `runtime: docker`, or a server on this "
    "machine and `network.host: [PORT]`",
    Kind.BUNDLE: "what it holds",
}
DOCKER = {
    Kind.NPM: "fetched from the npm registry, copied into the image",
    Kind.WHEEL: "fetched from the Python package index, copied into the image",
    Kind.NODE_TOOL: "installed by npm, copied into the image",
    Kind.PYTHON_TOOL: "installed apart from other packages, copied into the image",
    Kind.DEBIAN: "installed with apt-get",
    Kind.PYTHON: "3.11 installed with apt-get; others are the official image python:VERSION-slim-bookworm",
    Kind.SERVICE: "a container beside the sandbox",
    Kind.BUNDLE: "what it holds",
}
_DYNAMIC = {"npm": Kind.NODE_TOOL, "pip": Kind.PYTHON_TOOL, "uv": Kind.PYTHON_TOOL}


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="moat deps", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|info")
    listing = actions.add_parser("list", help="all that there is")
    listing.add_argument("--json", action="store_true", help="as JSON")
    info = actions.add_parser("info", help="one of them")
    info.add_argument("name", metavar="NAME", help="e.g. node, node@22 or npm:typescript")
    info.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(argv)
    return _list(json=options.json) if options.action == "list" else _info(options.name, json=options.json)


def _list(*, json: bool) -> int:
    if json:
        emit_json([*map(_described, ENTRIES), *map(_not_had, ELSEWHERE)])
        return 0
    rows = [(entry.name, entry.kind, _version(entry), _here(entry), entry.summary) for entry in ENTRIES]
    emit(table(("NAME", "KIND", "VERSION", "EMBEDDED", "WHAT"), rows))
    emit("\nAny package of a registry: npm:NAME[@VERSION], pip:NAME[@VERSION], uv:NAME[@VERSION].")
    emit("\nNot as a dependency; `moat deps info NAME` says why, and how a sandbox has it all the same:\n")
    emit(table(("NAME", "WHAT"), [(row.name, row.what) for row in ELSEWHERE]))
    return 0


def _here(entry: Entry) -> str:
    """Whether an embedded sandbox on this machine has it."""
    if entry.kind is Kind.SERVICE:
        return "no"
    parts = [entry, *(BY_NAME[name] for name in entry.holds)]
    return "yes" if all(map(onhost.installed, parts)) else "not installed"


def _version(entry: Entry) -> str:
    if not entry.versioned:
        return "-"
    return entry.version or "newest"


def _info(text: str, *, json: bool) -> int:
    row = elsewhere(text) if text not in BY_NAME else None
    about = _not_had(row) if row else _had(parse(text))
    if json:
        emit_json(about)
        return 0
    for name, value in about.items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        if shown:
            emit(f"{name + ':':<10} {shown}")
    return 0


def _had(wanted: Dependency) -> dict[str, Any]:
    about = _described(BY_NAME[wanted.name]) if not wanted.source else _dynamic(wanted)
    if remembered := _remembered(wanted):
        about["resolved"] = remembered
    return about


def _not_had(row: Elsewhere) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": "not a dependency",
        "what": row.what,
        "why": row.why,
        "docker": row.docker,
        "embedded": row.embedded,
    }


def _embedded(entry: Entry) -> str:
    text = EMBEDDED[entry.kind]
    if entry.kind not in {Kind.DEBIAN, Kind.PYTHON}:
        return text
    return text + ("; it is" if onhost.installed(entry) else f"; it is not: apt-get install {entry.debian}")


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": str(entry.kind),
        "what": entry.summary,
        "version": _version(entry),
        "package": entry.package,
        "commands": list(
            entry.commands or (() if entry.kind in {Kind.SERVICE, Kind.BUNDLE} else (entry.name,))
        ),
        "requires": list(entry.requires),
        "holds": list(entry.holds),
        "docker": DOCKER[entry.kind],
        "embedded": _embedded(entry),
    }


def _dynamic(wanted: Dependency) -> dict[str, Any]:
    kind = _DYNAMIC[wanted.source]
    return {
        "name": f"{wanted.source}:{wanted.name}",
        "kind": "Python package" if wanted.source == "pip" else str(kind),
        "version": wanted.version or "newest",
        "requires": {"npm": ["node"], "pip": ["python"]}.get(wanted.source, []),
        "docker": DOCKER[kind] if wanted.source != "pip" else "installed where `python` finds it",
        "embedded": EMBEDDED[kind],
    }


def _remembered(wanted: Dependency) -> str:
    """The exact version that was looked up for it, which counts until `--rebuild`."""
    from moat.runtime.deps.package import Memory
    from moat.runtime.deps.resolve import machine
    from moat.runtime.deps.selection import select

    memory = Memory(Home.from_environment().cache / "docker" / "versions.json")
    if not wanted.source and BY_NAME[wanted.name].kind is Kind.BUNDLE:
        return ""
    packages = select([str(wanted)], machine=machine()).packages  # what it requires comes first
    return next((memory.recall(package) or "" for package in packages[-1:]), "")
