"""Compare the receipts in the agents' logs with the aggregator's ledger and aggregates."""

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
    """One contribution that the aggregator has acknowledged, as its agent logged it."""

    client: str
    round: int
    digest: str
    at: float


def receipts(stack: Stack) -> list[Receipt]:
    """Return every receipt in the agents' logs."""
    return [
        Receipt(name, int(line["round"]), str(line["digest"]), datetime.fromisoformat(str(line["timestamp"])).timestamp())  # type: ignore[call-overload]
        for name, agent in zip(ORGANISATIONS, AGENTS, strict=True)
        for line in stack.logged(agent)
        if line.get("event") == "received"
    ]


def pages(admin: httpx.Client, path: str) -> Iterator[dict[str, Any]]:
    """Yield every item of a paginated list."""
    after: dict[str, Any] = {"limit": 100}
    while True:
        page = admin.get(path, params=after).raise_for_status().json()
        yield from page["items"]
        if page["next"] is None:
            return
        after = {"limit": 100, "after": page["next"]}


class Ledger:
    """The aggregator's ledger; rounds that were replayed successfully are not replayed again."""

    def __init__(self, stack: Stack, admin: httpx.Client) -> None:
        self._stack, self._admin = stack, admin
        self._proven: set[int] = set()

    def forget_proofs(self, after: int) -> None:
        """Replay the rounds after this one again: they were lost with their database and repeated."""
        self._proven = {number for number in self._proven if number <= after}

    def counts_each_once(self, *, lost: tuple[float, float] | None = None) -> int:
        """Check that each receipt is in the ledger once and that each closed round can be replayed, and return the number of receipts.

        Args:
            lost: the time from a backup to the loss of the database. Receipts of this time are not expected in the ledger: their rounds
                are repeated, and a client may be too late for the repeated round.
        """
        acknowledged = [receipt for receipt in receipts(self._stack) if lost is None or not lost[0] <= receipt.at <= lost[1]]
        entries = list(pages(self._admin, f"/v1/tasks/{TASK}/ledger"))
        digests = {(entry["client"], entry["round"]): entry["digest"] for entry in entries}
        assert len(digests) == len(entries), "a client is in the ledger twice for one round"
        for receipt in acknowledged:
            assert (receipt.client, receipt.round) in digests, f"{receipt} is not in the ledger"
            assert digests[receipt.client, receipt.round] == receipt.digest, f"{receipt} is in the ledger with another digest"
        in_round = Counter(entry["round"] for entry in entries if entry["state"] == "closed")
        for number in sorted(set(in_round) - self._proven):
            replay = self._admin.get(f"/v1/tasks/{TASK}/rounds/{number}/replay", timeout=60).raise_for_status().json()
            assert replay["proven"], f"round {number} differs from its replay: {replay}"
            assert replay["contributions"] == in_round[number], (
                f"round {number} aggregated {replay}, but the ledger has {in_round[number]}"
            )
            self._proven.add(number)
        return len(acknowledged)
