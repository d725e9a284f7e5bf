"""/metrics shows series for each task, and the monitoring page describes every metric."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest

from services.inference.drift import REFERENCE
from services.inference.metrics import Metrics
from tests.unit.inference.fakes import metrics_of, sample


@pytest.fixture
def metrics() -> Metrics:
    metrics = metrics_of()
    metrics.set_version("a", 7)
    metrics.record_lookup("a", cached=True)
    metrics.record_lookup("a", cached=False)
    metrics.record_answer("a", items=3, tokens=40, queue_seconds=0.002, model_seconds=0.2, seconds=0.3)
    metrics.record_task_pass("a", items=4, fill=0.8)
    metrics.record_task_pass("a", items=2, fill=0.3)
    metrics.record_item_refusal("a", "EmptyText")
    return metrics


def test_every_task_has_its_own_series(metrics: Metrics) -> None:
    labelled: list[tuple[str, dict[str, str], float]] = [
        ("requests_total", {"outcome": "ok"}, 1),
        ("items_total", {}, 3),
        ("tokens_total", {}, 40),
        ("queue_seconds_sum", {}, 0.002),
        ("model_seconds_sum", {}, 0.2),
        ("request_seconds_bucket", {"le": "0.25"}, 0),
        ("request_seconds_bucket", {"le": "0.5"}, 1),
        ("task_batch_items_sum", {}, 6),
        ("task_batch_items_count", {}, 2),
        ("task_batch_fill_sum", {}, 1.1),
        ("adapter_version", {}, 7),
        ("adapter_stale", {}, 0),
        ("adapter_lookups_total", {"found": "held"}, 1),
        ("adapter_lookups_total", {"found": "fetched"}, 1),
        ("items_refused_total", {"error": "EmptyText"}, 1),
    ]
    for name, labels, value in labelled:
        assert sample(metrics, name, task="a", **labels) == pytest.approx(value), (name, labels)


def test_a_task_that_is_not_served_has_no_version_and_no_series(metrics: Metrics) -> None:
    metrics.remove_version("a")
    metrics.mark_stale("made-up")
    metrics.record_refusal(None, "UnknownTask")
    assert sample(metrics, "adapter_version", task="a") is None
    assert "made-up" not in generate_latest(metrics.registry).decode()
    assert sample(metrics, "requests_total", task="", outcome="UnknownTask") == 1


def test_a_counter_kept_elsewhere_is_read_at_each_scrape(metrics: Metrics) -> None:
    hits = [3]
    metrics.watch_count("prefix_hits", "Prefixes found", lambda: hits[0])
    assert sample(metrics, "prefix_hits_total") == 3
    hits[0] = 5
    assert sample(metrics, "prefix_hits_total") == 5
    assert "# TYPE ifed_inference_prefix_hits_total counter" in generate_latest(metrics.registry).decode()


def test_drift_is_measured_from_the_predictions_after_a_promotion(metrics: Metrics) -> None:
    sure, unsure = np.array([0.9, 0.1]), np.array([0.45, 0.55])
    metrics.record_predictions("a", "one", ["no", "yes"], [sure] * REFERENCE)
    assert sample(metrics, "label_share_shift", task="a") == pytest.approx(0)
    metrics.record_predictions("a", "one", ["no", "yes"], [unsure] * 1500)
    assert sample(metrics, "label_share", task="a", label="yes") == pytest.approx(1, abs=0.01)
    assert sample(metrics, "label_share_shift", task="a") == pytest.approx(1, abs=0.01)
    assert sample(metrics, "margin_shift", task="a") == pytest.approx(0.1 - 0.8, abs=0.01)
    metrics.record_predictions("a", "two", ["no", "yes"], [sure])
    assert sample(metrics, "label_share", task="a", label="no") == 1
    assert sample(metrics, "label_share_shift", task="a") is None, "the shift was that of the version before"
    assert sample(metrics, "margin_shift", task="a") is None


def test_the_monitoring_page_names_every_metric(metrics: Metrics) -> None:
    page = Path("docs/how-to-monitor.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"(?:ifed_inference_|…_)([a-z_]+)", page))
    names = {family.name.removeprefix("ifed_inference_") for family in metrics.registry.collect()}
    names |= set(
        re.findall(r'metrics\.watch(?:_count)?\(\s*"(\w+)"', Path("services/inference/app.py").read_text(encoding="utf-8"))
    )
    assert not {name for name in names if name not in documented and f"{name}_total" not in documented}
