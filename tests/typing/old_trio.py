"""Moat's proxy in a program for trio < 0.23, whose types come from trio-typing. Checked, never run.

`nox -s trio_typing` checks it, alone in its environment: with a current trio these stubs report errors
that do not exist. It shows that the proxy's public API can be used with them; the proxy itself runs on
anyio, which needs a current trio at run time.
"""

from __future__ import annotations

import socket
from typing import List  # noqa: UP035 - as programs of that time were written

import trio
from trio_typing import Nursery, TaskStatus
from typing_extensions import assert_type  # noqa: UP035 - as above

import moat.proxy
from moat.proxy import ExchangeFinished, Policy, Proxy, RunCA, Upstream, UpstreamOptions


def make_proxy(events: List[ExchangeFinished]) -> Proxy:  # noqa: UP006 - as programs of that time were written
    return Proxy(
        policy=Policy(mode="strict"),
        ca=RunCA.generate("example"),
        upstream=Upstream(UpstreamOptions()),
        on_event=events.append,
    )


async def serve(proxy: Proxy, *, task_status: TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    task_status.started(port)
    await proxy.serve(listener)


async def main() -> None:
    events: List[ExchangeFinished] = []  # noqa: UP006 - as above
    proxy = make_proxy(events)
    async with trio.open_nursery() as nursery:
        assert_type(nursery, Nursery)
        await nursery.start(serve, proxy)
        assert_type(proxy.connections, int)
        with trio.move_on_after(1) as scope:
            await proxy.aclose(grace=0.5)
        assert_type(scope, trio.CancelScope)
        nursery.cancel_scope.cancel()
    for event in events:
        assert_type(event, moat.proxy.ExchangeFinished)


trio.run(main)
