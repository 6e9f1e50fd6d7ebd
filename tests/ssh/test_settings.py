"""What the user's ~/.ssh/config, agent.yaml, other grants and a change of mind make of SSH in a sandbox."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ssh.world import Server, SshWorld, make_key, run, sshd

SCRIPT = """
quick="-o BatchMode=yes -o ConnectTimeout=20"
cat ~/.ssh/config
ssh $quick -T gh; echo alias $?
git clone -q gh:octo/hello.git /tmp/one && echo cloned by its alias
git clone -q https://github.com/octo/hello.git /tmp/two && echo cloned by https
git ls-remote --get-url https://github.com/octo/hello.git
echo $GH_TOKEN
touch /workspace/ready
while [ ! -e /workspace/revoked ]; do sleep 0.05; done
ssh $quick -T gh; echo revoked $?
"""


@dataclass
class Place:
    directory: Path
    world: SshWorld
    server: Server


@pytest.fixture(scope="module")
def place(moat_bin: str) -> Iterator[Place]:
    """One server at github.com, port 22 and port 2222, one key in a file, no agent."""
    directory = Path(tempfile.mkdtemp(prefix="mt-", dir="/tmp"))
    directory.chmod(0o755)
    dot_ssh, home = directory / "home/.ssh", directory / "moat"
    dot_ssh.mkdir(parents=True, mode=0o700)
    home.mkdir(mode=0o700)
    (directory / "key").write_bytes(base64.b64encode(os.urandom(32)))
    (directory / "key").chmod(0o600)
    key = make_key(dot_ssh / "deploy", "ecdsa")
    try:
        with sshd("github.com", directory / "s", [key]) as server:
            (dot_ssh / "known_hosts").write_text(
                f"github.com {server.host_key}\n[github.com]:2222 {server.host_key}\n"
            )
            (dot_ssh / "config").write_text(
                f"Host gh\n  HostName github.com\n  Port 2222\n  User git\nHost *\n  IdentityFile {key}\n"
            )
            address = f'"127.0.0.1:{server.port}"'
            (home / "config.yaml").write_text(
                f'upstream:\n  connect_to:\n    "github.com:22": {address}\n    "github.com:2222": {address}\n'
            )
            environment = {
                "PATH": os.environ["PATH"],
                "HOME": str(directory / "home"),
                "MOAT_HOME": str(home),
                "MOAT_KEYRING_BACKEND": "file",
                "MOAT_KEY_FILE": str(directory / "key"),
                "LANG": "C.UTF-8",
            }
            world = SshWorld(moat_bin, directory, {"github.com": server}, environment)
            for argv in (
                ["ssh", "--host", "github.com"],
                ["ssh", "--host", "gh"],
                ["github", "--no-validate"],
            ):
                done = world.command("grant", *argv, env={"GITHUB_TOKEN": "ghp_" + "x" * 36})
                assert done.returncode == 0, done.stderr
            yield Place(directory, world, server)
            world.command("stop", "--all")
            world.command("clean", "--yes")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param("embedded", marks=pytest.mark.embedded),
        pytest.param("docker", marks=pytest.mark.docker),
    ],
)
def test_the_users_settings_count(place: Place, runtime: str) -> None:
    """An alias with another port, grants and a strict policy in agent.yaml, both grants for GitHub, a revocation."""
    world = place.world
    workspace = place.directory / f"ws-{runtime}"
    workspace.mkdir()
    (workspace / "agent.yaml").write_text(
        "grants: [github, ssh:github.com, ssh:gh]\nnetwork: {policy: strict}\ndependencies: [python, git]\n"
    )
    (workspace / "script.sh").write_text(SCRIPT)

    def change_of_mind() -> None:
        deadline = time.monotonic() + 90
        while not (workspace / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        world.command("revoke", "ssh:gh")
        (workspace / "revoked").touch()

    thread = threading.Thread(target=change_of_mind)
    thread.start()
    done = world.command("run", str(workspace), "--runtime", runtime, "--", "bash", "/workspace/script.sh")
    thread.join()
    again = world.command("grant", "ssh", "--host", "gh")
    assert again.returncode == 0, again.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == ["Host gh", "    HostName github.com", "    Port 2222", "    User git"], done.stderr
    assert lines[4].startswith("Hi octocat!")
    assert lines[5:9] == [
        "alias 1",
        "cloned by its alias",
        "cloned by https",
        "git@github.com:octo/hello.git",
    ]
    assert lines[9].startswith("ghp_moat"), "a placeholder"
    assert lines[10:] == ["revoked 255"]
    assert "Permission denied" in done.stderr
    events = world.record("journal.jsonl")
    assert [event["code"] for event in events if event["event"] == "ssh.refused"] == ["revoked"]
    assert {event["hosts"][0] for event in events if event["event"] == "ssh.sign"} == {"gh", "github.com"}
    urls = [event["url"] for event in world.record("network.jsonl")]
    assert urls.count("github.com:2222") == 3
    assert urls.count("github.com:22") == 1, "the clone by https went by SSH"


@pytest.mark.embedded
@pytest.mark.parametrize("how", ["shell", "flag", "one grant"])
def test_urls_are_left_alone(place: Place, how: str) -> None:
    flags = {"shell": [], "flag": ["-e", "MOAT_GIT_SSH_GITHUB=0"], "one grant": []}[how]
    grants = ["-g", "ssh:github.com", *([] if how == "one grant" else ["-g", "github"])]
    workspace = place.directory / "plain"
    workspace.mkdir(exist_ok=True)
    done = place.world.command(
        "run", str(workspace), "--runtime", "embedded", *grants, *flags, "--",
        "git", "ls-remote", "--get-url", "https://github.com/octo/hello.git",
        env={"MOAT_GIT_SSH_GITHUB": "0"} if how == "shell" else {},
    )  # fmt: skip
    assert done.stdout == "https://github.com/octo/hello.git\n", done.stderr


@pytest.mark.embedded
def test_an_ordinary_user(place: Place) -> None:
    """Moat is not run by root: the agent's socket and the key file are the user's own, nothing is mapped."""
    login = ("run", "--grant", "ssh:github.com", "--", "ssh", "-T", "git@github.com")
    if os.geteuid() != 0:
        done = place.world.command(*login, env={"MOAT_RUNTIME": "embedded"}, cwd=place.world.workspace())
        assert done.stdout.startswith("Hi octocat!"), done.stderr
        return
    from tests.runtime.embedded_kit import user_directory

    with user_directory() as (directory, command):
        home = directory / "home"
        shutil.copytree(place.directory / "home", home)
        shutil.copytree(place.directory / "moat", directory / "moat", ignore=shutil.ignore_patterns("runs"))
        config = home / ".ssh/config"
        config.write_text(config.read_text().replace(str(place.directory), str(directory)))
        uid = directory.stat().st_uid
        run("chown", "-R", f"{uid}:{uid}", str(directory))
        *drop, python = command
        accounts = directory / "passwd"  # ssh refuses a user who has none
        accounts.write_text(f"someone:x:{uid}:{uid}::{home}:/bin/sh\n" + Path("/etc/passwd").read_text())
        variables = [f"HOME={home}", f"MOAT_HOME={directory}/moat", "MOAT_RUNTIME=embedded"]
        variables += ["LD_PRELOAD=libnss_wrapper.so", f"NSS_WRAPPER_PASSWD={accounts}"]
        variables += ["NSS_WRAPPER_GROUP=/etc/group"]
        library = next(word for word in command if word.startswith("PYTHONPATH="))
        variables.append(f"{library.replace('=', f'={_packages(directory)}:')}")
        program = "import sys; from moat.cli import main; sys.exit(main())"

        def moat(*argv: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*drop, *variables, python, "-c", program, *argv],
                capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
                cwd=directory / "workspace",
            )  # fmt: skip

        granted = moat("grant", "ssh", "--host", "github.com")
        assert granted.returncode == 0, granted.stderr
        done = moat(*login)
        assert done.stdout.startswith("Hi octocat!"), done.stderr


def _packages(directory: Path) -> Path:
    """Of this environment, which may lie where the user may not look; the system's own are older or missing."""
    import cryptography

    packages, copy = Path(cryptography.__file__).parent.parent, directory / "packages"
    for name in ("cryptography", "ruamel"):
        shutil.copytree(packages / name, copy / name)
    for path in packages.glob("_cffi_backend*"):
        shutil.copy(path, copy)
    return copy
