"""The stack with callers and an admin at work, an open round held for a fault to strike, and what must hold afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from tests.compose.answers import Callers, since
from tests.compose.conftest import OUTCOMES
from tests.compose.receipts import Ledger
from tests.compose.report import Outcome
from tests.compose.stack import AGENTS, ORGANISATIONS, TASK, Stack, run, until

HOLDER, HELD = AGENTS[2], ORGANISATIONS[2]  # no fault strikes this one
ENOUGH_SECONDS = 8.0


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

    def held_open(self) -> int:
        """Hold one agent, and wait for a calibration round that has everyone else's contribution and time left; its number.

        Whatever strikes now strikes an open round: it cannot close before the agent is let go or its deadline has come.
        """
        run("docker", "pause", self.stack.containers(HOLDER)[0])
        found: list[int] = []

        def waits() -> bool:
            place = self.open_round()
            if place is None or place["kind"] != "calibration":
                return False
            one = self.round(place["number"])
            waited_for = [client["client"] for client in one["clients"] if client["contributed_at"] is None]
            found.append(place["number"])
            left = datetime.fromisoformat(one["deadline"]).timestamp() - time.time()
            return waited_for == [HELD] and left > ENOUGH_SECONDS

        try:
            until("a calibration round waits for the agent that is held alone", waits)
        except BaseException:
            self.let_go()
            raise
        return found[-1]

    def more_time(self, number: int) -> bool:
        """Give an open round a quarter of an hour; false when it has closed meanwhile."""
        answer = self.admin.post(f"/v1/tasks/{TASK}/rounds/{number}/extend", json={"seconds": 900})
        return answer.status_code == httpx.codes.OK

    def let_go(self) -> None:
        """Let the held agent go on."""
        run("docker", "unpause", self.stack.containers(HOLDER)[0])

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


@dataclass
class Blow:
    """What a fault's block says of it.

    Attributes:
        release: lets the held agent go; None when it went.
        lost: from when to when what was acknowledged went with a volume.
    """

    release: Callable[[], None] | None
    lost: tuple[float, float] | None = None

    def fell(self) -> None:
        """The open round was struck, and may end now."""
        if self.release is not None:
            self.release()
        self.release = None


@contextmanager
def fault(scene: Scene, name: str, *, refuses: bool = True) -> Iterator[Blow]:
    """Strike within the block and say that the blow `fell`, heal at its end; then all that must hold is held, and a row made.

    Args:
        refuses: whether classifications may be refused meanwhile; wrong they may never be.
    """
    scene.struck = scene.held_open()
    began = time.time()
    blow = Blow(scene.let_go)
    try:
        yield blow
    finally:
        blow.fell()
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
    counted = scene.ledger.counts_each_once(lost=blow.lost)
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
