"""A real gnome-keyring on a D-Bus session of its own, unlocked with a password, its files private."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import secretstorage
from jeepney import message_bus
from jeepney.io.blocking import DBusConnection

# The keyring library leaves its D-Bus connections to the garbage collector when the keyring is locked or
# gone; what is collected while such a test is torn down is not our leak.
LEAVES_CONNECTIONS = pytest.mark.filterwarnings("ignore:unclosed .socket.* raddr=/tmp/dbus-:ResourceWarning")

_START = """\
gnome-keyring-daemon --foreground --unlock --components=secrets < "$PASSWORD_FILE" >/dev/null 2>&1 &
echo "$! $DBUS_SESSION_BUS_ADDRESS"
exec cat
"""


@dataclass(frozen=True)
class KeyringSession:
    daemon: int  # process id of gnome-keyring-daemon
    files: Path  # where it keeps the keyrings

    def entries(self) -> dict[str, str]:
        """Account and secret of everything stored under the service `moat`."""
        with closing(secretstorage.dbus_init()) as bus:
            items = secretstorage.get_default_collection(bus).search_items({"service": "moat"})
            return {item.get_attributes()["username"]: item.get_secret().decode() for item in items}

    def lock(self) -> None:
        with closing(secretstorage.dbus_init()) as bus:
            secretstorage.get_default_collection(bus).lock()


@contextmanager
def keyring_session(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyringSession]:
    """Point DBUS_SESSION_BUS_ADDRESS of this process at a fresh, unlocked keyring until the block ends."""
    password = home / "keyring-password"
    password.write_text("not empty")
    with tempfile.TemporaryDirectory(prefix="mk-", dir="/tmp") as runtime:
        environment = os.environ | {"XDG_RUNTIME_DIR": runtime, "PASSWORD_FILE": str(password)}
        process = subprocess.Popen(
            ["dbus-run-session", "--", "sh", "-c", _START],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdout
            daemon, address = process.stdout.readline().split()
            monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
            _wait_until_unlocked()
            yield KeyringSession(int(daemon), home / ".local/share/keyrings")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(daemon), signal.SIGCONT)
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=10)
            for thread in threading.enumerate():
                if thread.name.startswith(("moat-keyring", "AnyIO worker")):  # those that a test gave up on
                    thread.join(10)
            gc.collect()


def _wait_until_unlocked() -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with closing(secretstorage.dbus_init()) as bus:
            # Any other call would make D-Bus start a second daemon, a locked one.
            if _running(bus) and not secretstorage.get_default_collection(bus).is_locked():
                return
        time.sleep(0.05)
    raise AssertionError("gnome-keyring-daemon did not come up unlocked")


def _running(bus: DBusConnection) -> bool:
    asked = message_bus.NameHasOwner("org.freedesktop.secrets")
    return bool(bus.send_and_get_reply(asked).body[0])
