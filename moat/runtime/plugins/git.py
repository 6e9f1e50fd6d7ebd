"""One commit of a repository, fetched so that nothing of the repository runs on this machine.

The repository may be hostile, and so may be the workspace that names it. There is no working tree: no
checkout, no filter, no hook, no submodule, no attribute is ever looked at; objects are read out of a bare
repository that is thrown away. Only https and ssh may be spoken (`ext::` runs commands), prompts are off,
and time and size are bounded.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from urllib.parse import urlsplit

from moat.config import UpstreamConfig
from moat.config.plugins import redacted
from moat.dataclass import dataclass
from moat.proxy.address import refuse
from moat.runtime import trust
from moat.runtime.plugins.source import Source
from moat.sshwire import key_type
from moat.vault.ssh import SshGrant

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT = re.compile(r"[0-9a-f]{7,40}")
_SSH_OPTIONS = " -o BatchMode=yes -o ConnectTimeout=15"
# A git hook or an alias may have started us: its repository is not ours.
_KEPT = ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH")
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.askPass": "",
    "fetch.recurseSubmodules": "false",
    "fetch.unpackLimit": "1",  # one pack, whose size a limit can bound
    "fetch.writeCommitGraph": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "transfer.bundleURI": "false",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "20",
}


class FetchError(Exception):
    """Why nothing could be fetched: one line for each URL that was tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a repository may cost."""

    seconds: float = 120
    pack: int = 256 << 20  # bytes on the wire and in the throw-away repository
    files: int = 20_000
    total: int = 128 << 20  # bytes of all files
    file: int = 64 << 20  # bytes of one


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How this machine may reach a repository.

    `own`: as the user, with their git configuration and credentials. Otherwise without any, from public
    addresses only; but a host with an SSH grant of the run may be reached with the very key of the grant,
    because the sandbox may use it as well.
    """

    own: bool
    ssh: Mapping[str, SshGrant] = field(default_factory=dict)  # by host, lower case
    upstream: UpstreamConfig = field(default_factory=UpstreamConfig)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


class Repository:
    """A bare repository that holds one fetched commit, or a clone that is already on this machine."""

    def __init__(self, place: Path, environ: Mapping[str, str], bounds: Bounds) -> None:
        self.place = place
        self._environ = environ
        self._bounds = bounds
        self._deadline = time.monotonic() + bounds.seconds

    def git(self, *words: str, data: bytes | None = None) -> bytes:
        """Run git on this repository. Raises FetchError with what it said."""
        return self._run(["git", f"--git-dir={self.place}", *words], data)

    def _run(self, argv: Sequence[str], data: bytes | None) -> bytes:
        # `ulimit -f` counts 512 bytes; the shell sees the words as arguments and never as its text.
        limited = ["sh", "-c", f'ulimit -f {self._bounds.pack // 512}; exec "$@"', "sh", *argv]
        with subprocess.Popen(
            limited,
            stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environ,
            cwd=self.place.parent,
            start_new_session=True,  # git has children of its own, and none may read our terminal
        ) as process:
            try:
                out, err = process.communicate(data, timeout=max(0.1, self._deadline - time.monotonic()))
            except BaseException as error:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise FetchError(f"no answer within {self._bounds.seconds:.0f} s") from None
                raise
        if process.returncode:
            raise FetchError(self._reason(process.returncode, err))
        return out

    def _full(self) -> bool:
        """Whether a pack ends where the limit is: git itself says only that it is incomplete."""
        packs = self.place.glob("objects/pack/*pack*")
        return any(pack.stat().st_size >= self._bounds.pack // 512 * 512 for pack in packs)

    def _reason(self, code: int, err: bytes) -> str:
        text = err.decode("utf-8", "replace")
        if self._full():
            return f"larger than {self._bounds.pack >> 20} MiB"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:", "remote:", "ssh:"))]
        said = next((line for line in told if "Could not read from remote" not in line), None)
        said = said or next(iter(lines), f"git ended with status {code}")
        return redacted("".join(c for c in said.removeprefix("fatal: ") if c.isprintable()))[:300]


@dataclass(frozen=True, slots=True)
class Fetched:
    repository: Repository
    commit: str
    host: str
    ssh_host: str | None  # None: it came by https


@contextlib.contextmanager
def fetched(source: Source, access: Access, bounds: Bounds, scratch: Path) -> Iterator[Fetched]:
    """The commit that `source` means now. Raises FetchError."""
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=scratch) as name:
        directory = Path(name)
        refusals = []
        for number, url in enumerate(source.urls):
            try:
                environ = environment(url, access, directory)
                repository = Repository(directory / f"{number}.git", environ, bounds)
                commit = _fetch(repository, url, source)
            except FetchError as error:
                refusals.append(f"{'ssh' if _host(url)[1] else 'https'}: {error}")
                continue
            host, is_ssh = _host(url)
            yield Fetched(repository, commit, host, host.lower() if is_ssh else None)
            return
        raise FetchError("; ".join(refusals) or "not a git repository")


@contextlib.contextmanager
def cloned(directory: Path, environ: Mapping[str, str], bounds: Bounds) -> Iterator[tuple[Repository, str]]:
    """The user's own clone at `directory` and its current commit. Raises FetchError."""
    clean = _clean(environ) | {"GIT_OPTIONAL_LOCKS": "0"}
    repository = Repository(directory / ".git", clean, bounds)
    yield repository, repository.git("rev-parse", "--verify", "HEAD^{commit}").decode().strip()


def _fetch(repository: Repository, url: str, source: Source) -> str:
    """Fetch what `source` means into the new `repository`; its commit."""
    repository.git("init", "-q", "--bare", "--template=", str(repository.place))
    wanted = source.commit or source.ref
    if wanted is None:
        return _shallow(repository, url, "HEAD")
    if source.commit is None:
        advertised = _advertised(repository, url, wanted)
        if advertised:
            return _shallow(repository, url, advertised)
        if not _SHORT.fullmatch(wanted):
            raise FetchError(f"no branch or tag {wanted!r}")
    if _COMMIT.fullmatch(wanted):
        with contextlib.suppress(FetchError):
            return _shallow(repository, url, wanted)
    # Not every server gives out a commit by its name, and none by half of it.
    repository.git("fetch", *_QUIETLY, "--", url, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
    try:
        return repository.git("rev-parse", "--verify", "-q", f"{wanted}^{{commit}}").decode().strip()
    except FetchError:
        raise FetchError(f"no branch, tag or commit {wanted!r}") from None


_QUIETLY = ("-q", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance")


def _shallow(repository: Repository, url: str, name: str) -> str:
    repository.git("fetch", *_QUIETLY, "--depth=1", "--", url, name)
    return repository.git("rev-parse", "--verify", "-q", "FETCH_HEAD^{commit}").decode().strip()


def _advertised(repository: Repository, url: str, ref: str) -> str | None:
    """The full name of the branch or tag `ref`; a branch before a tag, as `git clone --branch` does."""
    names = (f"refs/heads/{ref}", f"refs/tags/{ref}")
    answer = repository.git("ls-remote", "-q", "--", url, *names).decode("utf-8", "replace")
    there = {line.partition("\t")[2] for line in answer.splitlines()}
    return next((name for name in names if name in there), None)


# --- the environment of git -----------------------------------------------------------------------


def environment(url: str, access: Access, directory: Path) -> dict[str, str]:
    """Variables for git to fetch `url`. Raises FetchError when that is not allowed."""
    host, is_ssh = _host(url)
    environ = _clean(access.environ)
    settings = dict(_SETTINGS)
    if is_ssh and not access.own and host.lower() not in access.ssh:
        raise FetchError(f"needs the grant ssh:{host}")
    if not access.own:
        _without_credentials(environ, directory, keep_ssh=is_ssh)
        settings |= {"credential.helper": "", "http.followRedirects": "false"}
        if not is_ssh:  # where SSH leads is what the user granted
            settings |= _public(url, host, access, directory)
    command = _ssh_command(environ) if access.own else "false"
    if is_ssh and not access.own:
        command = _granted_ssh(access.ssh[host.lower()], directory)
    environ["GIT_SSH_COMMAND"] = command + _SSH_OPTIONS
    return environ | _as_variables(settings)


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {name: text for name, text in environ.items() if not name.startswith("GIT_") or name in _KEPT}
    return kept | {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "false",  # asks nobody; of one that says nothing, a newer curl makes a credential
        "SSH_ASKPASS": "true",
        "SSH_ASKPASS_REQUIRE": "never",
        "GCM_INTERACTIVE": "never",
        "GIT_ALLOW_PROTOCOL": "https:ssh",
        "LC_ALL": "C",
    }


def _without_credentials(environ: dict[str, str], directory: Path, *, keep_ssh: bool) -> None:
    """No helper, no rewritten URL, no netrc, no agent: what a stranger names gets what a stranger gets."""
    environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for name in _KEPT:
        environ.pop(name, None)
    environ |= {"HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    if not keep_ssh:
        environ.pop("SSH_AUTH_SOCK", None)


def _ssh_command(environ: Mapping[str, str]) -> str:
    """The user's own way to start ssh."""
    if "GIT_SSH_COMMAND" in environ:
        return environ["GIT_SSH_COMMAND"]
    if "GIT_SSH" in environ:
        return shlex.quote(environ["GIT_SSH"])
    asked = subprocess.run(
        ["git", "config", "--global", "--get", "core.sshCommand"],
        env=dict(environ),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return asked.stdout.strip() or "ssh"


def _granted_ssh(grant: SshGrant, directory: Path) -> str:
    """Ssh that offers the key of the grant and no other, to the host that the user knows by its key."""
    identity = grant.key_path
    if not identity:
        public = directory / "key.pub"  # the agent has the rest
        public.write_text(f"{key_type(grant.key)} {base64.b64encode(grant.key).decode()}\n")
        identity = str(public)
    options = {
        "HostName": grant.hostname,
        "Port": str(grant.port),
        "HostKeyAlias": grant.known_as,
        "UserKnownHostsFile": " ".join(grant.known_hosts),
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        **({"User": grant.user} if grant.user else {}),
        **({"IdentityAgent": grant.agent} if grant.agent else {}),
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return shlex.join(["ssh", "-F", "none", "-i", identity, *words])


def _as_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings as git takes them from its environment, where `ps` does not show them."""
    found = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings.items()):
        found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return found


def _host(url: str) -> tuple[str, bool]:
    if "://" not in url:
        return url.partition("@")[2].partition(":")[0], True
    parts = urlsplit(url)
    return parts.hostname or "", parts.scheme == "ssh"


def _public(url: str, host: str, access: Access, directory: Path) -> dict[str, str]:
    """Settings that lead git to the public address of `host` that was looked at here, and to no other.

    Otherwise a workspace could have this machine read a git server that only this machine can reach.
    """
    port = urlsplit(url).port or 443
    settings = {}
    if access.upstream.ca_bundle:
        merged = directory / "roots.pem"
        merged.write_bytes(trust.merge([trust.host_bundle(), access.upstream.ca_bundle.read_bytes()]))
        settings["http.sslCAInfo"] = str(merged)
    detour = access.upstream.connect_to.get((host.lower(), port))
    if detour is not None:
        if detour[1] != port:
            raise FetchError(
                f"upstream.connect_to leads {host}:{port} to another port, which git cannot follow"
            )
        return settings | {"http.curloptResolve": f"{host}:{port}:{detour[0]}", "http.proxy": ""}
    if access.upstream.proxy:
        settings["http.proxy"] = access.upstream.proxy
    addresses = _addresses(host, port)
    if not addresses and not _proxied(access):
        raise FetchError(f"the name {host} is not known")
    for address in addresses:
        if reason := refuse(address):
            raise FetchError(
                f"{host} is {address} ({reason}), which a workspace may not make this machine read"
            )
    if addresses and not _proxied(access):
        settings["http.curloptResolve"] = f"{host}:{port}:{','.join(map(_bracketed, addresses))}"
    return settings


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def _proxied(access: Access) -> bool:
    names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    return bool(access.upstream.proxy) or any(access.environ.get(name) for name in names)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
