"""What is checked, one session each. `nox -l` lists them; `nox -s lint types imports` is the quick round.

Sessions run in their own environment; inside an active one, `nox --no-venv` uses that instead.
The whole suite with its set-up is `bash .ci/test`.
"""

from __future__ import annotations

import nox

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT, max_version="3.14")  # from requires-python on
FUZZED = ("connect", "heads", "chunks", "conversation", "hello", "h2_client", "h2_server")
TEST_GROUP = nox.project.dependency_groups(PROJECT, "test")

nox.needs_version = ">=2025.10"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "imports"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False


def install(session: nox.Session) -> None:
    """Moat, editable, with everything that the tests use."""
    session.install("--editable", ".", *TEST_GROUP)


def tool(session: nox.Session, name: str) -> None:
    """One tool in the version range of the test group, without the rest of it."""
    session.install(next(line for line in TEST_GROUP if line.startswith(name)))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests; arguments go to pytest. What they need besides Python, `.ci/test` installs."""
    install(session)
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff."""
    tool(session, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Type-check the package, and programs that use its public API, with mypy strict."""
    install(session)
    session.run("mypy")
    session.run("mypy", "tests/typing/api.py", "examples")


@nox.session
def imports(session: nox.Session) -> None:
    """Check that imports go one way and that heavy libraries have one importer."""
    install(session)
    session.run("lint-imports")


@nox.session
def startup(session: nox.Session) -> None:
    """Measure the start-up of the quick commands; fail when one is far over its budget."""
    session.install(".")
    session.run("python", "benchmarks/startup.py", "--check", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks that need nothing else, and fail when an exchange has become dearer."""
    # Method and last numbers are in benchmarks/README.md. `benchmarks.speed` needs nginx and a quiet machine.
    install(session)
    session.run("python", "benchmarks/exchange.py", "--check")
    for script in ("journal.py", "snapshots.py"):
        session.run("python", f"benchmarks/{script}")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz each target for a minute, or `-- TARGET SECONDS`, or `-- TARGET --minimise`; see tests/fuzz."""
    install(session)
    session.install(*nox.project.dependency_groups(PROJECT, "fuzz"))
    runs = [session.posargs] if session.posargs else [[target, "60"] for target in FUZZED]
    for arguments in runs:
        session.run("python", "-m", "tests.fuzz.fuzz", *arguments)


@nox.session
def soak(session: nox.Session) -> None:
    """Put a hundred thousand exchanges and a body of 1 GB through one proxy, and see what it holds then."""
    install(session)
    session.run("python", "-m", "benchmarks.soak.soak", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel and the source distribution into dist/."""
    tool(session, "build")
    session.run("python", "-m", "build", "--outdir", "dist")


@nox.session
def trio_typing(session: nox.Session) -> None:
    """Type-check the proxy's public API from a program for trio < 0.23 with trio-typing's stubs."""
    # Alone, because its stubs and its mypy plugin break a current trio (ARCHITECTURE.md).
    needed = [
        line for line in PROJECT["project"]["dependencies"] if line.startswith(("anyio", "cryptography"))
    ]
    session.install(*nox.project.dependency_groups(PROJECT, "trio-typing"), *needed)
    session.run("mypy", "--config-file", "tests/typing/old_trio.ini", "tests/typing/old_trio.py")
