"""The `vercel` grant: a token for the Vercel API and CLI."""

from __future__ import annotations

from moat.vault.providers.declared import Declared, Shape
from moat.vault.providers.model import Check

PROVIDER = Declared(
    name="vercel",
    summary="Vercel API and CLI",
    hosts=("api.vercel.com", "vercel.com"),
    opens=("*.vercel.com",),
    shape=Shape(length=24),
    sources=("VERCEL_TOKEN",),
    variables=("VERCEL_TOKEN",),
    check=Check("api.vercel.com", "/v2/user", login=("user", "username")),
    where="https://vercel.com/account/settings/tokens",
)
