"""The machine's rate of multiply-adds in both precisions, and the speed-up that this rate alone would allow.

The speed-up is that of a method that does nothing but the matrix products of its layers, at the rate of products of their shape; attention,
norms and activations take additional time.
"""

from __future__ import annotations

import statistics
from functools import partial

import torch

from benchmarks.modeling.measurements import EPOCHS, Setting
from benchmarks.modeling.timing import median_seconds
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompts import PromptTemplate

PRODUCTS_A_CALL = 20


def speedup_limits(setting: Setting) -> dict[str, float]:
    """Return billions of multiply-adds a second of both sides, and the largest speed-up that they allow at each step."""
    tokens = _tokens(setting)
    slow, fast = _rates(setting, tokens)
    layers, head = _weights(setting.exact)
    # Backward to Λ costs what forward costs. Ours: the lower half once in `EPOCHS`, the upper half forth and back, the head at one token.
    ours = layers * (0.5 / EPOCHS + 1) + 2 * head / tokens
    return {
        "published": slow,
        "ours": fast,
        "extraction, classification": fast / slow * (layers + head) / layers,
        "calibration": fast / slow * 2 * (layers + head) / ours,
    }


def _tokens(setting: Setting) -> int:
    template = PromptTemplate.of(setting.fast, setting.dataset.template)
    return round(statistics.mean(len(template.prompt(text).ids) for text in setting.texts))


def _rates(setting: Setting, tokens: int) -> tuple[float, float]:
    """Measure products with the largest matrix of a layer: float32 with one text's tokens, and the fast dtype with a batch's."""
    weights = (parameter for parameter in setting.fast.family.layers(setting.fast.model)[-1].parameters() if parameter.ndim == 2)
    shape = max((weight.shape for weight in weights), key=lambda shape: shape.numel())
    sides = {"published": (tokens, setting.exact.dtype), "ours": (setting.fast.token_budget, setting.fast.dtype)}
    with torch.inference_mode():
        works = {name: partial(_multiply, *(_random_factors(shape, rows, dtype))) for name, (rows, dtype) in sides.items()}
        for work in works.values():
            work()
        seconds = median_seconds(works, repetitions=15)
    slow, fast = (PRODUCTS_A_CALL * shape.numel() * rows / seconds[name] / 1e9 for name, (rows, _) in sides.items())
    return slow, fast


def _random_factors(shape: torch.Size, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, shape[1]).to(dtype), torch.randn(shape).to(dtype)


def _multiply(states: torch.Tensor, weight: torch.Tensor) -> None:
    for _ in range(PRODUCTS_A_CALL):
        torch.nn.functional.linear(states, weight)


def _weights(lm: LanguageModel) -> tuple[int, int]:
    """Return the numbers of matrix elements of the layers and of the head."""
    layers = sum(p.numel() for layer in lm.family.layers(lm.model) for p in layer.parameters() if p.ndim == 2)
    return layers, lm.model.get_output_embeddings().weight.numel()
