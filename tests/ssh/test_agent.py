"""The run's agent without a sandbox: real clients, every kind of key, and every way in which it can end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from moat.journal import Journal, read_lines
from moat.runtime.ssh import agent as agent_module, hostkeys, signing
from moat.runtime.ssh.agent import Agent, listen
from moat.runtime.ssh.hostkeys import HostKeys
from moat.runtime.ssh.keyfile import KeyFileError, check, public_key
from moat.runtime.ssh.messages import SessionBind, SignRequest
from moat.runtime.ssh.rules import Destination, RefusedError, Rules
from moat.sshwire import fingerprint, string
from moat.vault.ssh import SshGrant
from tests.ssh.world import USER, Server, agent as user_agent, run, sshd

KINDS = ("ed25519", "rsa", "ecdsa -b 256", "ecdsa -b 384", "ecdsa -b 521")


@pytest.fixture
def short() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ma-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("keys")
    made = {}
    for kind in KINDS:
        path = directory / kind.replace(" ", "")
        run("ssh-keygen", "-q", "-N", "", "-C", kind, "-f", str(path), "-t", *kind.split())
        made[kind] = path
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, Path]) -> Iterator[Server]:
    with sshd("here.test", tmp_path_factory.mktemp("server") / "s", list(keys.values())) as made:
        yield made


def grant_of(path: Path, *, with_file: bool = True) -> SshGrant:
    found = public_key(path)
    return SshGrant(
        host="here.test", hostname="here.test", known_as="here.test", known_hosts=(), key=found.key,
        comment=found.comment, key_path=str(path) if with_file else "",
    )  # fmt: skip


class Served:
    """A running agent."""

    def __init__(self, path: Path, journal: Path) -> None:
        self.path = path
        self._journal = journal

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        lines = read_lines(self._journal)
        return [{"event": line["event"], **line["data"]} for line in lines if line["event"].startswith(kind)]

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(str(self.path))
        return sock


@contextlib.contextmanager
def served(
    directory: Path,
    grants: list[SshGrant],
    host_key: bytes,
    *,
    revoked: Callable[[SshGrant], bool] = lambda _: False,
) -> Iterator[Served]:
    destinations = [
        Destination(grant, HostKeys(keys=(host_key,)), lambda _signature: True) for grant in grants
    ]
    path = directory / "journal.jsonl"
    sock = listen(directory / "agent.sock")  # whoever connects from here on is served, however late
    with contextlib.closing(sock), start_blocking_portal("asyncio") as portal:

        async def begin() -> None:
            journal = Journal(path)
            agent = Agent(rules=lambda: Rules(destinations), revoked=revoked, journal=journal)
            try:
                await agent.serve(sock)
            finally:
                journal.close()

        serving = portal.start_task_soon(begin)
        try:
            yield Served(directory / "agent.sock", path)
        finally:
            serving.cancel()


def host_key(server: Server) -> bytes:
    return base64.b64decode(server.host_key.split()[1])


def login(
    server: Server, socket_path: Path, directory: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    known = directory / "known_hosts"
    known.write_text(f"here.test {server.host_key}\n")
    return subprocess.run(
        ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={known}",
         "-o", "HostKeyAlias=here.test", "-o", "IdentityFile=none", *options,
         "-p", str(server.port), f"{USER}@127.0.0.1", "echo in"],
        capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": os.environ["PATH"], "SSH_AUTH_SOCK": str(socket_path)},
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_file_signs_without_an_agent(
    kind: str, keys: dict[str, Path], server: Server, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with served(short, [grant_of(keys[kind])], host_key(server)) as agent:
        done = login(server, agent.path, short)
        assert (done.returncode, done.stdout) == (0, "in\n"), done.stderr
        assert [event["key"] for event in agent.events("ssh.sign")] == [grant_of(keys[kind]).fingerprint]


@pytest.mark.parametrize("kind", KINDS)
def test_the_users_agent_signs(
    kind: str, keys: dict[str, Path], server: Server, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with user_agent(short, keys[kind]) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        grant = grant_of(keys[kind], with_file=False)
        with served(short, [grant], host_key(server)) as agent:
            done = login(server, agent.path, short)
            assert (done.returncode, done.stdout) == (0, "in\n"), done.stderr


def test_rsa_flags_are_forwarded(
    keys: dict[str, Path], server: Server, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the flags an agent signs with SHA-1, and this server lets nobody in.

    Seen to fail with `messages.sign_request` writing 0.
    """
    with user_agent(short, keys["rsa"]) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        with served(short, [grant_of(keys["rsa"])], host_key(server)) as agent:
            for algorithm in ("rsa-sha2-256", "rsa-sha2-512"):
                done = login(server, agent.path, short, "-o", f"PubkeyAcceptedAlgorithms={algorithm}")
                assert done.returncode == 0, done.stderr
            assert len(agent.events("ssh.sign")) == 2


def test_a_revoked_grant_signs_no_more(
    keys: dict[str, Path], server: Server, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    grant = grant_of(keys["ed25519"])
    with served(short, [grant], host_key(server), revoked=lambda _: True) as agent:
        assert login(server, agent.path, short).returncode == 255
        assert [event["code"] for event in agent.events("ssh.refused")] == ["revoked"]


def test_what_cannot_be_recorded_is_not_signed(
    keys: dict[str, Path], server: Server, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    grant = grant_of(keys["ed25519"])
    with served(short, [grant], host_key(server)) as agent:
        monkeypatch.setattr(Journal, "record", lambda *_, **__: False)
        assert login(server, agent.path, short).returncode == 255
        monkeypatch.undo()


@pytest.mark.parametrize("what", ["gone", "silent key", "nonsense"])
def test_a_failure_of_the_users_agent_is_on_record(
    what: str, keys: dict[str, Path], server: Server, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = grant_of(keys["ed25519"], with_file=False)
    with contextlib.ExitStack() as stack:
        if what == "silent key":
            path = stack.enter_context(user_agent(short, keys["rsa"]))
        elif what == "nonsense":
            path = str(short / "nonsense.sock")
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen()
            listener.settimeout(30)
            thread = threading.Thread(target=_nonsense, args=(listener,))
            thread.start()
            stack.callback(thread.join)
        else:
            path = str(short / "nobody.sock")
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        with served(short, [grant], host_key(server)) as agent:
            assert login(server, agent.path, short).returncode == 255
            (refused,) = agent.events("ssh.refused")
    assert refused["code"] == "signer"
    assert refused["key"] == grant.fingerprint
    assert {"gone": "does not answer", "silent key": "not in your SSH agent", "nonsense": "nonsense"}[
        what
    ] in (refused["reason"])


def _nonsense(listener: socket.socket) -> None:
    client, _ = listener.accept()
    with client:
        client.recv(100)
        client.sendall(struct.pack(">I", 6) + b"\x0c\xff\xff\xff\xff\x00")


# --- what a hostile client sends -----------------------------------------------------------------------


def exchange(sock: socket.socket, payload: bytes) -> bytes:
    sock.sendall(string(payload))
    return sock.recv(65536)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x11" + string(b"ssh-ed25519"), "message"),
        (b"\x13", "message"),
        (b"\x14" + string(b"reader") + string(b"1234"), "message"),
        (b"\x16" + string(b"x"), "message"),
        (b"\x17" + string(b"x"), "message"),
        (b"\x1b" + string(b"query"), "message"),
        (b"\x1b" + string(b"restrict-destination-v00@openssh.com"), "message"),
        (b"\xff", "message"),
        (b"\x0d" + string(b"k") + string(b"d") + bytes(4), "unbound"),
    ],
)
def test_everything_else_is_refused(payload: bytes, code: str, short: Path) -> None:
    with served(short, [], b"") as agent, agent.connect() as sock:
        assert exchange(sock, payload) == struct.pack(">IB", 1, 5)
        assert exchange(sock, b"\x0b") == struct.pack(">IBI", 5, 12, 0), "the connection goes on"
        assert [event["code"] for event in agent.events("ssh.refused")] == [code]


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 1 << 31),
        struct.pack(">I", 0),
        struct.pack(">I", 40_000),
        string(b"\x0d" + struct.pack(">I", 0xFFFFFFF0)),
        string(b"\x0bx"),
        string(b"\x1b" + string(b"\xff\xfe")),
        string(b"\x1b" + string(b"session-bind@openssh.com") + string(b"x")),
    ],
)
def test_what_is_malformed_ends_the_connection(data: bytes, short: Path) -> None:
    with served(short, [], b"") as agent, agent.connect() as sock:
        sock.sendall(data)
        assert sock.recv(100) == b""
        assert [event["code"] for event in agent.events("ssh.refused")] == ["malformed"]
        with agent.connect() as again:
            assert exchange(again, b"\x0b")[4] == 12, "the next one is served"


def test_connections_messages_and_time_are_bounded(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_CONNECTIONS", 3)
    monkeypatch.setattr(agent_module, "_MESSAGES", 4)
    monkeypatch.setattr(agent_module, "_IDLE_SECONDS", 1.0)
    with served(short, [], b"") as agent:
        held = [agent.connect() for _ in range(3)]
        for sock in held:
            assert exchange(sock, b"\x0b")[4] == 12
        with agent.connect() as waiting:
            waiting.sendall(string(b"\x0b"))
            waiting.settimeout(0.3)
            with pytest.raises(TimeoutError):
                waiting.recv(100)
            for _ in range(3):
                assert exchange(held[0], b"\x0b")[4] == 12
            assert held[0].recv(100) == b"", "it has said enough"
            waiting.settimeout(10)
            assert waiting.recv(100)[4] == 12
            assert held[1].recv(100) == b"", "it said nothing for too long"
        for sock in held:
            sock.close()


def test_the_socket_is_its_owners_alone(short: Path) -> None:
    with listen(short / "sock"):
        info = (short / "sock").stat()
        assert info.st_mode & 0o777 == 0o600
        assert info.st_uid == short.stat().st_uid


# --- rules and key files -------------------------------------------------------------------------------


def test_another_hosts_key_binds_nothing(keys: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of the attacker's own signs its own session. Seen to fail when any host key is taken."""
    grant = grant_of(keys["ed25519"])
    signature = asyncio.run(_signature(keys["rsa"], b"session"))
    stranger = grant_of(keys["rsa"]).key
    assert hostkeys.verify(stranger, signature, b"session")
    rules = Rules([Destination(grant, HostKeys(keys=(grant_of(keys["ecdsa -b 256"]).key,)), lambda _: True)])
    with pytest.raises(RefusedError, match="not that of a granted host"):
        rules.bind(SessionBind(stranger, b"session", signature, forwarding=False))
    with pytest.raises(RefusedError, match="nothing is done on this connection any more"):
        rules.judge(SignRequest(grant.key, b"", 0))
    assert rules.identities() == ()


async def _signature(path: Path, data: bytes) -> bytes:
    os.environ.pop("SSH_AUTH_SOCK", None)
    return await signing.sign(grant_of(path), SignRequest(grant_of(path).key, data, 4))


def test_a_bound_connection_lists_the_hosts_own_key(keys: dict[str, Path]) -> None:
    """Before that, all granted keys: one that the server would take must not be offered to another host."""
    first, second, host = grant_of(keys["ed25519"]), grant_of(keys["rsa"]), keys["ecdsa -b 256"]
    signature = asyncio.run(_signature_by(host, b"session"))
    rules = Rules(
        [
            Destination(first, HostKeys(keys=(grant_of(host).key,)), lambda _: True),
            Destination(second, HostKeys(keys=(grant_of(keys["ecdsa -b 384"]).key,)), lambda _: True),
        ]
    )
    assert [identity.key for identity in rules.identities()] == [first.key, second.key]
    bind = SessionBind(grant_of(host).key, b"session", signature, forwarding=False)
    rules.bind(bind)
    rules.bind(bind)  # again: nothing new
    assert [identity.key for identity in rules.identities()] == [first.key]
    assert rules.hosts == ("here.test",)


async def _signature_by(path: Path, data: bytes) -> bytes:
    os.environ.pop("SSH_AUTH_SOCK", None)
    return await signing.sign(grant_of(path), SignRequest(grant_of(path).key, data, 0))


@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
@pytest.mark.parametrize("passphrase", ["", "secret"])
def test_key_files_of_every_form(form: str, passphrase: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", "rsa", "-m", form, "-N", passphrase, "-f", str(path))
    key = base64.b64decode(Path(f"{path}.pub").read_text().split()[1])
    assert public_key(path).key == public_key(Path(f"{path}.pub")).key == key
    if passphrase:
        with pytest.raises(KeyFileError, match="is encrypted"):
            check(path, key)
    else:
        check(path, key)
        with pytest.raises(KeyFileError, match="another key"):
            check(path, key + b"x")
        path.chmod(0o644)
        with pytest.raises(KeyFileError, match="can be read by others"):
            check(path, key)
    if form == "RFC4716":  # the public key stands in the clear, also when the private one does not
        os.unlink(f"{path}.pub")
        assert public_key(path).key == key


@pytest.mark.parametrize(
    "content", ["", "hello", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "ssh-rsa AAAA"]
)
def test_what_is_no_key_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    with pytest.raises(KeyFileError):
        public_key(path)


def test_the_fingerprint_is_openssh_s(keys: dict[str, Path]) -> None:
    told = run("ssh-keygen", "-lf", str(keys["rsa"])).split()[1]
    assert fingerprint(public_key(keys["rsa"]).key) == told
