"""The store of sealed files, for machines without an OS keyring, chosen by the user and never silently."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from pathlib import Path

from moat.errors import VaultError
from moat.grants import Secret
from moat.paths import write_private
from moat.vault.index import Ref, Sealing
from moat.vault.key import Asking, KeyFinder, NewKey
from moat.vault.providers import command
from moat.vault.seal import BrokenSealError, Header, fits, make_check, read_header, seal, unseal

_FILE_LIMIT = 1 << 20  # bytes; no credential is larger, nothing bigger is read into memory
_TRIES = 3  # for a typed passphrase


class SealedFiles:
    """The sealed files of one profile, and their key once it is known."""

    def __init__(self, directory: Path, *, profile: str, default_key_file: Path, asking: Asking) -> None:
        self._directory = directory
        self._profile = profile
        self._finder = KeyFinder(default_key_file, asking)
        self._sealing: Sealing | None = None
        self._new_key: NewKey | None = None  # how the first file shall be protected
        self._key = b""

    def adopt(self, handoff: bytes) -> None:
        """Take the key that another process has found."""
        data = json.loads(handoff)
        self._sealing = Sealing("passphrase", bytes.fromhex(data["salt"]))
        self._key = base64.b64decode(data["key"])

    def handoff(self) -> bytes:
        """The key for another process. Only after `prepare`."""
        assert self._sealing is not None
        text = {"salt": self._sealing.salt.hex(), "key": base64.b64encode(self._key).decode()}
        return json.dumps(text).encode()

    def prepare(self, sealing: Sealing | None) -> None:
        """Find the key of existing files, or how to make one for the first. May ask. Raises VaultError.

        It writes nothing: whoever was asked may still give up.
        """
        if sealing is None:
            if self._sealing is None and self._new_key is None:
                self._new_key = self._finder.choose()
        elif self._sealing is None or self._sealing.salt != sealing.salt:
            self._key = self._find(sealing)
            self._sealing = sealing

    def agree(self, sealing: Sealing | None) -> Sealing:
        """What the index shall say, under its lock: another process may have made the key just now."""
        self.prepare(sealing)
        if sealing is None and self._sealing is None:
            assert self._new_key is not None
            made, self._key = self._finder.make(self._new_key)
            self._sealing = Sealing(made.source, made.salt, make_check(self._key), made.path)
        assert self._sealing is not None
        return sealing or self._sealing

    def location(self, name: str) -> str:
        path, home = self.path(name), Path.home()
        return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)

    def path(self, name: str) -> Path:
        return self._directory / f"{name}.enc"

    def write(self, name: str, ref: Ref, payload: Secret) -> None:
        """Write the sealed payload beside the current file; `settle` puts it in place."""
        assert self._sealing is not None
        header = Header(name, self._profile, ref.id, self._sealing.salt.hex())
        write_private(self._staged(name, ref), seal(self._key, header, payload.reveal().encode()))

    def written(self, name: str, ref: Ref) -> str:
        """What `write` has written, as it comes back."""
        return self._open(self._staged(name, ref), name, ref)

    def settle(self, name: str, ref: Ref) -> None:
        """Put what `write` wrote in place, after the index has named it."""
        with contextlib.suppress(FileNotFoundError):  # a reader has already done it
            os.replace(self._staged(name, ref), self.path(name))

    def read(self, name: str, ref: Ref) -> str:
        """The payload of `name`. Finishes a change that a crash cut off after its commit."""
        staged = self._staged(name, ref)
        if staged.exists():
            try:
                self.settle(name, ref)
            except OSError:  # the disk can only be read
                return self._open(staged, name, ref)
        return self._open(self.path(name), name, ref)

    def _open(self, path: Path, name: str, ref: Ref) -> str:
        try:
            with path.open("rb") as file:
                # Sealed or not: whoever has a copy can try passphrases for as long as they like.
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise VaultError(f"{path} is open to other users", hint=f"chmod 600 {path}")
                data = file.read(_FILE_LIMIT)
        except FileNotFoundError:
            raise VaultError(f"{path} is gone", hint=_again(name)) from None
        try:
            header, _ = read_header(data)
            self._check(header, name, ref)
            return unseal(self._key, data).decode()
        except BrokenSealError as error:
            raise VaultError(f"{path} has been altered: {error}", hint=_again(name)) from None

    def delete(self, name: str, ref: Ref, *, live: Ref | None) -> None:
        """Remove the secret of `ref`. live: what the index names now; its file stays."""
        self._staged(name, ref).unlink(missing_ok=True)
        if live is None or live.store != "file":
            self.path(name).unlink(missing_ok=True)

    def _check(self, header: Header, name: str, ref: Ref) -> None:
        assert self._sealing is not None
        if (header.name, header.profile) != (name, self._profile):
            raise BrokenSealError(f"it holds {header.name!r} of profile {header.profile!r}")
        if header.id != ref.id:
            raise BrokenSealError("it is another version than the index says")
        if header.key != self._sealing.salt.hex():
            raise BrokenSealError("it was sealed with another key")

    def _find(self, sealing: Sealing) -> bytes:
        for attempt in range(_TRIES):
            key, asked = self._finder.find(sealing, again=attempt > 0)
            if fits(key, sealing.check):
                return key
            if not asked:
                break
        if sealing.source == "key-file":
            raise VaultError(
                "the key file does not fit the sealed credentials",
                hint=f"restore the key file that they were made with{_LOST}",
            )
        raise VaultError("wrong passphrase for the sealed credentials", hint=f"check MOAT_PASSPHRASE{_LOST}")

    def _staged(self, name: str, ref: Ref) -> Path:
        return self._directory / f".{name}.{ref.id}.enc"


_LOST = "\nif it is lost: `moat revoke` what `moat grant list` shows, then grant again"


def _again(name: str) -> str:
    return f"grant it again: {command(name)}"
