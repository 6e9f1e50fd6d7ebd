"""Whom Moat itself believes as a TLS client: the same authorities with every Python."""

from __future__ import annotations

import ssl


def client_context(authorities: str | None = None) -> ssl.SSLContext:
    """Names and chains are checked, against `authorities` (PEM) or else the system's roots.

    From Python 3.13 on the default refuses authorities that curl, browsers and Python 3.12 take: those of
    some company proxies have no key identifier. Whom to trust is the user's to say, not the Python's.
    """
    context = ssl.create_default_context(cadata=authorities)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
