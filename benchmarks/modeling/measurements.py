"""What is measured for one model on one data set. Prints nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.modeling.published import Published
from benchmarks.modeling.texts import Source
from benchmarks.modeling.timing import median_seconds, overhead
from ifed.errors import UnsupportedFamily
from ifed.messages.tasks import resolve_layers
from ifed.modeling.calibration import Calibrator, LocalPlan
from ifed.modeling.export import fold, write
from ifed.modeling.extraction import context_vector
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel, quiet, wrap
from ifed.modeling.prompts import Example, PromptTemplate
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.values import Coefficients, ContextVector

EPOCHS = 4  # of a task on a small client: what the lower layers give is then computed once and used four times
DEMONSTRATIONS = 12


@dataclass(frozen=True)
class Setting:
    """One model in both precisions, and the texts."""

    exact: LanguageModel
    fast: LanguageModel
    source: Source
    examples: Sequence[Example]
    repetitions: int
    groups: int

    @property
    def texts(self) -> list[str]:
        return [example.text for example in self.examples]


def speeds(setting: Setting) -> dict[str, float]:
    """Milliseconds an example: the published procedure and ours at extraction, calibration and classification."""
    published = Published(setting.exact, PromptTemplate.of(setting.exact, setting.source.template), setting.source.labels)
    context = published.extract(setting.examples)
    theirs: dict[str, Callable[[], object]] = {
        "extraction published": partial(published.extract, setting.examples),
        "calibration published": partial(published.calibrate, setting.examples, context),
        "classification published": partial(published.classify, setting.texts, context),
    }
    works = theirs | _ours(setting, context)
    counted = {name: EPOCHS if name.endswith("4 epochs") else 1 for name in works}
    seconds = median_seconds(works, repetitions=setting.repetitions)
    return {name: 1000 * found / counted[name] / len(setting.examples) for name, found in seconds.items()}


def _ours(setting: Setting, context: Tensor) -> dict[str, Callable[[], object]]:
    lm, template = setting.fast, PromptTemplate.of(setting.fast, setting.source.template)
    labels, every = template.labels(setting.source.labels), range(setting.fast.num_layers)
    upper = resolve_layers("upper_half", lm.num_layers)

    def calibrate(layers: Sequence[int], epochs: int) -> None:
        vector = ContextVector(context.numpy()[list(layers)])
        draws = epochs * len(setting.examples)
        calibrator = Calibrator(lm, template, labels, setting.examples, vector, layers, expected_draws=draws)
        plan = LocalPlan(steps=draws // 8, batch_size=8, learning_rate=0.04, learning_rate_end=0.04, logit_adjustment=1.0, seed=0)
        calibrator.run(Coefficients.identity(len(layers), setting.groups), plan)

    return {
        "extraction ours": partial(context_vector, lm, template, labels, setting.examples, layers=every),
        "extraction ours, upper half": partial(context_vector, lm, template, labels, setting.examples, layers=upper),
        "calibration ours, all layers": partial(calibrate, every, 1),
        "calibration ours, 1 epoch": partial(calibrate, upper, 1),
        "calibration ours, 4 epochs": partial(calibrate, upper, EPOCHS),
        "classification ours": partial(_classify, lm, setting, injection(setting, lm)),
    }


def overheads(setting: Setting, *, pairs: int) -> dict[str, Any]:
    """What injection adds to the bare model, by hooks and folded, and what twelve demonstrations in the prompt cost instead."""
    lm = setting.fast
    bare, injected = _scoring(lm, setting, None), _scoring(lm, setting, injection(setting, lm))
    found: dict[str, Any] = {"hooks": overhead(injected, bare, pairs=pairs), "itself": overhead(bare, bare, pairs=pairs)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            stock = _folded(setting, Path(folder))
            found["folded"] = overhead(_scoring(stock, setting, None), bare, pairs=pairs)
    except UnsupportedFamily as refusal:
        found["folded"] = refusal.detail
    shots = setting.examples[:DEMONSTRATIONS]
    before = "\n\n".join(shown(setting.source, example) for example in shots)
    few = Setting(setting.exact, lm, setting.source, setting.examples[-8:], 1, setting.groups)
    ways = {
        "few-shot ms": partial(_classify, lm, few, None, before + "\n\n"),
        "injection ms": partial(_classify, lm, few, injection(setting, lm)),
    }
    seconds = median_seconds(ways, repetitions=setting.repetitions)
    return found | {name: 1000 * found / len(few.examples) for name, found in seconds.items()}


def _scoring(lm: LanguageModel, setting: Setting, given: Injection | None) -> Callable[[], object]:
    """The forward passes alone: prompts are made before."""
    template = PromptTemplate.of(lm, setting.source.template)
    labels = template.labels(setting.source.labels)
    return partial(score, lm, [ScoringItem(template.prompt(text), labels, given) for text in setting.texts])


def shown(source: Source, example: Example) -> str:
    """A demonstration in a prompt; a brace pair in a text would be a second slot."""
    return source.template.replace("{text}", example.text.replace("{text}", "")) + " " + source.labels[example.label]


def _classify(lm: LanguageModel, setting: Setting, given: Injection | None, before: str = "") -> None:
    template = PromptTemplate.of(lm, before + setting.source.template, max_tokens=4096)
    labels = template.labels(setting.source.labels)
    score(lm, [ScoringItem(template.prompt(text), labels, given) for text in setting.texts])


def injection(setting: Setting, lm: LanguageModel) -> Injection:
    """Coefficients and a vector as a trained task has them: the upper half, in groups."""
    layers, random = resolve_layers("upper_half", lm.num_layers), np.random.default_rng(0)
    values = Coefficients.identity(len(layers), setting.groups).values + 0.01 * random.normal(
        size=(len(layers), 2, 2, setting.groups)
    )
    vector = ContextVector(random.normal(size=(len(layers), 2, lm.hidden_size)).astype(np.float32))
    return injection_of(vector, Coefficients(values.astype(np.float32)), layers, device=lm.device, dtype=lm.dtype)


def _folded(setting: Setting, folder: Path) -> LanguageModel:
    lm = setting.fast
    write(lm, *fold(lm, injection(setting, lm)), folder)
    with quiet():
        return wrap(AutoModelForCausalLM.from_pretrained(folder, dtype=lm.dtype), lm.tokenizer, fingerprint="0" * 64)
