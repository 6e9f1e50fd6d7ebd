"""Where packages are published: an npm registry and PyPI's upload, which take one token each.

Both show what they were sent to whoever asks for what they have not got.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from typing import Any
from urllib.parse import unquote

from tests.vault.vendor import Answer, Asked


@dataclass
class NpmRegistry:
    """Answers below `path` of one host."""

    token: str
    path: str = ""  # `/npm/private`
    packages: dict[str, dict[str, Any]] = field(default_factory=dict)  # name → its document
    tarballs: dict[str, bytes] = field(default_factory=dict)

    def __call__(self, asked: Asked) -> Answer:
        sent = asked.headers.get("authorization", "")
        if sent != f"Bearer {self.token}":
            return 401, {"error": f"unauthorized, sent {sent}"}
        if not asked.path.startswith(f"{self.path}/"):
            return 404, {"error": f"not found, sent {sent}"}
        parts = unquote(asked.path.removeprefix(self.path)).strip("/").split("/-/")
        name = parts[0]
        if name == "-/whoami":
            return 200, {"username": "octocat"}
        if len(parts) == 2 and parts[1] in self.tarballs:
            return 200, self.tarballs[parts[1]], {"Content-Type": "application/octet-stream"}
        if name.startswith("-/package/"):
            return self._tag(name.removeprefix("-/package/"), asked)
        if asked.method == "PUT" and len(parts) == 1:
            self._publish(asked.host, json.loads(asked.body))
            return 201, {"success": True}
        if name in self.packages:
            return 200, self.packages[name], {"X-Sent": sent}
        return 404, {"error": f"not found, sent {sent}"}

    def _publish(self, host: str, document: dict[str, Any]) -> None:
        for name, attached in document.pop("_attachments").items():
            self.tarballs[name.split("/")[-1]] = base64.b64decode(attached["data"])
        for number, version in document["versions"].items():
            file = f"{document['name'].split('/')[-1]}-{number}.tgz"
            version["dist"]["tarball"] = f"https://{host}{self.path}/{document['name']}/-/{file}"
        self.packages[document["name"]] = document

    def _tag(self, name: str, asked: Asked) -> Answer:
        """`npm dist-tag`."""
        package, _, tag = name.partition("/dist-tags")
        tags = self.packages[package]["dist-tags"]
        if asked.method == "PUT":
            tags[tag.strip("/")] = json.loads(asked.body)
        return 200, tags


@dataclass
class PyPIUpload:
    token: str
    files: dict[str, bytes] = field(default_factory=dict)

    def __call__(self, asked: Asked) -> Answer:
        sent = asked.headers.get("authorization", "")
        pair = base64.b64encode(f"__token__:{self.token}".encode()).decode()
        if sent != f"Basic {pair}":
            return 403, f"Invalid or non-existent authentication information: {sent}".encode()
        form = _form(asked)
        if form["name"] == "taken":
            return 400, f"The name is taken, {sent}".encode()
        self.files[form["filename"]] = form["content"]
        return 200, b"", {"X-Sent": sent}


def _form(asked: Asked) -> dict[str, Any]:
    head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
    found: dict[str, Any] = {}
    for part in message_from_bytes(head + asked.body).get_payload():
        assert isinstance(part, Message)
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        if name == "content":
            found |= {"filename": part.get_filename(), "content": data}
        else:
            found[str(name)] = data.decode()
    return found
