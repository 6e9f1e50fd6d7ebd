"""The `brave-search` grant: a key of the Brave Search API."""

from __future__ import annotations

from moat.vault.providers.declared import Declared, Injection, Shape
from moat.vault.providers.model import Check

PROVIDER = Declared(
    name="brave-search",
    summary="Brave Search API",
    hosts=("api.search.brave.com",),
    injection=Injection("x-subscription-token", "raw"),
    shape=Shape("BSA", 31),
    sources=("BRAVE_API_KEY",),
    variables=("BRAVE_API_KEY",),
    check=Check("api.search.brave.com", "/res/v1/web/search?q=moat&count=1", rejected=(401, 403, 422)),
    where="https://api-dashboard.search.brave.com/app/keys",
)
