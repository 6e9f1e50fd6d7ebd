"""known_hosts: what we read out of it is what OpenSSH reads out of it; and real host signatures."""

from __future__ import annotations

import base64
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from moat.runtime.ssh import hostkeys
from moat.sshwire import Fields, string
from tests.ssh.world import make_key, run

NAMES = (
    "github.com",
    "GitHub.com",
    "[github.com]:2222",
    "[git.example.com]:2222",
    "git.example.com",
    "a.wild.example.com",
    "not.wild.example.com",
    "wild.example.com",
    "revoked.example.com",
    "certified.example.com",
    "h",
    "[x",
    "other",
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("keys")
    made = [make_key(directory / kind, kind) for kind in ("ed25519", "ecdsa", "rsa")]
    return [" ".join(Path(f"{key}.pub").read_text().split()[:2]) for key in made]


@pytest.fixture
def file(keys: list[str], tmp_path: Path) -> Path:
    one, two, three = keys
    hashed = tmp_path / "hashed"
    hashed.write_text(f"github.com {one}\n[git.example.com]:2222 {three}\n")
    run("ssh-keygen", "-q", "-H", "-f", str(hashed))
    path = tmp_path / "known_hosts"
    path.write_text(
        "# a comment\n\n"
        f"{hashed.read_text()}"
        f"github.com,140.82.121.4 {two} with a comment\n"
        f"*.wild.example.com,!not.wild.example.com {one}\n"
        f"?  {two}\n"
        f"revoked.example.com {one}\n"
        f"revoked.example.com {two}\n"
        f"@revoked * {three}\n"
        f"@revoked revoked.example.com {one}\n"
        f"@cert-authority certified.example.com {two}\n"
        f"[x {one}\n"
        f"other ssh-ed25519 not-base64\n"
        f"other ssh-rsa {one.split()[1]}\n"
        "other\n"
    )
    return path


def oracle(name: str, path: Path) -> set[tuple[str, str]]:
    """(marker, key) of `ssh-keygen -F`, for lines whose key OpenSSH can read."""
    done = subprocess.run(
        ["ssh-keygen", "-F", name, "-f", str(path)], capture_output=True, text=True, timeout=20, check=False
    )
    found = set()
    for line in done.stdout.splitlines():
        if not line.startswith("#"):
            marker = line.split()[0] if line.startswith("@") else ""
            found.add((marker, line.removeprefix(marker).split()[2]))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_openssh_reads_the_same(name: str, file: Path) -> None:
    told = oracle(name, file)
    revoked = {key for marker, key in told if marker == "@revoked"}
    plain = {key for marker, key in told if not marker and key != "not-base64"}
    known = hostkeys.look_up(name, [str(file), str(file.with_name("missing"))])
    if name == "other":  # a line that calls an Ed25519 key RSA says nothing
        assert known.keys == ()
        return
    assert {base64.b64encode(key).decode() for key in known.keys} == plain - revoked
    assert bool(known.authorities) == any(marker == "@cert-authority" for marker, _ in told)


def test_what_is_expected_of_the_file(file: Path, keys: list[str]) -> None:
    """So that the comparison above compares something."""
    one, two, three = (base64.b64decode(key.split()[1]) for key in keys)
    look = partial(hostkeys.look_up, files=[str(file)])
    assert look("github.com").keys == (one, two)
    assert look("[git.example.com]:2222").keys == ()  # the RSA key is revoked for every host
    assert look("a.wild.example.com").keys == (one,)
    assert look("not.wild.example.com").keys == ()
    assert look("revoked.example.com").keys == (two,)
    assert look("certified.example.com").keys == ()
    assert look("certified.example.com").authorities == (two,)
    assert three not in look("github.com").keys


def test_lines_for_the_sandbox_are_read_back(tmp_path: Path, keys: list[str]) -> None:
    plain, authority, gone = texts = [key.split()[1] for key in keys]
    key, ca, revoked = map(base64.b64decode, texts)
    path = tmp_path / "known_hosts"
    known = hostkeys.HostKeys("git.example.com", (key,), (ca,), frozenset({revoked}))
    name = hostkeys.known_as("git.example.com", 2222)
    path.write_text("".join(hostkeys.lines(name, known)))
    assert oracle(name, path) == {("", plain), ("@cert-authority", authority), ("@revoked", gone)}
    assert hostkeys.look_up(name, [str(path)]) == known


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa -b 256", "ecdsa -b 384", "ecdsa -b 521"])
def test_signatures_of_every_kind_are_verified(kind: str, tmp_path: Path) -> None:
    """`ssh-keygen -Y sign` makes the signatures; its envelope is PROTOCOL.sshsig."""
    path = tmp_path / "key"
    run("ssh-keygen", "-q", "-N", "", "-f", str(path), "-t", *kind.split())
    key = base64.b64decode(Path(f"{path}.pub").read_text().split()[1])
    text = subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-n", "file", "-f", str(path)],
        input=b"message", capture_output=True, check=True, timeout=20,
    ).stdout.decode()  # fmt: skip
    blob = base64.b64decode("".join(text.splitlines()[1:-1]))
    fields = Fields(blob)
    fields.take(6), fields.uint32()
    public, namespace, reserved, algorithm, signature = (fields.string() for _ in range(5))
    assert public == key
    import hashlib

    signed = b"SSHSIG" + b"".join(
        map(string, (namespace, reserved, algorithm, hashlib.sha512(b"message").digest()))
    )
    assert hostkeys.verify(key, signature, signed)
    assert not hostkeys.verify(key, signature, signed + b"x")
    assert not hostkeys.verify(key, signature[:-1] + bytes([signature[-1] ^ 1]), signed)
    assert not hostkeys.verify(key, signature + b"x", signed)
    assert not hostkeys.verify(key, b"", signed)
    name = Fields(signature).text()
    renamed = string(b"ssh-rsa" if name.startswith("rsa") else b"ssh-dss")
    assert not hostkeys.verify(key, renamed + signature[4 + len(name) :], signed)


def test_a_certificate_is_no_host_key() -> None:
    kind = b"ssh-ed25519-cert-v01@openssh.com"
    assert not hostkeys.verify(string(kind) + bytes(80), string(kind) + string(bytes(64)), b"")


# --- certificates -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("ca") / "ca", "ecdsa")


def blob(path: Path) -> bytes:
    return base64.b64decode(path.read_text().split()[1])


def certificate(key: Path, ca: Path, *flags: str) -> bytes:
    """A certificate of `key`, made by ssh-keygen."""
    run("ssh-keygen", "-q", "-s", str(ca), "-I", "id", *flags, f"{key}.pub")
    return blob(key.with_name(f"{key.name}-cert.pub"))


HOST = ("-h", "-n", "git.example.com")


@pytest.mark.parametrize(
    ("flags", "good"),
    [
        (HOST, True),
        (("-h", "-n", "other.example.com,GIT.example.com"), True),
        (("-h", "-n", "*.example.com"), True),
        (("-h", "-n", "other.example.com"), False),
        (("-h", "-n", "git.example.com.evil.test"), False),
        (("-h",), False),  # for every host: ssh does not take it either
        (("-n", "git.example.com"), False),  # of a user
        ((*HOST, "-V", "20200101:20200201"), False),
        ((*HOST, "-V", "+1d:+2d"), False),
        ((*HOST, "-V", "-1d:+1d"), True),
        (("-h", "-n", "git.example.com", "-O", "critical:only=here"), False),
    ],
)
@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_a_certificate_is_for_its_host_in_its_time(
    tmp_path: Path, ca: Path, kind: str, flags: tuple[str, ...], good: bool
) -> None:
    """Seen to fail for each line with its condition taken out of `_is_for`."""
    key = make_key(tmp_path / "host", kind)
    file = tmp_path / "known_hosts"
    file.write_text(f"@cert-authority *.example.com {Path(f'{ca}.pub').read_text()}")
    for name in ("git.example.com", "[git.example.com]:2222"):
        file.write_text(f"@cert-authority {name} {Path(f'{ca}.pub').read_text()}")
        known = hostkeys.look_up(name, [str(file)])
        assert known
        found = known.proven(certificate(key, ca, *flags), time.time())
        assert found == (blob(Path(f"{key}.pub")) if good else None)


def test_a_certificate_counts_from_its_own_authority_alone(tmp_path: Path, ca: Path) -> None:
    """Not a stranger's, not one that was changed, not one whose key, or whose authority's, was revoked."""
    key, stranger = make_key(tmp_path / "host"), make_key(tmp_path / "stranger")
    file = tmp_path / "known_hosts"
    ours, theirs = certificate(key, ca, *HOST), certificate(key, stranger, *HOST)
    trusted = f"@cert-authority git.example.com {Path(f'{ca}.pub').read_text()}"

    def proven(data: bytes, more: str = "") -> bytes | None:
        file.write_text(trusted + more)
        return hostkeys.look_up("git.example.com", [str(file)]).proven(data, time.time())

    plain = blob(Path(f"{key}.pub"))
    assert proven(ours) == plain
    assert proven(theirs) is None
    assert proven(plain) is None  # the key alone was never vouched for
    assert proven(ours.replace(b"git.example.com", b"bad.example.com")) is None
    other = plain[-32:-1] + bytes([plain[-1] ^ 1])
    assert proven(ours.replace(plain[-32:], other)) is None
    assert proven(ours[:-1]) is None
    assert proven(b"") is None
    for revoked in (key, ca):
        assert proven(ours, f"@revoked * {Path(f'{revoked}.pub').read_text()}") is None
