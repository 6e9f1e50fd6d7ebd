"""Programs that use the public API, for the type checker: never run, checked by mypy in strict mode."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

import anyio

import moat.proxy
import moat.runtime
from moat.grants import Credential, CredentialSource
from moat.pytest_plugin import ProxyInTest, ProxyMaker
from moat.runtime import BudgetConfig, HostRules, LocalRun, Mount, NetworkConfig, Output, RunRecord, Size


async def decide(question: moat.proxy.Question) -> bool | moat.proxy.Denial:
    assert_type(question.grants, tuple[str, ...])
    if question.undecided:
        return moat.proxy.Denial("mine", f"{question.method} {question.url}", "my own rule")
    return question.host == "pypi.org"


async def start_a_run() -> int:
    network = NetworkConfig(
        policy="strict",
        rules=(HostRules("pypi.org", ("allow GET /simple/**",)),),
        budgets=(BudgetConfig(requests=1000), BudgetConfig(host="pypi.org", download=10**9)),
    )
    async with moat.runtime.start(
        ["pytest", "-q"],
        workspace="project",
        grants=["github"],
        env={"CI": "1"},
        network=network,
        mounts=[Mount(Path("/data"), "/data", read_only=True)],
        tty=Size(80, 24),
        decider=decide,
    ) as run:
        assert_type(run, LocalRun)
        assert_type(run.id, str)
        async for chunk in run.output():
            assert_type(chunk, Output)
            sys.stdout.buffer.write(chunk.data)
        async for question in run.questions():
            assert_type(question, moat.runtime.Asked)
            where = f"{question.host}:{question.port}"
            assert_type(await run.answer(where, allow=True, scope="for", seconds=60), int)
        further = await run.execute(["git", "status"], stdin=True)
        assert_type(further, moat.runtime.Execution)
        assert_type(await further.read(), Output | None)
        assert_type(await further.wait(), int)
        await further.close()
        await run.write(b"y\n")
        await run.resize(Size(120, 40))
        for exchange in run.exchanges():
            assert_type(exchange, moat.runtime.ExchangeFinished)
            print(exchange.status, exchange.denial.reason if exchange.denial else exchange.url)
        assert_type(await run.wait(), int)
        assert_type(await run.stop(), int | None)
        return await run.wait()


async def come_back(name: str) -> int:
    records = moat.runtime.list_runs()
    assert_type(records, list[RunRecord])
    async with moat.runtime.attach(name) as run:
        assert_type(run, moat.runtime.RemoteRun)
        return await run.wait()


class OneCredential:
    """A `CredentialSource` of one's own, for a proxy without Moat's vault."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    async def credential(self, name: str) -> Credential:
        assert name == self._credential.info.name
        return self._credential


async def run_a_proxy(source: CredentialSource, hosts: Sequence[str]) -> None:
    events: list[moat.proxy.ExchangeFinished] = []
    upstream = moat.proxy.Upstream(moat.proxy.UpstreamOptions())
    proxy = moat.proxy.Proxy(
        policy=moat.proxy.Policy(mode="permissive"),
        ca=moat.proxy.RunCA.generate("example"),
        credentials=source,
        upstream=upstream,
        on_event=events.append,
        budgets=[moat.proxy.Budget(requests=100, upload=10**6)],
        decider=decide,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(proxy.serve, socket.create_server(("127.0.0.1", 0)))
        assert_type(proxy.connections, int)
        await proxy.aclose(grace=1.0)
        tasks.cancel_scope.cancel()


async def open_a_proxy(token: str) -> list[str]:
    seen: list[str] = []
    rule = moat.proxy.InjectionRule(credential="demo", hosts=("api.example.com",), header="authorization")
    policy = moat.proxy.Policy("strict", (moat.proxy.parse_host_rule("*", ["allow GET /**"]),))
    async with moat.proxy.Proxy.open(rules=[rule], credentials={"demo": token}, policy=policy) as proxy:
        assert_type(proxy, moat.proxy.OpenProxy)
        assert_type(proxy.url, str)
        async for event in proxy.events(buffer=10):
            if isinstance(event, moat.proxy.Missed):
                assert_type(event.count, int)
            else:
                assert_type(event, moat.proxy.ExchangeFinished)
                seen.append(event.warning.rule if event.warning else event.url)
    return seen


def sources(credential: Credential) -> CredentialSource:
    return OneCredential(credential)


def test_a_client(moat_proxy: ProxyMaker) -> None:
    proxy = moat_proxy(inject={"api.example.com": "real"}, servers={"api.example.com": ("127.0.0.1", 1)})
    assert_type(proxy, ProxyInTest)
    assert_type(proxy.wait_for(1), list[moat.proxy.ExchangeFinished])


def elsewhere(place: Path) -> list[RunRecord]:
    return moat.runtime.list_runs(home=moat.runtime.Home(place))


def look_back(name: str) -> bool:
    for entry in moat.runtime.read_journal(name):
        assert_type(entry, moat.runtime.Entry)
        print(entry.at, entry.event, entry.data)
    report = moat.runtime.verify_journal(name, trusted=["ed25519:…"])
    assert_type(report, moat.runtime.Report)
    return report.status == 0
