"""`moat claude plugins list|update [dir]`, and the plugins of a run that `moat claude` starts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moat import config
from moat.cli.output import Progress, emit, emit_json, say, table
from moat.cli.parser import Parser
from moat.config import RunConfig
from moat.errors import StartError, UsageError
from moat.paths import Home
from moat.runtime import tampering
from moat.runtime.plugins.declared import Declarations, Origin, Problem, declarations
from moat.runtime.plugins.deliver import Delivery, deliver
from moat.runtime.plugins.fetch import note
from moat.runtime.plugins.prepare import resolver
from moat.runtime.plugins.resolve import Market, Plugin, Resolved, State, check_complete
from moat.vault.ssh import SshGrant

_EXAMPLE = """\

claude:
  plugins:
    "formatter@team-tools": true
  marketplaces:
    team-tools:
      source: github
      repo: owner/repo
"""


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="moat claude plugins",
        description="Show the Claude Code plugins that a session in a directory has, or look for newer ones.",
    )
    parser.add_argument("verb", choices=("list", "update"), help="`update`: fetch branches and tags again")
    parser.add_argument("dir", nargs="?", default=".", help="workspace (default: this directory)")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    options = parser.parse_intermixed_args(argv)
    workspace = Path(options.dir).expanduser().resolve()
    if not workspace.is_dir():
        raise UsageError(f"no directory {options.dir!r}", hint="moat claude plugins list [dir]")
    home = Home.from_environment()
    update = options.verb == "update"
    declared = named(home, workspace, config.load(workspace))
    resolved = _resolved(home, workspace, declared, offline=not update, refresh=update, accept=False)
    note(home, workspace, resolved.fetches)
    if options.json:
        emit_json(_as_json(resolved, workspace))
    else:
        _print(resolved, workspace)
    for problem in resolved.problems:
        _tell("error", problem)
    return 1 if update and resolved.problems else 0


def named(home: Home, workspace: Path, settings: RunConfig) -> Declarations:
    """What the user, the project and agent.yaml name."""
    return declarations(user_home=Path.home(), home=home, workspace=workspace, config=settings)


def prepare(
    home: Home,
    workspace: Path,
    declared: Declarations,
    ssh: Iterable[SshGrant],
    options: argparse.Namespace,
) -> Delivery:
    """The plugins of a new run with the grants `ssh`, ready. Raises StartError with all that is wrong.

    What only this machine's own Claude Code names does not stop a session when it cannot be had (the user
    may be offline, and did not ask for it here); it is told.
    """
    resolved = _resolved(
        home,
        workspace,
        declared,
        offline=False,
        refresh=options.rebuild,
        accept=options.accept_config,
        ssh=ssh,
    )
    try:
        check_complete(resolved)
    except StartError:
        note(home, workspace, resolved.fetches)  # there will be no run whose journal would have them
        raise
    for problem in resolved.problems:
        _tell("warning", problem)
    return deliver(resolved, declared.project)


def _resolved(
    home: Home,
    workspace: Path,
    declared: Declarations,
    *,
    offline: bool,
    refresh: bool,
    accept: bool,
    ssh: Iterable[SshGrant] = (),
) -> Resolved:
    progress = Progress()

    def before_fetch(origin: Origin) -> None:
        if origin is Origin.PROJECT and not accept:
            for path in declared.project_files:
                tampering.check_file(home, workspace, path)

    found = resolver(
        home=home,
        user_home=Path.home(),
        workspace=workspace,
        declared=declared,
        upstream=config.load_user(home).upstream,
        ssh=ssh,
        refresh=refresh,
        offline=offline,
        before_fetch=before_fetch,
        progress=progress.show,
    )
    try:
        return found.resolve()
    finally:
        progress.clear()


def _tell(kind: str, problem: Problem) -> None:
    say(f"{kind}: {problem.text}")
    for line in problem.hint.splitlines():
        say(f"hint: {line}")


# --- showing --------------------------------------------------------------------------------------


def _print(resolved: Resolved, workspace: Path) -> None:
    emit(f"Claude Code plugins in {workspace}")
    emit("")
    if not resolved.plugins and not resolved.marketplaces:
        emit("none")
        say("name some in agent.yaml:")
        sys.stderr.write(_EXAMPLE)  # as it is, to be copied
        return
    if resolved.plugins:
        rows = [
            (p.choice.id, "enabled" if p.choice.enabled else "disabled", _state(p), _origin(p.choice))
            for p in resolved.plugins
        ]
        emit(table(("PLUGIN", "SETTING", "STATE", "SOURCE"), rows))
    if resolved.plugins and resolved.marketplaces:
        emit("")
    if resolved.marketplaces:
        places = [
            (m.named.name, str(m.named.source), _market(m), _origin(m.named)) for m in resolved.marketplaces
        ]
        emit(table(("MARKETPLACE", "PLACE", "STATE", "SOURCE"), places))


def _state(plugin: Plugin) -> str:
    if plugin.state is not State.READY:
        return "-" if plugin.state is State.DISABLED else plugin.state
    version = plugin.version
    if plugin.commit and not plugin.commit.startswith(version):
        version += f" at {plugin.commit[:12]}"
    return f"ready, {version}"


def _market(market: Market) -> str:
    if market.state is not State.READY:
        return market.state
    return f"ready at {market.commit[:12]}" if market.commit else "ready"


def _origin(item: Any) -> str:
    return f"{item.origin} ({item.file})"


def _as_json(resolved: Resolved, workspace: Path) -> dict[str, Any]:
    return {
        "workspace": str(workspace),
        "plugins": [
            {
                "id": p.choice.id,
                "enabled": p.choice.enabled,
                "state": p.state,
                "version": p.version or None,
                "commit": p.commit,
                "source": p.choice.origin,
                "file": p.choice.file,
            }
            for p in resolved.plugins
        ],
        "marketplaces": [
            {
                "name": m.named.name,
                "place": str(m.named.source),
                "state": m.state,
                "commit": m.commit,
                "source": m.named.origin,
                "file": m.named.file,
            }
            for m in resolved.marketplaces
        ],
        "problems": [{"text": p.text, "hint": p.hint, "source": p.origin} for p in resolved.problems],
    }
