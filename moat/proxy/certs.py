"""The run's own certificate authority: in memory, short-lived, one leaf per host on demand."""

from __future__ import annotations

import ssl


class RunCA:
    """CA of one run. Its key exists in this process's memory only and dies with it."""

    @classmethod
    def generate(cls, name: str) -> RunCA:
        """A fresh CA. `name` (the run id) shows up in its subject."""
        raise NotImplementedError

    @property
    def certificate_pem(self) -> bytes:
        """The CA certificate: what the sandbox has to trust."""
        raise NotImplementedError

    def server_context(self, host: str) -> ssl.SSLContext:
        """The context that terminates TLS for `host` (canonical name or IP literal), cached, capped.

        A ClientHello whose SNI is another name gets the `unrecognized_name` alert; no SNI is accepted.
        Cost when not cached: about 1.5 ms.
        """
        raise NotImplementedError

    def rejected_sni(self, connection: ssl.SSLObject | ssl.SSLSocket) -> str | None:
        """The name that made this connection's handshake fail, for the denial that is recorded."""
        raise NotImplementedError
