"""The note that tells the agent where it is, in `~/.claude/CLAUDE.md` of the sandbox.

It says what holds for this very run, and nothing that does not: an agent that believes in an allow list
which is not there will not try what it may do, and one that does not know of it tries for ever.
"""

from __future__ import annotations

from collections.abc import Iterator

from moat.config.dependencies import service_named
from moat.runtime.agents.claude_home import CLAUDE_MD
from moat.runtime.git.layout import find
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.request import RunRequest
from moat.runtime.sandbox import HOST_NAME, WORKSPACE, HomeFile


class NotePart(Part):
    """Puts the note in front of what the user tells their agents everywhere."""

    name = "note"

    async def prepare(self, run: RunContext) -> Addition:
        own = next((f.data for f in reversed(run.request.home_files) if f.path == CLAUDE_MD), b"")
        text = note(run.request, name=run.name, run_id=run.id).encode()
        return Addition(home_files=(HomeFile(CLAUDE_MD, text + (b"\n" + own if own else b""), 0o600),))


def note(request: RunRequest, *, name: str, run_id: str) -> str:
    """Markdown, one paragraph or list for each thing that the agent can rely on."""
    where = (
        f"Run {name} ({run_id}). {WORKSPACE} is the user's directory; what you change there stays. "
        "Everything else in this sandbox goes away with it."
    )
    parts = [
        "# You are in a Moat sandbox",
        where,
        *_mounts(request),
        *_git(request),
        " ".join(_network(request)),
        _credentials(request),
        *_offers(request),
        _denied(request),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _mounts(request: RunRequest) -> Iterator[str]:
    shown = [m for m in request.mounts if not m.target.startswith("/home/agent/")]
    if shown:
        places = ", ".join(f"{m.target} ({'read-only' if m.read_only else 'writable'})" for m in shown)
        yield f"Also there: {places}."


def _git(request: RunRequest) -> Iterator[str]:
    """What git will refuse: an agent that is not told takes it for a fault and works around it."""
    if find(request.workspace) is None:
        return
    if not request.writable_git:
        yield (
            "Hooks and settings of the repository are read-only here, because git on the user's machine "
            "obeys them: use `git config --global`, which is this sandbox's own. Commits, branches, merges "
            "and pushes work."
        )
    if request.worktree:
        yield (
            f"This is a worktree of branch {request.worktree}. Nothing of the repository behind it can be "
            "deleted or packed: `git branch -d`, `git tag -d`, `git bisect`, `git gc` and `git pack-refs` "
            "say `Read-only file system`. Leave those to the user. A complaint about `packed-refs.lock` at "
            "the end of another command is harmless."
        )


def _network(request: RunRequest) -> Iterator[str]:
    yield "The only way out is Moat's proxy (already set up for every program; its certificate is trusted)."
    if request.network.policy == "strict":
        hosts = [entry.host for entry in request.network.rules]
        yield (
            "Only these hosts can be reached: "
            + ", ".join([*hosts, "those that your credentials belong to"])
            + "."
        )
    elif request.network.policy == "ask":
        rules = request.network.rules
        known = [each.host for each in rules if not each.rules or "allow" in " ".join(each.rules)]
        yield (
            "Before another host is reached than "
            + ", ".join([*known, "those that your credentials belong to"])
            + ", the user is asked: such a request waits for the answer, for a minute or as long as they "
            "have set. 403 with the reason `ask` means that they said no, or that nobody was there."
        )
    else:
        yield "Any public host can be reached; private addresses and other machines of the network cannot."
        limited = [entry.host for entry in request.network.rules if entry.rules]
        if limited:
            yield f"Rules hold for {', '.join(limited)}."
    if request.network.budgets:
        yield (
            "How much of it may be used is limited. 429 says how long to wait; 403 with the reason `budget` "
            "means that a limit is spent for good: tell the user."
        )
    if request.network.host:
        ports = ", ".join(f"{HOST_NAME}:{port}" for port in request.network.host)
        yield f"Of the user's machine: {ports}."


def _credentials(request: RunRequest) -> str:
    if not request.grants:
        return "This run has no credentials."
    told = (
        f"Credentials of this run: {', '.join(request.grants)}. You hold placeholders; the proxy puts the "
        "real ones on requests to their own hosts. Do not look for the real ones, and do not ask for them."
    )
    if any(name.startswith("ssh:") for name in request.grants):
        told += (
            " Log in by SSH with the `ssh` program, as git does: what has an SSH of its own (libssh2, "
            "Paramiko, Go) gets no signature and sees `Permission denied (publickey)`."
        )
    return told


def _offers(request: RunRequest) -> Iterator[str]:
    lines = []
    if request.mcp:
        lines.append(f"- MCP servers through the proxy: {', '.join(server.name for server in request.mcp)}")
    for name, port in request.ports.items():
        lines.append(f"- Port {port} is shown to the user as `{name}`: listen on it, on any address")
    services = filter(None, map(service_named, request.dependencies))
    lines += [
        f"- Service {name}: address, user and password are in $MOAT_{name.upper()}_URL" for name in services
    ]
    if lines:
        yield "\n".join(lines)


def _denied(request: RunRequest) -> str:
    allow = "`--allow-host HOST` or `network.rules` in agent.yaml"
    return (
        "A refused request is answered with 403, the header `X-Moat-Denied` and the reason. It is the user's "
        "decision: do not work around it, say what was refused and what they can do: "
        + (f"{allow}; " if request.network.policy == "strict" else "")
        + ("`moat approve HOST`; " if request.network.policy == "ask" else "")
        + "`--grant NAME` for a credential (`moat grant` stores one). `moat trace --network` shows them "
        "every request."
    )
