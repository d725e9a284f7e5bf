"""After each fault in an open round the round ends, each receipt counts once, and no answer was wrong."""

from __future__ import annotations

import time
from datetime import datetime

import httpx
import pytest

from tests.compose.callers import Callers, count_since
from tests.compose.fault_injection import System, fault
from tests.compose.receipts import Ledger, receipts
from tests.compose.stack import AGENTS, ORGANISATIONS, PROJECT, Stack, run, until


@pytest.fixture
def system(stack: Stack, admin: httpx.Client, callers: Callers, ledger: Ledger) -> System:
    return System(stack, admin, callers, ledger)


def test_a_task_runs_and_its_answers_are_those_of_its_adapters(system: System) -> None:
    until("a round has closed with every client", lambda: system.is_whole_since(0.0))
    until("three versions have answered", lambda: len(system.callers.expected.by_digest) >= 3)
    probabilities = list(system.callers.expected.by_digest.values())
    assert min(abs(a - b).max() for n, a in enumerate(probabilities) for b in probabilities[:n]) > 0.01, (
        "the versions are too similar to tell a wrong answer"
    )
    assert not system.callers.observed.wrong
    assert system.ledger.counts_each_once() > 0


def test_an_aggregator_replica_is_killed(system: System) -> None:
    victim = system.stack.containers("aggregator")[0]
    with fault(system, "an aggregator replica is killed") as injection:
        system.stack.crash(victim)
        injection.injected()
    until("it runs again", lambda: system.stack.restarts(victim) == 1 and len(system.stack.containers("aggregator")) == 2)


def test_postgres_is_restarted(system: System) -> None:
    with fault(system, "Postgres is restarted") as injection:
        system.stack.compose("restart", "postgres")
        injection.injected()


def test_redis_is_stopped_and_started(system: System) -> None:
    with fault(system, "Redis is stopped for a round, then started") as injection:
        system.stack.compose("stop", "redis")
        injection.injected()
        until("the open round has ended without Redis", lambda: system.has_ended(system.interrupted_round))
        system.stack.compose("start", "redis")


def test_one_clients_network_is_cut_and_heals(system: System) -> None:
    network, agent = f"{PROJECT}_{ORGANISATIONS[0]}", system.stack.containers(AGENTS[0])[0]
    with fault(system, "one client's network is cut for a round, then heals") as injection:
        run("docker", "network", "disconnect", network, agent)
        injection.injected()
        until("a round has ended without that client", lambda: _ended_without(system, ORGANISATIONS[0]))
        run("docker", "network", "connect", network, agent)


def _ended_without(system: System, client: str) -> bool:
    current = system.open_round()
    rounds = [system.round(number) for number in range(system.interrupted_round, current["number"])] if current else []
    return any(round_["state"] == "closed" and client in round_["missing"] for round_ in rounds)


def test_an_agent_is_killed(system: System) -> None:
    victim = system.stack.containers(AGENTS[1])[0]
    with fault(system, "an agent is killed") as injection:
        system.stack.crash(victim)
        injection.injected()
    assert system.stack.restarts(victim) == 1


def test_inference_is_restarted_under_load(system: System) -> None:
    with fault(system, "inference is restarted under load", may_refuse=True) as injection:
        system.stack.compose("restart", "inference")
        injection.injected()


def test_inference_is_scaled_to_two(system: System) -> None:
    with fault(system, "inference is scaled to 2") as injection:
        system.stack.set_variables(INFERENCE_REPLICAS=2)
        system.stack.compose("up", "--detach", "--wait", "--no-recreate", "inference")
        injection.injected()
    until(
        "both replicas have answered",
        lambda: all(_has_answered(system, replica) for replica in system.stack.containers("inference")),
    )
    assert len(system.stack.containers("inference")) == 2


def _has_answered(system: System, container: str) -> bool:
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
    lines = system.stack.python(container, program).splitlines()
    return any(line.startswith("ifed_inference_requests_total{") and 'outcome="ok"' in line for line in lines)


def test_postgres_is_backed_up_destroyed_and_restored(system: System) -> None:
    backup = system.stack.folder / "backup"
    with fault(system, "Postgres' volume is destroyed and restored from a backup") as injection:
        assert system.extend(system.interrupted_round), "the round must still be open when its database is restored"
        backup_began = time.time()
        system.stack.make("backup", f"FILE={backup}")
        assert not system.has_ended(system.interrupted_round), "the backup must hold an open round"
        injection.injected()
        receipts_before = len(receipts(system.stack))
        until(
            "more contributions were acknowledged after the backup",
            lambda: len(receipts(system.stack)) > receipts_before + len(AGENTS),
        )
        _freeze(system)
        system.stack.compose("rm", "--stop", "--force", "postgres")
        run("docker", "volume", "rm", f"{PROJECT}_postgres")
        injection.lost = (backup_began, time.time())
        system.ledger.forget_proofs(system.interrupted_round - 1)
        for agent in AGENTS:
            run("docker", "unpause", system.stack.containers(agent)[0])
        system.stack.make("restore", f"FILE={backup}")
    assert len(receipts(system.stack)) > receipts_before, "the agents must be the same containers, with their logs"
    repeated = system.round(system.interrupted_round)
    assert repeated["missing"] == [], f"the round that was open at the backup must have every client: {repeated}"
    assert datetime.fromisoformat(repeated["closed_at"]).timestamp() > injection.lost[1], (
        "it must close after its database was restored"
    )


def _freeze(system: System) -> None:
    """Pause the agents and extend the round, so that no promoted adapter is lost before an answer was checked against it."""
    for agent in AGENTS:
        run("docker", "pause", system.stack.containers(agent)[0])

    def a_round_is_extended() -> bool:
        current = system.open_round()
        return current is not None and system.extend(current["number"])

    until("a round stays open", a_round_is_extended)
    moment = time.time() + 3  # inference follows a promotion within a second
    until("the adapter promoted last has answered", lambda: count_since(system.callers.observed.answered, moment) > 0)
    until("every answer is checked against its adapter", lambda: system.callers.check_again() == 0)
