"""The `sentry` grant: a token of sentry.io, or of another Sentry (`sentry:sentry.example.com`)."""

from __future__ import annotations

from moat.vault.providers.declared import Declared, Shape
from moat.vault.providers.model import Check

PROVIDER = Declared(
    name="sentry",
    summary="Sentry API",
    hosts=("sentry.io", "*.sentry.io"),
    scoped=("{host}",),
    shape=Shape("sntryu_", 71),
    marks=("sntryu_", "sntrys_"),
    sources=("SENTRY_AUTH_TOKEN",),
    variables=("SENTRY_AUTH_TOKEN",),
    check=Check("{host}", "/api/0/", login=("user", "username")),
    where="https://sentry.io/settings/account/api/auth-tokens/",
)
