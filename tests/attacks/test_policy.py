"""Rules and budgets, attacked from inside: every spelling of a path, every way to begin anew.

How each was shown to fail: with `readings` returning the path as it is written, `/public/..%2fadmin/x` arrives;
with a budget per connection (`Accounts` made in `Site.of`) all requests of the second round pass.
"""

from __future__ import annotations

import json

from tests.attacks.conftest import HOST, OTHER, World
from tests.attacks.test_no_credential import step

CONFIG = f"""\
dependencies: [python]
network:
  policy: strict
  rules:
    - {HOST}: ["deny * /admin/**", "allow GET /**"]
    - {OTHER}: ["warn GET /odd/**", "allow * /**"]
  budget:
    hosts:
      {OTHER}: {{requests: 4, upload: 20KB}}
"""
WIDER = f"network: {{rules: [{OTHER}], budget: {{requests: 1000}}}}"
ADMIN = [
    "/admin/x", "//admin/x", "/./admin/x", "/public/../admin/x", "/public/%2e%2e/admin/x", "/public/..%2fadmin/x",
    "/%61dmin/x", "/admin%2fx", "/admin\\x", "/admin;a=b/x", "/public/..;/admin/x", "/%2561dmin/x", "/Admin/x",
    "/admin%00/x", "/%c0%afadmin/x", "/%EF%BD%81dmin/x",
]  # fmt: skip


def get(name: str, host: str, path: str, *headers: str) -> dict[str, object]:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "X-Mark: mine", "Connection: close", *headers, "", ""]
    return step(name, "\r\n".join(lines), host.lower().rstrip("."), connect=f"{host}:443")


def plan() -> list[dict[str, object]]:
    steps = [get(f"admin {path}", HOST, path) for path in ADMIN]
    steps += [
        get("method", HOST, "/public/x", "X-HTTP-Method-Override: DELETE"),
        get("rewrite", HOST, "/public/x", "X-Original-URL: /admin/x"),
        get("host", HOST + ".", "/admin/x"),
        get("public", HOST, "/public/x"),
        get("odd", OTHER, "/odd/one"),
        get("first", OTHER, "/a"),
        step("big", f"POST /big HTTP/1.1\r\nHost: {OTHER}\r\nContent-Length: 30000\r\n\r\n", OTHER),
        get("third", OTHER, "/c"),
        get("fourth", OTHER.upper(), "/d"),
    ]
    return steps


def test_no_spelling_and_no_new_beginning_gets_around_a_policy(world: World, runtime: str) -> None:
    place = world.workspace(f"policy-{runtime}")
    (place / "agent.yaml").write_text(CONFIG)
    (place / "plan.json").write_text(json.dumps(plan()))
    probe = "python3 /workspace/through_proxy.py"
    before = len(world.origin.received)
    script = f"{probe} && echo '{WIDER}' > agent.yaml && cp agent.yaml moat.yaml && {probe}"
    done = world.command("run", str(place), "--runtime", runtime, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    for answers in (first, second):
        for name in [*(f"admin {path}" for path in ADMIN), "method", "rewrite", "host", "big"]:
            assert answers[name].startswith("HTTP/1.1 4"), (name, answers[name][:300])
        assert answers["public"].startswith("HTTP/1.1 200"), answers["public"][:300]
    assert [first[name][9:12] for name in ("odd", "first", "third", "fourth")] == ["200", "200", "200", "200"]
    for name in ("odd", "first", "third", "fourth"):
        assert second[name].startswith("HTTP/1.1 403"), (
            "a new process, connection and agent.yaml change nothing"
        )
        assert f"network.budget.hosts: {OTHER}: requests 4" in second[name]
    arrived = b"".join(world.origin.received[before:])
    assert b"GET /public/x" in arrived
    assert b"admin" not in arrived.lower()
    record = json.loads(world.command("list", "--json").stdout)[0]
    assert record["warned"] == 1
    journal = world.command("audit", record["id"]).stdout
    assert "network.warned" in journal
    assert "code=budget" in journal
    trace = [
        json.loads(line)
        for line in world.command("trace", "--network", "--json", record["id"]).stdout.splitlines()
    ]
    (odd,) = [line for line in trace if line.get("warning")]
    assert odd["warning"]["rule"] == f"{OTHER}: warn GET /odd/**"
    assert odd["status"] == 200
