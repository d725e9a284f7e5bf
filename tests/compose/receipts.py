"""What agents were told was received, held against the ledger and the aggregates. Asks over HTTP as the admin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from tests.compose.stack import AGENTS, ORGANISATIONS, TASK, Stack


@dataclass(frozen=True)
class Receipt:
    """One contribution that was answered 2xx, as its agent logged it."""

    client: str
    round: int
    digest: str
    at: float


def receipts(stack: Stack) -> list[Receipt]:
    """Every receipt in the agents' logs."""
    return [
        Receipt(name, int(line["round"]), str(line["digest"]), datetime.fromisoformat(str(line["timestamp"])).timestamp())  # type: ignore[call-overload]
        for name, agent in zip(ORGANISATIONS, AGENTS, strict=True)
        for line in stack.logged(agent)
        if line.get("event") == "received"
    ]


def pages(admin: httpx.Client, path: str) -> Iterator[dict[str, Any]]:
    """Every item of a list that comes in pages."""
    after: dict[str, Any] = {"limit": 100}
    while True:
        page = admin.get(path, params=after).raise_for_status().json()
        yield from page["items"]
        if page["next"] is None:
            return
        after = {"limit": 100, "after": page["next"]}


class Ledger:
    """Compares, and remembers which rounds are proven already."""

    def __init__(self, stack: Stack, admin: httpx.Client) -> None:
        self._stack, self._admin = stack, admin
        self._proven: set[int] = set()

    def forget_proofs(self, after: int) -> None:
        """Rounds after this one were lost with their database and are made again."""
        self._proven = {number for number in self._proven if number <= after}

    def counts_each_once(self, *, lost: tuple[float, float] | None = None) -> int:
        """Every receipt is in the ledger once under its digest, and every closed round is what its ledger gives; how many receipts.

        Args:
            lost: receipts of this time span went with the database, from a backup to its end: their rounds are made again, and a client
                counts there once or, where it came too late this time, not at all.
        """
        acknowledged = [one for one in receipts(self._stack) if lost is None or not lost[0] <= one.at <= lost[1]]
        entries = list(pages(self._admin, f"/v1/tasks/{TASK}/ledger"))
        found = {(entry["client"], entry["round"]): entry["digest"] for entry in entries}
        assert len(found) == len(entries), "a client is in the ledger twice for one round"
        for one in acknowledged:
            assert (one.client, one.round) in found, f"{one} was acknowledged and is not in the ledger"
            assert found[one.client, one.round] == one.digest, f"{one} was acknowledged and the ledger has another"
        in_round = Counter(entry["round"] for entry in entries if entry["state"] == "closed")
        for number in sorted(set(in_round) - self._proven):
            replay = self._admin.get(f"/v1/tasks/{TASK}/rounds/{number}/replay", timeout=60).raise_for_status().json()
            assert replay["proven"], f"round {number} is not what its ledger gives: {replay}"
            assert replay["contributions"] == in_round[number], (
                f"round {number} summed up {replay}, its ledger has {in_round[number]}"
            )
            self._proven.add(number)
        return len(acknowledged)
