"""Run a command in a sandbox from a program, and see what it asked of the network.

    python examples/run_in_sandbox.py [--runtime docker|embedded] [--workspace DIR] -- command...

The command's output is passed through as it comes; afterwards every exchange of the run is listed.
"""

import argparse
import asyncio
import sys

import moat.runtime


async def run(command: list[str], workspace: str, runtime: str | None) -> int:
    async with moat.runtime.start(command, workspace=workspace, runtime=runtime) as live:
        print(f"{live.name} ({live.id})", file=sys.stderr)
        async for chunk in live.output():
            target = sys.stdout if chunk.stream == "stdout" else sys.stderr
            target.buffer.write(chunk.data)
            target.buffer.flush()
        status = await live.wait()
        for exchange in live.exchanges():
            outcome = exchange.denial.reason if exchange.denial else exchange.status
            print(f"{exchange.method} {exchange.url}: {outcome}", file=sys.stderr)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runtime", choices=["docker", "embedded"])
    parser.add_argument("--workspace", default=".")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    return asyncio.run(run(options.command, options.workspace, options.runtime))


if __name__ == "__main__":
    sys.exit(main())
