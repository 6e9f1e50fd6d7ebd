"""`journal.head`: how long the journal is, kept outside of it, so that an end that was cut off is noticed.

`ledger.head` is the same for the ledger, with an empty `run`.

One signed line of JSON in a file of fixed size, overwritten in place after each write to the journal:

    {"run":"run_…","seq":12,"hash":"…","synced":9,"boot":"…","sig":"…"}

`seq` and `hash` are those of the last entry, `synced` the last one that was on the disk for sure, `boot`
the boot of the machine: what was not synced may be missing after a power cut, and after nothing else.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

from moat.dataclass import dataclass

SIGNED_AS = b"moat journal head 1\n"
SIZE = 512
_SIG = b',"sig":"'


@dataclass(frozen=True, slots=True)
class Head:
    run: str
    seq: int
    hash: str
    synced: int
    boot: str
    signature: bytes = b""
    signed: bytes = b""  # the message of the signature


class HeadFile:
    """Writes heads. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._content = b""

    def write(self, head: Head, sign: Callable[[bytes], bytes]) -> None:
        self._content = compose(head, sign)
        self.again()

    def again(self) -> None:
        """Write the newest head once more, which tells whether anything can be written."""
        if os.pwrite(self._fd, self._content, 0) != len(self._content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def overwrite(path: Path, head: Head, sign: Callable[[bytes], bytes]) -> None:
    """Write the head of a chain that has many writers. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.pwrite(fd, compose(head, sign), 0) != SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def compose(head: Head, sign: Callable[[bytes], bytes]) -> bytes:
    """The whole file."""
    fields = {"run": head.run, "seq": head.seq, "hash": head.hash, "synced": head.synced, "boot": head.boot}
    body = json.dumps(fields, separators=(",", ":")).encode()[:-1]
    return _padded(body + _SIG + sign(SIGNED_AS + body).hex().encode() + b'"}')


def parse(data: bytes) -> Head | None:
    """The head, its signature not yet checked; None when it is torn."""
    line = data.rstrip()
    body, _, rest = line.partition(_SIG)
    try:
        found = json.loads(line)
        signature = bytes.fromhex(found["sig"])
        seq, synced = found["seq"], found["synced"]
        if data != _padded(line) or rest != signature.hex().encode() + b'"}':
            return None
        if type(seq) is not int or type(synced) is not int or seq < 1 or synced < 0:
            return None
        return Head(
            run=str(found["run"]),
            seq=seq,
            hash=str(found["hash"]),
            synced=synced,
            boot=str(found["boot"]),
            signature=signature,
            signed=SIGNED_AS + body,
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _padded(line: bytes) -> bytes:
    return line.ljust(SIZE - 1) + b"\n"


def boot_id() -> str:
    """Differs after every start of the machine; empty where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
