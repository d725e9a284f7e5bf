"""What the inference service counts, in a registry of its own application. Knows no HTTP and never sees a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from services.inference.drift import Drift
from services.inference.engine import Pass

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters that /metrics shows. Only tasks that were served appear as labels, so a caller cannot make up series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        task, name = ["task"], "ifed_inference"
        self._requests = Counter(f"{name}_requests", "Requests answered", [*task, "outcome"], registry=registry)
        self._items = Counter(f"{name}_items", "Texts classified", task, registry=registry)
        self._tokens = Counter(f"{name}_tokens", "Tokens read", task, registry=registry)
        self._refused = Counter(f"{name}_items_refused", "Texts refused one by one", [*task, "error"], registry=registry)
        self._queue = Histogram(f"{name}_queue_seconds", "Wait for the model", task, buckets=SECONDS, registry=registry)
        self._model = Histogram(f"{name}_model_seconds", "Time in the model", task, buckets=SECONDS, registry=registry)
        self._request = Histogram(f"{name}_request_seconds", "Whole request", task, buckets=SECONDS, registry=registry)
        self._shared = Histogram(
            f"{name}_task_batch_items", "Texts in a forward pass that read this task's", task, buckets=COUNTS, registry=registry
        )
        self._shared_fill = Histogram(
            f"{name}_task_batch_fill", "Tokens over the budget in the same passes", task, buckets=SHARES, registry=registry
        )
        self._batch_items = Histogram(f"{name}_batch_items", "Texts in a forward pass", buckets=COUNTS, registry=registry)
        self._batch_fill = Histogram(
            f"{name}_batch_fill", "Tokens in a forward pass over the budget", buckets=SHARES, registry=registry
        )
        self._batch_seconds = Histogram(f"{name}_batch_seconds", "Time of a forward pass", buckets=SECONDS, registry=registry)
        self._version = Gauge(f"{name}_adapter_version", "Version served", task, registry=registry)
        self._stale = Gauge(f"{name}_adapter_stale", "1 while an adapter cannot be refreshed", task, registry=registry)
        self._lookups = Counter(f"{name}_adapter_lookups", "Adapters looked up", [*task, "found"], registry=registry)
        self._share = Gauge(f"{name}_label_share", "Predicted share of a label of late", [*task, "label"], registry=registry)
        self._margin = Gauge(f"{name}_margin", "Mean margin of the best label of late", task, registry=registry)
        self._share_shift = Gauge(
            f"{name}_label_share_shift", "Distance of label shares, 0 to 1, from those after the promotion", task, registry=registry
        )
        self._margin_shift = Gauge(f"{name}_margin_shift", "Mean margin minus that after the promotion", task, registry=registry)
        self._hung_up = Counter(f"{name}_hung_up", "Callers that left before their answer", registry=registry)
        self._served: set[str] = set()
        self._drifts: dict[str, tuple[str, Drift]] = {}

    def watch(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is shown."""
        Gauge(f"ifed_inference_{name}", documentation, registry=self.registry).set_function(value)

    def watch_count(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """A counter that someone else counts, read when it is shown."""
        self.registry.register(_Counted(f"ifed_inference_{name}", documentation, value))

    def batch(self, *, items: int, tokens: int, budget: int, seconds: float) -> None:
        self._batch_items.observe(items)
        self._batch_fill.observe(tokens / budget)
        self._batch_seconds.observe(seconds)

    def looked_up(self, task: str, *, held: bool) -> None:
        self._lookups.labels(task, "held" if held else "fetched").inc()

    def serves(self, task: str, version: int) -> None:
        self._version.labels(task).set(version)
        self._stale.labels(task).set(0)
        self._served.add(task)

    def lets_go(self, task: str) -> None:
        if task in self._served:
            self._served.discard(task)
            self._version.remove(task)
            self._stale.remove(task)
            self._forget_shift(task)

    def stale(self, task: str) -> None:
        if task in self._served:
            self._stale.labels(task).set(1)

    def answered(
        self, task: str, *, items: int, tokens: int, queue: float, model: float, seconds: float, passes: Sequence[Pass]
    ) -> None:
        self._requests.labels(task, "ok").inc()
        self._items.labels(task).inc(items)
        self._tokens.labels(task).inc(tokens)
        self._queue.labels(task).observe(queue)
        self._model.labels(task).observe(model)
        self._request.labels(task).observe(seconds)
        for one in passes:
            self._shared.labels(task).observe(one.items)
            self._shared_fill.labels(task).observe(one.fill)

    def refused(self, task: str | None, error: str) -> None:
        """A whole request; `task` only once it is known to exist."""
        self._requests.labels(task or "", error).inc()

    def refused_item(self, task: str, error: str) -> None:
        self._refused.labels(task, error).inc()

    def hung_up(self) -> None:
        self._hung_up.inc()

    def predicted(self, task: str, digest: str, labels: Sequence[str], rows: Sequence[npt.NDArray[np.floating]]) -> None:
        """Answers of the version that `digest` names; a new one starts its comparison anew."""
        known, drift = self._drifts.get(task, ("", Drift(0)))
        if known != digest:
            drift = Drift(len(labels))
            self._drifts[task] = (digest, drift)
        for row in rows:
            drift.add(row)
        shift = drift.shift()
        for label, share in zip(labels, shift.shares, strict=True):
            self._share.labels(task, label).set(share)
        self._margin.labels(task).set(shift.margin)
        if shift.share_shift is None or shift.margin_shift is None:
            self._forget_shift(task)
        else:
            self._share_shift.labels(task).set(shift.share_shift)
            self._margin_shift.labels(task).set(shift.margin_shift)

    def _forget_shift(self, task: str) -> None:
        """A version just promoted has none yet, and must not show that of the one before."""
        for gauge in (self._share_shift, self._margin_shift):
            with suppress(KeyError):
                gauge.remove(task)


class _Counted(Collector):
    def __init__(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        self._name, self._documentation, self._value = name, documentation, value

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._documentation, value=self._value())
