"""Patience with a Secret Service that many processes use at once.

gnome-keyring (42, Debian 12) notes a client that connects in one thread and looks it up in another. Under
load it may miss it: then it says that an object does not exist, gives out a path of random bytes, or aborts
on an assertion of GLib (`invoke_get_property_in_idle_cb`; D-Bus says "recipient disconnected without
replying" and starts another). jeepney gives a busy bus one second for its greeting. So Moat's own processes
take turns, and what may be over in a moment is tried again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from moat.paths import runtime_dir

T = TypeVar("T")

PAUSES = (0.1, 0.3, 0.6, 1.0)  # seconds before each further attempt
_TURN = 5.0  # seconds to wait for one's turn; whoever has it may be held up by the desktop's unlock dialog
_POLL = 0.01


def patiently(function: Callable[..., T], *arguments: object) -> T:
    """`function`, again when it failed in a way that passes. It must be harmless to call twice. Blocks."""
    for pause in PAUSES:
        try:
            with _turn():
                return function(*arguments)
        except Exception as error:
            if not passes(error):
                raise
        time.sleep(pause)
    with _turn():
        return function(*arguments)


def passes(error: BaseException | None) -> bool:
    """Whether the same call may work in a moment: not when somebody said no, or nothing is there."""
    try:
        from secretstorage import exceptions
    except ImportError:  # another system's keyring
        return False
    if error is not None and isinstance(error.__cause__, exceptions.SecretStorageException):
        return passes(error.__cause__)  # keyring's InitError
    if isinstance(error, exceptions.PromptDismissedException):
        return False  # the user's word, and a kind of ItemNotFoundException
    busy = (exceptions.SecretServiceNotAvailableException, exceptions.ItemNotFoundException, TimeoutError)
    return isinstance(error, busy)


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Alone among this user's Moat processes, or after `_TURN` seconds in spite of them: it is a courtesy."""
    fd = os.open(runtime_dir() / "keyring.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _TURN
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_POLL)
        yield
    finally:
        os.close(fd)
