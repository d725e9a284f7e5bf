"""Fakes for tests of the inference service: a source of adapters in memory, and a model that scores texts by their length."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from ifed.errors import EmptyText, IFedError, NothingYet, UnknownTask, UnknownVersion
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.messages.tasks import Layout, ModelIdentity
from ifed.messages.texts import LabelledText
from ifed.tensors.values import Coefficients, ContextVector, Float32
from services.inference.adapters import AdapterCache
from services.inference.engine import SharedPrefix
from services.inference.metrics import Metrics
from services.inference.model import PreparedText, Scorer

IDENTITY = ModelIdentity(name="tiny", fingerprint="ab" * 32, family="llama", num_layers=2, hidden_size=4)
OTHER_IDENTITY = IDENTITY.model_copy(update={"fingerprint": "cd" * 32, "name": "other"})
NBYTES = 2 * 2 * 2 * 4 * 4  # λ·v and β: two float32 tensors of 2 layers, 2 sites, 4 channels


def body(
    task: str,
    version: int,
    *,
    identity: ModelIdentity = IDENTITY,
    label_bias: list[float] | None = None,
    abstain_below: float | None = None,
) -> AdapterBody:
    """Return an adapter with the labels `no` and `yes`."""
    meta = AdapterMeta(
        task=task,
        version=version,
        labels=["no", "yes"],
        template="{text}:",
        identity=identity,
        layout=Layout(layers=[0, 1], hidden_size=4, groups=2),
        created_at=datetime.now(UTC),
        label_bias=label_bias,
        abstain_below=abstain_below,
    )
    return AdapterBody(ContextVector(np.ones((2, 2, 4), np.float32)), Coefficients.identity(2, 2), meta)


class FakeSource:
    """An aggregator's adapters in memory, with a long poll. While `refusal` is set, every request raises it."""

    def __init__(self) -> None:
        self.versions: dict[str, list[AdapterBody]] = {}
        self.withdrawn: set[str] = set()
        self.refusal: IFedError | None = None
        self.requests: list[tuple[str, int | None, str | None]] = []
        self.changed = asyncio.Event()

    def promote(self, adapter: AdapterBody) -> None:
        self.versions.setdefault(adapter.meta.task, []).append(adapter)
        self.changed.set()

    def withdraw(self, task: str) -> None:
        """Serve no version of a task any longer, except by number."""
        self.withdrawn.add(task)
        self.changed.set()

    async def adapter(
        self, task: str, *, version: int | None = None, known: str | None = None, wait: float = 0.0
    ) -> tuple[str, AdapterBody] | None:
        self.requests.append((task, version, known))
        await asyncio.sleep(0)
        if self.refusal:
            raise self.refusal
        if task not in self.versions:
            raise UnknownTask(f"no task {task!r}")
        if version is None and task in self.withdrawn:
            raise NothingYet(f"task {task!r} has no adapter to serve now")
        if version is not None:
            for adapter in self.versions[task]:
                if adapter.meta.version == version:
                    return f"digest-{version}", adapter
            raise UnknownVersion(f"no version {version}")
        if known == f"digest-{self.versions[task][-1].meta.version}" and wait:
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), wait)
            except TimeoutError:
                return None
            return await self.adapter(task, known=known)
        newest = self.versions[task][-1]
        digest = f"digest-{newest.meta.version}"
        return None if known == digest else (digest, newest)


class FakeScorer(Scorer):
    """A model without weights: the label `yes` has 0.75 for a text of more than three characters, and 0.1 for a shorter one.

    A loaded adapter is a string that says what it is, an item is its text, and a token is a character. The text `slow` takes 0.2 seconds
    to prepare.
    """

    def __init__(self) -> None:
        self.prepared_with: list[str] = []
        self.few_shot_prompts: list[list[str]] = []

    def load_adapter(self, body: AdapterBody) -> Any:
        return f"version {body.meta.version}"

    def base(self, adapter: Any) -> Any:
        return "base"

    def few_shot(self, adapter: Any, demonstrations: Sequence[LabelledText[str]]) -> Any:
        self.few_shot_prompts.append([demonstration.text for demonstration in demonstrations])
        return " ".join(self.few_shot_prompts[-1])

    def prepare(self, adapter: Any, text: str, *, truncate: bool, prompts: Any = None) -> PreparedText | IFedError:
        self.prepared_with.append(adapter)
        if text == "slow":
            time.sleep(0.2)
        item: Any = text
        return PreparedText(item, len(text), truncated=len(text) > 9) if text else EmptyText("empty")

    def tokens(self, item: Any) -> int:
        return len(item)

    def shared_prefixes(self, items: Sequence[Any]) -> list[Sequence[SharedPrefix]]:
        return [[SharedPrefix(text, len(text) - 1)] for text in items]

    def score(self, items: Sequence[Any]) -> list[Float32]:
        return [np.log(np.array([0.25, 0.75] if len(text) > 3 else [0.9, 0.1], np.float32)) for text in items]


def metrics_of() -> Metrics:
    """Return metrics in a registry of their own."""
    return Metrics(CollectorRegistry())


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return the value of a sample; None if the metric has no series with these labels."""
    return metrics.registry.get_sample_value(f"ifed_inference_{name}", labels)


def adapters_of(
    source: FakeSource,
    metrics: Metrics | None = None,
    *,
    max_followed: int = 8,
    max_bytes: int = 10_000,
    lookups: int | None = None,
) -> AdapterCache:
    """Return a cache of adapters that `FakeScorer` loads."""

    async def load(adapter: AdapterBody) -> Any:
        return FakeScorer().load_adapter(adapter)

    return AdapterCache(
        source,
        IDENTITY,
        load,
        wait=5,
        max_followed=max_followed,
        max_bytes=max_bytes,
        lookups_per_minute=lookups,
        metrics=metrics or metrics_of(),
    )
