"""The `elevenlabs` grant: a key of the ElevenLabs API."""

from __future__ import annotations

from moat.vault.providers.declared import Declared, Injection, Shape
from moat.vault.providers.model import Check

PROVIDER = Declared(
    name="elevenlabs",
    summary="ElevenLabs API",
    hosts=("api.elevenlabs.io",),
    injection=Injection("xi-api-key", "raw"),
    shape=Shape("sk_", 51),
    sources=("ELEVENLABS_API_KEY",),
    variables=("ELEVENLABS_API_KEY",),
    check=Check("api.elevenlabs.io", "/v1/user"),
    where="https://elevenlabs.io/app/settings/api-keys",
)
