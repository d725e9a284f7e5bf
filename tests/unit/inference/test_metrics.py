"""What /metrics shows of each task, in the words of the monitoring page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.inference.drift import REFERENCE
from services.inference.engine import Pass
from services.inference.metrics import Metrics


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics(CollectorRegistry())
    metrics.serves("a", 7)
    metrics.looked_up("a", held=True)
    metrics.looked_up("a", held=False)
    passes = [Pass(4, 0.8), Pass(2, 0.3)]
    metrics.answered("a", items=3, tokens=40, queue=0.002, model=0.2, seconds=0.3, passes=passes)
    metrics.refused_item("a", "EmptyText")
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"ifed_inference_{name}", labels)


@pytest.mark.parametrize(
    ("name", "labels", "wanted"),
    [
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
    ],
)
def test_every_task_has_its_own_figures(metrics: Metrics, name: str, labels: dict[str, str], wanted: float) -> None:
    assert value(metrics, name, task="a", **labels) == pytest.approx(wanted)


def test_a_task_that_is_let_go_or_unknown_leaves_no_version_and_makes_no_series(metrics: Metrics) -> None:
    metrics.lets_go("a")
    metrics.stale("made-up")
    metrics.refused(None, "UnknownTask")
    assert value(metrics, "adapter_version", task="a") is None
    assert "made-up" not in generate_latest(metrics.registry).decode()
    assert value(metrics, "requests_total", task="", outcome="UnknownTask") == 1


def test_what_others_count_is_read_when_it_is_shown(metrics: Metrics) -> None:
    counted = [3]
    metrics.watch_count("prefix_hits", "Times that a beginning was kept", lambda: counted[0])
    assert value(metrics, "prefix_hits_total") == 3
    counted[0] = 5
    assert value(metrics, "prefix_hits_total") == 5
    assert "# TYPE ifed_inference_prefix_hits_total counter" in generate_latest(metrics.registry).decode()


def test_drift_is_told_against_the_answers_after_the_promotion(metrics: Metrics) -> None:
    sure, unsure = np.array([0.9, 0.1]), np.array([0.45, 0.55])
    metrics.predicted("a", "one", ["no", "yes"], [sure] * REFERENCE)
    assert value(metrics, "label_share_shift", task="a") == pytest.approx(0)
    metrics.predicted("a", "one", ["no", "yes"], [unsure] * 1500)
    assert value(metrics, "label_share", task="a", label="yes") == pytest.approx(1, abs=0.01)
    assert value(metrics, "label_share_shift", task="a") == pytest.approx(1, abs=0.01)
    assert value(metrics, "margin_shift", task="a") == pytest.approx(0.1 - 0.8, abs=0.01)
    metrics.predicted("a", "two", ["no", "yes"], [sure])
    assert value(metrics, "label_share", task="a", label="no") == 1
    assert value(metrics, "label_share_shift", task="a") is None, "that was the version before"
    assert value(metrics, "margin_shift", task="a") is None


def test_the_monitoring_page_names_every_metric(metrics: Metrics) -> None:
    page = Path("docs/how-to-monitor.md").read_text(encoding="utf-8")
    told = set(re.findall(r"(?:ifed_inference|…)_([a-z_]+)", page))
    shown = {family.name.removeprefix("ifed_inference_") for family in metrics.registry.collect()}
    shown |= set(
        re.findall(r'metrics\.watch(?:_count)?\(\s*"(\w+)"', Path("services/inference/app.py").read_text(encoding="utf-8"))
    )
    assert not {name for name in shown if name not in told and f"{name}_total" not in told}
