"""Prometheus metrics of the inference service."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from services.inference.drift import Drift

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics that `GET /metrics` shows.

    Only tasks that were served become label values, so a caller cannot create time series. No metric holds a text.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        task, name = ["task"], "ifed_inference"
        self._requests = Counter(f"{name}_requests", "Requests answered or refused", [*task, "outcome"], registry=registry)
        self.failed_attempts = Counter(
            f"{name}_failed_authentications", "Wrong tokens of callers", ["kind", "outcome"], registry=registry
        )
        self._items = Counter(f"{name}_items", "Texts classified", task, registry=registry)
        self._tokens = Counter(f"{name}_tokens", "Tokens of the texts classified", task, registry=registry)
        self._refused = Counter(
            f"{name}_items_refused", "Texts refused in requests that were answered", [*task, "error"], registry=registry
        )
        self._abstained = Counter(
            f"{name}_items_abstained", "Texts classified whose highest probability was too low for a label", task, registry=registry
        )
        self._queue = Histogram(f"{name}_queue_seconds", "Time in the queue", task, buckets=SECONDS, registry=registry)
        self._model = Histogram(f"{name}_model_seconds", "Time in the model", task, buckets=SECONDS, registry=registry)
        self._request = Histogram(f"{name}_request_seconds", "Time of a whole request", task, buckets=SECONDS, registry=registry)
        self._task_batch_items = Histogram(
            f"{name}_task_batch_items",
            "Texts in a forward pass that ran a text of this task",
            task,
            buckets=COUNTS,
            registry=registry,
        )
        self._task_batch_fill = Histogram(
            f"{name}_task_batch_fill",
            "Tokens divided by the token budget, of the same forward passes",
            task,
            buckets=FRACTIONS,
            registry=registry,
        )
        self._batch_items = Histogram(f"{name}_batch_items", "Texts in a forward pass", buckets=COUNTS, registry=registry)
        self._batch_fill = Histogram(
            f"{name}_batch_fill", "Tokens of a forward pass divided by the token budget", buckets=FRACTIONS, registry=registry
        )
        self._batch_seconds = Histogram(f"{name}_batch_seconds", "Time of a forward pass", buckets=SECONDS, registry=registry)
        self._version = Gauge(f"{name}_adapter_version", "Version of the adapter that is served", task, registry=registry)
        self._stale = Gauge(f"{name}_adapter_stale", "1 while the adapter cannot be refreshed", task, registry=registry)
        self._lookups = Counter(f"{name}_adapter_lookups", "Adapter cache lookups", [*task, "found"], registry=registry)
        self._share = Gauge(
            f"{name}_label_share", "Recent share of predictions with this label", [*task, "label"], registry=registry
        )
        self._margin = Gauge(
            f"{name}_margin", "Recent mean difference between the two highest probabilities", task, registry=registry
        )
        self._share_shift = Gauge(
            f"{name}_label_share_shift",
            "Total variation distance, 0 to 1, between the label shares now and after the promotion",
            task,
            registry=registry,
        )
        self._margin_shift = Gauge(
            f"{name}_margin_shift", "Mean margin now minus the mean margin after the promotion", task, registry=registry
        )
        self._disconnects = Counter(f"{name}_hung_up", "Callers that disconnected before their answer", registry=registry)
        self._served: set[str] = set()
        self._drifts: dict[str, tuple[str, Drift]] = {}

    def watch(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read at each scrape."""
        Gauge(f"ifed_inference_{name}", documentation, registry=self.registry).set_function(value)

    def watch_count(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Add a counter that is kept elsewhere and read at each scrape."""
        self.registry.register(_ExternalCounter(f"ifed_inference_{name}", documentation, value))

    def record_pass(self, *, items: int, tokens: int, budget: int, seconds: float) -> None:
        """Record a forward pass of the model."""
        self._batch_items.observe(items)
        self._batch_fill.observe(tokens / budget)
        self._batch_seconds.observe(seconds)

    def record_task_pass(self, task: str, *, items: int, fill: float) -> None:
        """Record a forward pass that ran a text of `task`, other tasks' texts included."""
        self._task_batch_items.labels(task).observe(items)
        self._task_batch_fill.labels(task).observe(fill)

    def record_lookup(self, task: str, *, cached: bool) -> None:
        """Record whether an adapter was in the cache."""
        self._lookups.labels(task, "held" if cached else "fetched").inc()

    def set_version(self, task: str, version: int) -> None:
        """Set the version served for a task, which is fresh."""
        self._version.labels(task).set(version)
        self._stale.labels(task).set(0)
        self._served.add(task)

    def remove_version(self, task: str) -> None:
        """Remove the version of a task that is no longer in the cache."""
        if task in self._served:
            self._served.discard(task)
            self._version.remove(task)
            self._stale.remove(task)
            self._remove_shifts(task)

    def mark_stale(self, task: str) -> None:
        """Set the stale flag of a task that is served."""
        if task in self._served:
            self._stale.labels(task).set(1)

    def record_answer(
        self, task: str, *, items: int, tokens: int, queue_seconds: float, model_seconds: float, seconds: float
    ) -> None:
        """Record a request in which at least one text was classified."""
        self._requests.labels(task, "ok").inc()
        self._items.labels(task).inc(items)
        self._tokens.labels(task).inc(tokens)
        self._queue.labels(task).observe(queue_seconds)
        self._model.labels(task).observe(model_seconds)
        self._request.labels(task).observe(seconds)

    def record_refusal(self, task: str | None, error: str) -> None:
        """Record a refused request; `task` is None until the task is known to exist."""
        self._requests.labels(task or "", error).inc()

    def record_item_refusal(self, task: str, error: str) -> None:
        """Record one refused text."""
        self._refused.labels(task, error).inc()

    def record_abstentions(self, task: str, count: int) -> None:
        """Record texts that got probabilities and no label."""
        if count:
            self._abstained.labels(task).inc(count)

    def record_disconnect(self) -> None:
        """Record a caller that disconnected before its answer."""
        self._disconnects.inc()

    def record_predictions(
        self, task: str, digest: str, labels: Sequence[str], probabilities: Sequence[npt.NDArray[np.floating]]
    ) -> None:
        """Record predictions for the drift metrics; another adapter digest starts a new reference.

        Args:
            digest: of the adapter that made the predictions.
            labels: of the task, in order.
            probabilities: one array per text, shape (labels,).
        """
        known_digest, drift = self._drifts.get(task, ("", Drift(0)))
        if known_digest != digest:
            drift = Drift(len(labels))
            self._drifts[task] = (digest, drift)
        for row in probabilities:
            drift.add(row)
        shift = drift.shift()
        for label, share in zip(labels, shift.shares, strict=True):
            self._share.labels(task, label).set(share)
        self._margin.labels(task).set(shift.margin)
        if shift.share_shift is None or shift.margin_shift is None:
            self._remove_shifts(task)
        else:
            self._share_shift.labels(task).set(shift.share_shift)
            self._margin_shift.labels(task).set(shift.margin_shift)

    def _remove_shifts(self, task: str) -> None:
        """Remove the shifts of a task, so that those of the previous version are not shown for a new one."""
        for gauge in (self._share_shift, self._margin_shift):
            with suppress(KeyError):
                gauge.remove(task)


class _ExternalCounter(Collector):
    """A counter whose value a function returns."""

    def __init__(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        self._name, self._documentation, self._value = name, documentation, value

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._documentation, value=self._value())
