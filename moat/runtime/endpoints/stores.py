"""Where programs of this user look for CAs, and the commands that put ours there or take it away.

Nothing here changes anything: a store tells its steps, and whoever asked shows them and runs them. A store
is recognised by exactly our certificate; one that only has its name is left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from moat.dataclass import dataclass
from moat.errors import MoatError


@dataclass(frozen=True, slots=True)
class Step:
    argv: tuple[str, ...]
    root: bool = False  # only root may


@dataclass(frozen=True, slots=True)
class Certificate:
    """The CA's certificate, as stores need to know it."""

    path: Path
    name: str  # common name
    pem: bytes


class Store(Protocol):
    @property
    def what(self) -> str:
        """For the user: `Chromium and its kin (~/.pki/nssdb)`."""
        ...

    @property
    def system(self) -> bool:
        """Of all users of the machine."""
        ...

    def holds(self, certificate: Certificate) -> bool: ...

    def install(self, certificate: Certificate) -> list[Step]: ...

    def remove(self, certificate: Certificate) -> list[Step]: ...


def stores(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> list[Store]:
    """The stores of this machine, the user's own first."""
    home = Path(environ.get("HOME") or Path.home())
    if platform == "darwin":
        return [Keychain(home), *firefox(home)]
    if platform == "win32":
        return [WindowsStore()]
    return [*chromium(home, environ), *firefox(home), *linux_system()]


# --- NSS: Chromium on Linux, Firefox everywhere -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NssDatabase:
    what: str
    directory: Path
    system: bool = False

    def holds(self, certificate: Certificate) -> bool:
        if not (self.directory / "cert9.db").exists():
            return False
        done = self._certutil("-L", "-n", certificate.name, "-a")
        return done.returncode == 0 and _body(certificate.pem) in _body(done.stdout)

    def install(self, certificate: Certificate) -> list[Step]:
        database = f"sql:{self.directory}"
        steps = []
        if not (self.directory / "cert9.db").exists():
            steps.append(Step(("mkdir", "-p", "-m", "0700", str(self.directory))))
            steps.append(Step((_certutil(), "-N", "--empty-password", "-d", database)))
        # C: it may vouch for servers, and for nothing else (no mail, no code).
        add = ("-A", "-d", database, "-t", "C,,", "-n", certificate.name, "-i", str(certificate.path))
        return [*steps, Step((_certutil(), *add))]

    def remove(self, certificate: Certificate) -> list[Step]:
        return [Step((_certutil(), "-D", "-d", f"sql:{self.directory}", "-n", certificate.name))]

    def _certutil(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [_certutil(), "-d", f"sql:{self.directory}", *arguments],
            capture_output=True, check=False, stdin=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip


def _certutil() -> str:
    """Mozilla's; Windows has another program of the same name."""
    path = shutil.which("certutil")
    if path is None:
        raise MoatError(
            "certutil is missing, which browsers' certificate databases need",
            hint="apt-get install libnss3-tools (Fedora: nss-tools, Arch: nss, macOS: brew install nss)",
        )
    return path


_BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "brave-browser",
    "microsoft-edge", "vivaldi",
)  # fmt: skip


def chromium(home: Path, environ: Mapping[str, str]) -> list[Store]:
    """The database that Chromium reads: the old place when it is there, else (since 146) the XDG one."""
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local/share")
    old, new = home / ".pki/nssdb", data / "pki/nssdb"
    snap = home / "snap/chromium/current/.pki/nssdb"
    found = [path for path in (old, new, snap) if (path / "cert9.db").exists()]
    if not found and any(shutil.which(browser) for browser in _BROWSERS):
        found = [old]  # every version reads it there
    return [NssDatabase(f"Chromium and its kin ({path})", path) for path in found]


def firefox(home: Path) -> list[Store]:
    """One database for each profile that has been used."""
    places = (
        ".mozilla/firefox", ".config/mozilla/firefox", "snap/firefox/common/.mozilla/firefox",
        ".var/app/org.mozilla.firefox/.mozilla/firefox", "Library/Application Support/Firefox/Profiles",
    )  # fmt: skip
    profiles = [path.parent for place in places for path in sorted((home / place).glob("*/cert9.db"))]
    return [NssDatabase(f"Firefox ({path})", path) for path in profiles]


def _body(pem: bytes) -> bytes:
    """The certificate itself, however its lines are broken."""
    text = pem.partition(b"-----BEGIN CERTIFICATE-----")[2].partition(b"-----END CERTIFICATE-----")[0]
    return b"".join(text.split())


# --- the system's store -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Anchors:
    """A directory of certificates that a command of the distribution gathers into its bundle."""

    directory: Path
    suffix: str
    update: tuple[str, ...]
    forget: tuple[str, ...]  # the same after something was taken away
    system: bool = True

    @property
    def what(self) -> str:
        return f"the system: curl, git, Python and others ({self.directory})"

    def _file(self, certificate: Certificate) -> Path:
        return self.directory / f"{certificate.name.lower().replace(' ', '-')}{self.suffix}"

    def holds(self, certificate: Certificate) -> bool:
        try:
            return _body(self._file(certificate).read_bytes()) == _body(certificate.pem)
        except OSError:
            return False

    def install(self, certificate: Certificate) -> list[Step]:
        copy = ("install", "-m", "0644", str(certificate.path), str(self._file(certificate)))
        return [Step(copy, root=True), Step(self.update, root=True)]

    def remove(self, certificate: Certificate) -> list[Step]:
        return [Step(("rm", str(self._file(certificate))), root=True), Step(self.forget, root=True)]


def linux_system() -> list[Store]:
    """The one of this distribution; none when it is unknown."""
    debian = ("update-ca-certificates",)
    known = (
        # Debian's leaves a dangling link behind unless it starts afresh.
        ("/usr/local/share/ca-certificates", ".crt", debian, (*debian, "--fresh")),
        ("/etc/pki/ca-trust/source/anchors", ".pem", ("update-ca-trust", "extract"), None),  # Fedora, RHEL
        ("/etc/ca-certificates/trust-source/anchors", ".crt", ("trust", "extract-compat"), None),  # Arch
        ("/usr/share/pki/trust/anchors", ".pem", debian, None),  # SUSE
    )
    for directory, suffix, update, forget in known:
        if Path(directory).is_dir() and shutil.which(update[0], path="/usr/sbin:/sbin:/usr/bin:/bin"):
            return [Anchors(Path(directory), suffix, update, forget or update)]
    return []


@dataclass(frozen=True, slots=True)
class Keychain:
    """macOS: the user's login keychain. Written from Apple's documentation, not tried."""

    home: Path
    system: bool = False

    @property
    def what(self) -> str:
        return "the login keychain: Safari, Chrome and others"

    def _path(self) -> str:
        return str(self.home / "Library/Keychains/login.keychain-db")

    def holds(self, certificate: Certificate) -> bool:
        done = subprocess.run(
            ["security", "find-certificate", "-c", certificate.name, "-p", self._path()],
            capture_output=True,
            check=False,
            cwd="/",
        )
        return done.returncode == 0 and _body(certificate.pem) in _body(done.stdout)

    def install(self, certificate: Certificate) -> list[Step]:
        options = ("-r", "trustRoot", "-p", "ssl", "-k", self._path())
        return [Step(("security", "add-trusted-cert", *options, str(certificate.path)))]

    def remove(self, certificate: Certificate) -> list[Step]:
        return [
            Step(("security", "remove-trusted-cert", str(certificate.path))),
            Step(("security", "delete-certificate", "-c", certificate.name, self._path())),
        ]


@dataclass(frozen=True, slots=True)
class WindowsStore:
    """Windows: the user's own roots. Written from Microsoft's documentation, not tried."""

    what: str = "the user's root certificates: Edge, Chrome and others"
    system: bool = False

    def holds(self, certificate: Certificate) -> bool:
        done = subprocess.run(
            ["certutil", "-user", "-store", "Root", certificate.name],
            capture_output=True,
            check=False,
            cwd="/",
        )
        return done.returncode == 0

    def install(self, certificate: Certificate) -> list[Step]:
        return [Step(("certutil", "-user", "-addstore", "Root", str(certificate.path)))]

    def remove(self, certificate: Certificate) -> list[Step]:
        return [Step(("certutil", "-user", "-delstore", "Root", certificate.name))]
