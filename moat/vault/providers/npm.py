"""The `npm` grant: a token of the npm registry, or of another registry (`npm:npm.example.com`).

What a registry is for stands in `.npmrc`: whose scopes come from it and under which path it lies. Those lines
are taken over from the user's own when the token is (`moat.vault.npmrc`), and kept with the credential.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from moat.dataclass import dataclass
from moat.vault.providers.declared import Declared, Shape
from moat.vault.providers.model import Check, Held

PATHS = "paths"  # metadata: the registry's paths on its host, one per line
ROUTES = "routes"  # metadata: `@scope:registry=…` and `registry=…` lines


@dataclass(frozen=True, slots=True)
class Npm(Declared):
    def check_of(self, facts: Mapping[str, str]) -> Check | None:
        """A registry that lies below a path of its host answers there and nowhere else."""
        path = facts.get(PATHS, "/").partition("\n")[0].rstrip("/")
        return replace(self.check, path=path + self.check.path) if self.check else None

    def files(self, held: Sequence[Held]) -> tuple[tuple[str, bytes], ...]:
        lines: dict[str, None] = {}
        for one in held:
            lines |= dict.fromkeys(filter(None, one.info.metadata.get(ROUTES, "").splitlines()))
            for path in one.info.metadata.get(PATHS, "/").splitlines():
                lines[f"//{one.info.hosts[0]}{path}:_authToken={one.placeholder}"] = None
        return ((".npmrc", "".join(f"{line}\n" for line in lines).encode()),)


PROVIDER = Npm(
    name="npm",
    summary="npm registry, for private packages and publishing",
    hosts=("registry.npmjs.org",),
    scoped=("{host}",),
    shape=Shape("npm_", 40),
    marks=("npm_",),
    sources=("NPM_TOKEN",),
    check=Check("{host}", "/-/whoami", login=("username",)),
    where="https://www.npmjs.com/settings/~/tokens",
)
