"""One stack for all tests of this folder, callers that classify throughout, and a table of faults at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.compose.callers import Callers, Expected
from tests.compose.receipts import Ledger
from tests.compose.report import Outcome, save, table
from tests.compose.stack import Stack, engine_answers
from tests.house.sources import ROOT

HERE = Path(__file__).parent
OUTCOMES: list[Outcome] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect these tests, which need a Docker Engine and minutes, unless `make test-compose` selects them by `-m compose`."""
    here = [item for item in items if HERE in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.compose)
        item.add_marker(pytest.mark.timeout(1800))
    if "compose" not in config.option.markexpr:
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table; save it to the documentation when TEST_COMPOSE_KEEP is set and nothing failed."""
    if not OUTCOMES:
        return
    terminalreporter.write_line(f"\n{table(OUTCOMES)}\n")
    if os.environ.get("TEST_COMPOSE_KEEP") and not terminalreporter.stats.get("failed"):
        save(OUTCOMES, ROOT / "docs/ref-compose-faults.md", ROOT / "benchmarks/results/compose-faults.json")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The services, healthy, with their agents running."""
    if not engine_answers():
        pytest.fail("make test-compose needs a Docker Engine with compose 2.24 or newer that `docker` reaches", pytrace=False)
    stack = Stack(tmp_path_factory.mktemp("stack"))
    for folder in (stack.folder, *stack.folder.parents[:2]):
        folder.chmod(0o755)
    stack.write()
    stack.make("secrets")
    stack.remove()
    stack.make("up")
    yield stack
    if not os.environ.get("TEST_COMPOSE_LEAVE"):
        stack.remove()


@pytest.fixture(scope="session")
def admin(stack: Stack) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {stack.secret('admin-token')}"}
    with httpx.Client(base_url=stack.aggregator_url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def callers(stack: Stack, admin: httpx.Client) -> Iterator[Callers]:
    """Callers of inference and the aggregator that go on through every fault."""
    reader = stack.make("enroll", "CLIENT=caller", "ARGS=--role reader --quiet").split()[-1]
    callers = Callers(stack, Expected(stack.model, admin), reader, stack.secret("admin-token"))
    callers.start()
    yield callers
    callers.stop()


@pytest.fixture(scope="session")
def ledger(stack: Stack, admin: httpx.Client) -> Ledger:
    return Ledger(stack, admin)
