"""The OS keyring: one entry per credential, service `moat`, account `<profile>/<name>/<id>`.

The `keyring` library falls back to backends that keep nothing (null), keep nothing and fail (fail) or
keep plain text (keyrings.alt), and it reads a variable and a file that can name any class. So the class
that was really loaded must be one of a few, and before a first write a probe must come back unchanged.

Its calls block on D-Bus or on a dialog of the desktop: each runs in a thread with a deadline.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from moat.errors import VaultError
from moat.grants import Secret
from moat.vault.busykeyring import patiently
from moat.vault.index import Ref

T = TypeVar("T")

SERVICE = "moat"
CHUNK = 1200  # characters; the Windows credential store holds 1280 (2560 bytes of UTF-16)
DEADLINE = 60.0  # seconds: long enough to type the password into the desktop's unlock dialog

_ALLOWED = {
    ("keyring.backends.SecretService", "Keyring"): "Secret Service",
    ("keyring.backends.libsecret", "Keyring"): "libsecret",
    ("keyring.backends.kwallet", "DBusKeyring"): "KWallet",
    ("keyring.backends.kwallet", "DBusKeyringKWallet4"): "KWallet",
    ("keyring.backends.macOS", "Keyring"): "macOS Keychain",
    ("keyring.backends.Windows", "WinVaultKeyring"): "Windows Credential Locker",
}
_FILES = "to use sealed files instead: MOAT_KEYRING_BACKEND=file moat grant …"
_UNLOCK = "unlock the keyring (log in to the desktop, or `gnome-keyring-daemon --unlock`)"


class KeyringStore:
    """The entries of one profile in the OS keyring. Making one loads nothing."""

    def __init__(self, profile: str, *, deadline: float = DEADLINE) -> None:
        self._profile = profile
        self._deadline = deadline
        self._backend: Any = None
        self._label = "the OS keyring"
        self._probed = False

    def open(self, *, probe: bool) -> None:
        """Load the backend and check it. Raises VaultError when it is not one to trust with a secret."""
        if self._backend is None:
            self._backend, product = self._call(_load)
            self._label = f"the OS keyring ({product})"
        if probe and not self._probed:
            self._call(_probe, self._backend)
            self._probed = True

    def check(self) -> None:
        """Raise VaultError when the keyring cannot be read now: it is locked, or gone."""
        self.open(probe=False)
        self._call(self._backend.get_password, SERVICE, "probe")

    def location(self, name: str) -> str:
        del name
        return self._label

    def write(self, name: str, ref: Ref, payload: Secret) -> None:
        self.open(probe=True)
        for index, chunk in enumerate(split(payload.reveal())):
            self._call(self._backend.set_password, SERVICE, self._account(name, ref, index), chunk)

    def written(self, name: str, ref: Ref) -> str:
        """What `write` has written, as it comes back."""
        return self.read(name, ref)

    def settle(self, name: str, ref: Ref) -> None:
        """Nothing to do: an entry is complete as soon as the index names it."""

    def read(self, name: str, ref: Ref) -> str:
        self.open(probe=False)
        chunks = [
            self._call(self._backend.get_password, SERVICE, self._account(name, ref, index))
            for index in range(ref.chunks)
        ]
        if any(chunk is None for chunk in chunks):
            raise VaultError(
                f"{self._label} has no entry for {name!r} any more",
                hint=f"grant it again: moat grant {name}",
            )
        return "".join(chunks)

    def delete(self, name: str, ref: Ref, *, live: Ref | None) -> None:
        """Remove the entries of `ref`; entries that are not there are no error."""
        del live  # every secret has entries of its own
        self.open(probe=False)
        for index in range(ref.chunks):
            self._call(_forget, self._backend, self._account(name, ref, index))

    def _account(self, name: str, ref: Ref, index: int) -> str:
        account = f"{self._profile}/{name}/{ref.id}"
        return f"{account}/{index}" if index else account

    def _call(self, function: Callable[..., T], *arguments: object) -> T:
        return call(function, *arguments, deadline=self._deadline)


def split(payload: str) -> list[str]:
    """`payload` (ASCII) in entries that every keyring can hold."""
    return [payload[at : at + CHUNK] for at in range(0, len(payload), CHUNK)] or [""]


def call(function: Callable[..., T], *arguments: object, deadline: float) -> T:
    """Run a keyring call in a thread, patiently; turn what it raises, or its silence, into VaultError.

    The thread is a daemon: a keyring that never answers must not keep the process alive. No text of a
    foreign error is passed on beyond the keyring library's own, since it could quote the secret.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(patiently(function, *arguments))
        except BaseException as error:  # handed to the caller
            failure.append(error)

    thread = threading.Thread(target=work, name="moat-keyring", daemon=True)
    thread.start()
    thread.join(deadline)
    if thread.is_alive():
        raise VaultError(
            f"the OS keyring did not answer within {deadline:.0f} s", hint=f"{_UNLOCK}\n{_FILES}"
        )
    if failure:
        raise _translate(failure[0]) from None
    return result[0]


def _translate(error: BaseException) -> VaultError:
    from keyring.errors import InitError, KeyringLocked, NoKeyringError

    if isinstance(error, VaultError):
        return error
    if isinstance(error, KeyringLocked):
        return VaultError("the OS keyring is locked", hint=f"{_UNLOCK}\n{_FILES}")
    if isinstance(error, NoKeyringError):
        return _none()
    if type(error).__name__ == "SecretServiceNotAvailableException":
        return VaultError("the OS keyring does not answer any more", hint=f"is it still running?\n{_FILES}")
    detail = f": {error}" if isinstance(error, InitError) else ""
    return VaultError(f"the OS keyring failed ({type(error).__name__}){detail}", hint=f"{_UNLOCK}\n{_FILES}")


def _none() -> VaultError:
    return VaultError(
        "no OS keyring answers here (no Secret Service on D-Bus, or no D-Bus session)",
        hint=f"start one (gnome-keyring, KWallet, KeePassXC) in this session\n{_FILES}",
    )


def _load() -> tuple[Any, str]:
    """(backend, product) of the first good backend that `keyring` has loaded."""
    import keyring

    try:
        loaded = keyring.get_keyring()
    except Exception as error:
        # PYTHON_KEYRING_BACKEND or keyringrc.cfg may name any class at all, with any failure.
        raise VaultError(
            f"the configured keyring backend cannot be loaded ({type(error).__name__})",
            hint=f"unset PYTHON_KEYRING_BACKEND and check `keyring diagnose`\n{_FILES}",
        ) from None
    for backend in _unchained(loaded):
        product = _product(backend)
        if product:
            return backend, product
    name = f"{type(loaded).__module__}.{type(loaded).__qualname__}"
    if name == "keyring.backends.fail.Keyring":
        raise _none()
    raise VaultError(
        f"the keyring backend {name} is not one that keeps secrets safe",
        hint=f"unset PYTHON_KEYRING_BACKEND, or uninstall that backend, to use the OS keyring\n{_FILES}",
    )


def _unchained(backend: Any) -> list[Any]:
    from keyring.backends.chainer import ChainerBackend

    return list(backend.backends) if isinstance(backend, ChainerBackend) else [backend]


def _product(backend: Any) -> str | None:
    """The product's name when the very class is on the list; a subclass or a namesake is not."""
    kind = type(backend)
    product = _ALLOWED.get((kind.__module__, kind.__qualname__))
    if product is None:
        return None
    genuine = getattr(importlib.import_module(kind.__module__), kind.__qualname__, None)
    return product if genuine is kind else None


def _forget(backend: Any, account: str) -> None:
    """Delete an entry when it is there. Once more does no harm."""
    if backend.get_password(SERVICE, account) is not None:
        backend.delete_password(SERVICE, account)


def _probe(backend: Any) -> None:
    """Write, read and delete a random value. Raises VaultError when it does not come back."""
    account, value = f"probe/{os.urandom(8).hex()}", os.urandom(16).hex()
    backend.set_password(SERVICE, account, value)
    returned = backend.get_password(SERVICE, account)
    _forget(backend, account)
    if returned != value or backend.get_password(SERVICE, account) is not None:
        raise VaultError("the OS keyring did not return what was written to it", hint=_FILES)
