"""The effect of each optimisation by itself: the time without it over the time with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.modeling.measurements import DEMONSTRATIONS, EPOCHS, Setting, demonstration, injection
from benchmarks.modeling.timing import overhead
from ifed.errors import IFedError
from ifed.messages.tasks import resolve_layers
from ifed.modeling.calibration import Calibrator, LocalPlan
from ifed.modeling.forward import run_rows
from ifed.modeling.injection import Injection
from ifed.modeling.language_model import LanguageModel, Options
from ifed.modeling.loading import load
from ifed.modeling.logits import vocabulary_logits
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import ScoringItem, score, scoring_rows
from ifed.tensors.values import Coefficients, ContextVector, Float32

Work = Callable[[], object]


def measure_options(setting: Setting, *, pairs: int) -> dict[str, Any]:
    """Return lower quartile, median and upper quartile of each option's ratio, over alternating pairs of runs without it and with it."""
    lm = setting.fast
    scored, long = _items(setting, lm), _items(setting, lm, prefix=_demonstrations(setting))[-8:]

    def run(items: Sequence[ScoringItem] = scored, **chosen: bool) -> Work:
        return partial(score, replace(lm, options=replace(Options(share_prefix=False), **chosen)), items)

    works: dict[str, tuple[Work, Work]] = {
        "batches of the token budget, not single rows": (partial(score, lm, scored, token_budget=1), partial(score, lm, scored)),
        "rows packed, not padded": (run(packed=False), run()),
        "attention row by row, not under a mask": (run(row_attention=False), run()),
        "template's prefix once": (run(), run(share_prefix=True)),
        "prefix of 12 demonstrations once": (run(long), run(long, share_prefix=True)),
        "last MLP at the wanted tokens": (run(sparse_last_mlp=False), run()),
        "label rows of the head": (partial(_whole_head, lm, scored), run(share_prefix=True)),
        "lower layers kept, 4 epochs": (_calibration(setting, cache_bytes=0), _calibration(setting)),
        "upper half, not all layers": (_calibration(setting, layers="all"), _calibration(setting)),
    }
    return {name: _ratio(*pair, pairs=pairs) for name, pair in works.items()}


def measure_load_options(setting: Setting, name: str, cache: Path, *, pairs: int) -> dict[str, Any]:
    """Measure the options that change the loaded model: the same ratio, the bytes of the layers, and the largest change of a probability.

    An option that is not available has the text of its refusal in place of the ratio.
    """
    lm, results = setting.fast, dict[str, Any]()
    items = _items(setting, lm)
    plain = np.exp(np.stack(score(lm, items)))
    load_options = {
        "torch.compile": Options(compiled=True),
        "int8 weights": Options(int8=True),
        "packed weights": Options(packed_weights=True),
    }
    for name_of_option, chosen in load_options.items():
        try:
            other = load(name, cache=cache, options=chosen)
            moved = float(np.abs(np.exp(np.stack(score(other, _items(setting, other)))) - plain).max())
        except (IFedError, RuntimeError) as refusal:  # a compiler that fails, or is not there, is torch's RuntimeError
            results[name_of_option] = str(refusal)
            continue
        results[name_of_option] = _ratio(partial(score, lm, items), partial(score, other, _items(setting, other)), pairs=pairs)
        results[f"{name_of_option}: largest change of a probability"] = moved
        results[f"{name_of_option}: bytes of the layers"] = [_layer_bytes(model) for model in (lm, other)]
    return results


def _ratio(without: Work, with_it: Work, *, pairs: int) -> list[float]:
    return [1 + share for share in overhead(without, with_it, pairs=pairs)]


def _items(setting: Setting, lm: LanguageModel, *, prefix: str = "") -> list[ScoringItem]:
    template = PromptTemplate.of(lm, prefix + setting.dataset.template, max_tokens=4096)
    labels, injected = template.labels(setting.dataset.labels), injection(setting, lm)
    return [ScoringItem(template.prompt(text), labels, injected) for text in setting.texts]


def _demonstrations(setting: Setting) -> str:
    return "".join(f"{demonstration(setting.dataset, example)}\n\n" for example in setting.examples[:DEMONSTRATIONS])


def _whole_head(lm: LanguageModel, items: Sequence[ScoringItem]) -> list[Float32]:
    """Return scores from the logits of the whole vocabulary at the last token."""
    rows = [row for item in items for row in scoring_rows(item.prompt, item.labels)]
    injections: list[Injection | None] = [item.injection for item in items for _ in scoring_rows(item.prompt, item.labels)]
    with torch.inference_mode():
        logits = vocabulary_logits(lm, torch.cat(run_rows(lm, rows, injections)))
        tokens = torch.tensor([ids[0] for ids in items[0].labels.ids])
        return list(torch.log_softmax(logits[:, tokens], 1).numpy())


def _calibration(setting: Setting, *, layers: str = "upper_half", cache_bytes: int = 1 << 30) -> Work:
    lm, template = setting.fast, PromptTemplate.of(setting.fast, setting.dataset.template)
    chosen = resolve_layers("all" if layers == "all" else "upper_half", lm.num_layers)
    vector = ContextVector(np.zeros((len(chosen), 2, lm.hidden_size), dtype=np.float32))
    draws = EPOCHS * len(setting.examples)
    plan = LocalPlan(steps=draws // 8, batch_size=8, learning_rate=0.04, learning_rate_end=0.04, logit_adjustment=1.0, seed=0)

    def calibrate() -> None:
        labels = template.labels(setting.dataset.labels)
        client = Calibrator(lm, template, labels, setting.examples, vector, chosen, expected_draws=draws, cache_bytes=cache_bytes)
        client.run(Coefficients.identity(len(chosen), setting.groups), plan)

    return calibrate


def _layer_bytes(lm: LanguageModel) -> int:
    """Return the bytes of the layers in memory; a quantised tensor counts with all of its parts."""
    total = 0
    for layer in lm.family.layers(lm.model):
        for tensor in (*layer.parameters(), *layer.buffers()):
            parts = [getattr(tensor, name) for name in getattr(tensor, "tensor_data_names", ())] or [tensor]
            total += sum(part.nbytes for part in parts)
    return total
