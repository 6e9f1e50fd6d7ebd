"""From what names plugins to a resolver for one workspace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from moat.config import UpstreamConfig
from moat.paths import Home, private_dir
from moat.runtime.plugins.declared import SKIP_HOST, Declarations, Origin
from moat.runtime.plugins.git import Access, Bounds
from moat.runtime.plugins.installed import Installed
from moat.runtime.plugins.lock import Lock
from moat.runtime.plugins.resolve import Resolver
from moat.runtime.plugins.trees import Trees
from moat.vault.ssh import SshGrant


def resolver(
    *,
    home: Home,
    user_home: Path,
    workspace: Path,
    declared: Declarations,
    upstream: UpstreamConfig,
    ssh: Iterable[SshGrant] = (),
    refresh: bool = False,
    offline: bool = False,
    before_fetch: Callable[[Origin], None] = lambda _: None,
    progress: Callable[[str], None] = lambda _: None,
    environ: Mapping[str, str] = os.environ,
    bounds: Bounds | None = None,
) -> Resolver:
    """The resolver of `workspace`; `ssh`: the grants of the run. Fetches nothing yet."""
    hosts = {grant.host.lower(): grant for grant in ssh}
    skip = environ.get(SKIP_HOST) in {"1", "true"}
    return Resolver(
        declared=declared,
        trees=Trees(private_dir(home.plugin_trees), bounds or Bounds()),
        lock=Lock(home.root / "claude" / "plugins.lock.json"),
        access=Access(own=True, ssh=hosts, upstream=upstream, environ=environ),
        installed=Installed(None if skip else user_home),
        workspace=workspace,
        refresh=refresh,
        offline=offline,
        before_fetch=before_fetch,
        progress=progress,
    )
