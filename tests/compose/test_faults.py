"""Every fault strikes while a round is open and callers ask: the round ends, each receipt counts once, no answer is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.compose.answers import Callers, since
from tests.compose.conftest import OUTCOMES
from tests.compose.receipts import Ledger, receipts
from tests.compose.report import Outcome
from tests.compose.stack import AGENTS, ORGANISATIONS, PROJECT, TASK, Stack, run, until


@dataclass
class Scene:
    """What a fault works on."""

    stack: Stack
    admin: httpx.Client
    callers: Callers
    ledger: Ledger
    struck: int = 0

    def round(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self.admin.get(f"/v1/tasks/{TASK}/rounds/{number}").raise_for_status().json()
        return found

    def open_round(self) -> dict[str, Any] | None:
        """The round that is open, if one is."""
        place = self.admin.get(f"/v1/tasks/{TASK}").raise_for_status().json()["round"]
        return place if place is not None and place["state"] == "open" else None

    def under_way(self) -> int:
        """Wait for an open calibration round that has some of its contributions; its number."""
        found: list[int] = []

        def seen() -> bool:
            place = self.open_round()
            if place is None or place["kind"] != "calibration":
                return False
            came = sum(client["contributed_at"] is not None for client in self.round(place["number"])["clients"])
            found.append(place["number"])
            return 0 < came < len(ORGANISATIONS)

        until("a calibration round has some of its contributions", seen)
        return found[-1]

    def over(self, number: int) -> bool:
        answer = self.admin.get(f"/v1/tasks/{TASK}/rounds/{number}")
        return answer.status_code == httpx.codes.OK and answer.json()["state"] not in ("open", "aggregating")

    def whole(self, moment: float) -> bool:
        """A round that opened after `moment` has closed with everyone in it, and a text was classified since."""
        place = self.admin.get(f"/v1/tasks/{TASK}").raise_for_status().json()["round"]
        if place is None:
            return False
        for number in range(place["number"], max(0, place["number"] - 4), -1):
            one = self.round(number)
            opened = datetime.fromisoformat(one["opened_at"]).timestamp() > moment
            everyone = sum(client["contributed_at"] is not None for client in one["clients"]) == len(ORGANISATIONS)
            if opened and everyone and one["state"] == "closed":
                return since(self.callers.seen.answered, moment) > 0
        return False


@pytest.fixture
def scene(stack: Stack, admin: httpx.Client, callers: Callers, ledger: Ledger) -> Scene:
    return Scene(stack, admin, callers, ledger)


@contextmanager
def fault(scene: Scene, name: str, *, refuses: bool = True) -> Iterator[Callable[[tuple[float, float]], None]]:
    """Strike within the block, heal at its end; then everything that must hold is held, and a row of the table made.

    Args:
        refuses: whether classifications may be refused meanwhile; wrong they may never be.
    """
    lost: list[tuple[float, float]] = []
    scene.struck = scene.under_way()
    began = time.time()
    yield lost.append
    healed = time.time()
    until(f"round {scene.struck} has ended", lambda: scene.over(scene.struck))
    until("a round that opened after it closed with everyone in it", lambda: scene.whole(healed))
    whole = time.time()
    over = scene.round(scene.struck)
    assert over["state"] == "closed"
    until("every answer is held against its adapter", lambda: scene.callers.catch_up() == 0)
    seen = scene.callers.seen
    assert not seen.wrong, f"classified wrongly: {seen.wrong}"
    refused = since(seen.refused, began)
    assert refuses or not refused, f"refused: {[one for one in seen.refused if one[0] >= began]}"
    counted = scene.ledger.counts_each_once(lost=lost[0] if lost else None)
    OUTCOMES.append(
        Outcome(
            fault=name,
            round_seconds=round(datetime.fromisoformat(over["closed_at"]).timestamp() - began, 1),
            whole_seconds=round(whole - began, 1),
            classifications=since(seen.answered, began) + refused,
            refused=refused,
            wrong=0,
            calls=since(seen.calls, began),
            failed=since(seen.failed, began),
            receipts=counted,
        )
    )


def test_a_task_runs_and_its_answers_are_those_of_its_adapters(scene: Scene) -> None:
    until("a round has closed with everyone in it", lambda: scene.whole(0.0))
    until("three versions have answered", lambda: len(scene.callers._expected.by_digest) >= 3)
    tables = list(scene.callers._expected.by_digest.values())
    assert min(abs(a - b).max() for n, a in enumerate(tables) for b in tables[:n]) > 0.01, "versions that cannot be told apart"
    assert not scene.callers.seen.wrong
    assert scene.ledger.counts_each_once() > 0


def test_an_aggregator_replica_is_killed(scene: Scene) -> None:
    victim = scene.stack.containers("aggregator")[0]
    with fault(scene, "an aggregator replica is killed", refuses=False):
        scene.stack.crash(victim)
    until("it runs again", lambda: scene.stack.restarts(victim) == 1 and len(scene.stack.containers("aggregator")) == 2)


def test_postgres_is_restarted(scene: Scene) -> None:
    with fault(scene, "Postgres is restarted", refuses=False):
        scene.stack.compose("restart", "postgres")


def test_redis_is_stopped_and_started(scene: Scene) -> None:
    with fault(scene, "Redis is stopped for a round, then started", refuses=False):
        scene.stack.compose("stop", "redis")
        until("the open round has ended without Redis", lambda: scene.over(scene.struck))
        scene.stack.compose("start", "redis")


def test_one_clients_network_is_cut_and_heals(scene: Scene) -> None:
    network, cut = f"{PROJECT}_{ORGANISATIONS[0]}", scene.stack.containers(AGENTS[0])[0]
    with fault(scene, "one client's network is cut for a round, then heals", refuses=False):
        run("docker", "network", "disconnect", network, cut)
        until("a round has ended without that client", lambda: _ended_without(scene, ORGANISATIONS[0]))
        run("docker", "network", "connect", network, cut)


def _ended_without(scene: Scene, client: str) -> bool:
    place = scene.open_round()
    numbers = range(scene.struck, place["number"]) if place else ()
    rounds = [scene.round(number) for number in numbers]
    return any(one["state"] == "closed" and client in one["missing"] for one in rounds)


def test_an_agent_is_killed(scene: Scene) -> None:
    victim = scene.stack.containers(AGENTS[1])[0]
    with fault(scene, "an agent is killed", refuses=False):
        scene.stack.crash(victim)
    assert scene.stack.restarts(victim) == 1


def test_inference_is_restarted_under_load(scene: Scene) -> None:
    with fault(scene, "inference is restarted under load"):
        scene.stack.compose("restart", "inference")


def test_inference_is_scaled_to_two(scene: Scene) -> None:
    with fault(scene, "inference is scaled to 2", refuses=False):
        scene.stack.choose(INFERENCE_REPLICAS=2)
        scene.stack.compose("up", "--detach", "--wait", "--no-recreate", "inference")
    until("both replicas have answered", lambda: all(_answers(scene, one) for one in scene.stack.containers("inference")))
    assert len(scene.stack.containers("inference")) == 2


def _answers(scene: Scene, container: str) -> bool:
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8081/metrics').read().decode())"
    lines = scene.stack.python(container, program).splitlines()
    return any(line.startswith("ifed_inference_requests_total{") and 'outcome="ok"' in line for line in lines)


def test_postgres_is_backed_up_destroyed_and_restored(scene: Scene) -> None:
    backup = scene.stack.folder / "backup"
    with fault(scene, "Postgres' volume is destroyed and restored from a backup", refuses=False) as lose:
        scene.struck = _held(scene)
        saving = time.time()
        scene.stack.make("backup", f"FILE={backup}")
        before = len(receipts(scene.stack))
        until("more was acknowledged after the backup", lambda: len(receipts(scene.stack)) > before + len(AGENTS))
        _still(scene)
        scene.stack.compose("rm", "--stop", "--force", "postgres")
        run("docker", "volume", "rm", f"{PROJECT}_postgres")
        lose((saving, time.time()))
        scene.ledger.forget_proofs(scene.struck - 1)
        for agent in AGENTS:
            run("docker", "unpause", scene.stack.containers(agent)[0])
        scene.stack.make("restore", f"FILE={backup}")
    again = scene.round(scene.struck)
    assert again["missing"] == [], f"the round that was open at the backup took everyone in: {again}"


def _held(scene: Scene) -> int:
    """An open round that has some of its contributions and time enough to be open when its database is back; its number."""
    found: list[int] = []

    def held() -> bool:
        found.append(scene.under_way())
        answer = scene.admin.post(f"/v1/tasks/{TASK}/rounds/{found[-1]}/extend", json={"seconds": 900})
        return answer.status_code == httpx.codes.OK  # 409 when it has closed meanwhile

    until("an open round has more time", held)
    return found[-1]


def _still(scene: Scene) -> None:
    """Hold the agents and keep the round open, so that no version is promoted whose adapter is lost before anyone looked at it."""
    for agent in AGENTS:
        run("docker", "pause", scene.stack.containers(agent)[0])

    def waits() -> bool:
        place = scene.open_round()
        if place is None:
            return False
        answer = scene.admin.post(f"/v1/tasks/{TASK}/rounds/{place['number']}/extend", json={"seconds": 900})
        return answer.status_code == httpx.codes.OK

    until("a round stays open", waits)
    moment = time.time() + 3  # inference hears of a promotion within a second
    until("what was promoted last has answered", lambda: since(scene.callers.seen.answered, moment) > 0)
    until("it is held against its adapter", lambda: scene.callers.catch_up() == 0)
