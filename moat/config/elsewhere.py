"""What `dependencies:` cannot name: why it cannot, and how a sandbox of either runtime has it all the same.

Rows are data, like those of `dependencies`; `moat deps` and docs/dependencies.md show them.
"""

from __future__ import annotations

from moat.dataclass import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """`name` alone or as a prefix: `cargo`, `cargo:ripgrep`."""

    name: str
    what: str
    why: str
    docker: str  # what to do
    embedded: str

    def __str__(self) -> str:
        return f"{self.why}. docker: {self.docker}. embedded: {self.embedded}"


_COMPILED = "it is compiled where it is installed, and Moat runs nothing foreign on this machine"
_KEPT = "with a volume at /home/agent/{place}, which keeps it"

ELSEWHERE = (
    Elsewhere(
        name="cargo",
        what="Rust programs from crates.io",
        why=_COMPILED,
        docker="`rust` in dependencies, and hooks.post_build: `cargo install NAME`",
        embedded="`rust` on this machine, and hooks.pre_run: `cargo install NAME` "
        + _KEPT.format(place=".cargo"),
    ),
    Elsewhere(
        name="go",
        what="Go programs from their sources (`go:…`; `go` itself is a dependency)",
        why=_COMPILED,
        docker="`go` in dependencies, and hooks.post_build: `go install MODULE@VERSION`",
        embedded="`go` in dependencies, and hooks.pre_run: `go install …` " + _KEPT.format(place="go"),
    ),
    Elsewhere(
        name="github",
        what="programs from a page of releases",
        why="such a page has no index with checksums that Moat could hold a download to",
        docker="`curl` in dependencies, and hooks.post_build_root: "
        "`curl -fsSLo /usr/local/bin/NAME URL && chmod +x …`",
        embedded=f"hooks.pre_run: fetch it into ~/.local/bin {_KEPT.format(place='.local')}; or put it into "
        "/usr/local/bin of this machine",
    ),
    Elsewhere(
        name="apt",
        what="Debian packages that are not in the table",
        why="the table is closed, so that a name which is none is told before anything is made",
        docker="hooks.post_build_root: `apt-get update && apt-get install -y NAME`",
        embedded="`apt-get install NAME` on this machine, whose /usr the sandbox sees",
    ),
    Elsewhere(
        name="playwright",
        what="Playwright with its browsers",
        why="its browsers come from a place of their own and need libraries that only root can install",
        docker="`npm:playwright` or `pip:playwright`, and `chromium`, started by its path: "
        "executablePath /usr/bin/chromium",
        embedded="the same, with `apt-get install chromium` on this machine",
    ),
)
BY_NAME = {row.name: row for row in ELSEWHERE}


def elsewhere(text: str) -> Elsewhere | None:
    """The row that an entry such as `cargo:ripgrep` or `playwright@1` means."""
    return BY_NAME.get(text.partition(":")[0].partition("@")[0])
