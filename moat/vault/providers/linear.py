"""The `linear` grant: a personal key of the Linear API, which stands in `Authorization` as it is."""

from __future__ import annotations

from moat.vault.providers.declared import Declared, Injection, Shape
from moat.vault.providers.model import Check

PROVIDER = Declared(
    name="linear",
    summary="Linear API",
    hosts=("api.linear.app",),
    injection=Injection("authorization", "raw"),
    shape=Shape("lin_api_", 48),
    marks=("lin_api_",),
    sources=("LINEAR_API_KEY",),
    variables=("LINEAR_API_KEY",),
    check=Check(
        "api.linear.app",
        "/graphql",
        "POST",
        body={"query": "{ viewer { name } }"},
        login=("data", "viewer", "name"),
        rejected=(400, 401, 403),
    ),
    where="https://linear.app/settings/account/security",
)
