"""Which certificates count: the system's roots, the host's own extra CAs, and the run's CA.

The variables that name a bundle *replace* a tool's roots, so the bundle in a sandbox is always merged.
A host behind a company proxy has extra CAs in SSL_CERT_FILE or NODE_EXTRA_CA_CERTS: they count on the
upstream side and in image builds too, or nothing installs there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from moat.errors import StartError
from moat.regex import regex
from moat.runtime.sandbox import CA_BUNDLE

_CERTIFICATE = regex(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")

# One file each, as OpenSSL, Go and Fedora, SUSE, Alpine, macOS with Homebrew lay them out.
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_EXTRA = ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS")

# Measured tool by tool (facts on isolation, section 6): with these and the merged system bundle,
# everything that was tried accepts the run's CA.
_BUNDLE_VARIABLES = (
    "SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "AWS_CA_BUNDLE",
)
# What could point a tool at other roots: a run's own `env` may not set these.
TRUST_VARIABLES = frozenset(_BUNDLE_VARIABLES) | {"SSL_CERT_DIR", "npm_config_cafile", "UV_SYSTEM_CERTS"}


def trust_environment(bundle: str = CA_BUNDLE) -> dict[str, str]:
    """The variables that make tools in a sandbox use the merged bundle at `bundle`."""
    return dict.fromkeys(_BUNDLE_VARIABLES, bundle) | {
        "npm_config_cafile": bundle,
        "UV_SYSTEM_CERTS": "1",
    }


def certificates(pem: bytes) -> list[bytes]:
    """The certificate blocks of a PEM file; private keys, comments and trust attributes are left out."""
    return [match.group().replace(b"\r", b"") for match in _CERTIFICATE.finditer(pem)]


def merge(bundles: Iterable[bytes]) -> bytes:
    """One PEM with every certificate of `bundles` once, in order."""
    blocks = dict.fromkeys(block for pem in bundles for block in certificates(pem))
    return b"".join(block + b"\n" for block in blocks)


def extra_bundles(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Files with the CAs that this user trusts besides the system's."""
    found = dict.fromkeys(Path(environ[name]) for name in _EXTRA if environ.get(name))
    return [path for path in found if path.is_file()]


def system_bundle() -> Path | None:
    """The file with the system's roots; None on a machine without one."""
    import ssl  # for the supervisor: who asks for the names of variables need not load it

    default = ssl.get_default_verify_paths()
    for name in (*_SYSTEM_BUNDLES, default.openssl_cafile):
        if os.path.isfile(name):
            return Path(name)
    return None


def host_bundle(environ: Mapping[str, str] = os.environ) -> bytes:
    """Everything this host trusts, as one PEM. Raises StartError when that is nothing."""
    system = system_bundle()
    paths = [*([system] if system else []), *extra_bundles(environ)]
    merged = merge(_read(path) for path in paths)
    if not merged:
        raise StartError(
            "this machine has no CA certificates, so no server can be verified",
            hint="apt-get install ca-certificates",
        )
    return merged


def sandbox_bundle(run_ca: bytes, environ: Mapping[str, str] = os.environ) -> bytes:
    """What a sandbox trusts: the host's CAs and the run's own."""
    return merge([host_bundle(environ), run_ca])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"cannot read the CA bundle {path}: {error.strerror}") from None
