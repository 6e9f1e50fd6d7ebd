"""A proxy for programs outside of any sandbox, with the user's grants: what `moat proxy` serves.

It is a run's proxy without the fence: nothing makes a program use it.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

from moat import config
from moat.config import NetworkConfig
from moat.dataclass import dataclass
from moat.errors import UsageError
from moat.grants import Grant
from moat.paths import Home, runtime_dir
from moat.proxy.server import Proxy
from moat.proxy.standalone import OpenProxy
from moat.runtime import trust
from moat.runtime.gateway import budgets_of, policy_of, upstream_options
from moat.runtime.given import NOTHING
from moat.runtime.granted import prepare, unique
from moat.runtime.variables import client_environment
from moat.vault import Vault
from moat.vault.providers import entry


@dataclass(frozen=True, slots=True)
class OutsideProxy:
    proxy: OpenProxy
    environment: Mapping[str, str]  # for programs that shall use it; placeholders of grants among them
    bundle: Path  # PEM: what this machine trusts, and the proxy's CA; gone when the proxy is
    left_out: tuple[str, ...]  # files that grants have in sandboxes only


def injected(names: Iterable[str]) -> tuple[str, ...]:
    """Canonical names of grants that are put on requests. Raises UsageError for others, GrantError."""
    found = unique(names)
    for name in found:
        if not entry(Grant.parse(name).name).injected:
            raise UsageError(
                f"the grant {name} needs a sandbox", hint=f"moat run --grant {name} -- <command>"
            )
    return found


@contextlib.asynccontextmanager
async def open_outside(
    home: Home,
    network: NetworkConfig,
    vault: Vault | None,
    grants: tuple[str, ...],
    *,
    port: int = 0,
    token: bool = True,
    record: Path | None = None,
) -> AsyncIterator[OutsideProxy]:
    """Listen on a loopback port until the block is left.

    Raises ConfigError, GrantError, VaultError, StartError, OSError (port or record).
    """
    given = prepare(vault, grants) if vault else NOTHING
    directory = Path(tempfile.mkdtemp(prefix="proxy-", dir=runtime_dir()))
    try:
        async with Proxy.open(
            port=port,
            token=token,
            policy=policy_of(network, given.hosts),
            rules=given.rules,
            credentials=vault or {},
            budgets=budgets_of(network),
            upstream=upstream_options(config.load_user(home).upstream, network.host),
            record=record,
        ) as proxy:
            bundle = directory / "ca-bundle.pem"
            bundle.write_bytes(trust.sandbox_bundle(proxy.certificate_pem))
            environment = client_environment(proxy.url, str(bundle)) | dict(given.env)
            yield OutsideProxy(proxy, environment, bundle, tuple(file.path for file in given.files))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
