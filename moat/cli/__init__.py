"""The command line. This module imports `sys` alone, so that `moat --help` starts at once.

A command is a row in `COMMANDS`: name -> (module, one-line help). The module is imported when the
command is called and has `def main(argv: Sequence[str]) -> int`. `moat.cli.output` turns errors into
messages and exit statuses.
"""

import sys

COMMANDS = {
    "claude": ("moat.cli.claude", "run Claude Code in a sandbox"),
    "resume": ("moat.cli.resume", "continue the most recent Claude Code conversation"),
    "run": ("moat.cli.run", "run any command in a sandbox"),
    "proxy": ("moat.cli.proxy", "serve the proxy alone, for programs outside of a sandbox"),
    "wt": ("moat.cli.wt", "run in a worktree of a branch; list and clean worktrees"),
    "grant": ("moat.cli.grant", "store a credential that runs may use"),
    "revoke": ("moat.cli.revoke", "forget a stored credential"),
    "vault": ("moat.cli.vault", "move credentials between stores, and to another machine"),
    "list": ("moat.cli.list", "list runs"),
    "status": ("moat.cli.status", "show what is known of a run"),
    "top": ("moat.cli.top", "watch living runs: hosts, requests, bytes, denials"),
    "report": ("moat.cli.report", "write one HTML page about a run"),
    "attach": ("moat.cli.attach", "re-attach to a running run"),
    "exec": ("moat.cli.exec", "run a further command in the sandbox of a run"),
    "open": ("moat.cli.open", "open an endpoint of a run in the browser"),
    "ask": ("moat.cli.ask", "show which hosts runs wait for you to decide about"),
    "approve": ("moat.cli.approve", "let a run reach a host that it asks about"),
    "deny": ("moat.cli.deny", "refuse a run a host that it asks about"),
    "policy": ("moat.cli.policy", "learn, check and test network policies"),
    "logs": ("moat.cli.logs", "print what a run printed"),
    "trace": ("moat.cli.trace", "show what a run spent its time with, and its requests"),
    "snapshot": ("moat.cli.snapshot", "keep, compare and restore snapshots of a workspace"),
    "review": ("moat.cli.review", "show what a run changed, and take back single files"),
    "audit": ("moat.cli.audit", "show what a run was allowed and refused; prove it is unchanged"),
    "stop": ("moat.cli.stop", "stop a run"),
    "destroy": ("moat.cli.destroy", "remove a stopped run and its record"),
    "clean": ("moat.cli.clean", "remove every run that has ended"),
    "trust": ("moat.cli.trust", "let browsers trust the certificates of endpoints"),
    "deps": ("moat.cli.deps", "list what `dependencies:` may name"),
    "volumes": ("moat.cli.volumes", "list and remove what runs keep in volumes"),
    "system": ("moat.cli.system", "images and downloads: what there is, and giving the space back"),
    "doctor": ("moat.cli.doctor", "check this machine and say how to fix what is missing"),
    "demo": ("moat.cli.demo", "prove the isolation on this machine, in a few seconds"),
    "version": ("moat.cli.version", "print the version"),
}
# What other programs call it.
_KNOWN_AS = {
    "rollback": "snapshot restore",
    "restore": "snapshot restore",
    "undo": "snapshot restore",
    "diff": "review",
    "ps": "list",
    "ls": "list",
    "rm": "destroy",
    "kill": "stop",
    "shell": "run -i -- bash",
    "codex": "run -i --grant codex -- codex",
    "gemini": "run -i --grant gemini -- gemini",
    "login": "grant",
    "logout": "revoke",
    "network": "trace --network",
    "prune": "clean",
}
# What starts a run, and takes the supervisor that stands by for it.
_STARTERS = {"claude", "resume", "run"}


def usage() -> str:
    lines = [
        "moat: run AI coding agents in a sandbox that holds no secret",
        "",
        "usage: moat <command> [options]",
        "",
        "commands:",
    ]
    lines += [f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "`moat <command> --help` tells more. Start with `moat demo`."]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    try:
        return _main(argv)
    except KeyboardInterrupt:  # while this program was being loaded
        return 130


def _main(argv: list[str] | None) -> int:
    args = sys.argv[1:] if argv is None else argv
    if not _package_is_ours():
        return 3
    if args[:1] == ["help"]:
        args = [*args[1:2], "--help"]
    if not args or args[0] in {"-h", "--help"}:
        if sys.stdout:  # None: closed by the caller
            sys.stdout.write(usage())
        return 0
    if args[0] in {"-V", "--version"}:
        args = ["version"]
    entry = COMMANDS.get(args[0])
    if entry is None:
        return _unknown(args[0])
    if argv is None:
        import gc

        gc.disable()  # until `call` has imported the command: see `moat.importing`
    from moat.cli.output import call, leave

    alone, starts = argv is None, args[0] in _STARTERS
    status = call(entry[0], args[1:], alone=alone, starts=starts)
    if alone and starts:
        leave(status)
    return status


def _package_is_ours() -> bool:
    """Whether `moat` is still our package: another project's distribution has files of the same names.

    With both in one environment the one installed last has overwritten files of the other.
    """
    import moat

    file = moat.__file__ or "nowhere"
    expected = __file__.removesuffix("cli/__init__.py") + "__init__.py"
    if getattr(moat, "DISTRIBUTION", None) == "moat-sandbox" and file == expected:
        return True
    sys.stderr.write(f"moat: error: the package `moat` at {file} is not Moat's\n")
    sys.stderr.write(
        "moat: hint: another distribution overwrote it; give Moat an environment of its own: "
        "`pipx install .` or `uv tool install .` in a clone\n"
    )
    return False


def _unknown(name: str) -> int:
    from difflib import get_close_matches

    what = "unknown option" if name.startswith("-") else "no command"
    sys.stderr.write(f"moat: error: {what} {name!r}\n")
    meant = _KNOWN_AS.get(name) or next(iter(get_close_matches(name, COMMANDS, n=1)), "")
    hint = f"did you mean `moat {meant}`?" if meant else "`moat --help` lists the commands"
    sys.stderr.write(f"moat: hint: {hint}\n")
    return 2
