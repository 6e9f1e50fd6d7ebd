"""`moat claude`: Claude Code in a sandbox; a session at the terminal, one answer, or in the background."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import os
import re
import stat
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from moat import config
from moat.cli import claude_plugins
from moat.cli.output import say
from moat.cli.parser import Parser
from moat.cli.run import add_common, ask_first, build, load_config
from moat.cli.start import passphrase, start
from moat.cli.worktree import entered
from moat.config import McpServer
from moat.errors import GrantError, RunNotFoundError, StartError, UsageError
from moat.grants import CredentialInfo
from moat.paths import Home
from moat.runtime import granted, records
from moat.runtime.agents import Setup
from moat.runtime.agents.claude import Claude, without_needless_questions
from moat.runtime.agents.claude_sessions import conversation_of, sessions
from moat.runtime.agents.claude_settings import Carried, carried
from moat.runtime.choice import choose
from moat.runtime.forking import Fork
from moat.runtime.plugins.declared import SKIP_HOST
from moat.runtime.records import describe_age
from moat.runtime.request import RunRequest
from moat.vault import Vault, open_vault
from moat.vault.imported import kept_alive
from moat.vault.ssh import PREFIX as SSH, SshGrant

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NO_CREDENTIAL = (
    "install Claude Code and log in, then run `moat grant anthropic`\n"
    'or use an API key: `export ANTHROPIC_API_KEY="sk-ant-..." && moat grant anthropic`'
)


def main(
    argv: Sequence[str],
    *,
    command: str = "claude",
    ahead: Fork | None = None,
    asked: contextlib.ExitStack | None = None,
) -> int:
    """`asked`: contexts that end when the user has been asked, before anything starts."""
    if command == "claude" and argv[:1] == ["plugins"]:
        return claude_plugins.main(argv[1:])
    words, initial = _split(argv)
    options = parse(words, command)
    if command == "resume":
        _read_target(options)
    _check(options, initial)
    options.interactive = options.prompt is None
    home = Home.from_environment()
    with asked or contextlib.ExitStack() as stack:
        workspace, claude = _conversation(options, home, initial, stack)
        settings = load_config(options, home, workspace)
        claude = _keeping_logs(claude, settings.claude.sync_logs)
        runtime = choose(options.runtime or settings.runtime)
        declared = claude_plugins.named(home, workspace, settings)
        ask_first(
            options,
            home,
            workspace,
            settings,
            runtime=runtime,
            implied=(claude.grant,),
            marketplaces=declared.borrowed(workspace),
        )
    wanted = granted.unique((claude.grant, *settings.needed_grants, *options.grant))
    vault = open_vault(home, passphrase=passphrase())
    credential = _credentials(vault, claude.grant, wanted, settings.mcp)
    ssh = [SshGrant.of(vault.info(name)) for name in wanted if name.startswith(SSH)]
    plugins = claude_plugins.prepare(home, workspace, declared, ssh, options)
    setup = claude.setup(
        workspace=workspace,
        credential=credential,
        runtime=runtime,
        servers=settings.claude.mcp,
        carried=_settings(home),
        plugins=plugins,
    )
    request = _with(setup, build(options, setup.argv, settings, workspace))
    request = dataclasses.replace(
        request,
        grants=wanted,
        runtime=runtime,
        agent=claude.name,
        network=without_needless_questions(request.network),
        stdin=request.stdin and _piped(),
        fetches=plugins.fetches,
    )
    return start(request, detach=options.detach, home=home, ahead=ahead)


def _split(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """The words before `--`, and what follows it as one prompt."""
    words = list(argv)
    if "--" not in words:
        return words, None
    at = words.index("--")
    return words[:at], " ".join(words[at + 1 :]) or None


def parse(words: Sequence[str], command: str = "claude") -> argparse.Namespace:
    """What the flags before `--` say."""
    return _parser(command).parse_args(words)


def _read_target(options: argparse.Namespace) -> None:
    """What `moat resume` goes on with, when it is no directory: a run or a conversation."""
    if options.dir is not None and not Path(options.dir).expanduser().is_dir():
        options.resume, options.dir, options.proceed = options.dir, None, False


# Claude Code's own options that one may try here.
_CLAUDES = {
    "--model": '`{"model": "opus"}` in ~/.moat/claude/settings.json, which has all settings of Claude Code',
    "--settings": "~/.moat/claude/settings.json has the settings of Claude Code for all sandboxes",
    "--dangerously-skip-permissions": "it is the default; --noyolo lets Claude Code ask",
    "--permission-mode": "--noyolo lets Claude Code ask",
    "--print": "-p PROMPT answers and exits",
    "--add-dir": "--mount DIR:/mnt/NAME",
    "--mcp-config": "`mcp:` in agent.yaml names servers",
}


def _parser(command: str) -> argparse.ArgumentParser:
    what = "dir" if command == "claude" else "dir|run|id"
    parser = Parser(
        prog=f"moat {command}",
        usage=f"moat {command} [{what}] [options] [-- initial prompt]",
        description="Run Claude Code in a sandbox. `moat attach` brings a detached session back.",
        foreign=_CLAUDES,
    )
    add = parser.add_argument
    add("dir", nargs="?", help="the workspace (default: this directory)")
    add("-p", "--prompt", metavar="PROMPT", help="answer this, print the answer and exit")
    if command == "claude":
        add(
            "-c", "--continue", dest="proceed", action="store_true", help="go on with the newest conversation"
        )
        add("-r", "--resume", metavar="ID|RUN", help="go on with this conversation, or with the one of a run")
    else:
        parser.set_defaults(proceed=True, resume=None)
    add("--noyolo", action="store_true", help="let Claude Code ask before it edits files or runs commands")
    add_common(parser)
    return parser


def _check(options: argparse.Namespace, initial: str | None) -> None:
    """What argparse cannot see. Raises UsageError."""
    if options.proceed and options.resume:
        raise UsageError("--continue and --resume exclude each other", hint="give one of them")
    if options.worktree and options.resume and not _UUID.fullmatch(options.resume):
        raise UsageError("--worktree and --resume RUN exclude each other", hint="a run has its own worktree")
    if options.prompt is not None and initial is not None:
        raise UsageError("-p and an initial prompt exclude each other", hint="`-- PROMPT` starts a session")
    if options.prompt is not None and not options.prompt.strip():
        raise UsageError("the prompt is empty", hint='moat claude -p "explain this codebase"')
    if options.prompt is None and not options.detach and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "a session needs a terminal", hint="use -p PROMPT for one answer, or -d for the background"
        )


def _directory(text: str | None) -> Path:
    place = Path(text or ".").expanduser()
    if not place.is_dir():
        raise UsageError(
            f"{place} is not a directory", hint="moat claude [dir] [options] [-- initial prompt]"
        )
    return place.resolve()


# --- which conversation ---------------------------------------------------------------------------


def _conversation(
    options: argparse.Namespace, home: Home, initial: str | None, stack: contextlib.ExitStack
) -> tuple[Path, Claude]:
    """The workspace and the session in it: a new one, the newest, or a named one."""
    session: str
    if options.resume and not _UUID.fullmatch(options.resume):
        workspace, session = _of_run(home, options.resume, options.dir)
    else:
        workspace = _directory(options.dir)
        if options.worktree:
            workspace = stack.enter_context(entered(options.worktree, home, workspace))
        session = options.resume.lower() if options.resume else ""
        used = dict(sessions(Path.home(), workspace))
        known = list(used)
        if options.proceed and not known:
            # Claude Code itself would start a new one with -p: an answer that knows nothing of the question.
            raise StartError(
                f"no conversation to continue in {workspace}", hint="start one with `moat claude`"
            )
        if session and session not in known:
            raise StartError(
                f"no conversation {session} in {workspace}",
                hint="name the directory it belongs to: `moat claude DIR --resume ID`",
            )
        if options.proceed:
            session = known[0]
            _tell_which(session, used[session])
    claude = Claude(
        prompt=options.prompt,
        initial=initial,
        session=None if session else str(uuid.uuid4()),
        resume=session or None,
        ask=options.noyolo,
    )
    return workspace, claude


def _tell_which(session: str, last: float) -> None:
    if sys.stderr.isatty():
        say(f"going on with conversation {session}, {describe_age(last)} old")


def _of_run(home: Home, text: str, directory: str | None) -> tuple[Path, str]:
    """The workspace and the conversation of a run, by its id or name."""
    try:
        run = records.find(home, text)
    except RunNotFoundError as error:
        if "no run" not in str(error):
            raise
        raise RunNotFoundError(
            f"no run and no conversation {text!r}",
            hint="`moat list` shows the runs; a conversation is a UUID",
        ) from None
    workspace = _directory(run.workspace)
    if directory is not None and _directory(directory) != workspace:
        raise UsageError(
            f"run {run.id} belongs to {workspace}", hint=f"moat claude {workspace} --resume {text}"
        )
    session = conversation_of(Path.home(), run)
    if session is None:
        raise StartError(
            f"run {run.id} left no conversation", hint="`moat resume` goes on with the newest one"
        )
    _tell_which(session, dict(sessions(Path.home(), workspace))[session])
    return workspace, session


def _keeping_logs(claude: Claude, sync: bool | None) -> Claude:  # noqa: FBT001 - a key of agent.yaml
    """Without `claude.sync_logs` nothing of a conversation is kept, and so none can be continued."""
    if sync is not False:
        return claude
    if claude.resume:
        raise UsageError(
            "claude.sync_logs is false in this workspace: conversations are not kept and cannot be continued",
            hint="remove it from agent.yaml, or start a new one with `moat claude`",
        )
    return dataclasses.replace(claude, sync_logs=False)


def _settings(home: Home) -> Carried:
    """What of the user's settings goes along; what cannot is told."""
    skip = os.environ.get(SKIP_HOST) in {"1", "true"}
    hooks = config.load_user(home).claude.host_hooks
    found = carried(Path.home(), home.root / "claude" / "settings.json", host_hooks=hooks, skip_host=skip)
    for text in found.left_out:
        say(f"warning: {text}")
    return found


# --- credentials ----------------------------------------------------------------------------------


def _credentials(
    vault: Vault, grant: str, wanted: tuple[str, ...], servers: tuple[McpServer, ...]
) -> CredentialInfo:
    """What is known of Claude Code's credential. Raises one GrantError for all that is missing."""
    problems: list[str] = []
    hints: list[str] = []
    found: CredentialInfo | None = None
    try:
        found = kept_alive(vault, vault.info(grant))
        if found.expired(dt.datetime.now(dt.UTC)):
            problems.append("Credential expired: anthropic")
            hints.append("run `moat grant anthropic`")
    except GrantError:
        problems.append("No Claude Code credentials found")
        hints.append(_NO_CREDENTIAL)
    try:
        granted.check(vault, (name for name in wanted if name != grant), servers)
    except GrantError as error:
        problems.append(str(error))
        hints.append(error.hint or "")
    if problems or found is None:
        raise GrantError("\n".join(problems), hint="\n".join(filter(None, hints)))
    return found


# --- the run --------------------------------------------------------------------------------------


def _piped() -> bool:
    """Whether somebody means to give us input. Claude Code waits three seconds for what never comes."""
    mode = os.fstat(0).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _with(setup: Setup, request: RunRequest) -> RunRequest:
    """The agent's part added to the user's; where both say something, the user counts."""
    named = {dependency.partition("@")[0] for dependency in request.dependencies}
    own = tuple(word for word in setup.dependencies if word not in named)
    return dataclasses.replace(
        request,
        env={**setup.env, **request.env},
        mounts=(*setup.mounts, *request.mounts),
        home_files=(*setup.home_files, *request.home_files),
        dependencies=(*request.dependencies, *own),
    )
