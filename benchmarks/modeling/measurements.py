"""The measurements for one model on one data set."""

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

from benchmarks.datasets import Dataset
from benchmarks.modeling.published import Published
from benchmarks.modeling.timing import median_seconds, overhead
from ifed.errors import UnsupportedFamily
from ifed.messages.tasks import resolve_layers
from ifed.messages.texts import LabelledText
from ifed.modeling.calibration import Calibrator, LocalPlan
from ifed.modeling.export import fold, write
from ifed.modeling.extraction import context_vector
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel, quiet, wrap
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.values import Coefficients, ContextVector

EPOCHS = 4  # how often a small client uses each example, while its lower layers run once
DEMONSTRATIONS = 12


@dataclass(frozen=True)
class Setting:
    """One model in float32 (`exact`) and in the fast dtype, the examples, and the number of coefficient groups."""

    exact: LanguageModel
    fast: LanguageModel
    dataset: Dataset
    examples: Sequence[LabelledText[int]]
    repetitions: int
    groups: int

    @property
    def texts(self) -> list[str]:
        """The texts of the examples."""
        return [example.text for example in self.examples]


def speeds(setting: Setting) -> dict[str, float]:
    """Return milliseconds an example of the published procedure and of ours, at extraction, calibration and classification."""
    published = Published(setting.exact, PromptTemplate.of(setting.exact, setting.dataset.template), setting.dataset.labels)
    context = published.extract(setting.examples)
    works: dict[str, Callable[[], object]] = {
        "extraction published": partial(published.extract, setting.examples),
        "calibration published": partial(published.calibrate, setting.examples, context),
        "classification published": partial(published.classify, setting.texts, context),
    }
    works |= _ours(setting, context)
    epochs = {name: EPOCHS if name.endswith("4 epochs") else 1 for name in works}
    seconds = median_seconds(works, repetitions=setting.repetitions)
    return {name: 1000 * value / epochs[name] / len(setting.examples) for name, value in seconds.items()}


def _ours(setting: Setting, context: Tensor) -> dict[str, Callable[[], object]]:
    lm, template = setting.fast, PromptTemplate.of(setting.fast, setting.dataset.template)
    labels, every = template.labels(setting.dataset.labels), range(setting.fast.num_layers)
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
    """Return the overhead of injection over the base model, by hooks and folded, and the cost of twelve demonstrations in the prompt."""
    lm = setting.fast
    bare, injected = _scoring(lm, setting, None), _scoring(lm, setting, injection(setting, lm))
    results: dict[str, Any] = {"hooks": overhead(injected, bare, pairs=pairs), "itself": overhead(bare, bare, pairs=pairs)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            folded = _fold(setting, Path(folder))
            results["folded"] = overhead(_scoring(folded, setting, None), bare, pairs=pairs)
    except UnsupportedFamily as refusal:
        results["folded"] = refusal.detail
    shots = setting.examples[:DEMONSTRATIONS]
    prefix = "\n\n".join(demonstration(setting.dataset, example) for example in shots)
    few = Setting(setting.exact, lm, setting.dataset, setting.examples[-8:], 1, setting.groups)
    prompts = {
        "few-shot ms": partial(_classify, lm, few, None, prefix + "\n\n"),
        "injection ms": partial(_classify, lm, few, injection(setting, lm)),
    }
    seconds = median_seconds(prompts, repetitions=setting.repetitions)
    return results | {name: 1000 * value / len(few.examples) for name, value in seconds.items()}


def _scoring(lm: LanguageModel, setting: Setting, chosen: Injection | None) -> Callable[[], object]:
    """Return a call of the forward passes alone; the prompts are made before."""
    template = PromptTemplate.of(lm, setting.dataset.template)
    labels = template.labels(setting.dataset.labels)
    return partial(score, lm, [ScoringItem(template.prompt(text), labels, chosen) for text in setting.texts])


def demonstration(dataset: Dataset, example: LabelledText[int]) -> str:
    """Return a demonstration as it stands in a prompt, without a text slot of its own."""
    return dataset.template.replace("{text}", example.text.replace("{text}", "")) + " " + dataset.labels[example.label]


def _classify(lm: LanguageModel, setting: Setting, chosen: Injection | None, prefix: str = "") -> None:
    template = PromptTemplate.of(lm, prefix + setting.dataset.template, max_tokens=4096)
    labels = template.labels(setting.dataset.labels)
    score(lm, [ScoringItem(template.prompt(text), labels, chosen) for text in setting.texts])


def injection(setting: Setting, lm: LanguageModel) -> Injection:
    """Return a random injection of the shape of a trained task's: the upper half of the layers, in groups."""
    layers, random = resolve_layers("upper_half", lm.num_layers), np.random.default_rng(0)
    values = Coefficients.identity(len(layers), setting.groups).values + 0.01 * random.normal(
        size=(len(layers), 2, 2, setting.groups)
    )
    vector = ContextVector(random.normal(size=(len(layers), 2, lm.hidden_size)).astype(np.float32))
    return injection_of(vector, Coefficients(values.astype(np.float32)), layers, device=lm.device, dtype=lm.dtype)


def _fold(setting: Setting, folder: Path) -> LanguageModel:
    lm = setting.fast
    write(lm, *fold(lm, injection(setting, lm)), folder)
    with quiet():
        return wrap(
            AutoModelForCausalLM.from_pretrained(folder, dtype=lm.dtype, trust_remote_code=False),
            lm.tokenizer,
            fingerprint="0" * 64,
        )
