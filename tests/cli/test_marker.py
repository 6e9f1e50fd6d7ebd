"""A marker in place of a secret, every command that could meet it, and a search of all that is left and was said.

The marker enters by standard input, a variable, a program and a file, as secrets do. It is looked for in plain, base64
and hexadecimal, in the output of every command, in every file that Moat made, in every journal and trace, and, while the
commands run, in the command line and environment of every process of theirs.

Seen to fail: with `Secret.__repr__` showing its value, or the payload of `Vault._replace` as plain text, the traceback below
has it; with `put` writing a copy in plain text, a file.
"""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vault.conftest import traces
from tests.vault.vendor import Answer, Asked, Vendor, vendor

Moat = Callable[..., subprocess.CompletedProcess[str]]
MARK = "MARKER7f3a9c1eSECRET"
KEYS = {
    "anthropic": f"sk-ant-api03-{MARK}",
    "github": f"ghp_{MARK}",
    "linear": f"lin_{MARK}",
    "openai": f"sk-{MARK}",
}
REGISTRY = "registry.example.com"  # takes a password, so the marker goes out in base64
HOSTS = ("api.anthropic.com", "api.github.com", "api.linear.app", "api.openai.com", REGISTRY)
FORMS = (MARK, base64.b64encode(MARK.encode()).decode().rstrip("="), MARK.encode().hex())
# Every frame of an error with its variables, as crash reporters write them; and everything that can be logged, is.
LOUD = """
import logging, sys, traceback
logging.basicConfig(level=logging.NOTSET)
def told(kind, error, tb):
    sys.stderr.write("".join(traceback.TracebackException(kind, error, tb, capture_locals=True).format()))
sys.excepthook = told
import os
if os.environ.get("BREAK"):
    import moat.vault.store as store
    def broken(*_):
        raise RuntimeError("broken for the test")
    store.write_index = broken
"""


def answer(asked: Asked) -> Answer:
    """Echoes everything, in a header and the body; half of the vendors reject."""
    echo = {"sent": asked.headers, "body": asked.body.decode("latin-1")}
    if asked.host == REGISTRY and "authorization" not in asked.headers:
        return 401, {}, {"WWW-Authenticate": 'Basic realm="x"'}
    return (200 if asked.host != "api.openai.com" else 401), echo


@pytest.fixture
def vendors(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendor]:
    monkeypatch.setenv("MOAT_KEYRING_BACKEND", "file")
    monkeypatch.setenv("MOAT_KEY_FILE", str(home / "key"))
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud/sitecustomize.py").write_text(LOUD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "loud"))
    with vendor(tmp_path / "vendor", answer, *HOSTS) as server:
        server.config(home / ".moat", *HOSTS)
        yield server


class Watch:
    """Looks at the processes that were started with this home, and at what they say."""

    def __init__(self, moat: Moat, home: Path) -> None:
        self._moat = moat
        self._home = f"MOAT_HOME={home / '.moat'}".encode()
        self.seen: set[str] = set()
        self.leaks: list[str] = []
        self.outputs: list[tuple[tuple[str, ...], str]] = []
        self._stop = threading.Event()

    def __call__(self, *argv: str, secret: str | None = None, **options: object) -> str:
        given: dict[str, object] = {"input": secret} if secret is not None else {}
        done = self._moat(*argv, timeout=90, **given, **options)
        said = done.stdout + done.stderr
        self.outputs.append((argv, said))
        if any(form in said for form in FORMS):
            self.leaks.append(f"moat {' '.join(argv)} said it:\n{said}")
        return said

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look_around)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(10)

    def _look_around(self) -> None:
        while not self._stop.wait(0.1):
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit() or int(entry.name) == os.getpid():
                    continue
                with contextlib.suppress(OSError):
                    environment, line = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
                    if self._home in environment:
                        self.seen.add(entry.name)
                        if MARK.encode() in environment + line:
                            self.leaks.append(f"process {line!r}")


@pytest.mark.docker
@pytest.mark.embedded
def test_no_command_leaves_or_says_it(moat: Moat, vendors: Vendor, home: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"  # where the user keeps it: the one file that may hold it
    kept.write_text(KEYS["linear"])
    say = Watch(moat, home)
    with say.watching():
        _grant(say, kept)
        _run(say, tmp_path / "project")
        _break(say, home, tmp_path)
        time.sleep(0.2)
    assert len(say.seen) > 10
    assert any("DEBUG" in said for _, said in say.outputs)  # the libraries did talk
    assert any("broken for the test" in said for _, said in say.outputs)
    assert {asked.host for asked in vendors.asked} == set(HOSTS)
    assert any(MARK in str(asked.headers) for asked in vendors.asked)  # it was in use
    assert say.leaks == []
    kept.unlink()
    left = traces(
        MARK, home, tmp_path / "project", tmp_path / "workspace", Path(os.environ["XDG_RUNTIME_DIR"])
    )
    assert left == []


def _grant(say: Watch, kept: Path) -> None:
    for name in ("anthropic", "github", "openai"):
        say("grant", name, "--token-stdin", "--json", secret=KEYS[name])
    say("grant", "openai", "--token-stdin", "--no-validate", secret=KEYS["openai"])  # the first was rejected
    say("grant", "linear", "--command", f"cat {kept}")
    say("grant", "mcp", "acme", "--url", "https://mcp.example.com/", "--token-stdin", secret=MARK)
    say("grant", "docker", "--host", REGISTRY, "--username", "me", "--token-stdin", secret=MARK)
    say("grant", "anthropic", "--token-stdin", secret=f"wrong {MARK} shape\x01")
    say("grant", "vercel", "--command", f"sh -c 'cat {kept}; cat {kept} >&2; exit 1'")
    for name in ("anthropic", "linear"):
        say("grant", "show", name)
    say("grant", "show", "github", "--show-token")
    say("grant", "list", "--json")


# In a sandbox: its environment and files, and an echo of every vendor.
LOOK = """
import os, pathlib, urllib.request
print(dict(os.environ), pathlib.Path("~/.codex/auth.json").expanduser().read_text())
for host in ("api.anthropic.com/v1/x", "api.github.com/user", "api.linear.app/x", "api.openai.com/x", "registry.example.com/v2/a/tags/list"):
    try:
        with urllib.request.urlopen(f"https://{host}") as answer:
            print("ECHO", answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as answer:
        print("ECHO", answer.code, answer.headers, answer.read())
raise SystemExit(3)
"""


def _run(say: Watch, project: Path) -> None:
    project.mkdir()
    (project / "agent.yaml").write_text("dependencies: [python]\n")
    grants = ("-g", "anthropic", "-g", "github", "-g", "linear", "-g", "openai", "-g", f"docker:{REGISTRY}")
    for runtime in ("embedded", "docker"):
        command = ("run", str(project), "--runtime", runtime, "-n", runtime, *grants)
        said = say(*command, "--", "python3", "-c", LOOK)
        assert said.count("ECHO ") == len(HOSTS), said
        for command in (
            ("logs", runtime),
            ("trace", "--network", "-v", runtime),
            ("trace", "--network", "--json", runtime),
            ("audit", runtime),
            ("status", "--json", runtime),
        ):
            say(*command)
    say("list", "--json")


def _break(say: Watch, home: Path, tmp_path: Path) -> None:
    """Errors of every kind, a crash with the variables of every frame in it, and what is carried away."""
    say(
        "grant",
        "github",
        "--token-stdin",
        "--no-validate",
        secret=KEYS["github"],
        env=os.environ | {"BREAK": "1"},
    )
    (home / "other-key").write_bytes(b"A" * 43 + b"=\n")
    (home / "other-key").chmod(0o600)
    wrong = os.environ | {"MOAT_KEY_FILE": str(home / "other-key")}
    say("grant", "github", "--token-stdin", "--no-validate", secret=KEYS["github"], env=wrong)
    say("run", "--runtime", "embedded", "-g", "github", "--", "true", env=wrong)
    (tmp_path / "pass").write_text("of the file")
    with (tmp_path / "pass").open() as passphrase:
        fd = passphrase.fileno()
        say("vault", "export", str(home / "all.age"), "--passphrase-fd", str(fd), pass_fds=[fd])
        os.lseek(fd, 0, os.SEEK_SET)
        taken = say(
            "vault", "import", str(home / "all.age"), "--passphrase-fd", str(fd), "--replace", pass_fds=[fd]
        )
        assert "github imported" in taken
    sealed = home / ".moat/credentials/github.enc"
    data = bytearray(sealed.read_bytes())
    data[-1] ^= 1
    sealed.write_bytes(data)
    say("run", "--runtime", "embedded", "-g", "github", "--", "curl", "-sS", "https://api.github.com/user")
    say("vault", "move", "--to", "keyring")
    say("revoke", "github")


def test_the_search_finds_what_is_there(home: Path, moat: Moat) -> None:
    """The search above is proven by what it does find."""
    (home / "deep").mkdir()
    (home / "deep/file").write_bytes(b"x" * 1000 + MARK.encode().hex().encode())
    assert traces(MARK, home) == [home / "deep/file"]
    say = Watch(moat, home)
    with say.watching():
        say("grant", "show", MARK)  # on the command line, as nobody should
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)", MARK], check=True, timeout=30)
    assert any(leak.startswith("process") for leak in say.leaks)
