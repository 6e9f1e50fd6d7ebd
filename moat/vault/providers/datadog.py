"""The `datadog` grant: an API key of one Datadog site; another site is a scope (`datadog:datadoghq.eu`)."""

from __future__ import annotations

from moat.vault.providers.declared import Declared, Injection, Shape
from moat.vault.providers.model import Check

PROVIDER = Declared(
    name="datadog",
    summary="Datadog API",
    hosts=("*.datadoghq.com",),
    scoped=("*.{host}",),
    injection=Injection("dd-api-key", "raw"),
    shape=Shape(length=32),
    sources=("DD_API_KEY",),
    variables=("DD_API_KEY",),
    check=Check("api.{host}", "/api/v1/validate"),
    where="https://app.datadoghq.com/organization-settings/api-keys",
)
