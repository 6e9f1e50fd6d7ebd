"""`git http-backend`, as every smart HTTP host runs it: one request in, one answer out."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def http_backend(
    root: Path, method: str, target: str, headers: Mapping[str, str], body: bytes, *, user: str = ""
) -> Answer:
    """What git answers from the bare repositories below `root`; who has no name may only read.

    `headers`: names in lower case. `target`: path with query.
    """
    path, _, query = target.partition("?")
    environ = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REQUEST_METHOD": method,
        "CONTENT_TYPE": headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "GIT_PROTOCOL": headers.get("git-protocol", ""),
        "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
    }
    if user:
        environ["REMOTE_USER"] = user
    done = subprocess.run([_program()], input=body, env=environ, capture_output=True, check=False)
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    return Answer(int(fields.pop("Status", "200").split()[0]), fields, content)


@functools.cache
def _program() -> Path:
    return Path(subprocess.check_output(["git", "--exec-path"], text=True).strip()) / "git-http-backend"
