"""The vault: put, get, list, delete, and the credential source of a running proxy."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from moat.dataclass import dataclass
from moat.errors import GrantError, VaultError
from moat.grants import Credential, CredentialInfo, Secret
from moat.paths import Home, locked, private_dir
from moat.vault.index import (
    Index,
    Ref,
    Row,
    StoreName,
    describe,
    read_index,
    restore,
    stamp,
    timestamp,
    write_index,
)
from moat.vault.key import Asking, NewKey
from moat.vault.oskeyring import KeyringStore, split
from moat.vault.profile import DEFAULT, current
from moat.vault.providers import canonical, command
from moat.vault.sealed import SealedFiles


class Store(Protocol):
    """One place for secrets. A secret is addressed by its grant's name and its own `Ref`."""

    def location(self, name: str) -> str: ...
    def write(self, name: str, ref: Ref, payload: Secret) -> None: ...
    def written(self, name: str, ref: Ref) -> str: ...
    def settle(self, name: str, ref: Ref) -> None: ...
    def read(self, name: str, ref: Ref) -> str: ...
    def delete(self, name: str, ref: Ref, *, live: Ref | None) -> None: ...


def open_vault(
    home: Home,
    *,
    passphrase: Callable[[], str] | None = None,
    new_key: Callable[[], NewKey] | None = None,
    handoff: bytes | None = None,
) -> Vault:
    """The vault of `home` and of the profile in MOAT_PROFILE. Touches no store until a secret is needed.

    passphrase: asks the user for the passphrase of sealed files; without it only the environment is
        consulted.
    new_key: asks how new sealed files shall be protected (`moat grant` only).
    handoff: what `Vault.handoff()` of another process returned; with it nothing is ever asked.

    Raises VaultError when MOAT_PROFILE is not a usable name.
    """
    _leave_no_core()
    profile = current()
    root = home.credentials
    directory = root if profile == DEFAULT else root / "profiles" / profile
    files = SealedFiles(
        directory, profile=profile, default_key_file=root / "key", asking=Asking(passphrase, new_key)
    )
    if handoff:
        files.adopt(handoff)
    parents = (home.root, root) if directory == root else (home.root, root, directory.parent)
    return Vault(directory, parents=parents, keyring=KeyringStore(profile), files=files)


def _leave_no_core() -> None:
    """A process that crashes with secrets must not write them to a file, in the workspace as it may be.

    Nor hand them to a program that gathers crashes (`core_pattern`): a limit of 0 is for files only, and
    with 1 the kernel starts no such program either.
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if most == 0 else 1, most))


@dataclass(frozen=True, slots=True)
class _Cached:
    stamp: tuple[int, int, int]  # of the index, when `ref` was last known to be current
    ref: Ref
    credential: Credential


class Vault:
    """The credentials of one profile. Thread-safe; several processes may use one at the same time."""

    def __init__(
        self, directory: Path, *, parents: tuple[Path, ...], keyring: KeyringStore, files: SealedFiles
    ) -> None:
        self._directory = directory
        self._parents = parents
        self._index_file = directory / "index.json"
        self._keyring = keyring
        self._files = files
        self._cache: dict[str, _Cached] = {}
        self._loading = threading.Lock()

    @property
    def directory(self) -> Path:
        """Where the index lies, and the locks of those who change it."""
        return self._directory

    @property
    def stamp(self) -> tuple[int, int, int]:
        """Changes whenever anything is granted or revoked, by whatever process."""
        return stamp(self._index_file)

    def list(self) -> tuple[CredentialInfo, ...]:
        """Every credential, by name. Reads the index only."""
        rows = read_index(self._index_file).rows
        return tuple(rows[name].info for name in sorted(rows))

    def info(self, name: str) -> CredentialInfo:
        """What may be shown of a credential, by name or alias. Reads the index only. Raises GrantError."""
        return self._row(read_index(self._index_file), name).info

    def store(self, name: str) -> StoreName | None:
        """Which kind of store holds the secret, None when there is none. Reads the index only."""
        ref = self._row(read_index(self._index_file), name).ref
        return ref.store if ref else None

    def location(self, name: str) -> str:
        """Where it lies, for a message: a path, or the OS keyring. Raises GrantError."""
        row = self._row(read_index(self._index_file), name)
        if row.ref is None:
            return str(self._index_file)
        return self._store(row.ref.store).location(row.info.name)

    def prepare(self, to: StoreName | None = None) -> None:
        """Make sure that `put` will work: keyring unlocked and probed, or passphrase known.

        For asking before a user goes to fetch a token. `to`: another store than the usual one. Raises
        VaultError.
        """
        index = read_index(self._index_file)
        if (to or self._choice(index)) == "keyring":
            self._keyring.open(probe=True)
        else:
            self._files.prepare(index.sealing)

    def put(self, credential: Credential) -> None:
        """Store `credential` under its name, replacing another one. Raises VaultError, GrantError."""
        name = canonical(credential.info.name)
        credential = replace(credential, info=replace(credential.info, name=name))
        self.prepare()  # may ask the user, so before the lock
        with self._changing() as before:
            self._replace(before, credential, self._choice(before))

    def renew(self, old: tuple[Ref, Credential], credential: Credential) -> bool:
        """As `put`, in place of `old` (`current`).

        False: it was revoked, or granted anew, while the new one was being fetched, and stays as it is.
        """
        self.prepare()
        ref, known = old
        with self._changing() as before:
            row = before.rows.get(known.info.name)
            if row is None or row.ref is None:
                return False
            if row.ref != ref and self._read(row, row.ref).secret != known.secret:  # else it was moved
                return False
            self._replace(before, credential, self._choice(before))
            return True

    def move(self, name: str, to: StoreName) -> bool:
        """Keep a credential in the other store, and new ones too. False: it is there, or has no secret.

        It is read back from its new place before the old one is given up; a crash leaves one or the other.
        Raises GrantError (none), VaultError.
        """
        while True:
            row = self._row(read_index(self._index_file), name)
            if row.ref is None or row.ref.store == to:
                return False
            ref, credential = self._load(name)
            self.prepare(to)
            with self._changing() as before:
                if self._row(before, name).ref == ref:  # else it was granted anew, or renewed, just now
                    self._replace(before, credential, to)
                    return True

    def _replace(self, before: Index, credential: Credential, choice: StoreName) -> None:
        """Under the lock: write the new secret, switch the index to it, remove the old one."""
        name = credential.info.name
        payload = Secret(json.dumps({**describe(credential.info), "secret": credential.secret.reveal()}))
        sealing = self._files.agree(before.sealing) if choice == "file" else before.sealing
        store = self._store(choice)
        ref = Ref(choice, os.urandom(8).hex(), len(split(payload.reveal())) if choice == "keyring" else 1)
        staged = replace(before, sealing=sealing, pending=(*before.pending, (name, ref)))
        write_index(self._index_file, staged)
        store.write(name, ref, payload)
        if store.written(name, ref) != payload.reveal():
            raise VaultError(f"{store.location(name)} did not return what was written to it")
        after = replace(
            staged.with_row(Row(credential.info, ref)), pending=_superseded(before, name), store=choice
        )
        after = _without_idle_key(after)
        write_index(self._index_file, after)
        store.settle(name, ref)
        self._clean(after)

    def note(self, info: CredentialInfo) -> None:
        """Store what has no secret, under its name; the index is all of it. Raises VaultError, GrantError."""
        info = replace(info, name=canonical(info.name))
        with self._changing() as before:
            after = replace(before.with_row(Row(info, None)), pending=_superseded(before, info.name))
            write_index(self._index_file, after)
            self._clean(after)

    def get(self, name: str) -> Credential:
        """The credential of a grant, by name or alias. Raises GrantError (none), VaultError."""
        return self._load(name)[1]

    def current(self, name: str) -> tuple[Ref, Credential]:
        """As `get`, with what it is renewed by."""
        return self._load(name)

    def holds(self, name: str, ref: Ref) -> bool:
        """Whether what is granted is still what lies at `ref`. Reads the index only."""
        row = read_index(self._index_file).rows.get(name)
        return row is not None and row.ref == ref

    def delete(self, name: str) -> CredentialInfo:
        """Forget a credential. Raises GrantError (none), VaultError; then it is still there."""
        if self.store(name) == "keyring":
            self._keyring.check()  # so that a locked keyring is told before anything changes
        with self._changing() as before:
            row = self._row(before, name)
            pending = _superseded(before, row.info.name)
            after = replace(before.without_row(row.info.name), pending=pending)
            after = _without_idle_key(after)
            write_index(self._index_file, after)
            self._clean(after)
        return row.info

    def handoff(self, names: Iterable[str] | None = None) -> bytes:
        """What another process needs to open this vault without asking; b"" when nothing.

        names: the credentials that it will read (None: all). May ask for the passphrase. This is a
        secret: pass it through a pipe, never through argv or the environment. Raises VaultError.
        """
        index = read_index(self._index_file)
        wanted = None if names is None else {canonical(name) for name in names}
        sealed = any(
            row.ref is not None and row.ref.store == "file" and (wanted is None or name in wanted)
            for name, row in index.rows.items()
        )
        if not sealed:
            return b""
        self._files.prepare(index.sealing)
        return self._files.handoff()

    async def credential(self, name: str) -> Credential:
        """As `get`, for the proxy: cached, re-read after a new grant, never blocks the loop for long.

        Raises GrantError when there is none or it has expired, VaultError.
        """
        from anyio import to_thread

        cached = self._cache.get(name)
        if cached is not None and cached.stamp == stamp(self._index_file):
            found = cached.credential
        else:
            found = await to_thread.run_sync(self._current, name, abandon_on_cancel=True)
        if found.info.expired(dt.datetime.now(dt.UTC)):
            raise expired(found.info)
        return found

    def _current(self, name: str) -> Credential:
        with self._loading:  # one caller reads the store, the others find the result
            seen = stamp(self._index_file)
            row = self._row(read_index(self._index_file), name)
            cached = self._cache.get(name)
            if cached is not None and cached.ref == row.ref:
                self._cache[name] = replace(cached, stamp=seen)
                return cached.credential
            ref, loaded = self._load(name)
            self._cache[name] = _Cached(seen, ref, loaded)
            return loaded

    def _load(self, name: str) -> tuple[Ref, Credential]:
        """The credential and where it was. Looks again when a new grant replaced it meanwhile."""
        row = self._row(read_index(self._index_file), name)
        while True:
            ref = _ref(row)
            try:
                return ref, self._read(row, ref)
            except VaultError:
                current = self._row(read_index(self._index_file), name)
                if current.ref == row.ref:
                    raise
                row = current

    def _read(self, row: Row, ref: Ref) -> Credential:
        name = row.info.name
        self._open(ref)
        payload = self._store(ref.store).read(name, ref)
        try:
            data = json.loads(payload)
            secret = Secret(str(data["secret"]))
            info = restore(data)
        except (KeyError, TypeError, ValueError):
            info = None
        if info is None or info.name != name:
            raise VaultError(
                f"the stored credential {name!r} is damaged", hint=f"grant it again: moat grant {name}"
            )
        return Credential(info, secret)

    def _row(self, index: Index, name: str) -> Row:
        row = index.rows.get(canonical(name))
        if row is None:
            raise GrantError(f"no credential {canonical(name)!r}", hint=f"run `{command(name)}`")
        return row

    def _choice(self, index: Index) -> StoreName:
        """The store for a new secret: what the environment says, what was chosen before, the keyring."""
        named = os.environ.get("MOAT_KEYRING_BACKEND")
        if named == "file":
            return "file"
        if named in {"keyring", "os"}:
            return "keyring"
        if named:
            raise VaultError(f"MOAT_KEYRING_BACKEND={named} is unknown", hint="use `file` or `keyring`")
        return index.store or "keyring"

    def _store(self, name: StoreName) -> Store:
        return self._files if name == "file" else self._keyring

    def _open(self, ref: Ref) -> None:
        if ref.store == "keyring":
            self._keyring.open(probe=False)
        else:
            self._files.prepare(read_index(self._index_file).sealing)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Index]:
        """The index under the lock of all processes, with what a crash left behind cleaned up.

        What the disk refuses in the block becomes a VaultError; the index still names what there was.
        """
        try:
            for parent in self._parents:
                private_dir(parent)
            with locked(self._directory / ".lock"):
                yield self._clean(read_index(self._index_file))
        except OSError as error:
            raise VaultError(
                f"the credential store cannot be changed: {error.strerror or error}",
                hint=f"nothing in it was lost; look at the disk and the permissions of {self._directory}",
            ) from error

    def _clean(self, index: Index) -> Index:
        """Remove the secrets that nothing refers to. What cannot be removed now stays pending."""
        left = []
        for name, ref in index.pending:
            row = index.rows.get(name)
            try:
                self._store(ref.store).delete(name, ref, live=row.ref if row else None)
            except (VaultError, OSError):
                left.append((name, ref))
        if len(left) == len(index.pending):
            return index
        index = replace(index, pending=tuple(left))
        write_index(self._index_file, index)
        return index


def _without_idle_key(index: Index) -> Index:
    """A lost passphrase ends with its last file."""
    if any(row.ref and row.ref.store == "file" for row in index.rows.values()):
        return index
    return replace(index, sealing=None)


def _superseded(index: Index, name: str) -> tuple[tuple[str, Ref], ...]:
    """What may be removed once nothing refers to the secret of `name` any more."""
    old = index.rows.get(name)
    return (*index.pending, (name, old.ref)) if old and old.ref else index.pending


def _ref(row: Row) -> Ref:
    if row.ref is None:
        raise GrantError(f"the grant {row.info.name} holds no secret")
    return row.ref


def expired(info: CredentialInfo) -> GrantError:
    """The error of a credential that is past its time."""
    when = timestamp(info.expires_at) if info.expires_at else "unknown"
    return GrantError(f"credential expired: {info.name} (at {when})", hint=f"run `{command(info.name)}`")
