"""A world to attack: a stored credential, an origin that may receive it, canaries, both runtimes.

Everything goes through the installed `moat` command, as a user's agent would meet it.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import secrets
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.canary import Canary, canary
from tests.attacks.origin import Origin, origin
from tests.fakes.pki import make_pki

PROBES = Path(__file__).parent / "probes"
HOST = "api.anthropic.com"  # the host that the credential is bound to
OTHER = "other.attack.test"  # a host that it is not bound to
ELSEWHERE = "api.linear.app"  # the host of a credential that is not stored: a command prints it
PRINTED = "lin_api_of-the-command"


@dataclass
class World:
    moat: str
    directory: Path
    secret: str
    origin: Origin
    stranger: Origin
    since: float
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> Path:
        """A line for each time that the command was asked for its credential."""
        return self.directory / "asked"

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.moat, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=options.pop("timeout", 90),
            stdin=subprocess.DEVNULL,
            **options,
        )

    def workspace(self, name: str) -> Path:
        place = self.directory / name
        if not place.exists():
            place.mkdir()
            # With a way in, so that every attack is tried on a run that has one.
            (place / "agent.yaml").write_text("dependencies: [python]\nports: {web: 3000}\n")
            for probe in PROBES.glob("*.py"):
                (place / probe.name).write_bytes(probe.read_bytes())
        return place

    def probe(
        self,
        runtime: str,
        name: str,
        plan: object,
        *,
        grants: Sequence[str] = ("anthropic",),
        as_root: bool = False,
    ) -> dict[str, Any]:
        """Run probes/<name>.py in a fresh sandbox and return the JSON it printed."""
        if as_root:
            return self._probe_as_root(name, plan)
        flags = [word for grant in grants for word in ("--grant", grant)]
        place = self.workspace("ws")
        (place / "plan.json").write_text(json.dumps(plan))
        done = self.command(
            "run", str(place), "--runtime", runtime, *flags, "--", "python3", f"/workspace/{name}.py"
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _probe_as_root(self, name: str, plan: object) -> dict[str, Any]:
        """The same as uid 0 of the container of a run that is alive: one run for all of these."""
        (self.workspace("ws") / "plan.json").write_text(json.dumps(plan))
        done = subprocess.run(
            ["docker", "exec", "-u", "0:0", "--env=SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
             self._container, "python3", f"/workspace/{name}.py"],
            check=False, capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @functools.cached_property
    def _container(self) -> str:
        run_id = self.start("docker", "for-root", "--grant", "anthropic")
        found = subprocess.run(
            ["docker", "ps", "-q", "--no-trunc", "--filter", f"label=moat.run={run_id}"],
            check=True, capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        assert len(found) == 1, f"one container expected for {run_id}: {found}"
        return found[0]

    @contextlib.contextmanager
    def configured(self, change: Callable[[str], str]) -> Iterator[None]:
        """Runs that begin meanwhile find another config.yaml."""
        file = Path(self.environment["MOAT_HOME"]) / "config.yaml"
        before = file.read_text()
        file.write_text(change(before))
        try:
            yield
        finally:
            file.write_text(before)

    def start(self, runtime: str, name: str, *flags: str) -> str:
        """A run that is alive in the background; its id. It ends with the world."""
        done = self.command(
            "run", str(self.workspace("ws")), "--runtime", runtime, "-d", "--name", name, *flags, "--",
            "sleep", "3600",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, moat_bin: str) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("attacks")
    ca, leaf = make_pki(directory, [HOST, OTHER, ELSEWHERE, "*.attack.test"])
    secret = f"sk-ant-api03-{secrets.token_urlsafe(48)}"
    home = directory / "moat"
    home.mkdir(mode=0o700)
    with origin(leaf) as server, origin(leaf) as stranger:
        (home / "config.yaml").write_text(
            f"upstream:\n  ca_bundle: {ca}\n  connect_to:\n"
            f'    "{HOST}:443": "127.0.0.1:{server.port}"\n'
            f'    "{ELSEWHERE}:443": "127.0.0.1:{server.port}"\n'
            f'    "{OTHER}:443": "127.0.0.1:{stranger.port}"\n'
        )
        key = directory / "key"
        key.write_bytes(base64.b64encode(os.urandom(32)))
        key.chmod(0o600)
        place = World(
            moat=moat_bin,
            directory=directory,
            secret=secret,
            origin=server,
            stranger=stranger,
            since=time.time() - 2,
            environment={
                "PATH": os.environ["PATH"],
                "HOME": str(directory / "home"),
                "MOAT_HOME": str(home),
                "MOAT_KEYRING_BACKEND": "file",
                "MOAT_KEY_FILE": str(key),
                "LANG": "C.UTF-8",
            },
        )
        (directory / "home").mkdir()
        tell = shlex.join(["sh", "-c", f"echo >> {place.asked}; printf {PRINTED}"])
        for grant in (
            ["anthropic", "--method", "api-key", "--no-validate"],
            ["linear", "--command", tell, "--ttl", "5s", "--no-validate"],
        ):
            granted = subprocess.run(
                [moat_bin, "grant", *grant],
                env=place.environment | {"ANTHROPIC_API_KEY": secret},
                capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            assert granted.returncode == 0, granted.stderr
        try:
            yield place
        finally:
            place.command("stop", "--all")
            place.command("clean", "--yes")
            end_gateway(home)


def end_gateway(home: Path) -> None:
    file = home / "endpoints/gateway.json"
    if file.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(file.read_bytes())["pid"], signal.SIGKILL)


@pytest.fixture(
    params=[
        pytest.param("embedded", marks=pytest.mark.embedded),
        pytest.param("docker", marks=pytest.mark.docker),
    ],
    scope="session",
)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(
    params=[
        pytest.param(("embedded", False), marks=pytest.mark.embedded, id="embedded"),
        pytest.param(("docker", False), marks=pytest.mark.docker, id="docker"),
        pytest.param(("docker", True), marks=pytest.mark.docker, id="docker-root"),
    ],
    scope="session",
)
def attacker(request: pytest.FixtureRequest, world: World) -> Callable[[str, object], dict[str, Any]]:
    """Runs a probe as the agent in each runtime, and as root in a container.

    There is no root to be had in the embedded sandbox: `test_embedded_has_no_root` proves it.
    """
    runtime, as_root = request.param
    return lambda name, plan: world.probe(runtime, name, plan, as_root=as_root)


@pytest.fixture
def bird() -> Iterator[Canary]:
    with canary() as value:
        yield value
