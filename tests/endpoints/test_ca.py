"""The CA of endpoints: what it may sign, who believes it, and that it is believed for nothing else."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import os
import socket
import ssl
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from moat.errors import MoatError
from moat.paths import Home
from moat.runtime.endpoints import ca
from tests.endpoints.conftest import Place

PEM = serialization.Encoding.PEM


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "moat-home")


def stolen(home: Home, *names: x509.GeneralName, common: str = "x") -> Path:
    """A leaf that somebody who has the key signed, with its key: as a thief would."""
    ca.ensure(home)
    key = serialization.load_pem_private_key((home.endpoints / "ca.key").read_bytes(), None)
    authority = x509.load_pem_x509_certificate((home.endpoints / "ca.crt").read_bytes())
    own = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)]))
        .issuer_name(authority.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=5))
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    leaf = builder.sign(key, hashes.SHA256())
    path = home.endpoints / "leaf.pem"
    path.write_bytes(
        own.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + leaf.public_bytes(PEM)
    )
    return path


GOOD = [
    [x509.DNSName("localhost")],
    [x509.DNSName("web.alpha.localhost")],
]
BAD = [
    [x509.DNSName("example.com")],
    [x509.DNSName("localhost.example.com")],
    [x509.DNSName("web.alpha.localhost"), x509.DNSName("example.com")],
    [x509.DNSName("notlocalhost")],
    [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))],
    [x509.IPAddress(ipaddress.ip_address("93.184.216.34"))],
    [x509.IPAddress(ipaddress.ip_address("::1"))],
]


def believed_by_openssl(home: Home, leaf: Path) -> bool:
    """The chain alone, without a host name: the constraint has to be what refuses it."""
    done = subprocess.run(
        ["openssl", "verify", "-CAfile", home.endpoints / "ca.crt", leaf], capture_output=True, text=True
    )
    assert (
        done.returncode == 0
        or "permitted subtree violation" in done.stderr + done.stdout
        or ("excluded subtree violation" in done.stderr + done.stdout)
    ), done.stderr
    return done.returncode == 0


def believed_by_python(home: Home, leaf: Path) -> bool:
    """The same by the TLS stack that Python, requests and their like use."""
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.create_default_context(cafile=str(home.endpoints / "ca.crt")),
    )
    server.load_cert_chain(leaf)
    client.check_hostname = False
    a, b, c, d = (ssl.MemoryBIO() for _ in range(4))
    one, two = client.wrap_bio(a, b, server_hostname="x"), server.wrap_bio(c, d, server_side=True)
    for _ in range(4):
        for side, out, into in ((one, b, c), (two, d, a)):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError:
                return False
            into.write(out.read())
    return True


def believed_by_curl(home: Home, leaf: Path, name: str) -> bool:
    """Ask curl, with the leaf at a real server, under the very name that the leaf has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            peer, _ = listener.accept()
            try:
                with context.wrap_socket(peer, server_side=True) as tls:
                    tls.recv(1000)
                    tls.sendall(b"HTTP/1.0 200 OK\r\n\r\nbelieved")
                    tls.unwrap()  # curl with OpenSSL 3.5 wants a whole ending
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        bracketed = f"[{name}]" if ":" in name else name
        done = subprocess.run(
            ["curl", "-sS", "--noproxy", "*", "--cacert", home.endpoints / "ca.crt",
             "--connect-to", f"::127.0.0.1:{port}", f"https://{bracketed}:{port}/"],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        thread.join()
    assert done.returncode in {0, 60}, done.stderr
    return done.stdout == "believed"


@pytest.mark.parametrize("names", GOOD, ids=lambda names: names[0].value)
def test_names_below_localhost_are_believed(home: Home, names: list[x509.GeneralName]) -> None:
    leaf = stolen(home, *names)
    assert believed_by_openssl(home, leaf)
    assert believed_by_python(home, leaf)
    assert believed_by_curl(home, leaf, str(names[0].value))


@pytest.mark.parametrize("names", BAD, ids=lambda names: str(names[-1].value))
def test_a_stolen_key_is_good_for_nothing_else(home: Home, names: list[x509.GeneralName]) -> None:
    """With NameConstraints left out all are believed; with its excluded addresses left out, the addresses."""
    leaf = stolen(home, *names)
    assert not believed_by_openssl(home, leaf)
    assert not believed_by_python(home, leaf)
    assert not believed_by_curl(home, leaf, str(names[-1].value))


def test_a_common_name_does_not_get_around_it(home: Home) -> None:
    assert not believed_by_openssl(home, stolen(home, common="example.com"))


def test_the_certificate_itself(home: Home) -> None:
    certificate = x509.load_pem_x509_certificate(ca.ensure(home))
    constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert constraints.value.permitted_subtrees == [x509.DNSName("localhost")]
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.path_length) == (True, 0)
    for name in ("ca.key", "ca.crt"):
        assert stat.S_IMODE((home.endpoints / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.endpoints.stat().st_mode) == 0o700
    assert ca.ensure(home) == ca.ensure(home), "it is made once"


def test_a_key_that_is_not_the_certificates_is_told(home: Home) -> None:
    ca.ensure(home)
    other = Home(home.root.parent / "other")
    ca.ensure(other)
    (home.endpoints / "ca.key").write_bytes((other.endpoints / "ca.key").read_bytes())
    with pytest.raises(MoatError, match="do not belong together") as caught:
        ca.EndpointTLS(home)
    assert "moat trust remove" in (caught.value.hint or "")


# --- trust stores ----------------------------------------------------------------------------------------


def databases(place: Place) -> dict[str, bool]:
    status = json.loads(place.command("trust", "status", "--json").stdout)
    return {item["store"]: item["trusted"] for item in status["stores"]}


def new_database(path: Path) -> None:
    path.mkdir(parents=True)
    subprocess.run(["certutil", "-N", "--empty-password", "-d", f"sql:{path}"], check=True)


def listed(path: Path) -> str:
    return subprocess.run(
        ["certutil", "-L", "-d", f"sql:{path}"], capture_output=True, text=True, check=True
    ).stdout


def test_trust_goes_into_every_browser_of_the_user_and_out_again(place: Place) -> None:
    user = Path(place.environment["HOME"])
    chromium, firefox = user / ".local/share/pki/nssdb", user / ".mozilla/firefox/abc.default"
    for path in (chromium, firefox):
        new_database(path)
    own = place.directory / "own.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=Company CA", "-keyout", "/dev/null", "-out", own], check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(
        ["certutil", "-A", "-d", f"sql:{firefox}", "-t", "C,,", "-n", "Company CA", "-i", own], check=True
    )
    before = {path: listed(path) for path in (chromium, firefox)}
    dry = place.command("trust", "install", "--dry-run")
    assert dry.returncode == 0
    assert "certutil -A -d sql:" in dry.stderr
    assert {path: listed(path) for path in (chromium, firefox)} == before
    done = place.command("trust", "install")
    assert done.returncode == 0, done.stderr
    for path in (chromium, firefox):
        assert f"-d sql:{path} -t C,, -n 'Moat endpoints " in done.stderr, "it says what it does"
        assert "Moat endpoints" in listed(path)
        assert databases(place)[next(what for what in databases(place) if str(path) in what)]
    assert "nothing to do" in place.command("trust", "install").stderr
    assert place.command("trust", "remove").returncode == 0
    assert {path: listed(path) for path in (chromium, firefox)} == before


def test_a_certificate_of_the_same_name_that_is_not_ours_stays(place: Place) -> None:
    """With `holds` asking for the name alone, remove deletes it."""
    database = Path(place.environment["HOME"]) / ".pki/nssdb"
    new_database(database)
    name = json.loads(place.command("trust", "status", "--json").stdout)["name"]
    own = place.directory / "own.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", f"/CN={name}", "-keyout", "/dev/null", "-out", own], check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(
        ["certutil", "-A", "-d", f"sql:{database}", "-t", "C,,", "-n", name, "-i", own], check=True
    )
    before = listed(database)
    assert place.command("trust", "remove").returncode == 0
    assert listed(database) == before


def test_the_systems_store_in_a_mount_namespace_of_its_own(place: Place) -> None:
    """The real update-ca-certificates, on copies of the directories that it writes to."""
    script = f"""
set -eu
work={place.directory}
for directory in /etc/ssl/certs /usr/local/share/ca-certificates; do
    copy=$work/$(basename $directory)
    cp -a $directory $copy
    mount --bind $copy $directory
done
certs() {{ sha256sum /etc/ssl/certs/ca-certificates.crt; ls /etc/ssl/certs | grep -v '[.][0-9]$'; }}
update-ca-certificates >/dev/null 2>&1
certs > $work/before
{place.moat} trust install --system
openssl verify $MOAT_HOME/endpoints/ca.crt
{place.moat} trust status --json > $work/status
{place.moat} trust remove
certs > $work/after
for link in /etc/ssl/certs/*; do cmp -s $link $MOAT_HOME/endpoints/ca.crt && echo left: $link; done; true
"""
    done = subprocess.run(
        [*([] if os.geteuid() == 0 else ["sudo", "-E"]), "unshare", "--mount", "--propagation", "private",
         "sh", "-c", script],
        env=place.environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ca.crt: OK" in done.stdout
    assert "left:" not in done.stdout
    assert "moat:   update-ca-certificates" in done.stderr
    status = json.loads((place.directory / "status").read_text())["stores"]
    assert [item["trusted"] for item in status if "/usr/local/share" in item["store"]] == [True]
    assert (place.directory / "before").read_text() == (place.directory / "after").read_text()
