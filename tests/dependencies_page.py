"""Writes docs/dependencies.md from the table: `python -m tests.dependencies_page`. A test compares the two."""

from __future__ import annotations

from moat.cli.deps import DOCKER, EMBEDDED
from moat.config.dependencies import ENTRIES, Entry, Kind
from moat.config.elsewhere import ELSEWHERE
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs/dependencies.md"
_TITLES = {
    Kind.NPM: "Programs from the npm registry",
    Kind.WHEEL: "Programs from the Python package index",
    Kind.NODE_TOOL: "npm tools",
    Kind.PYTHON_TOOL: "Python tools",
    Kind.PYTHON: "Python",
    Kind.DEBIAN: "Debian packages",
    Kind.SERVICE: "Services",
    Kind.BUNDLE: "Bundles",
}
_HEAD = """\
# Dependencies

What `dependencies:` in `agent.yaml` may name; `moat deps list` prints the same table and `moat deps info NAME` one row. How they
get into a sandbox is in [images.md](images.md). This page is made from the table in the code.

Besides these, any package of a registry: `npm:NAME[@VERSION]`, `pip:NAME[@VERSION]` (importable by `python`), `uv:NAME[@VERSION]` (a tool
apart from all others).
"""


def page() -> str:
    parts = [_HEAD]
    for kind, title in _TITLES.items():
        parts += [f"## {title}", "", f"docker: {DOCKER[kind]}. embedded: {EMBEDDED[kind]}.", ""]
        parts += ["| name | what | version | commands |", "|---|---|---|---|"]
        parts += [_row(entry) for entry in ENTRIES if entry.kind is kind]
        parts.append("")
    parts += [
        "## Not as a dependency",
        "",
        "| name | what | why not | docker | embedded |",
        "|---|---|---|---|---|",
    ]
    parts += [f"| `{r.name}` | {r.what} | {r.why} | {r.docker} | {r.embedded} |" for r in ELSEWHERE]
    parts.append("")
    return "\n".join(parts)


def _row(entry: Entry) -> str:
    version = (entry.version or "newest") if entry.versioned else "Debian's"
    commands = ", ".join(f"`{name}`" for name in entry.commands or (entry.name,))
    what = entry.summary
    if entry.kind is Kind.BUNDLE:
        version, commands = "", ", ".join(f"`{name}`" for name in entry.holds)
    if entry.kind is Kind.SERVICE:
        commands = ""
    if entry.requires:
        what += f" (brings {', '.join(entry.requires)})"
    return f"| `{entry.name}` | {what} | {version} | {commands} |"


if __name__ == "__main__":
    PAGE.write_text(page())
