"""The `gemini` grant: a Gemini API key, for the API and the Gemini CLI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from moat.vault.providers.declared import Declared, Injection, Shape
from moat.vault.providers.model import Check, Held


@dataclass(frozen=True, slots=True)
class Gemini(Declared):
    def files(self, held: Sequence[Held]) -> tuple[tuple[str, bytes], ...]:
        """The CLI asks how to log in unless its settings say so."""
        del held
        settings = json.dumps({"security": {"auth": {"selectedType": "gemini-api-key"}}})
        return ((".gemini/settings.json", settings.encode()),)


PROVIDER = Gemini(
    name="gemini",
    summary="Gemini API and the Gemini CLI",
    hosts=("generativelanguage.googleapis.com",),
    aliases=("google",),
    # Older clients, and the examples of the documentation, have it in the query: `?key=…`.
    injection=Injection("x-goog-api-key", "raw", surfaces=("header", "query")),
    shape=Shape("AIza", 39),
    sources=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    variables=("GEMINI_API_KEY",),
    # A key that is none is answered with 400 (API_KEY_INVALID).
    check=Check("generativelanguage.googleapis.com", "/v1beta/models", rejected=(400, 401, 403)),
    where="https://aistudio.google.com/apikey",
)
