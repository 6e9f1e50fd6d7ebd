"""The files in HOME that make ssh and git in the sandbox work as on the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moat.runtime.request import RunRequest
from moat.runtime.ssh import hostkeys
from moat.vault.ssh import DEFAULT_PORT, SshGrant

# Git reads this file besides ~/.gitconfig, which stays free for the agent and for the user's own mount.
GIT_CONFIG = ".config/git/config"
GIT_REWRITE = b'[url "git@github.com:"]\n\tinsteadOf = https://github.com/\n'
_OPT_OUT = "MOAT_GIT_SSH_GITHUB"


def known_hosts(grants: Iterable[SshGrant], known: Mapping[str, hostkeys.HostKeys]) -> bytes:
    """The granted hosts' lines and no other: what else the user connects to is nobody's business."""
    found = [line for grant in grants for line in hostkeys.lines(grant.known_as, known[grant.name])]
    return "".join(dict.fromkeys(found)).encode()


def config(grants: Iterable[SshGrant]) -> bytes:
    """What ~/.ssh/config says of the granted hosts, where it says anything."""
    blocks = []
    for grant in grants:
        settings = {
            "HostName": grant.hostname if grant.hostname != grant.host else "",
            "Port": str(grant.port) if grant.port != DEFAULT_PORT else "",
            "User": grant.user,
            "HostKeyAlias": (
                grant.known_as if grant.known_as != hostkeys.known_as(grant.hostname, grant.port) else ""
            ),
        }
        lines = [f"    {name} {value}\n" for name, value in settings.items() if value]
        if lines:
            blocks.append(f"Host {grant.host}\n{''.join(lines)}")
    return "\n".join(blocks).encode()


def rewrites_github(request: RunRequest, environ: Mapping[str, str]) -> bool:
    """Whether git takes https://github.com/ for git@github.com: with both grants, unless the user says no."""
    both = {"github", "ssh:github.com"} <= set(request.grants)
    return both and "0" not in (request.env.get(_OPT_OUT), environ.get(_OPT_OUT))
