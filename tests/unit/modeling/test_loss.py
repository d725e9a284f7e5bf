"""The loss over the vocabulary and its gradient are those of logits that are all there at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ifed.modeling.language_model import LanguageModel
from ifed.modeling.logits import vocabulary_logits
from ifed.modeling.loss import LOGITS_AT_ONCE, LogitAdjustments, cross_entropy
from testing.random_models import build

TARGETS = [0, 7, 7, 31, 2]


def states(lm: LanguageModel, *, factor: float = 1.0) -> Tensor:
    drawn = torch.randn(len(TARGETS), lm.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return (factor * drawn).to(lm.dtype).requires_grad_(True)


def offsets(lm: LanguageModel) -> LogitAdjustments:
    last = lm.model.get_output_embeddings().weight.shape[0] - 1
    return LogitAdjustments(
        torch.tensor([0, 0, 3, 4]), torch.tensor([0, 5, last, 2]), torch.tensor([-0.5, 1.5, 2.0, -1.0], dtype=torch.float64)
    )


def plainly(lm: LanguageModel, hidden: Tensor, added: LogitAdjustments | None) -> Tensor:
    logits = vocabulary_logits(lm, hidden)
    if added is not None:
        logits = logits.index_put((added.rows, added.tokens), added.values.to(logits.dtype), accumulate=True)
    return torch.nn.functional.cross_entropy(logits, torch.tensor(TARGETS), reduction="sum")


@pytest.mark.parametrize(
    ("family", "at_once", "adjusted"),
    [
        pytest.param("llama", 1, False, id="one token at a time"),
        pytest.param("llama", 65, True, id="chunks of 13 tokens, adjusted"),
        pytest.param("llama", LOGITS_AT_ONCE, False, id="the whole vocabulary at once"),
        pytest.param("gemma2", 65, True, id="capped logits in chunks, adjusted"),
        pytest.param("gemma2", LOGITS_AT_ONCE, False, id="capped logits at once"),
    ],
)
def test_the_loss_and_its_gradient_are_those_of_the_logits(family: str, at_once: int, adjusted: bool) -> None:
    lm = build(family, dtype=torch.float64)
    added = offsets(lm) if adjusted else None
    ours, plain = states(lm), states(lm)
    actual, expected = cross_entropy(lm, ours, torch.tensor(TARGETS), added, logits_at_once=at_once), plainly(lm, plain, added)
    (3 * actual).backward()
    (3 * expected).backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(ours.grad, plain.grad)


def test_logits_that_differ_by_thousands_give_no_infinity() -> None:
    lm = build(dtype=torch.float64)
    hidden = states(lm, factor=1e6)
    actual = cross_entropy(lm, hidden, torch.tensor(TARGETS), logits_at_once=65)
    actual.backward()
    torch.testing.assert_close(actual, plainly(lm, hidden.detach(), None))
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_half_precision_differs_by_its_rounding_alone() -> None:
    lm = build(dtype=torch.bfloat16)
    ours, plain = states(lm), states(lm)
    actual, expected = cross_entropy(lm, ours, torch.tensor(TARGETS), logits_at_once=65), plainly(lm, plain, None)
    actual.backward()
    expected.backward()
    assert actual.dtype is torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=2e-2, atol=2e-2)
