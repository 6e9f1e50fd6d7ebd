"""`moat deps list|info`: what `dependencies:` in agent.yaml may name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moat.cli.output import emit, emit_json, table
from moat.cli.parser import Parser
from moat.config.dependencies import BY_NAME, ENTRIES, Dependency, Entry, Kind, parse
from moat.paths import Home

EMBEDDED = {
    Kind.NPM: "fetched and mounted",
    Kind.WHEEL: "fetched and mounted",
    Kind.NODE_TOOL: "installed in ~/.moat/cache and mounted",
    Kind.PYTHON_TOOL: "installed in ~/.moat/cache and mounted, for this machine's python3",
    Kind.DEBIAN: "must be installed on this machine",
    Kind.PYTHON: "must be installed on this machine",
    Kind.SERVICE: "cannot be had: it is a container",
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
        emit_json([_described(entry) for entry in ENTRIES])
        return 0
    rows = [(entry.name, entry.kind, _version(entry), entry.summary) for entry in ENTRIES]
    emit(table(("NAME", "KIND", "VERSION", "WHAT"), rows))
    emit("\nAny package of a registry: npm:NAME[@VERSION], pip:NAME[@VERSION], uv:NAME[@VERSION].")
    return 0


def _version(entry: Entry) -> str:
    if not entry.versioned:
        return "-"
    return entry.version or "newest"


def _info(text: str, *, json: bool) -> int:
    wanted = parse(text)
    about = _described(BY_NAME[wanted.name]) if not wanted.source else _dynamic(wanted)
    if remembered := _remembered(wanted):
        about["resolved"] = remembered
    if json:
        emit_json(about)
        return 0
    for name, value in about.items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        if shown:
            emit(f"{name + ':':<10} {shown}")
    return 0


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
        "embedded": EMBEDDED[entry.kind],
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
