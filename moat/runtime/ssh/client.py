"""What the user's own ssh would do for a host: `ssh -G`, which reads ~/.ssh/config with all it can say."""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path

from moat.dataclass import dataclass
from moat.errors import GrantError, UsageError
from moat.runtime.ssh import hostkeys

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_SECONDS = 20.0  # a `Match exec` in the user's config may take its time


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    hostname: str
    port: int
    user: str  # empty: nothing but the local user's name, which means nothing in a sandbox
    known_as: str
    known_hosts: tuple[str, ...]
    identities: tuple[Path, ...]  # private keys that ssh would try, which exist
    agent: str  # IdentityAgent; empty: SSH_AUTH_SOCK


def check_host(host: str) -> str:
    """`host` when it can be granted. Raises UsageError."""
    try:
        ip_address(host)
    except ValueError:
        if _HOST.fullmatch(host):
            return host
        raise UsageError(f"{host!r} is not a host", hint="e.g. --host github.com") from None
    raise UsageError(
        f"{host} is an address, which a sandbox has no route to",
        hint="give it a name in ~/.ssh/config (Host …, HostName a name of it) and grant that",
    )


def client_config(host: str) -> ClientConfig:
    """Raises GrantError where there is no ssh, or what it would do cannot be done from a sandbox."""
    said = _ask(host)
    for option, meaning in (("proxyjump", "another host"), ("proxycommand", "a command")):
        if said.get(option, ["none"])[0] != "none":
            raise GrantError(
                f"ssh reaches {host} through {meaning} ({option} in ~/.ssh/config), which a sandbox cannot",
                hint="a host that can be reached directly can be granted",
            )
    hostname, port = said["hostname"][0].lower(), int(said["port"][0])
    check_host(hostname)
    user = said.get("user", [""])[0]
    alias = said.get("hostkeyalias", ["none"])[0]
    files = [*_words(said, "userknownhostsfile"), *_words(said, "globalknownhostsfile")]
    return ClientConfig(
        hostname=hostname,
        port=port,
        user="" if user == getpass.getuser() else user,
        known_as=alias if alias != "none" else hostkeys.known_as(hostname, port),
        known_hosts=tuple(_at_home(path) for path in files if path != "none"),
        identities=tuple(
            path for text in said.get("identityfile", ()) if (path := Path(_at_home(text))).is_file()
        ),
        agent=_agent(said.get("identityagent", [""])[0]),
    )


def _ask(host: str) -> dict[str, list[str]]:
    program = shutil.which("ssh")
    if program is None:
        raise GrantError("there is no ssh on this machine", hint="apt-get install openssh-client")
    config = Path.home() / ".ssh/config"
    # ssh asks the password database for the home directory; a HOME that was moved counts for everything else.
    moved = ["-F", str(config)] if _moved() and config.exists() else []
    try:
        done = subprocess.run(
            [program, *moved, "-G", "--", host],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise GrantError(f"`ssh -G {host}` does not end", hint="look at ~/.ssh/config") from None
    if done.returncode != 0:
        complaint = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise GrantError(f"`ssh -G {host}` failed: {complaint}", hint="look at ~/.ssh/config")
    said: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        said.setdefault(name, []).append(value)
    return said


def _words(said: dict[str, list[str]], name: str) -> list[str]:
    return said.get(name, [""])[0].split()


def _agent(value: str) -> str:
    """A path, `none`, or empty for the usual one."""
    if value.startswith("$"):
        return os.environ.get(value[1:].strip("{}"), "none")
    return "" if value in {"", "SSH_AUTH_SOCK"} else value if value == "none" else _at_home(value)


def _moved() -> bool:
    return str(Path.home()) != _their_home()


def _their_home() -> str:
    """Where ssh looks for the user's files; empty when the user has no account (then ssh refuses)."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def _at_home(path: str) -> str:
    """`path` below the user's HOME where ssh means its idea of it."""
    for prefix in ("~/", f"{_their_home()}/"):
        if path.startswith(prefix):
            return f"{Path.home()}/{path.removeprefix(prefix)}"
    return path
