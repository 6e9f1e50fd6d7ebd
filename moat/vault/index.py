"""`credentials/index.json`: what there is and where, without a secret. The vault's point of commit.

A secret is written under a fresh id first, then the index is replaced, then the old secret is removed.
`pending` names what may exist without being referred to, so that a crash at any point leaves either the
old credential or the new one, and the next change cleans up.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from moat.dataclass import dataclass
from moat.errors import VaultError
from moat.grants import CredentialInfo, CredentialKind
from moat.paths import sync_directory, write_private

_VERSION = 1
StoreName = Literal["keyring", "file"]


@dataclass(frozen=True, slots=True)
class Ref:
    """Where one secret lies. `id` is new for every secret, so nothing is ever half replaced."""

    store: StoreName
    id: str
    chunks: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    info: CredentialInfo
    ref: Ref | None  # None: there is no secret


@dataclass(frozen=True, slots=True)
class Sealing:
    """How the key of the sealed files is found, and a value that tells a wrong key from a bad file."""

    source: Literal["passphrase", "key-file"]
    salt: bytes  # names the key in the header of every sealed file; input of scrypt for a passphrase
    check: bytes = b""
    path: str | None = None  # key file; None: the default one


@dataclass(frozen=True, slots=True)
class Index:
    rows: Mapping[str, Row] = field(default_factory=lambda: MappingProxyType({}))
    pending: tuple[tuple[str, Ref], ...] = ()
    store: StoreName | None = None  # the user's choice, remembered
    sealing: Sealing | None = None

    def with_row(self, row: Row) -> Index:
        return replace(self, rows={**self.rows, row.info.name: row})

    def without_row(self, name: str) -> Index:
        return replace(self, rows={key: row for key, row in self.rows.items() if key != name})


def read_index(path: Path) -> Index:
    """The index at `path`, empty when there is none. Raises VaultError when it cannot be understood."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Index()
    except ValueError:
        raise _damaged(path) from None
    if isinstance(data, dict) and isinstance(data.get("version"), int) and data["version"] > _VERSION:
        raise VaultError(f"{path} was written by a newer moat", hint="update moat")
    try:
        return _decode(data)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _damaged(path) from None


def write_index(path: Path, index: Index) -> None:
    """Replace the index; a crash leaves the old one or the new one, and keeps the files that it names."""
    write_private(path, json.dumps(_encode(index), indent=1).encode() + b"\n")
    sync_directory(path.parent)


def stamp(path: Path) -> tuple[int, int, int]:
    """Changes whenever the index does; zeros when there is none."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (info.st_mtime_ns, info.st_size, info.st_ino)


def describe(info: CredentialInfo) -> dict[str, Any]:
    """`info` as JSON values: the one form used in the index, in sealed payloads and by `--json`."""
    return {
        "name": info.name,
        "kind": info.kind.value,
        "hosts": list(info.hosts),
        "created_at": timestamp(info.created_at),
        "expires_at": timestamp(info.expires_at) if info.expires_at else None,
        "metadata": dict(info.metadata),
    }


def restore(data: Mapping[str, Any]) -> CredentialInfo:
    """The reverse of `describe`. Raises KeyError, TypeError or ValueError."""
    expires = data["expires_at"]
    return CredentialInfo(
        name=str(data["name"]),
        kind=CredentialKind(data["kind"]),
        hosts=tuple(str(host) for host in data["hosts"]),
        created_at=_time(data["created_at"]),
        expires_at=_time(expires) if expires else None,
        metadata=MappingProxyType({str(key): str(value) for key, value in data["metadata"].items()}),
    )


def timestamp(when: dt.datetime) -> str:
    """RFC 3339 in UTC with a Z, whole seconds."""
    return when.astimezone(dt.UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def _time(text: str) -> dt.datetime:
    when = dt.datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError(text)
    try:
        return when.astimezone(dt.UTC)
    except OverflowError:  # in UTC it would be before the year 1, or after 9999
        raise ValueError(text) from None


def _encode(index: Index) -> dict[str, Any]:
    sealing = index.sealing
    return {
        "version": _VERSION,
        "store": index.store,
        "sealing": sealing
        and {
            "source": sealing.source,
            "salt": sealing.salt.hex(),
            "check": sealing.check.hex(),
            "path": sealing.path,
        },
        "credentials": [
            {**describe(row.info), "ref": row.ref and _encode_ref(row.ref)}
            for _, row in sorted(index.rows.items())
        ],
        "pending": [{"name": name, "ref": _encode_ref(ref)} for name, ref in index.pending],
    }


def _encode_ref(ref: Ref) -> dict[str, Any]:
    return {"store": ref.store, "id": ref.id, "chunks": ref.chunks}


def _decode(data: Mapping[str, Any]) -> Index:
    rows = [
        Row(restore(item), None if item["ref"] is None else _decode_ref(item["ref"]))
        for item in data["credentials"]
    ]
    sealing = data["sealing"]
    return Index(
        rows=MappingProxyType({row.info.name: row for row in rows}),
        pending=tuple((str(item["name"]), _decode_ref(item["ref"])) for item in data["pending"]),
        store=None if data["store"] is None else _store(data["store"]),
        sealing=None if sealing is None else _decode_sealing(sealing),
    )


def _decode_ref(data: Mapping[str, Any]) -> Ref:
    chunks = int(data["chunks"])
    if not 1 <= chunks <= 1000:
        raise ValueError(chunks)
    return Ref(_store(data["store"]), str(data["id"]), chunks)


def _decode_sealing(data: Mapping[str, Any]) -> Sealing:
    if data["source"] not in {"passphrase", "key-file"}:
        raise ValueError(data["source"])
    return Sealing(
        source=data["source"],
        salt=bytes.fromhex(data["salt"]),
        check=bytes.fromhex(data["check"]),
        path=None if data["path"] is None else str(data["path"]),
    )


def _store(name: object) -> StoreName:
    match name:
        case "keyring" | "file":
            return name
    raise ValueError(name)


def _damaged(path: Path) -> VaultError:
    return VaultError(f"{path} is damaged", hint=f"move it away (`mv {path} {path}.bad`) and grant again")
