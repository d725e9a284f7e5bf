"""Inject a fault while a round is open and callers classify, and check what must hold afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from tests.compose.callers import Callers, count_since
from tests.compose.conftest import OUTCOMES
from tests.compose.receipts import Ledger
from tests.compose.report import Outcome
from tests.compose.stack import AGENTS, ORGANISATIONS, TASK, Stack, run, until

PAUSED_AGENT, PAUSED_CLIENT = AGENTS[2], ORGANISATIONS[2]  # no fault affects this one
MIN_SECONDS_LEFT = 8.0


@dataclass
class System:
    """The running stack with its callers.

    Attributes:
        interrupted_round: number of the round that was open at the last fault.
    """

    stack: Stack
    admin: httpx.Client
    callers: Callers
    ledger: Ledger
    interrupted_round: int = 0

    def round(self, number: int) -> dict[str, Any]:
        info: dict[str, Any] = self.admin.get(f"/v1/tasks/{TASK}/rounds/{number}").raise_for_status().json()
        return info

    def open_round(self) -> dict[str, Any] | None:
        """Return the open round; None when there is none."""
        current = self.admin.get(f"/v1/tasks/{TASK}").raise_for_status().json()["round"]
        return current if current is not None and current["state"] == "open" else None

    def keep_round_open(self) -> int:
        """Pause one agent until only its contribution to a calibration round is missing, and return the number of the round.

        The round stays open until the agent is resumed or the deadline has passed.
        """
        run("docker", "pause", self.stack.containers(PAUSED_AGENT)[0])
        numbers: list[int] = []

        def only_the_paused_client_is_missing() -> bool:
            current = self.open_round()
            if current is None or current["kind"] != "calibration":
                return False
            info = self.round(current["number"])
            missing = [client["client"] for client in info["clients"] if client["contributed_at"] is None]
            numbers.append(current["number"])
            seconds_left = datetime.fromisoformat(info["deadline"]).timestamp() - time.time()
            return missing == [PAUSED_CLIENT] and seconds_left > MIN_SECONDS_LEFT

        try:
            until("a calibration round waits for the paused agent alone", only_the_paused_client_is_missing)
        except BaseException:
            self.resume_agent()
            raise
        return numbers[-1]

    def extend(self, number: int) -> bool:
        """Extend a round by a quarter of an hour; return False when it has closed meanwhile."""
        response = self.admin.post(f"/v1/tasks/{TASK}/rounds/{number}/extend", json={"seconds": 900})
        return response.status_code == httpx.codes.OK

    def resume_agent(self) -> None:
        """Resume the paused agent."""
        run("docker", "unpause", self.stack.containers(PAUSED_AGENT)[0])

    def has_ended(self, number: int) -> bool:
        response = self.admin.get(f"/v1/tasks/{TASK}/rounds/{number}")
        return response.status_code == httpx.codes.OK and response.json()["state"] not in ("open", "aggregating")

    def is_whole_since(self, moment: float) -> bool:
        """Whether a round that opened after `moment` has closed with every client, and a text was classified since."""
        current = self.admin.get(f"/v1/tasks/{TASK}").raise_for_status().json()["round"]
        if current is None:
            return False
        for number in range(current["number"], max(0, current["number"] - 4), -1):
            info = self.round(number)
            is_new = datetime.fromisoformat(info["opened_at"]).timestamp() > moment
            has_everyone = sum(client["contributed_at"] is not None for client in info["clients"]) == len(ORGANISATIONS)
            if is_new and has_everyone and info["state"] == "closed":
                return count_since(self.callers.observed.answered, moment) > 0
        return False


@dataclass
class Fault:
    """A fault in progress.

    Attributes:
        resume: resumes the paused agent; None when it has resumed.
        lost: the time whose acknowledged contributions were lost with a volume.
    """

    resume: Callable[[], None] | None
    lost: tuple[float, float] | None = None

    def injected(self) -> None:
        """Report that the fault has happened to the open round, which may end now."""
        if self.resume is not None:
            self.resume()
        self.resume = None


@contextmanager
def fault(system: System, name: str, *, may_refuse: bool = False) -> Iterator[Fault]:
    """Let the block inject a fault into an open round and repair it; then check the system and add a row to the table.

    Args:
        may_refuse: whether classifications may be refused meanwhile; they may never be wrong.
    """
    system.interrupted_round = system.keep_round_open()
    began = time.time()
    in_progress = Fault(system.resume_agent)
    try:
        yield in_progress
    finally:
        in_progress.injected()
    repaired = time.time()
    until(f"round {system.interrupted_round} has ended", lambda: system.has_ended(system.interrupted_round))
    until("a round that opened after the repair has closed with every client", lambda: system.is_whole_since(repaired))
    whole = time.time()
    interrupted = system.round(system.interrupted_round)
    assert interrupted["state"] == "closed"
    until("every answer is checked against its adapter", lambda: system.callers.check_again() == 0)
    observed = system.callers.observed
    assert not observed.wrong, f"wrong classifications: {observed.wrong}"
    refused = count_since(observed.refused, began)
    assert may_refuse or not refused, f"refused: {[refusal for refusal in observed.refused if refusal[0] >= began]}"
    receipts = system.ledger.counts_each_once(lost=in_progress.lost)
    OUTCOMES.append(
        Outcome(
            fault=name,
            round_seconds=round(datetime.fromisoformat(interrupted["closed_at"]).timestamp() - began, 1),
            whole_seconds=round(whole - began, 1),
            classifications=count_since(observed.answered, began) + refused,
            refused=refused,
            wrong=0,
            calls=count_since(observed.calls, began),
            failed=count_since(observed.failed, began),
            receipts=receipts,
        )
    )
