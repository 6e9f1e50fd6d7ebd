"""`moat run [dir] [flags] -- command…`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from moat import surroundings
from moat.cli import own_place
from moat.cli.common import add_chord_option, add_credential_options
from moat.cli.output import dumb, say
from moat.cli.parser import Parser
from moat.cli.start import start, wanted_size, wanted_stdin
from moat.cli.terminal import is_terminal
from moat.cli.worktree import branch_of, configuration, entered, name_of
from moat.config import HostRules, NetworkConfig, RunConfig, parse_host, parse_mount, parse_port
from moat.config.network import ASK_AND_WARN
from moat.config.overlooked import overlooked
from moat.errors import UsageError
from moat.paths import Home
from moat.runtime import known, tampering
from moat.runtime.choice import NAMES, choose
from moat.runtime.forking import Fork
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import Mount
from moat.runtime.size import Size

if TYPE_CHECKING:
    from moat.runtime.demands import Demand

_SHELLS = {"bash", "sh", "zsh", "fish", "dash", "python", "python3", "ipython", "node", "irb", "psql"}
_NONE: Mapping[str, str] = MappingProxyType({})


def main(argv: Sequence[str], *, ahead: Fork | None = None, asked: contextlib.ExitStack | None = None) -> int:
    """`asked`: contexts that end when the user has been asked, before anything starts."""
    flags, command = split_command(argv)
    options = _parser().parse_args(flags)
    workspace = Path(options.dir).expanduser().absolute()
    if not workspace.is_dir():
        raise UsageError(f"no directory {options.dir!r}", hint="the command comes after `--`: moat run -- ls")
    home = Home.from_environment()
    with asked or contextlib.ExitStack() as stack:
        if options.worktree:
            workspace = stack.enter_context(entered(options.worktree, home, workspace))
        settings = load_config(options, home, workspace)
        options.interactive = options.interactive or settings.interactive
        request = build(options, command, settings, workspace)
        missing = ask_first(options, home, workspace, settings, runtime=request.runtime)
    if not options.detach:
        _tell_without_terminal(request)
    return start(
        request, detach=options.detach, json=options.json, home=home, ahead=ahead, lent_when_granted=missing
    )


def _tell_without_terminal(request: RunRequest) -> None:
    """A shell that is not given a terminal ends at once, without a word."""
    name, *rest = request.argv
    if Path(name).name in _SHELLS and not rest and not request.tty and is_terminal(0) and is_terminal(1):
        say(f"warning: without -i, {name} has no terminal and no input: `moat run -i -- {name}`")


def split_command(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """What is before the first `--`, and the command after it."""
    if "--" not in argv:
        return list(argv), ()
    at = list(argv).index("--")
    return list(argv[:at]), tuple(argv[at + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moat run",
        usage="moat run [dir] [options] -- command [argument...]",
        description="Run a command in a sandbox on a directory. stdin, stdout, stderr and the exit status "
        "are the command's own.",
    )
    parser.add_argument("dir", nargs="?", default=".", help="workspace (default: this directory)")
    parser.add_argument("-i", "--interactive", action="store_true", help="give the command a terminal")
    parser.add_argument("--json", action="store_true", help="with -d: print the run as JSON")
    add_common(parser)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """Flags that every command that starts a run has."""
    add = parser.add_argument
    add("-g", "--grant", action="append", default=[], metavar="GRANT", help="credential to use (repeatable)")
    add("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="variable (repeatable)")
    add("-n", "--name", help="name of the run")
    add("-d", "--detach", action="store_true", help="run in the background")
    add("--runtime", choices=NAMES, help="what makes the sandbox (default: docker when it runs)")
    add("--mount", action="append", default=[], metavar="SRC:DST[:ro|rw]", help="mount (repeatable)")
    add("--port", action="append", default=[], metavar="NAME=PORT", help="endpoint (repeatable): web=3000")
    add("--allow-host", action="append", default=[], metavar="HOST", help="allow a host (repeatable)")
    add("--ask", action="store_true", help="ask before a host is reached that no rule decides about")
    add("--accept-config", action="store_true", help="use agent.yaml although a run may have changed it")
    add("--worktree", metavar="BRANCH", help="work in a worktree of this branch; it is made when missing")
    add("--writable-git", action="store_true", help="let the run write .git/hooks and .git/config")
    add("--no-snapshots", action="store_true", help="keep no snapshots of the workspace for this run")
    add("--rebuild", action="store_true", help="build the image again")
    add_chord_option(parser)
    add_credential_options(parser)


def load_config(options: argparse.Namespace, home: Home, workspace: Path) -> RunConfig:
    """agent.yaml, unless an earlier run may have written it. Raises ConfigError, UsageError."""
    if "PYTHONPATH" in surroundings.leave(workspace):
        say(
            "warning: PYTHONPATH leads into the workspace: every Python program that you start, "
            "this one too, runs what an agent leaves there"
        )
    places = known.workspaces(home)
    surroundings.leave(*places)
    own_place.warn(workspace.resolve(), *places)
    settings = configuration(workspace)
    if settings.path is None and (told := overlooked(workspace)):
        say(f"warning: {told}")
    if not options.accept_config:
        place = settings.path.parent if settings.path else workspace
        tampering.check(home, place, settings)
    return settings


def ask_first(
    options: argparse.Namespace,
    home: Home,
    workspace: Path,
    file: RunConfig,
    *,
    runtime: str | None = None,
    implied: tuple[str, ...] = (),
    marketplaces: Mapping[str, str] = _NONE,
) -> tuple[Demand, ...]:
    """The user lends what `file` asks for, or has lent it. Raises UsageError.

    Returned are the grants that are not there to be lent. runtime: of the run, where that is known.
    implied: grants that the command uses by itself. marketplaces: of the user's, and which file wants them.
    """
    if not file.demanding and not marketplaces:
        return ()
    from moat.cli.confirm import confirm

    return confirm(
        home,
        workspace,
        file,
        runtime=runtime,
        named=(*implied, *options.grant),
        marketplaces=marketplaces,
        accepted=options.accept_config,
    )


def build(
    options: argparse.Namespace, command: tuple[str, ...], file: RunConfig, workspace: Path
) -> RunRequest:
    """The request that agent.yaml and the flags make together; flags win."""
    argv = command or file.command
    if not argv:
        raise UsageError("no command", hint="moat run -- <command>, or `command:` in agent.yaml")
    if not argv[0]:
        raise UsageError("the command is an empty word", hint="moat run -- <command>")
    tty = wanted_size(interactive=getattr(options, "interactive", False), detach=options.detach)
    rules = (*file.network.rules, *(HostRules(parse_host(host)) for host in options.allow_host))
    flag_mounts = [parse_mount(text, workspace) for text in options.mount]
    return RunRequest(
        argv=argv,
        workspace=workspace,
        name=options.name or name_of(workspace, file),
        grants=tuple(dict.fromkeys((*file.needed_grants, *options.grant))),
        env={**_terminal(options, tty), **file.env, **dict(map(_variable, options.env))},
        mounts=tuple(Mount(m.source, m.target, m.read_only) for m in (*file.mounts, *flag_mounts)),
        network=_network(options, file, rules),
        runtime=_runtime(options, file),
        tty=tty,
        stdin=wanted_stdin(tty=tty is not None, detach=options.detach),
        agent=file.agent,
        config=tampering.digest(file),
        dependencies=file.dependencies,
        base_image=file.base_image,
        rebuild=options.rebuild,
        container=file.container,
        ports={**file.ports, **dict(map(parse_port, options.port))},
        mcp=file.mcp,
        snapshots=replace(file.snapshots, disabled=file.snapshots.disabled or options.no_snapshots),
        hooks=file.hooks,
        services=file.services,
        volumes=file.volumes,
        worktree=branch_of(workspace),
        writable_git=options.writable_git,
    )


def _runtime(options: argparse.Namespace, file: RunConfig) -> str | None:
    """Settled here where it decides what the user is asked about, so that the run has no other."""
    wanted = options.runtime or file.runtime
    return choose(wanted) if file.making else wanted


def _terminal(options: argparse.Namespace, tty: Size | None) -> dict[str, str]:
    """A program on a dumb terminal must know it; whoever attaches to one in the background may have any."""
    return {"TERM": "dumb"} if tty and dumb() and not options.detach else {}


def _network(options: argparse.Namespace, file: RunConfig, rules: tuple[HostRules, ...]) -> NetworkConfig:
    if not options.ask:
        return replace(file.network, rules=rules)
    if file.network.mode == "warn":
        raise UsageError(f"--ask: {ASK_AND_WARN}", hint="remove network.mode from agent.yaml")
    return replace(file.network, policy="ask", rules=rules)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"-e {text}: no NAME=VALUE", hint=f'-e {name or "NAME"}="${name or "NAME"}"')
    return name, value
