"""Images built on the real engine: each dependency works for the agent, nothing of the host stays in them."""

from __future__ import annotations

import asyncio
import re
import secrets
import subprocess
import warnings
from collections.abc import Iterator

import pytest

from moat.config import HooksConfig
from moat.config.dependencies import CLAUDE_CODE
from moat.errors import StartError
from moat.runtime import image, trust
from moat.runtime.container import Identity
from moat.runtime.deps.resolve import machine
from moat.runtime.docker import examine
from moat.runtime.dockerfile import plan
from moat.runtime.engine import Engine
from tests.runtime.docker_kit import CACHE, HOOKS, MANY, run

pytestmark = [pytest.mark.docker, pytest.mark.anyio, pytest.mark.timeout(400)]


def engine() -> Engine:
    info = examine()
    return Engine(info.path, api_version=info.api_version)


async def ensure(
    *dependencies: str, base: str | None = None, rebuild: bool = False, hooks: HooksConfig | None = None
) -> tuple[image.Image, list[str]]:
    said: list[str] = []
    wanted = plan(dependencies, base, machine=machine(), hooks=hooks, identity=Identity(4321, 4321))
    found = await image.ensure(engine(), wanted, cache=CACHE, progress=said.append, rebuild=rebuild)
    return found, said


def docker(*arguments: str, **options: object) -> str:
    return subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, text=True, **options
    ).stdout


@pytest.fixture
def base(request: pytest.FixtureRequest) -> Iterator[str]:
    """A base image of its own: one that has what every image needs, plus `request.param`."""
    plain, _ = asyncio.run(ensure())
    name = "moat-test-base:latest"
    label = f"moat.test={secrets.token_hex(4)}"  # inherited by what is built on it
    docker(
        "build",
        "-q",
        "--force-rm",
        "-t",
        name,
        "-",
        input=f"FROM {plain.tag}\nLABEL {label}\n{request.param}\n",
    )
    yield name
    made = docker("images", "-q", "--filter", f"label={label}").split()
    for identifier in dict.fromkeys(made):  # one of them may go with another
        subprocess.run(["docker", "rmi", "-f", identifier], capture_output=True, check=False)


SCRIPTS = {
    "git": "git init -q . && git -c user.name=a -c user.email=b commit -q --allow-empty -m x && git log --format=%s",
    "python": "python -m venv /tmp/v && /tmp/v/bin/python -c 'print(6 * 7)'; pip --version | cut -c1-3",
    "node": "node -p 'process.version.split(\".\")[0]'; npm --version | cut -d. -f1; npx --version | cut -d. -f1",
    "claude-code": "claude --version",
    "go": "go version | cut -d' ' -f3 | cut -d. -f1,2; go env GOROOT",
    "uv": "uv --version | cut -d' ' -f1; uvx --version | cut -d' ' -f1",
    "ruff": "echo 'import os' | ruff check --quiet --output-format concise - | cut -d' ' -f2",
    "black": "black --version | head -1 | cut -d, -f1; python -c 'import black' 2>&1 | tail -1",
    "pip:tabulate": "python -c 'import tabulate; print(tabulate.__name__)'; echo 1 | tabulate -f plain",
    "npm:semver": "semver -i minor 1.2.3",
    "just": "just --version | cut -d' ' -f1",
    "fd": "touch found; fd --max-depth 1 found",
    "ripgrep": "echo needle | rg -c needle",
    "jq": "echo '{\"a\": 1}' | jq .a",
    "post_build_root": "cat /etc/hooked",
    "post_build": "cat ~/hooked; stat -c %U ~/hooked; ls -ld ~ | cut -c1-10",
}
OUTPUT = {
    "git": "x",
    "python": "42\npip",
    "node": "v22\n10\n10",
    "claude-code": f"{CLAUDE_CODE} (Claude Code)",
    "go": "go1.24\n/usr/local/lib/go",
    "uv": "uv\nuvx",
    "ruff": "F401",
    "black": "black\nModuleNotFoundError: No module named 'black'",
    "pip:tabulate": "tabulate\n1",
    "npm:semver": "1.3.0",
    "just": "just",
    "fd": "found",
    "ripgrep": "1",
    "jq": "1",
    "post_build_root": "0",
    "post_build": "4321 /home/agent agent\nagent\ndrwx------",
}


async def test_every_kind_of_dependency_works_for_the_agent() -> None:
    """One image that has them all, and both build hooks: as root, and as the agent in its HOME."""
    lines = [f"echo '== {name}'; {script}" for name, script in SCRIPTS.items()]
    result = await run("bash", "-c", "\n".join(lines), dependencies=MANY, hooks=HOOKS)
    found = {}
    for block in result.text.split("== ")[1:]:
        name, _, text = block.partition("\n")
        found[name] = text.strip()
    assert found == OUTPUT


@pytest.mark.parametrize("base", ["RUN true"], indirect=True)
@pytest.mark.parametrize(("buildkit", "step"), [("1", "Step 3/4"), ("0", "Step 4/6")])
async def test_an_image_is_found_again_and_rebuilt_only_on_demand(
    base: str, buildkit: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base that has everything needs no network; a rebuilt image takes the old one's place."""
    monkeypatch.setenv("DOCKER_BUILDKIT", buildkit)
    first, said = await ensure(base=base)
    assert said[0] == f"building the sandbox image ({base}, python3, ca-certificates)"
    assert f"{step}: install python3 ca-certificates" in said
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
    made, said = await ensure(
        base=full.tag, rebuild=True, hooks=HooksConfig(post_build_root="env | grep -c PROXY")
    )
    try:
        told = docker("history", "--no-trunc", made.id) + docker("inspect", made.id)
        assert "LABEL moat.image" in told
        assert "pa55word" not in told + "".join(said)
    finally:
        docker("rmi", "-f", made.tag)


@pytest.mark.parametrize("base", ["RUN rm -f /usr/bin/apt-get"], indirect=True)
@pytest.mark.parametrize("buildkit", ["1", "0"])
async def test_a_failed_step_shows_its_last_lines(
    base: str, buildkit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_BUILDKIT", buildkit)
    with pytest.raises(StartError) as caught:
        await ensure("git", base=base)
    lines = str(caught.value).splitlines()
    assert re.fullmatch(
        r"the sandbox image could not be built: Step \d/\d: install .* git failed with status 1", lines[0]
    )
    assert lines[1:] == ["  the base image is not of the Debian family"]
    with pytest.raises(StartError) as caught:
        await ensure(hooks=HooksConfig(post_build="echo one\nprintf 'two %s' \"$USER\"\nexit 7\necho three"))
    lines = str(caught.value).splitlines()
    assert lines[0] == "the sandbox image could not be built: hooks.post_build failed with status 7"
    assert sorted(lines[1:]) == ["  one", "  two agent"]


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
