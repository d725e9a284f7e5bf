"""Stand-ins for the inference service's neighbours: a source of adapters in memory, and observers that remember."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ifed.errors import IFedError, UnknownTask, UnknownVersion
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.messages.tasks import Layout, ModelIdentity
from ifed.tensors.values import Coefficients, ContextVector
from services.inference.adapters import Adapters
from services.inference.engine import Pass

IDENTITY = ModelIdentity(name="tiny", fingerprint="ab" * 32, family="llama", num_layers=2, hidden_size=4)
OTHER = IDENTITY.model_copy(update={"fingerprint": "cd" * 32, "name": "other"})
SIZE = 2 * 2 * 2 * 4 * 4  # λ·v and β: two float32 tensors of 2 layers, 2 sites, 4 channels


def body(task: str, version: int, *, identity: ModelIdentity = IDENTITY) -> AdapterBody:
    meta = AdapterMeta(
        task=task,
        version=version,
        labels=["no", "yes"],
        template="{text}:",
        identity=identity,
        layout=Layout(layers=[0, 1], hidden_size=4, groups=2),
        created_at=datetime.now(UTC),
    )
    return AdapterBody(ContextVector(np.ones((2, 2, 4), np.float32)), Coefficients.identity(2, 2), meta)


class FakeSource:
    """An aggregator's adapters in memory, with a bell for the long poll."""

    def __init__(self) -> None:
        self.versions: dict[str, list[AdapterBody]] = {}
        self.refusal: IFedError | None = None
        self.asked: list[tuple[str, int | None, str | None]] = []
        self.bell = asyncio.Event()

    def promote(self, adapter: AdapterBody) -> None:
        self.versions.setdefault(adapter.meta.task, []).append(adapter)
        self.bell.set()

    async def adapter(
        self, task: str, *, version: int | None = None, known: str | None = None, wait: float = 0.0
    ) -> tuple[str, AdapterBody] | None:
        self.asked.append((task, version, known))
        await asyncio.sleep(0)
        if self.refusal:
            raise self.refusal
        if task not in self.versions:
            raise UnknownTask(f"no task {task!r}")
        if version is not None:
            for one in self.versions[task]:
                if one.meta.version == version:
                    return f"digest-{version}", one
            raise UnknownVersion(f"no version {version}")
        if known == f"digest-{self.versions[task][-1].meta.version}" and wait:
            self.bell.clear()
            try:
                await asyncio.wait_for(self.bell.wait(), wait)
            except TimeoutError:
                return None
            return await self.adapter(task, known=known)
        newest = self.versions[task][-1]
        digest = f"digest-{newest.meta.version}"
        return None if known == digest else (digest, newest)


class Observer:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told: Counter[tuple[Any, ...]] = Counter()
        self.predictions: list[tuple[str, str, int]] = []

    def looked_up(self, task: str, *, held: bool) -> None:
        self.told["looked up", task, held] += 1

    def serves(self, task: str, version: int) -> None:
        self.told["serves", task, version] += 1

    def lets_go(self, task: str) -> None:
        self.told["lets go", task] += 1

    def stale(self, task: str) -> None:
        self.told["stale", task] += 1

    def answered(
        self, task: str, *, items: int, tokens: int, queue: float, model: float, seconds: float, passes: Sequence[Pass]
    ) -> None:
        self.told["answered", task, items, tokens] += 1

    def refused(self, task: str | None, error: str) -> None:
        self.told["refused", task, error] += 1

    def refused_item(self, task: str, error: str) -> None:
        self.told["refused item", task, error] += 1

    def predicted(self, task: str, digest: str, labels: Sequence[str], rows: Sequence[Any]) -> None:
        self.predictions.append((task, digest, len(rows)))


async def version_of(adapter: AdapterBody) -> int:
    """Stands in for loading: the version is all there is."""
    return adapter.meta.version


def adapters_of(
    source: FakeSource, observer: Observer | None = None, *, max_followed: int = 8, max_bytes: int = 10_000
) -> Adapters[int]:
    return Adapters(
        source,
        IDENTITY,
        version_of,
        wait=5,
        max_followed=max_followed,
        max_bytes=max_bytes,
        observer=observer or Observer(),
    )
