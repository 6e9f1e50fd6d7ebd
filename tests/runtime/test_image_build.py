"""Images built on the real engine: each dependency works for the agent, nothing of the host stays in them."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import warnings
from collections.abc import AsyncIterator, Iterator

import pytest

from moat.errors import StartError
from moat.runtime import image, trust
from moat.runtime.docker import examine
from moat.runtime.engine import Engine
from tests.runtime.docker_kit import CACHE, run

pytestmark = [pytest.mark.docker, pytest.mark.anyio, pytest.mark.timeout(400)]


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[Engine]:
    info = examine()
    made = Engine(info.path, api_version=info.api_version)
    try:
        yield made
    finally:
        await made.close()


async def ensure(
    *dependencies: str, base: str | None = None, rebuild: bool = False
) -> tuple[image.Image, list[str]]:
    said: list[str] = []
    async with engine() as made:
        found = await image.ensure(
            made, dependencies, base, cache=CACHE, progress=said.append, rebuild=rebuild
        )
    return found, said


def docker(*arguments: str, **options: object) -> str:
    return subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, text=True, **options
    ).stdout  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def base(request: pytest.FixtureRequest) -> Iterator[str]:
    """A base image of its own: the suite's base plus `request.param`."""
    name = "moat-test-base:latest"
    label = f"moat.test={secrets.token_hex(4)}"  # inherited by what is built on it
    docker(
        "build",
        "-q",
        "--force-rm",
        "-t",
        name,
        "-",
        input=f"FROM moat-base:bookworm\nLABEL {label}\n{request.param}\n",
    )
    yield name
    made = docker("images", "-q", "--filter", f"label={label}").split()
    docker("rmi", "-f", *dict.fromkeys(made))


@pytest.mark.parametrize(
    ("dependency", "script", "output"),
    [
        ("git", "git init -q . && git -c user.name=a -c user.email=b commit -q --allow-empty -m x && git log --format=%s", "x"),
        ("python", "python -m venv /tmp/v && /tmp/v/bin/python -c 'print(6 * 7)' && pip --version | cut -c1-3", "42\npip"),
        ("python@3.11", "python3.11 -c 'import ssl; print(ssl.OPENSSL_VERSION[:7])'", "OpenSSL"),
        ("node", "node -p 'process.version.split(\".\")[0]' && npm --version | cut -d. -f1 && npx --version | cut -d. -f1", "v22\n10\n10"),
        ("claude-code", "claude --version; command -v node || echo no node", "2.1.330 (Claude Code)\nno node"),
    ],
)  # fmt: skip
async def test_each_dependency_works_for_the_agent(dependency: str, script: str, output: str) -> None:
    result = await run("sh", "-c", script, dependencies=(dependency,))
    assert result.text.strip() == output


@pytest.mark.parametrize(
    "base", ["RUN apt-get update && apt-get install -y python3 ca-certificates"], indirect=True
)
async def test_an_image_is_found_again_and_rebuilt_only_on_demand(base: str) -> None:
    """A base that has everything needs no network; a rebuilt image takes the old one's place."""
    first, said = await ensure(base=base)
    assert said[0] == f"building the sandbox image ({base}, python3, ca-certificates)"
    assert "Step 4/6: install python3 ca-certificates" in said
    again, said = await ensure(base=base)
    assert (again.id, said) == (first.id, [])
    rebuilt, _ = await ensure(base=base, rebuild=True)
    assert rebuilt.tag == first.tag
    assert rebuilt.id != first.id
    assert first.id not in docker("images", "-q", "--no-trunc")


async def test_the_host_s_trust_does_not_stay_in_an_image() -> None:
    """The build trusts what the host trusts; a container without Moat trusts what Debian trusts."""
    made, _ = await ensure()
    inside = docker(
        "run", "--rm", made.id, "sh", "-c", "cat /etc/ssl/certs/ca-certificates.crt; ls /tmp; env"
    )
    roots = set(trust.certificates(inside.encode()))
    shipped = docker("run", "--rm", made.id, "sh", "-c", "cat /usr/share/ca-certificates/mozilla/*.crt")
    assert len(roots) > 100
    assert roots <= set(trust.certificates(shipped.encode()))
    assert "moat-build" not in inside


async def test_a_proxy_s_password_stays_out_of_image_and_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base has everything, so the unreachable proxy of this test is never used."""
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pa55word@proxy.invalid:8080")
    monkeypatch.setenv("https_proxy", "http://user:pa55word@proxy.invalid:8080")
    full, _ = await ensure()
    made, said = await ensure(base=full.tag, rebuild=True)
    try:
        told = docker("history", "--no-trunc", made.id) + docker("inspect", made.id)
        assert "LABEL moat.image" in told
        assert "pa55word" not in told + "".join(said)
    finally:
        docker("rmi", "-f", made.tag)


@pytest.mark.parametrize("base", ["RUN rm -f /usr/bin/apt-get"], indirect=True)
async def test_a_failed_step_shows_its_last_lines(base: str) -> None:
    with pytest.raises(StartError) as caught:
        await ensure("git", base=base)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("the sandbox image could not be built: ")
    assert lines[-1] == "  the base image is not of the Debian family"


@pytest.mark.parametrize(
    "base", ['RUN useradd -u 4321 -m node\nENV GREETING=hello\nENTRYPOINT ["false"]\nUSER nobody'], indirect=True
)  # fmt: skip
async def test_a_base_image_s_own_ideas_do_not_get_in_the_way(base: str) -> None:
    """Its ENV stays, its ENTRYPOINT and USER do not; a user with the agent's uid does not take its name."""
    result = await run("sh", "-c", "echo $GREETING; whoami; id -un; echo ~", base_image=base)
    assert result.text.split() == ["hello", "agent", "agent", "/home/agent"]


async def test_a_base_image_that_cannot_be_had() -> None:
    with pytest.raises(StartError) as caught:
        await ensure(base="127.0.0.1:9/no/such:image")
    assert str(caught.value).startswith(
        "the base image 127.0.0.1:9/no/such:image is not here and cannot be pulled"
    )
    assert "docker pull 127.0.0.1:9/no/such:image" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "base",
    ["ENV JAVA_HOME=/opt/java\nRUN mkdir -p /opt/java/lib/security && echo old > /opt/java/lib/security/cacerts"],
    indirect=True,
)  # fmt: skip
async def test_java_trusts_the_run_s_ca(base: str) -> None:
    from cryptography.hazmat.primitives.serialization import pkcs12

    result = await run("sh", "-c", "cat /opt/java/lib/security/cacerts", base_image=base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old roots of the host
        store = pkcs12.load_pkcs12(result.stdout, None)
    assert len(store.additional_certs) == len(trust.certificates(trust.host_bundle()))
