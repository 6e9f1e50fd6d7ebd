"""Runs, for programs: start one in this event loop, watch one that runs elsewhere, list them all.

    import moat.runtime

    async with moat.runtime.start(["pytest", "-q"], workspace="project") as run:
        async for chunk in run.output():
            ...
        code = await run.wait()

Names are resolved when they are first used (PEP 562), so `import moat.runtime` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moat.config import BudgetConfig, HostRules, Marketplace, NetworkConfig, PluginsConfig, SnapshotConfig
    from moat.journal.entry import Entry
    from moat.journal.verify import Report
    from moat.paths import Home
    from moat.proxy.decider import Question
    from moat.proxy.events import Denial, ExchangeFinished
    from moat.runtime.api import list_runs, read_journal, start, verify_journal
    from moat.runtime.local_run import LocalRun
    from moat.runtime.questions import Asked
    from moat.runtime.records import RunRecord, State
    from moat.runtime.remote import RemoteRun, attach
    from moat.runtime.sandbox import Execution, Mount, Output
    from moat.runtime.size import Size

_HOMES = {
    "Asked": "moat.runtime.questions",
    "BudgetConfig": "moat.config",
    "Denial": "moat.proxy.events",
    "Entry": "moat.journal.entry",
    "Execution": "moat.runtime.sandbox",
    "ExchangeFinished": "moat.proxy.events",
    "Home": "moat.paths",
    "HostRules": "moat.config",
    "LocalRun": "moat.runtime.local_run",
    "Marketplace": "moat.config",
    "Mount": "moat.runtime.sandbox",
    "PluginsConfig": "moat.config",
    "NetworkConfig": "moat.config",
    "SnapshotConfig": "moat.config",
    "Output": "moat.runtime.sandbox",
    "Question": "moat.proxy.decider",
    "RemoteRun": "moat.runtime.remote",
    "Report": "moat.journal.verify",
    "RunRecord": "moat.runtime.records",
    "Size": "moat.runtime.sandbox",
    "State": "moat.runtime.records",
    "attach": "moat.runtime.remote",
    "list_runs": "moat.runtime.api",
    "read_journal": "moat.runtime.api",
    "start": "moat.runtime.api",
    "verify_journal": "moat.runtime.api",
}

__all__ = [
    "Asked",
    "BudgetConfig",
    "Denial",
    "Entry",
    "ExchangeFinished",
    "Execution",
    "Home",
    "HostRules",
    "LocalRun",
    "Marketplace",
    "Mount",
    "NetworkConfig",
    "Output",
    "PluginsConfig",
    "Question",
    "RemoteRun",
    "Report",
    "RunRecord",
    "Size",
    "SnapshotConfig",
    "State",
    "attach",
    "list_runs",
    "read_journal",
    "start",
    "verify_journal",
]


def __getattr__(name: str) -> Any:
    """The public name, from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
