"""The `graphite` grant: the token of Graphite's `gt`, which stacks pull requests."""

from __future__ import annotations

from moat.vault.providers.declared import Declared, Injection
from moat.vault.providers.model import Check

PROVIDER = Declared(
    name="graphite",
    summary="Graphite API and gt",
    hosts=("api.graphite.com",),
    injection=Injection(scheme="token"),
    aliases=("gt",),
    sources=("GRAPHITE_AUTH_TOKEN",),
    variables=("GRAPHITE_AUTH_TOKEN",),
    check=Check(
        "api.graphite.com", "/v1/graphite/check-auth", method="POST", body={}, login=("githubLogin",)
    ),
    where="https://app.graphite.com/activate",
)
