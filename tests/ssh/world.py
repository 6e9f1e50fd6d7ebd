"""Real SSH to log in to: two sshd on loopback, a real ssh-agent with the user's keys, git repositories.

`github.com` and `git.moat.test` lead to them by `connect_to`, so that everything inside believes in the names.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GITHUB, OTHER, STRANGER = "github.com", "git.moat.test", "gitlab.com"
NOBODY = 65534
USER = "git"  # as at every host of repositories; see `_accounts`
_SHELL = """\
#!/bin/sh
if [ $# -eq 0 ]; then
    echo "Hi octocat! You've successfully authenticated, but GitHub does not provide shell access."
    exit 1
fi
exec /bin/sh "$@"
"""
_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowAgentForwarding yes
PrintMotd no
PrintLastLog no
LogLevel VERBOSE
"""


@dataclass
class Server:
    """One sshd."""

    name: str
    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def host_key(self) -> str:
        """`type base64`."""
        return " ".join((self.directory / "host_key.pub").read_text().split()[:2])

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def accepted(self) -> list[str]:
        """Fingerprints of the keys that somebody has logged in with."""
        return [line.split()[-1] for line in self.log.splitlines() if "Accepted publickey" in line]


@dataclass
class SshWorld:
    moat: str
    directory: Path
    servers: dict[str, Server]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.directory / "home"

    def key(self, name: str) -> Path:
        return self.home / ".ssh" / name

    def fingerprint(self, name: str) -> str:
        return run("ssh-keygen", "-lf", str(self.key(name))).split()[1]

    def repository(self, server: str) -> Path:
        return self.servers[server].directory / "octo/hello.git"

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = self.environment | options.pop("env", {})
        return subprocess.run(
            [self.moat, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=options.pop("timeout", 110),
            stdin=subprocess.DEVNULL,
            **options,
        )

    def workspace(self, name: str = "ws") -> Path:
        place = self.directory / name
        if not place.exists():
            place.mkdir()
            (place / "agent.yaml").write_text("dependencies: [python, git]\n")
        return place

    def run(self, runtime: str, *flags: str, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A bash script in a fresh sandbox."""
        place = self.workspace()
        (place / "script.sh").write_text(script)
        argv = ("run", str(place), "--runtime", runtime, *flags, "--", "bash", "/workspace/script.sh")
        return self.command(*argv, **options)

    def record(self, file: str) -> list[dict[str, Any]]:
        """The lines of the newest run's `journal.jsonl` or `network.jsonl`."""
        runs = Path(self.environment["MOAT_HOME"]) / "runs"
        newest = max(runs.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        found = [json.loads(line) for line in (newest / file).read_text().splitlines() if line]
        return [{"event": line["event"], **line["data"]} if "data" in line else line for line in found]


def as_nobody(world: SshWorld, directory: Path) -> SshWorld:
    """The same servers for a user of this machine who is not root: with homes of his own, and a key file.

    He may read all files, because the interpreter of the suite may lie where only root does, and use the engine.
    """
    directory.chmod(0o755)
    who = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={_engine_group()}"]
    capabilities = [f"--{kind}-caps=-all,+dac_read_search" for kind in ("inh", "ambient")]
    program = directory / "moat"
    program.write_text("#!/bin/sh\nexec " + shlex.join([*who, *capabilities, world.moat]) + ' "$@"\n')
    program.chmod(0o755)
    home, moat_home = directory / "home", directory / "moat-home"
    shutil.copytree(world.home / ".ssh", home / ".ssh")
    moat_home.mkdir()
    shutil.copy(Path(world.environment["MOAT_HOME"]) / "config.yaml", moat_home)
    passwd = directory / "passwd"
    entry = f"somebody:x:{NOBODY}:{NOBODY}::{home}:/bin/sh\n"
    passwd.write_text(entry + Path("/etc/passwd").read_text())
    accounts = {"LD_PRELOAD": "libnss_wrapper.so", "NSS_WRAPPER_PASSWD": str(passwd)}
    environment = {"HOME": str(home), "MOAT_HOME": str(moat_home), "NSS_WRAPPER_GROUP": "/etc/group"}
    kept = {name: world.environment[name] for name in ("PATH", "LANG")}
    made = SshWorld(str(program), directory, world.servers, kept | environment | accounts)
    for path in (made.workspace(), *(p for top in (home, moat_home) for p in (top, *top.rglob("*")))):
        os.chown(path, NOBODY, NOBODY)
    return made


def _engine_group() -> int:
    """Whose members may use the engine."""
    return Path("/var/run/docker.sock").stat().st_gid


def run(*argv: str, **options: Any) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60, **options).stdout


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "", comment: str = "") -> Path:
    run("ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", comment or path.name, "-f", str(path))
    return path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# What OpenSSH 10 offers no more by itself, and other servers do.
_OLDER = "KexAlgorithms +diffie-hellman-group14-sha256,diffie-hellman-group-exchange-sha256\n"


@contextlib.contextmanager
def sshd(
    name: str, directory: Path, keys: list[Path], host_kind: str = "ed25519", ca: Path | None = None
) -> Iterator[Server]:
    """A server where the caller may log in with `keys`, with a repository of one commit.

    With `ca` it has a certificate for its name.
    """
    directory.mkdir()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where privilege separation wants to be
    make_key(directory / "host_key", host_kind)
    (directory / "authorized_keys").write_text("".join(Path(f"{key}.pub").read_text() for key in keys))
    server = Server(name, directory, free_port())
    settings = _CONFIG.format(port=server.port, directory=directory) + _OLDER
    if ca is not None:
        run("ssh-keygen", "-q", "-s", str(ca), "-I", name, "-h", "-n", name, str(directory / "host_key.pub"))
        settings += f"HostCertificate {directory}/host_key-cert.pub\n"
    (directory / "config").write_text(settings)
    _repository(directory)
    program = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    assert program, "no sshd: run `bash .ci/test`"
    argv = [program, "-f", str(directory / "config")]
    # From OpenSSH 9.8 on a server turns away who failed before, and all of ours have one address.
    patient = ["-o", "PerSourcePenalties=no"]
    if subprocess.run([*argv, *patient, "-t"], capture_output=True, check=False).returncode == 0:
        argv += patient
    argv += ["-D", "-E", str(directory / "log")]
    with subprocess.Popen(argv, env=_accounts(directory), start_new_session=True) as server.process:
        try:
            _wait_for(server)
            yield server
        finally:
            os.killpg(server.process.pid, signal.SIGKILL)


def _accounts(directory: Path) -> dict[str, str]:
    """An environment in which there is a user `git`, who is the caller, with a shell like GitHub's."""
    shell = directory / "shell"
    shell.write_text(_SHELL)
    shell.chmod(0o755)
    passwd = directory / "passwd"
    who = f"{USER}:x:{os.getuid()}:{os.getgid()}::{directory}:{shell}\n"
    passwd.write_text(who + Path("/etc/passwd").read_text())
    return {
        "PATH": os.environ["PATH"],
        "LD_PRELOAD": "libnss_wrapper.so",
        "NSS_WRAPPER_PASSWD": str(passwd),
        "NSS_WRAPPER_GROUP": "/etc/group",
    }


def _wait_for(server: Server) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"sshd does not listen: {server.log}")


def _repository(directory: Path) -> None:
    clean = {"PATH": os.environ["PATH"], "HOME": str(directory), "GIT_CONFIG_NOSYSTEM": "1"}
    who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    work = directory / "work"
    run("git", "init", "-q", "-b", "main", str(work), env=clean)
    (work / "README").write_text("from afar\n")
    run("git", *who, "-C", str(work), "add", ".", env=clean)
    run("git", *who, "-C", str(work), "commit", "-qm", "first", env=clean)
    run("git", "clone", "-q", "--bare", str(work), str(directory / "octo/hello.git"), env=clean)


@contextlib.contextmanager
def agent(directory: Path, *keys: Path) -> Iterator[str]:
    """A real ssh-agent that holds `keys`; yields its socket."""
    path = directory / "user-agent.sock"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 10
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            for key in keys:
                run("ssh-add", "-q", str(key), env={"SSH_AUTH_SOCK": str(path), "PATH": os.environ["PATH"]})
            yield str(path)
        finally:
            process.terminate()


@contextlib.contextmanager
def ssh_world(directory: Path, moat: str) -> Iterator[SshWorld]:
    """Two hosts, two keys in the agent, each host granted with its own; both hosts accept both keys.

    The second host is known by its certificate authority alone.
    """
    dot_ssh = directory / "home/.ssh"
    dot_ssh.mkdir(parents=True, mode=0o700)
    home = directory / "moat"
    home.mkdir(mode=0o700)
    keys = [make_key(dot_ssh / "id_work"), make_key(dot_ssh / "id_rsa", "rsa")]
    ca = make_key(directory / "ca")
    with contextlib.ExitStack() as stack:
        servers = {
            GITHUB: stack.enter_context(sshd(GITHUB, directory / "a", keys)),
            OTHER: stack.enter_context(sshd(OTHER, directory / "b", keys, "ecdsa", ca)),
        }
        detours = {(GITHUB, 22): GITHUB, (OTHER, 22): OTHER, (STRANGER, 22): OTHER}
        (home / "config.yaml").write_text(
            "upstream:\n  connect_to:\n"
            + "".join(f'    "{h}:{p}": "127.0.0.1:{servers[s].port}"\n' for (h, p), s in detours.items())
        )
        authority = Path(f"{ca}.pub").read_text()
        known = f"{GITHUB} {servers[GITHUB].host_key}\n@cert-authority {OTHER} {authority}"
        (dot_ssh / "known_hosts").write_text(known)
        run("ssh-keygen", "-q", "-H", "-f", str(dot_ssh / "known_hosts"))  # names hashed, as Debian has it
        socket_path = stack.enter_context(agent(directory, *keys))
        place = SshWorld(
            moat,
            directory,
            servers,
            {
                "PATH": os.environ["PATH"],
                "HOME": str(directory / "home"),
                "MOAT_HOME": str(home),
                "SSH_AUTH_SOCK": socket_path,
                "LANG": "C.UTF-8",
            },
        )
        stack.callback(place.command, "clean", "--yes")
        stack.callback(place.command, "stop", "--all")
        yield place
