"""`claude setup-token` on a terminal of our own, shown on the user's terminal but for the token.

The command is a full-screen program that needs a terminal and prints a token of about 108 characters.
At 80 columns it breaks the token over two lines with escapes between, so its terminal is at least 200
columns wide; line wrapping is off on the user's terminal meanwhile, so that a narrower one clips the
wide lines and its cursor moves still fit. From the first sign of the token on, nothing is shown.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence

from moat.config import UpstreamConfig
from moat.dataclass import dataclass
from moat.grants import Secret

COLUMNS = 200
_PREFIX = b"sk-ant-oat"
_TOKEN = re.compile(rb"sk-ant-oat\d\d-[A-Za-z0-9_-]{8,}")
# CSI, OSC and the two- and three-byte escapes: they stand where a person sees a space.
_ESCAPE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][0-9A-Za-z]|[0-~])")
_CONTROL_C = (b"\x03", b"\x1b[99;5u")  # the second one under the kitty keyboard protocol
_NO_WRAP = b"\x1b[?7l"
# What the command puts back itself at its end, when nothing is shown any more: reports of focus and mouse,
# bracketed paste, wrapping, cursor; and what old terminals print as text, so only if it was ever set.
_PUT_BACK = (
    b"\x1b[?1004l\x1b[?2031l\x1b[?2004l\x1b[?1006l\x1b[?1003l\x1b[?1002l\x1b[?1000l\x1b[?7h\x1b[?25h\r\n"
)
_PUT_BACK_IF_SET = ((re.compile(rb"\x1b\[>\d*u"), b"\x1b[<u"), (re.compile(rb"\x1b\[>4;"), b"\x1b[>4m"))
_GRACE = 5.0  # seconds to end after the last output, or after being told to
_KEPT = 256 * 1024  # bytes of output that are searched for the token
# Everything else stays out: keys of other vendors, and the variables that make claude skip the login.
# fmt: off
_PASSED = frozenset((
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "COLORTERM", "TMPDIR",
    "BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS", "SSH_CONNECTION",
    "WSL_DISTRO_NAME", "WSL_INTEROP", "CLAUDE_CONFIG_DIR", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE",
    "SSL_CERT_DIR",
))
# fmt: on
_PASSED_LOWER = frozenset(("https_proxy", "http_proxy", "no_proxy", "all_proxy"))  # in either case
_PASSED_PREFIXES = ("LC_", "XDG_")


@dataclass(frozen=True, slots=True)
class Acquired:
    """How the command ended."""

    token: Secret | None
    status: int  # its exit status
    interrupted: bool = False  # the user pressed Ctrl-C


def setup_environment(environment: Mapping[str, str], upstream: UpstreamConfig) -> dict[str, str]:
    """What the command gets of `environment`, with the proxy and the CA of the user's configuration."""
    passed = {key: value for key, value in environment.items() if _passes(key)}
    if upstream.proxy:
        passed = {key: value for key, value in passed.items() if key.lower() != "https_proxy"}
        passed["HTTPS_PROXY"] = upstream.proxy
    if upstream.ca_bundle:
        passed["NODE_EXTRA_CA_CERTS"] = str(upstream.ca_bundle)
    return passed


def _passes(key: str) -> bool:
    return key in _PASSED or key.lower() in _PASSED_LOWER or key.startswith(_PASSED_PREFIXES)


def setup_token(
    command: Sequence[str], *, environment: Mapping[str, str], stdin: int, stdout: int
) -> Acquired:
    """Run `command` for the user at the terminal `stdin`/`stdout`; returns the token that it printed.

    The token goes nowhere but into the result: not to the terminal, not to a log. Raises OSError when
    the command cannot be started.
    """
    master, slave = pty.openpty()
    with os.fdopen(master, "rb+", buffering=0) as ours:
        try:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, _size(stdout))
            process = subprocess.Popen(
                list(command),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=dict(environment),
                cwd="/",  # Claude Code obeys the settings of a project, a version manager's shim its file
                start_new_session=True,
            )
        finally:
            os.close(slave)
        relay = _Relay(ours.fileno(), stdin, stdout)
        with _ended(process), _raw(stdin, stdout):
            relay.run()
            relay.put_back()
            if not relay.interrupted:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)
    return Acquired(find_token(bytes(relay.output)), process.returncode, relay.interrupted)


def find_token(output: bytes) -> Secret | None:
    """The token in the output of the command, or None."""
    found: list[bytes] = _TOKEN.findall(_ESCAPE.sub(b" ", output))
    return Secret(max(found, key=len).decode()) if found else None


class _Relay:
    """Bytes between the user's terminal and the command's, until the command is done."""

    def __init__(self, command: int, stdin: int, stdout: int) -> None:
        self._command = command
        self._stdin = stdin
        self._stdout = stdout
        self._held = b""  # may be the beginning of the token
        self._hiding = False
        self.output = bytearray()
        self.interrupted = False

    def run(self) -> None:
        while not self.interrupted:
            ready, _, _ = select.select([self._command, self._stdin], [], [])
            if self._command in ready and not self._from_command():
                return
            if self._stdin in ready and not self._from_user():
                return

    def put_back(self) -> None:
        """Undo what the command did to the user's terminal, as far as `_raw` does not."""
        for was_set, undo in _PUT_BACK_IF_SET:
            if was_set.search(self.output):
                _write(self._stdout, undo)

    def _from_command(self) -> bool:
        try:
            data = os.read(self._command, 65536)
        except OSError:  # EIO: the last process closed the terminal
            return False
        self.output += data
        del self.output[:-_KEPT]
        _write(self._stdout, self._shown(data))
        return bool(data)

    def _from_user(self) -> bool:
        data = os.read(self._stdin, 65536)
        if any(key in data for key in _CONTROL_C):
            self.interrupted = True
        elif data:
            _write(self._command, data)
        return bool(data)

    def _shown(self, data: bytes) -> bytes:
        """What of `data` the user may see: everything up to the token."""
        if self._hiding:
            return b""
        text = self._held + data
        at = text.find(_PREFIX)
        if at >= 0:
            self._hiding, self._held = True, b""
            return text[:at]
        held = next((n for n in range(len(_PREFIX) - 1, 0, -1) if text.endswith(_PREFIX[:n])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever happens, the command is gone afterwards."""
    try:
        yield
    finally:
        for stop in (process.terminate, process.kill):
            if process.poll() is None:
                stop()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)


@contextlib.contextmanager
def _raw(stdin: int, stdout: int) -> Iterator[None]:
    """The user's terminal hands over every key, and gets back its modes afterwards."""
    before = termios.tcgetattr(stdin)
    tty.setraw(stdin)
    _write(stdout, _NO_WRAP)
    try:
        yield
    finally:
        _write(stdout, _PUT_BACK)
        # Late answers to what the command asked the terminal are not the user's typing: flushed.
        termios.tcsetattr(stdin, termios.TCSAFLUSH, before)


def _size(stdout: int) -> bytes:
    try:
        user = os.get_terminal_size(stdout)
    except OSError:
        user = os.terminal_size((COLUMNS, 24))
    return struct.pack("HHHH", max(user.lines, 10), max(user.columns, COLUMNS), 0, 0)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
