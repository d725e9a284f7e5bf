"""What inference should have answered, computed here from the adapter each answer names, and callers that hold it against that."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from ifed.messages.bodies import AdapterBody
from services.inference.model import Scorer
from tests.compose.stack import LABELS, TASK, Stack, text_of

TOLERANCE = 2e-3  # of a probability; float32 in batches of other sizes differs by less than a tenth of this
TEXTS = [text_of(random.Random(number), LABELS[number % 2]) for number in range(40)]


class Expected:
    """The probabilities of every text under every adapter that was ever named in an answer."""

    def __init__(self, model: Path, admin: httpx.Client) -> None:
        self._scorer = Scorer.load(
            str(model),
            cache=None,
            device="cpu",
            dtype="float32",
            threads=1,
            announce=lambda _: None,
        )
        self._admin, self._lock = admin, threading.Lock()
        self.by_digest: dict[str, np.ndarray] = {}

    def learn(self, version: int, digest: str) -> bool:
        """Fetch the adapter that an answer names; False while the aggregator does not answer.

        The digest is also of what the adapter says of itself, its accuracy for one, which may have been measured since the answer; what it
        computes is the version's and does not change.
        """
        with self._lock:
            if digest in self.by_digest:
                return True
            try:
                answer = self._admin.get(f"/v1/tasks/{TASK}/adapter", params={"version": version})
            except httpx.HTTPError:
                return False
            if answer.status_code != httpx.codes.OK:
                return False
            adapter = self._scorer.load_adapter(AdapterBody.from_bytes(answer.content))
            items = [self._scorer.prepare(adapter, text, truncate=True) for text in TEXTS]
            self.by_digest[digest] = np.exp(np.stack([self._scorer.score([item.item])[0] for item in items]))  # type: ignore[union-attr]
            return True

    def is_wrong(self, text: int, digest: str, said: dict[str, Any]) -> bool:
        """Whether an answer is not what its adapter gives for its text."""
        wanted = self.by_digest[digest][text]
        clear = abs(wanted[0] - wanted[1]) > 2 * TOLERANCE
        return float(np.abs(wanted - np.array(said["probs"])).max()) > TOLERANCE or (
            clear and LABELS[int(wanted.argmax())] != said["label"]
        )


@dataclass
class Seen:
    """What callers got, each with the time it was asked."""

    answered: list[float] = field(default_factory=list)
    refused: list[tuple[float, str]] = field(default_factory=list)
    wrong: list[tuple[float, str]] = field(default_factory=list)
    unchecked: list[tuple[float, int, int, str, dict[str, Any]]] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)


def since(moments: list[Any], moment: float) -> int:
    """How many of these happened at or after a moment."""
    return sum((one[0] if isinstance(one, tuple) else one) >= moment for one in moments)


class Callers:
    """Threads that classify all the time, and one that asks the aggregator how the task is."""

    def __init__(self, stack: Stack, expected: Expected, reader: str, admin: str) -> None:
        self.seen, self._expected, self._ending = Seen(), expected, threading.Event()
        self.pause = 0.15
        self._classify = httpx.Client(base_url=stack.inference_url, headers={"Authorization": f"Bearer {reader}"}, timeout=30)
        self._ask = httpx.Client(base_url=stack.aggregator_url, headers={"Authorization": f"Bearer {admin}"}, timeout=5)
        self._threads = [
            threading.Thread(target=self._loop, args=(work,), daemon=True) for work in (self._caller, self._caller, self._watcher)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(40)
        self._classify.close()
        self._ask.close()

    def _loop(self, work: Any) -> None:
        turn = 0
        while not self._ending.wait(self.pause):
            work(turn)
            turn += 1

    def _caller(self, turn: int) -> None:
        text, began = turn % len(TEXTS), time.time()
        try:
            answer = self._classify.post("/v1/classify", json={"model": TASK, "input": TEXTS[text]})
        except httpx.HTTPError as reason:
            self.seen.refused.append((began, type(reason).__name__))
            return
        if answer.status_code != httpx.codes.OK:
            self.seen.refused.append((began, f"{answer.status_code} {answer.json().get('error')}"))
            return
        said = answer.json()
        self.seen.answered.append(began)
        self._judge(began, text, said["adapter_version"], said["adapter_digest"], said["data"][0])

    def _judge(self, began: float, text: int, version: int, digest: str, said: dict[str, Any]) -> None:
        if not self._expected.learn(version, digest):
            self.seen.unchecked.append((began, text, version, digest, said))
        elif self._expected.is_wrong(text, digest, said):
            self.seen.wrong.append((began, f"{TEXTS[text]!r} under version {version}: {said}"))

    def catch_up(self) -> int:
        """Judge the answers whose adapter could not be fetched at the time; how many are still left."""
        waiting, self.seen.unchecked = self.seen.unchecked, []
        for one in waiting:
            self._judge(*one)
        return len(self.seen.unchecked)

    def _watcher(self, _turn: int) -> None:
        began = time.time()
        self.seen.calls.append(began)
        try:
            answer = self._ask.get(f"/v1/tasks/{TASK}")
            if answer.status_code != httpx.codes.OK:
                self.seen.failed.append((began, str(answer.status_code)))
        except httpx.HTTPError as reason:
            self.seen.failed.append((began, type(reason).__name__))
