"""Local optimiser steps, or a mean gradient, of the injection coefficients. Knows no rounds and no other clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ifed.errors import LayoutMismatch, Malformed
from ifed.modeling.batching import Batch, Row, halving, layout_for, within_budget
from ifed.modeling.forward import ActivationCache
from ifed.modeling.hooks import inject, wanted_states
from ifed.modeling.injection import Injection, affine, injection_of
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loss import Objective
from ifed.modeling.prompts import Example, PromptTemplate
from ifed.modeling.scoring import HeldOut
from ifed.tensors.values import Coefficients, ContextVector, Float32, Int64

Progress = Callable[[int, int], None]
CACHE_BYTES = 1 << 30
REUSE = 1.5


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """The local steps of one calibration round.

    Attributes:
        learning_rate: of the first step; it goes in a straight line to `learning_rate_end`, which the step after the last would have.
        logit_adjustment: weight of the client's log label prior in training; 0 is off.
        seed: draws the batches; the same seed draws the same ones.
    """

    steps: int
    batch_size: int
    learning_rate: float
    learning_rate_end: float
    logit_adjustment: float
    seed: int
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What a client gives back: its coefficients, the mean loss over its steps, and the size of its training set (its weight)."""

    coefficients: Coefficients
    loss: float
    examples: int


@dataclass(frozen=True, slots=True)
class LocalGradient:
    """The mean gradient of Λ, float32 of Λ's shape (layer, site, coefficient, G), the loss there, and the size of the training set."""

    values: Float32
    loss: float
    examples: int


class Calibrator:
    """One client's training and held-out examples under one task, ready for round after round.

    Where the injection starts above the lowest layer, what the layers below give is kept for the held-out examples, and for the training
    examples if they will be used again.

    Args:
        context: the global context vector v_g, (layer, site, d), for `layers`.
        held_out: scored by `evaluate`, never trained on.
        expected_draws: training examples the whole task will draw (rounds · steps · batch size); activations of the training examples are
            kept if that is 1.5 times their number, or when it is not told.
        cache_bytes: the most that is kept of either set.

    Raises:
        Malformed: no training examples.
        LayoutMismatch: context vector and layers do not fit each other or the model.
    """

    def __init__(
        self,
        lm: LanguageModel,
        template: PromptTemplate,
        labels: LabelTokens,
        examples: Sequence[Example],
        context: ContextVector,
        layers: Sequence[int],
        *,
        held_out: Sequence[Example] = (),
        expected_draws: int | None = None,
        token_budget: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if not examples:
            raise Malformed("calibration needs training examples; there are none")
        if context.values.shape[::2] != (len(layers), lm.hidden_size):
            raise LayoutMismatch(f"a context vector {context.values.shape} is not for {len(layers)} layers of {lm.name}")
        self._lm, self._labels, self._context, self._layers = lm, labels, context, tuple(layers)
        self._token_budget = token_budget or 2 * lm.token_budget
        self._truths = [example.label for example in examples]
        self._counts = [self._truths.count(label) for label in range(len(labels.names))]
        self._rows = [training_row(template.prompt(example.text).ids, labels.ids[example.label]) for example in examples]
        again = expected_draws is None or expected_draws >= REUSE * len(examples)
        limit = cache_bytes if again else 0
        self._lower = ActivationCache(lm, self._layers[0], self._rows, limit=limit, token_budget=token_budget)
        self._held_out = HeldOut(
            lm, template, labels, held_out, first_layer=self._layers[0], cache_bytes=cache_bytes, token_budget=token_budget
        )

    def run(self, coefficients: Coefficients, plan: LocalPlan, *, progress: Progress | None = None) -> LocalResult:
        """Take the steps of `plan` from `coefficients`: AdamW on Λ alone, batches from shuffled epochs over the training examples.

        The same coefficients and plan give the same bytes, whatever ran before.

        Args:
            progress: called with steps taken and steps in all after each step; what it raises ends the steps.

        Raises:
            LayoutMismatch: coefficients that are not for these layers, or a G that does not divide d.
        """
        values = self._parameter(coefficients)
        objective = Objective(self._lm, self._labels, self._counts, plan.logit_adjustment)
        optimiser = torch.optim.AdamW([values], lr=plan.learning_rate, weight_decay=plan.weight_decay)
        losses: list[float] = []
        for step, indices in enumerate(draws(len(self._rows), plan.batch_size, plan.steps, plan.seed)):
            for group in optimiser.param_groups:
                group["lr"] = plan.learning_rate + (plan.learning_rate_end - plan.learning_rate) * step / plan.steps
            optimiser.zero_grad()
            losses.append(self._backward(values, indices, objective))
            optimiser.step()
            if progress is not None:
                progress(step + 1, plan.steps)
        return LocalResult(Coefficients(values.detach().cpu().numpy()), float(np.mean(losses)), len(self._rows))

    def mean_gradient(
        self, coefficients: Coefficients, *, batch_size: int, seed: int, logit_adjustment: float = 0.0
    ) -> LocalGradient:
        """The gradient of the mean loss over one batch at `coefficients`, for an aggregator that takes the step (arXiv 2003.00295).

        Raises:
            LayoutMismatch: coefficients that are not for these layers, or a G that does not divide d.
        """
        (indices,) = draws(len(self._rows), batch_size, 1, seed)
        return self.gradient_of(coefficients, indices, logit_adjustment=logit_adjustment)

    def gradient_of(self, coefficients: Coefficients, indices: Sequence[int], *, logit_adjustment: float = 0.0) -> LocalGradient:
        """The gradient of the mean loss over the training examples of these indices at `coefficients`.

        Raises:
            LayoutMismatch: coefficients that are not for these layers, or a G that does not divide d.
        """
        values = self._parameter(coefficients)
        objective = Objective(self._lm, self._labels, self._counts, logit_adjustment)
        loss = self._backward(values, indices, objective)
        assert values.grad is not None
        return LocalGradient(values.grad.to(torch.float32).cpu().numpy(), loss, len(self._rows))

    def evaluate(self, coefficients: Coefficients) -> Int64:
        """Confusion counts on the held-out examples: int64, (C, C), rows are the true labels, columns the predicted ones."""
        return self.measure(coefficients)[0]

    def measure(self, coefficients: Coefficients) -> tuple[Int64, Float32 | None]:
        """What `evaluate` gives, and the mean probability of each label on the held-out examples, float32, (C,); None without any."""
        injection = injection_of(self._context, coefficients, self._layers, device=self._lm.device, dtype=self._lm.dtype)
        return self._held_out.measure(injection)

    def _parameter(self, coefficients: Coefficients) -> Tensor:
        values = torch.tensor(coefficients.values, dtype=self._lm.injection_dtype, device=self._lm.device)
        return values.requires_grad_(True)

    def _backward(self, values: Tensor, indices: Sequence[int], objective: Objective) -> float:
        """Add the gradient of the mean loss over the label tokens of these examples to `values`; give the loss."""
        rows = [self._rows[index] for index in indices]
        layout, tokens, losses = layout_for(self._lm), sum(len(row.wanted) for row in rows), []
        context = torch.tensor(self._context.values, dtype=values.dtype, device=values.device)

        def run(group: list[int]) -> None:
            batch = Batch.of([rows[place] for place in group], layout=layout, device=self._lm.device)
            chosen = [indices[place] for place in group]
            with torch.enable_grad(), self._lower.standing_in(batch, chosen):
                with inject(self._lm, Injection(self._layers, *affine(values, context))):
                    hidden = wanted_states(self._lm, batch)
                part = objective.total(hidden, [self._truths[index] for index in chosen]) / tokens
                # Λ is the only leaf, and its gradient comes last: where the memory runs out, nothing was added yet.
                (gradient,) = torch.autograd.grad(part, values)
            values.grad = gradient if values.grad is None else values.grad + gradient
            losses.append(float(part.detach()))

        for group in within_budget([len(row.ids) for row in rows], self._token_budget, layout):
            halving(group, run)
        return sum(losses)


def training_row(prompt: tuple[int, ...], label: tuple[int, ...]) -> Row:
    """The prompt and the label without its last token, asking for the states that predict each label token."""
    ids = prompt + label[:-1]
    return Row(ids, tuple(range(len(prompt) - 1, len(ids))))


def draws(examples: int, batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices from epochs shuffled one after the other, so that every example is drawn equally often."""
    generator = np.random.default_rng(seed)
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < min(batch_size, examples):
            waiting += generator.permutation(examples).tolist()
        yield waiting[:batch_size]
        del waiting[:batch_size]
