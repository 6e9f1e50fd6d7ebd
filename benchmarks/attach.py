"""What people feel of an attached session: the first full screen, and the echo of a key.

    python benchmarks/attach.py [--rounds 20] [--runtime embedded|docker] [--json]

attach: from the start of `moat attach` to the last line of a 24-row full-screen program on the terminal,
beside the start of a bare interpreter. echo: from a key written to the terminal to its echo, through `moat`
and a sandbox, beside the same program on a bare pseudo-terminal; both take turns, key by key.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

MOAT = str(Path(sys.executable).parent / "moat")
SCREEN = r"printf '\033[?1049h\033[2J\033[H'; seq 1 23; printf 'the last line'; exec sleep 600"
ECHO = "stty raw -echo; printf ready; exec cat"


class Terminal:
    def __init__(self, argv: list[str], environment: dict[str, str], cwd: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=cwd, start_new_session=True
        )
        os.close(slave)

    def until(self, text: bytes, seconds: float = 20) -> None:
        seen = b""
        while text not in seen:
            if not select.select([self.master], [], [], seconds)[0]:
                raise TimeoutError(seen[-200:])
            seen += os.read(self.master, 65536)

    def echo(self) -> float:
        """Milliseconds."""
        started = time.perf_counter()
        os.write(self.master, b"x")
        self.until(b"x")
        return (time.perf_counter() - started) * 1000

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.master)


def attach(rounds: int, environment: dict[str, str], cwd: str) -> dict[str, list[float]]:
    run(environment, cwd, "screen", SCREEN)
    times: dict[str, list[float]] = {"bare interpreter": [], "attach": []}
    for number in range(rounds + 1):
        for name, found in times.items():
            started = time.perf_counter()
            if name == "attach":
                terminal = Terminal([MOAT, "attach", "screen"], environment, cwd)
                terminal.until(b"the last line")
            else:
                subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
            if number:
                found.append((time.perf_counter() - started) * 1000)
            if name == "attach":
                terminal.close()
    return times


def echo(rounds: int, environment: dict[str, str], cwd: str) -> dict[str, list[float]]:
    run(environment, cwd, "echo", ECHO)
    terminals = {
        "bare": Terminal(["sh", "-c", ECHO], environment, cwd),
        "attached": Terminal([MOAT, "attach", "echo"], environment, cwd),
    }
    times: dict[str, list[float]] = {name: [] for name in terminals}
    for terminal in terminals.values():
        terminal.until(b"ready")
        time.sleep(0.5)
    for number in range(rounds * 25):
        for name, terminal in terminals.items():
            elapsed = terminal.echo()
            if number > 10:
                times[name].append(elapsed)
        time.sleep(0.005)
    for terminal in terminals.values():
        terminal.close()
    return times


def run(environment: dict[str, str], cwd: str, name: str, script: str) -> None:
    argv = [MOAT, "run", "-d", "-i", "--name", name, "--", "sh", "-c", script]
    subprocess.run(argv, env=environment, cwd=cwd, capture_output=True, check=True)
    time.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runtime", default="embedded", choices=["embedded", "docker"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home, "MOAT_HOME": f"{home}/.moat"}
        environment |= {"MOAT_RUNTIME": options.runtime, "TERM": "xterm-256color"}
        cwd = f"{home}/work"
        os.mkdir(cwd)
        try:
            found = attach(options.rounds, environment, cwd) | echo(options.rounds, environment, cwd)
        finally:
            subprocess.run(
                [MOAT, "stop", "--all", "-t", "1"], env=environment, capture_output=True, check=False
            )
    rows = [
        {
            "what": name,
            "median_ms": round(statistics.median(values), 2),
            "p95_ms": round(sorted(values)[int(len(values) * 0.95)], 2),
            "min_ms": round(min(values), 2),
        }
        for name, values in found.items()
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
