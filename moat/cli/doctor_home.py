"""What `moat doctor` says of things that Moat keeps: the journal and its key, room on the disk, endpoints."""

from __future__ import annotations

import os
import shutil

from moat.cli.doctor import Row
from moat.journal import ledger, verify
from moat.journal.key import public_key
from moat.paths import Home

_LITTLE, _TOO_LITTLE = 5 << 30, 200 << 20  # bytes


def journal(home: Home) -> Row:
    """Raises MoatError when the key is not one, or others may read it; that tells how to fix it."""
    key = public_key(home)
    if key is None:
        return Row("journal", "ok", "no run yet; the key is made with the first one")
    report = verify.of_ledger(home)
    if report.problems:
        return Row(
            "journal",
            "fail",
            f"the ledger was changed: {report.problems[0]}",
            "moat audit --verify --all tells what can still be proven",
        )
    return Row("journal", "ok", f"{ledger.path_of(home)}: {report.entries} entries, signed with {key}")


def room(home: Home) -> Row:
    """Journals, snapshots, images and output stay on this file system."""
    usage = shutil.disk_usage(home.root)
    detail = f"{usage.free / (1 << 30):,.1f} of {usage.total / (1 << 30):,.1f} GiB are free for {home.root}"
    fix = "moat clean, moat snapshot prune and moat system prune make room"
    if usage.free < _TOO_LITTLE:
        return Row("disk", "fail", detail, fix)
    return Row("disk", "warn", detail, fix) if usage.free < _LITTLE else Row("disk", "ok", detail)


def endpoints(home: Home) -> Row:
    """The gateway, and who trusts its certificates. Makes nothing."""
    from moat.runtime.endpoints import ca, spawn
    from moat.runtime.endpoints.stores import Certificate, stores

    path = ca.certificate_path(home)
    if not path.exists():
        return Row("endpoints", "ok", "none yet; a run with `ports:` makes the gateway and its certificate")
    serving = f"gateway on port {spawn.port_of(home)}" if spawn.alive(home) else "no gateway runs now"
    pem = path.read_bytes()
    certificate = Certificate(path, ca.name_of(pem), pem)
    found = stores(os.environ)
    trusting = [store.what for store in found if store.holds(certificate)]
    detail = f"{serving}; its certificate is trusted by {', '.join(trusting) or 'nobody'}"
    if found and not trusting:
        return Row("endpoints", "warn", detail, "moat trust install")
    return Row("endpoints", "ok", detail)
