"""Callers that classify all the time, and check each answer against the adapter it names."""

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
    """The probabilities of every text under each adapter that an answer has named."""

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
        """Fetch the adapter that an answer names and compute its probabilities; return False while the aggregator does not answer.

        The digest covers the adapter's metadata too, such as an accuracy that may have been measured since the answer. The probabilities
        depend on the version alone.
        """
        with self._lock:
            if digest in self.by_digest:
                return True
            try:
                response = self._admin.get(f"/v1/tasks/{TASK}/adapter", params={"version": version})
            except httpx.HTTPError:
                return False
            if response.status_code != httpx.codes.OK:
                return False
            adapter = self._scorer.load_adapter(AdapterBody.from_bytes(response.content))
            items = [self._scorer.prepare(adapter, text, truncate=True) for text in TEXTS]
            self.by_digest[digest] = np.exp(np.stack([self._scorer.score([item.item])[0] for item in items]))  # type: ignore[union-attr]
            return True

    def is_wrong(self, text: int, digest: str, classification: dict[str, Any]) -> bool:
        """Whether a classification differs from what the adapter computes for the text."""
        expected = self.by_digest[digest][text]
        unambiguous = abs(expected[0] - expected[1]) > 2 * TOLERANCE
        return float(np.abs(expected - np.array(classification["probs"])).max()) > TOLERANCE or (
            unambiguous and LABELS[int(expected.argmax())] != classification["label"]
        )


@dataclass
class Observations:
    """What callers got, each with the time of its request."""

    answered: list[float] = field(default_factory=list)
    refused: list[tuple[float, str]] = field(default_factory=list)
    wrong: list[tuple[float, str]] = field(default_factory=list)
    unchecked: list[tuple[float, int, int, str, dict[str, Any]]] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)


def count_since(observations: list[Any], moment: float) -> int:
    """Return how many observations were made at or after a moment."""
    return sum((item[0] if isinstance(item, tuple) else item) >= moment for item in observations)


class Callers:
    """Two threads that classify all the time, and one that requests the task from the aggregator."""

    def __init__(self, stack: Stack, expected: Expected, reader: str, admin: str) -> None:
        self.observed, self.expected, self._stopping = Observations(), expected, threading.Event()
        self.pause = 0.15
        self._inference = httpx.Client(base_url=stack.inference_url, headers={"Authorization": f"Bearer {reader}"}, timeout=30)
        self._aggregator = httpx.Client(base_url=stack.aggregator_url, headers={"Authorization": f"Bearer {admin}"}, timeout=5)
        self._threads = [
            threading.Thread(target=self._loop, args=(work,), daemon=True)
            for work in (self._classify_once, self._classify_once, self._request_task)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(40)
        self._inference.close()
        self._aggregator.close()

    def _loop(self, work: Any) -> None:
        turn = 0
        while not self._stopping.wait(self.pause):
            work(turn)
            turn += 1

    def _classify_once(self, turn: int) -> None:
        text, began = turn % len(TEXTS), time.time()
        try:
            response = self._inference.post("/v1/classify", json={"model": TASK, "input": TEXTS[text]})
        except httpx.HTTPError as reason:
            self.observed.refused.append((began, type(reason).__name__))
            return
        if response.status_code != httpx.codes.OK:
            self.observed.refused.append((began, f"{response.status_code} {response.json().get('error')}"))
            return
        answer = response.json()
        self.observed.answered.append(began)
        self._check(began, text, answer["adapter_version"], answer["adapter_digest"], answer["data"][0])

    def _check(self, began: float, text: int, version: int, digest: str, classification: dict[str, Any]) -> None:
        if not self.expected.learn(version, digest):
            self.observed.unchecked.append((began, text, version, digest, classification))
        elif self.expected.is_wrong(text, digest, classification):
            self.observed.wrong.append((began, f"{TEXTS[text]!r} under version {version}: {classification}"))

    def check_again(self) -> int:
        """Check the answers whose adapter could not be fetched at the time, and return how many are left."""
        unchecked, self.observed.unchecked = self.observed.unchecked, []
        for item in unchecked:
            self._check(*item)
        return len(self.observed.unchecked)

    def _request_task(self, _turn: int) -> None:
        began = time.time()
        self.observed.calls.append(began)
        try:
            response = self._aggregator.get(f"/v1/tasks/{TASK}")
            if response.status_code != httpx.codes.OK:
                self.observed.failed.append((began, str(response.status_code)))
        except httpx.HTTPError as reason:
            self.observed.failed.append((began, type(reason).__name__))
