"""The plugins of a run that a program starts, made ready by the run; `moat claude` does it before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import anyio.to_thread

from moat.config import RunConfig, load_user
from moat.config.claude import ClaudeConfig
from moat.runtime import tampering
from moat.runtime.parts import Addition, Part, RunContext
from moat.runtime.plugins.declared import Origin, declarations
from moat.runtime.plugins.deliver import Delivery, deliver
from moat.runtime.plugins.fetch import tell
from moat.runtime.plugins.prepare import resolver
from moat.runtime.plugins.resolve import Resolver, check_complete
from moat.runtime.sandbox import HomeFile
from moat.vault.ssh import PREFIX, SshGrant

_SETTINGS = ".claude/settings.json"


class PluginsPart(Part):
    name = "plugins"

    async def prepare(self, run: RunContext) -> Addition:
        """Raises StartError with all that is missing, see `check_complete`."""
        found = _resolver(run)
        resolved = await anyio.to_thread.run_sync(found.resolve)
        for fetch in resolved.fetches:
            tell(run.journal, fetch)
        check_complete(resolved)
        delivery = deliver(resolved, found.declared.project)
        files = with_enabled(run.request.home_files, delivery)
        return Addition(mounts=delivery.mounts, home_files=files, argv=delivery.argv)


def _resolver(run: RunContext) -> Resolver:
    request = run.request
    assert request.plugins is not None
    wanted = ClaudeConfig(plugins=request.plugins.plugins, marketplaces=request.plugins.marketplaces)
    grants = (
        [SshGrant.of(run.vault.info(n)) for n in request.grants if n.startswith(PREFIX)] if run.vault else []
    )

    def before_fetch(origin: Origin) -> None:
        if origin is Origin.PROJECT:
            for path in declared.project_files:
                tampering.check_file(run.home, request.workspace, path)

    declared = declarations(
        user_home=Path.home(),
        home=run.home,
        workspace=request.workspace,
        config=RunConfig(claude=wanted),
    )
    return resolver(
        home=run.home,
        user_home=Path.home(),
        workspace=request.workspace,
        declared=declared,
        upstream=load_user(run.home).upstream,
        ssh=grants,
        refresh=request.rebuild,
        before_fetch=before_fetch,
        progress=run.progress,
    )


def with_enabled(files: Iterable[HomeFile], delivery: Delivery) -> tuple[HomeFile, ...]:
    """What was delivered, and the run's own settings of Claude Code with the plugins switched on."""
    before = next((file.data for file in files if file.path == _SETTINGS), b"{}")
    settings: dict[str, object] = json.loads(before)
    enabled = settings.get("enabledPlugins")
    own = enabled if isinstance(enabled, Mapping) else {}
    settings["enabledPlugins"] = {**delivery.enabled, **own}
    return (*delivery.home_files, HomeFile(_SETTINGS, json.dumps(settings, indent=2).encode()))
