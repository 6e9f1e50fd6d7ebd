"""The closed vocabulary of the journal: every event with its fields. docs/audit.md has the same table.

A test compares all calls of `record` in the package with this, and this with the document. An event that
is not here would still be written: a journal must not fail at run time over a word.
"""

from __future__ import annotations

from types import MappingProxyType

# event -> (what it means, its fields)
EVENTS: MappingProxyType[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "journal.opened": ("the first entry; `key` signs all that follow", ("format", "key")),
        "journal.lost": ("so many entries found no place while nothing could be written", ("entries",)),
        "journal.full": (
            "it has reached its limit: only how the run ends is still written, and nothing goes out",
            ("bytes",),
        ),
        "journal.sealed": ("the last entry; there are so many", ("entries",)),
        "run.created": (
            "a run was asked for",
            ("name", "runtime", "workspace", "agent", "grants", "policy", "mode", "budgets", "host_ports"),
        ),
        "sandbox.made": ("image, proxy and sandbox are there; nothing of the command has run", ("runtime",)),
        "run.started": ("the command started", ()),
        "run.executed": ("a further command was started in the sandbox, by `moat exec`", ("program",)),
        "run.stop_asked": ("somebody wants it to end", ("by",)),
        "run.command_ended": ("the command ended", ("exit_code",)),
        "run.not_released": ("something of the run could not be cleared up", ("what", "error")),
        "run.ended": (
            "everything is released; how it ended",
            ("state", "exit_code", "error"),
        ),
        "git.changed": ("the run made or changed what git on the host obeys", ("changes",)),
        "plugin.fetched": (
            "this machine fetched a plugin of Claude Code, or tried to (`error`)",
            ("what", "source", "host", "commit", "by", "error", "workspace"),
        ),
        "sockets.covered": (
            "a program of this machine listened on a unix socket in the workspace or a mount: it was covered",
            ("places",),
        ),
        "service.requested": ("a service runs beside the sandbox", ("name", "image")),
        "service.ended": (
            "a service ended before its run did; `memory`: for want of memory",
            ("name", "status", "memory"),
        ),
        "endpoint.opened": ("a port of the sandbox can be reached at `url`", ("endpoint", "port", "url")),
        "endpoint.closed": ("it cannot any more", ("endpoint", "port")),
        "secret.resolved": ("a credential was read from the vault", ("grant", "kind")),
        "source.asked": (
            "a credential that is kept elsewhere was asked for there; `error`: it could not be had",
            ("grant", "source", "error"),
        ),
        "secret.refused": ("the vault did not give it", ("grant", "error")),
        "trace.full": (
            "`network.jsonl` has reached its limit: later exchanges are counted and not written",
            ("bytes",),
        ),
        "trace.closed": (
            "`network.jsonl` is complete but for `dropped` exchanges, and has this hash",
            ("bytes", "sha256", "dropped"),
        ),
        "grant.used": (
            "a credential goes out to a host; the first time before it does",
            ("grant", "host", "exchanges", "count"),
        ),
        "grant.ending": ("a credential of the run is about to end", ("grant", "at")),
        "grant.rejected": (
            "a host answered 401 to a credential, for the first time in the run",
            ("grant", "host"),
        ),
        "login.answered": (
            "a program in the sandbox wanted a login renewed (renewed, lost) or a fresh one (refused)",
            ("grant", "host", "outcome", "count"),
        ),
        "login.renewed": (
            "a login was renewed, or not: `outcome` is renewed, failed, lost, interrupted or not stored",
            ("grant", "outcome"),
        ),
        "mcp.called": (
            "a tool of an MCP server was called; `rule` would forbid it (mode: audit)",
            ("server", "tool", "rule", "count"),
        ),
        "mcp.refused": ("a call of a tool was refused", ("server", "tool", "rule", "count")),
        "ssh.list": (
            "the run's SSH agent was asked for its keys; `hosts`: those of the session",
            ("hosts", "keys", "count"),
        ),
        "ssh.bind": ("an SSH session with a granted host was announced", ("hosts", "host_key", "count")),
        "ssh.sign": ("a login by SSH was signed; `key` is a fingerprint", ("hosts", "key", "user")),
        "ssh.refused": (
            "the run's SSH agent did not do it; docs/troubleshooting.md lists the codes",
            ("hosts", "key", "code", "reason", "count"),
        ),
        "network.denied": (
            "the proxy refused exchanges; method and path are those of the first",
            ("authority", "method", "path", "code", "rule", "reason", "exchanges", "count"),
        ),
        "network.warned": (
            "policy objects to exchanges and let them through (`warn`)",
            ("authority", "method", "path", "code", "rule", "reason", "exchanges", "count"),
        ),
        "ask.asked": ("a request to a host that no rule decides is held", ("host", "port", "count")),
        "ask.answered": (
            "the user (`by`: where) said what becomes of it; `scope` is once, for (`seconds`), run or always",
            ("host", "answer", "scope", "seconds", "by", "requests"),
        ),
        "ask.unanswered": (
            "nobody did: it was refused, or its clients left",
            ("host", "port", "why", "count"),
        ),
        "snapshot.taken": (
            "a snapshot of the workspace was kept; `tree` is the hash of what it holds",
            ("id", "kind", "label", "tree", "files", "added", "workspace"),
        ),
        "snapshot.failed": ("no snapshot could be taken; the run goes on", ("kind", "error")),
        "snapshot.removed": ("snapshots were removed, by retention or by hand", ("ids", "why", "workspace")),
        "snapshot.restored": (
            "the workspace, or paths in it, were brought back; `safety` holds what was there before",
            ("id", "safety", "paths", "written", "removed", "left", "why", "workspace"),
        ),
        "copy.failed": ("entries cannot be copied to a second place", ("to", "error")),
        "copy.resumed": ("copying works again; so many entries are missing there", ("to", "missed")),
    }
)
