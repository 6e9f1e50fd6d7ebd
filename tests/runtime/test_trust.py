"""The merged bundle and the variables that make tools use it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from moat.runtime import trust
from moat.runtime.variables import protected, sandbox_environment

ONE = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
TWO = b"-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----"
KEY = b"-----BEGIN PRIVATE KEY-----\nMIID\n-----END PRIVATE KEY-----"


def test_merging_keeps_each_certificate_once_and_nothing_else() -> None:
    merged = trust.merge([b"# comment\n" + ONE + b"\n" + KEY, TWO.replace(b"\n", b"\r\n") + ONE])
    assert merged == ONE + b"\n" + TWO + b"\n"


def test_the_host_s_extra_cas_count(tmp_path: Path) -> None:
    (tmp_path / "corp.pem").write_bytes(TWO)
    environ = {"SSL_CERT_FILE": str(tmp_path / "corp.pem"), "NODE_EXTRA_CA_CERTS": str(tmp_path / "missing")}
    assert trust.extra_bundles(environ) == [tmp_path / "corp.pem"]
    bundle = trust.sandbox_bundle(ONE, environ)
    assert bundle.endswith(TWO + b"\n" + ONE + b"\n")


def test_the_sandbox_trusts_what_the_host_trusts_and_the_run_s_ca() -> None:
    from moat.proxy.certs import RunCA

    ca = RunCA.generate("run_test").certificate_pem
    bundle = trust.sandbox_bundle(ca, {})
    context = ssl.create_default_context(cadata=bundle.decode("ascii"))
    names = [dict(field[0] for field in found["subject"]) for found in context.get_ca_certs()]
    assert len(names) > 50
    assert any("run_test" in " ".join(map(str, name.values())) for name in names)


def test_every_bundle_variable_points_to_the_bundle() -> None:
    env = trust.trust_environment("/bundle")
    assert {name for name, value in env.items() if value == "/bundle"} >= {
        "SSL_CERT_FILE",
        "NODE_EXTRA_CA_CERTS",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "PIP_CERT",
        "CARGO_HTTP_CAINFO",
        "DENO_CERT",
        "AWS_CA_BUNDLE",
    }


@pytest.mark.parametrize(
    "name",
    [
        "HTTP_PROXY",
        "https_proxy",
        "Https_Proxy",
        "NO_PROXY",
        "no_proxy",
        "ALL_PROXY",
        "all_proxy",
        "CURL_ALL_PROXY",
        "SSL_CERT_FILE",
        "NODE_EXTRA_CA_CERTS",
        "SSL_CERT_DIR",
        "MOAT_RUN_ID",
    ],
)
def test_a_user_s_env_cannot_lead_around_the_proxy(name: str) -> None:
    user = {name: "elsewhere", "MINE": "1"}
    assert protected(user) == (name,)
    env = sandbox_environment(run_id="run_x", tty=False, placeholders={}, user=user)
    assert "elsewhere" not in env.values()
    assert env["MINE"] == "1"
    assert env["HTTPS_PROXY"] == env["http_proxy"] == "http://127.0.0.1:3128"


def test_the_user_s_own_value_wins_over_a_placeholder() -> None:
    env = sandbox_environment(
        run_id="r", tty=True, placeholders={"GH_TOKEN": "p"}, user={"GH_TOKEN": "u", "TERM": "dumb"}
    )
    assert env["GH_TOKEN"] == "u"
    assert env["TERM"] == "dumb"
