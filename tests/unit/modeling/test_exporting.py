"""An adapter on disk: a checkpoint, and a card whose code gives the scores that the service gives."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from ifed.errors import AlreadyExists, FingerprintMismatch, UnsupportedFamily
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta, Evaluation
from ifed.messages.tasks import Layout
from ifed.modeling.export import export
from ifed.modeling.injection import injection_of
from ifed.modeling.language_model import LanguageModel, quiet
from ifed.modeling.scoring import ScoringItem, score
from tests.unit.modeling.builders import HIDDEN, TEMPLATE, TEXTS, build, random_coefficients, random_context, template

LABELS = ["positive", "topic sport", "topic science"]


def adapter(lm: LanguageModel) -> AdapterBody:
    meta = AdapterMeta(
        task="reviews",
        version=3,
        labels=LABELS,
        template=TEMPLATE,
        identity=lm.identity,
        layout=Layout(layers=[1, 2], hidden_size=HIDDEN, groups=4),
        evaluation=Evaluation(version=3, accuracy=0.875, macro_f1=0.87, examples=80),
        created_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
    )
    return AdapterBody(random_context(2), random_coefficients(2, 4), meta)


def test_the_code_on_the_card_gives_the_services_probabilities(tmp_path: Path) -> None:
    lm, folder = build(), tmp_path / "out"
    given = adapter(lm)
    export(lm, given, folder)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    room: dict[str, object] = {}
    with quiet():
        exec(code.replace('folder = "."', f"folder = {str(folder)!r}"), room)
    injection = injection_of(given.context, given.coefficients, [1, 2], device="cpu", dtype=lm.dtype)
    prompts, labels = template(lm), template(lm).labels(LABELS)
    scores = score(lm, [ScoringItem(prompts.prompt(text), labels, injection) for text in TEXTS])
    for text, expected in zip(TEXTS, scores, strict=True):
        found = room["classify"](text)  # type: ignore[operator]
        assert list(found) == LABELS
        np.testing.assert_allclose(list(found.values()), np.exp(expected), rtol=1e-3, atol=1e-4)


def test_the_card_says_what_was_trained_from_what_and_how_well_it_did(tmp_path: Path) -> None:
    lm = build()
    export(lm, adapter(lm), tmp_path)
    card = (tmp_path / "README.md").read_text()
    for told in ("reviews", "`topic sport`", r"Review: {text}\nSentiment:", lm.name, lm.fingerprint, "| calibration rounds | 3 |"):
        assert told in card
    assert "87.5%, macro-F1 0.870, on 80 held-out examples" in card


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FingerprintMismatch, match="name the task's own model"):
        export(build(seed=1), adapter(build()), tmp_path)


def test_nothing_is_written_over_or_left_behind_by_a_refusal(tmp_path: Path) -> None:
    lm = build("gemma2")
    with pytest.raises(UnsupportedFamily, match="norm has no bias"):
        export(lm, adapter(lm), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(AlreadyExists):
        export(lm, adapter(lm), tmp_path)
