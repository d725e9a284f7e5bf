"""Every fault strikes while a round is open and callers ask: the round ends, each receipt counts once, no answer is wrong."""

from __future__ import annotations

import time
from datetime import datetime

import httpx
import pytest

from tests.compose.answers import Callers, since
from tests.compose.receipts import Ledger, receipts
from tests.compose.scene import Scene, fault
from tests.compose.stack import AGENTS, ORGANISATIONS, PROJECT, Stack, run, until


@pytest.fixture
def scene(stack: Stack, admin: httpx.Client, callers: Callers, ledger: Ledger) -> Scene:
    return Scene(stack, admin, callers, ledger)


def test_a_task_runs_and_its_answers_are_those_of_its_adapters(scene: Scene) -> None:
    until("a round has closed with everyone in it", lambda: scene.whole(0.0))
    until("three versions have answered", lambda: len(scene.callers._expected.by_digest) >= 3)
    tables = list(scene.callers._expected.by_digest.values())
    assert min(abs(a - b).max() for n, a in enumerate(tables) for b in tables[:n]) > 0.01, "versions that cannot be told apart"
    assert not scene.callers.seen.wrong
    assert scene.ledger.counts_each_once() > 0


def test_an_aggregator_replica_is_killed(scene: Scene) -> None:
    victim = scene.stack.containers("aggregator")[0]
    with fault(scene, "an aggregator replica is killed", refuses=False) as blow:
        scene.stack.crash(victim)
        blow.fell()
    until("it runs again", lambda: scene.stack.restarts(victim) == 1 and len(scene.stack.containers("aggregator")) == 2)


def test_postgres_is_restarted(scene: Scene) -> None:
    with fault(scene, "Postgres is restarted", refuses=False) as blow:
        scene.stack.compose("restart", "postgres")
        blow.fell()


def test_redis_is_stopped_and_started(scene: Scene) -> None:
    with fault(scene, "Redis is stopped for a round, then started", refuses=False) as blow:
        scene.stack.compose("stop", "redis")
        blow.fell()
        until("the open round has ended without Redis", lambda: scene.over(scene.struck))
        scene.stack.compose("start", "redis")


def test_one_clients_network_is_cut_and_heals(scene: Scene) -> None:
    network, cut = f"{PROJECT}_{ORGANISATIONS[0]}", scene.stack.containers(AGENTS[0])[0]
    with fault(scene, "one client's network is cut for a round, then heals", refuses=False) as blow:
        run("docker", "network", "disconnect", network, cut)
        blow.fell()
        until("a round has ended without that client", lambda: _ended_without(scene, ORGANISATIONS[0]))
        run("docker", "network", "connect", network, cut)


def _ended_without(scene: Scene, client: str) -> bool:
    place = scene.open_round()
    numbers = range(scene.struck, place["number"]) if place else ()
    rounds = [scene.round(number) for number in numbers]
    return any(one["state"] == "closed" and client in one["missing"] for one in rounds)


def test_an_agent_is_killed(scene: Scene) -> None:
    victim = scene.stack.containers(AGENTS[1])[0]
    with fault(scene, "an agent is killed", refuses=False) as blow:
        scene.stack.crash(victim)
        blow.fell()
    assert scene.stack.restarts(victim) == 1


def test_inference_is_restarted_under_load(scene: Scene) -> None:
    with fault(scene, "inference is restarted under load") as blow:
        scene.stack.compose("restart", "inference")
        blow.fell()


def test_inference_is_scaled_to_two(scene: Scene) -> None:
    with fault(scene, "inference is scaled to 2", refuses=False) as blow:
        scene.stack.choose(INFERENCE_REPLICAS=2)
        scene.stack.compose("up", "--detach", "--wait", "--no-recreate", "inference")
        blow.fell()
    until("both replicas have answered", lambda: all(_answers(scene, one) for one in scene.stack.containers("inference")))
    assert len(scene.stack.containers("inference")) == 2


def _answers(scene: Scene, container: str) -> bool:
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8081/metrics').read().decode())"
    lines = scene.stack.python(container, program).splitlines()
    return any(line.startswith("ifed_inference_requests_total{") and 'outcome="ok"' in line for line in lines)


def test_postgres_is_backed_up_destroyed_and_restored(scene: Scene) -> None:
    backup = scene.stack.folder / "backup"
    with fault(scene, "Postgres' volume is destroyed and restored from a backup", refuses=False) as blow:
        assert scene.more_time(scene.struck), "the round is open when its database is back"
        saving = time.time()
        scene.stack.make("backup", f"FILE={backup}")
        assert not scene.over(scene.struck), "the backup holds an open round"
        blow.fell()
        before = len(receipts(scene.stack))
        until("more was acknowledged after the backup", lambda: len(receipts(scene.stack)) > before + len(AGENTS))
        _still(scene)
        scene.stack.compose("rm", "--stop", "--force", "postgres")
        run("docker", "volume", "rm", f"{PROJECT}_postgres")
        blow.lost = (saving, time.time())
        scene.ledger.forget_proofs(scene.struck - 1)
        for agent in AGENTS:
            run("docker", "unpause", scene.stack.containers(agent)[0])
        scene.stack.make("restore", f"FILE={backup}")
    assert len(receipts(scene.stack)) > before, "the agents, and their logs, are the same as before"
    again = scene.round(scene.struck)
    assert again["missing"] == [], f"the round that was open at the backup took everyone in: {again}"
    assert datetime.fromisoformat(again["closed_at"]).timestamp() > blow.lost[1], "it closed after its database was back"


def _still(scene: Scene) -> None:
    """Hold the agents and keep the round open, so that no version is promoted whose adapter is lost before anyone looked at it."""
    for agent in AGENTS:
        run("docker", "pause", scene.stack.containers(agent)[0])

    def waits() -> bool:
        place = scene.open_round()
        return place is not None and scene.more_time(place["number"])

    until("a round stays open", waits)
    moment = time.time() + 3  # inference hears of a promotion within a second
    until("what was promoted last has answered", lambda: since(scene.callers.seen.answered, moment) > 0)
    until("it is held against its adapter", lambda: scene.callers.catch_up() == 0)
