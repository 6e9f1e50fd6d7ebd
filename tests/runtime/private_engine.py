"""A Docker engine of the tests' own, which they may kill: the real `dockerd` with every place of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from moat.config.image import DEFAULT_BASE
from moat.runtime import engine_socket
from moat.runtime.deps.resolve import machine
from moat.runtime.dockerfile import plan
from moat.runtime.engine_socket import EngineUnreachableError
from moat.runtime.image import tag_of


class PrivateEngine:
    """In a network of its own: without a bridge, an engine removes the bridge of any other. Needs root."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.socket = place / "s"
        self.address = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self._options: tuple[str, ...] = ()

    def start(self, *options: str) -> None:
        command = [
            *("unshare", "--net", "dockerd", "--host", self.address, "--data-root", self._place / "data"),
            *("--exec-root", self._place / "exec", "--pidfile", self._place / "pid"),
            *("--bridge=none", "--iptables=false", "--ip-forward=false", "--userland-proxy=false"),
            *options,
        ]
        self._options = options
        (self._place / "pid").unlink(missing_ok=True)
        # It outlives the test that starts it, whose processes are known by their home.
        environment = {name: value for name, value in os.environ.items() if name != "MOAT_HOME"}
        with (self._place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert time.monotonic() < deadline, (self._place / "log").read_text()[-2000:]
            time.sleep(0.05)

    def _answers(self) -> bool:
        with contextlib.suppress(EngineUnreachableError, OSError):
            return engine_socket.ask("GET", "/_ping", path=self.socket).status == 200
        return False

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """It has its socket, and does nothing."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def end(self, number: int) -> None:
        """Returns when it has ended, and its containerd with it, which the next one would wait for."""
        assert self._process
        pid = self._place / "exec/containerd/containerd.pid"
        containerd = pid.read_text() if pid.exists() else "none"  # of an engine that did not get so far
        self._process.send_signal(number)
        self._process.wait(30)
        self._process = None
        deadline = time.monotonic() + 10
        while Path("/proc", containerd).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def tidy(self) -> None:
        if self._process and self._options:
            self.end(signal.SIGTERM)
        if not self._process:
            self.start()  # without --live-restore it ends what an earlier one has left running
        self.end(signal.SIGTERM)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if (point := line.split()[4]).startswith(f"{self._place}/"):
                subprocess.run(["umount", "--lazy", point], check=True)

    def give_image(self) -> None:
        """Python as this machine has it, under the names of the base image and of what Moat would build of it.

        To copy the real ones takes ten seconds.
        """
        docker = ["docker", "--host", self.address]
        with subprocess.Popen(
            [*docker, "import", "-", DEFAULT_BASE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as engine:
            assert engine.stdin
            assert engine.stdout
            with engine.stdin, tarfile.open(fileobj=engine.stdin, mode="w|") as archive:
                for path in _python():
                    archive.add(path)
            base = engine.stdout.read().decode().strip()
        tag = tag_of(plan((), None, machine=machine()), base)
        subprocess.run([*docker, "tag", base, tag], check=True)


def _python() -> list[str]:
    """The interpreter, its library, and the shared libraries that both need."""
    program = os.path.realpath("/usr/bin/python3")
    library = f"/usr/lib/{Path(program).name}"
    modules = Path(library, "lib-dynload").glob("*.so")
    told = subprocess.run(["ldd", program, *modules], capture_output=True, text=True, check=True).stdout
    needed = {f"/usr{path}" for path in re.findall(r"(/lib\S+) \(0x", told)}  # /lib is a link to /usr/lib
    links = ["/lib", "/lib64", "/usr/bin/python3"]
    return [*links, program, library, *sorted({*needed, *map(os.path.realpath, needed)})]


@contextlib.contextmanager
def private_engine() -> Iterator[PrivateEngine]:
    """A started one. Afterwards nothing of it is left, running containers included."""
    place = Path(tempfile.mkdtemp(prefix="mt-engine-", dir="/tmp"))
    engine = PrivateEngine(place)
    try:
        engine.start()
        yield engine
    finally:
        engine.tidy()
        shutil.rmtree(place)
