"""Local training of the injection coefficients of one client: optimiser steps, or one mean gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ifed.errors import LayoutMismatch, Malformed
from ifed.messages.tasks import InjectionPosition
from ifed.messages.texts import LabelledText
from ifed.modeling.batching import Batch, BatchLayout, Row, group_by_budget, layout_for, run_with_halving
from ifed.modeling.forward import ActivationCache, inject_by_row, run_rows
from ifed.modeling.hooks import output_states
from ifed.modeling.injection import Injection, injection_of, scale_and_shift
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loss import HeadObjective, Objective
from ifed.modeling.prompt_cache import PromptCache
from ifed.modeling.prompts import Prompt, PromptTemplate
from ifed.modeling.scoring import HeldOut, Measurement
from ifed.tensors.regression import LabelHead
from ifed.tensors.values import Coefficients, ContextVector, Float32, Int64

Progress = Callable[[int, int], None]
CACHE_BYTES = 1 << 30
MIN_REUSE = 1.5  # draws per training example from which its activations are worth caching


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """The local steps of one calibration round.

    Attributes:
        steps: optimiser steps.
        batch_size: training examples of one step.
        learning_rate: of the first step; it falls linearly to `learning_rate_end`, which the step after the last would have.
        learning_rate_end: see `learning_rate`.
        logit_adjustment: weight of the client's log label prior in training; 0 turns it off.
        seed: determines the batches.
        weight_decay: of AdamW.
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
    """The outcome of local steps.

    Attributes:
        coefficients: Λ after the last step.
        loss: the mean over the steps.
        examples: the size of the training set, which is the client's weight.
    """

    coefficients: Coefficients
    loss: float
    examples: int


@dataclass(frozen=True, slots=True)
class LocalGradient:
    """The mean gradient of Λ over one batch.

    Attributes:
        values: float32, in the shape of Λ: (layer, site, coefficient, G).
        loss: the mean over the batch.
        examples: the size of the training set, which is the client's weight.
    """

    values: Float32
    loss: float
    examples: int


class Calibrator:
    """The training and held-out examples of one client under one task, ready for any number of rounds.

    What no coefficient changes is computed once and cached: with an injection at the last token the keys and values of the prompts, else
    the activations that enter the first injected layer, if that is not the lowest: those of the held-out examples always, those of the
    training examples if they will be used often enough.

    Args:
        labels: the label words; None for a task whose head alone is read.
        context: the global context vector v_g, (layer, site, d), for `layers`.
        held_out: examples that are evaluated and never trained on.
        classes: the number of labels, C; by default that of the label words.
        position: the tokens that the injection acts on.
        through_head: whether calibration reads the final state at the last token of the prompt through a label head, given with each call,
            instead of label words.
        expected_draws: the training examples that the whole task will draw (rounds · steps · batch size); their activations are cached if
            that is at least 1.5 times their number, or if it is None.
        token_budget: tokens of one forward and backward pass; by default twice the model's budget.
        cache_bytes: the largest size of either cache; that of an injection at the last token goes to disk beyond it.
        cache_folder: for caches on disk; the system's temporary folder by default.
        prompts: the cache of the training prompts, if they were computed before; one of other prompts or layers is not used.

    Raises:
        Malformed: there are no training examples.
        LayoutMismatch: the context vector does not fit the layers or the model.
    """

    def __init__(
        self,
        lm: LanguageModel,
        template: PromptTemplate,
        labels: LabelTokens | None,
        examples: Sequence[LabelledText[int]],
        context: ContextVector,
        layers: Sequence[int],
        *,
        held_out: Sequence[LabelledText[int]] = (),
        classes: int | None = None,
        position: InjectionPosition = "all_tokens",
        through_head: bool = False,
        expected_draws: int | None = None,
        token_budget: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        cache_folder: Path | None = None,
        prompts: PromptCache | None = None,
    ) -> None:
        if not examples:
            raise Malformed("calibration needs training examples; there are none")
        if context.values.shape[::2] != (len(layers), lm.hidden_size):
            raise LayoutMismatch(f"a context vector {context.values.shape} is not for {len(layers)} layers of {lm.name}")
        if classes is None:
            assert labels is not None, "without label words the number of classes must be given"
            classes = len(labels.names)
        self._lm, self._labels, self._context, self._layers = lm, labels, context, tuple(layers)
        self._position, self._through_head = position, through_head
        self._token_budget = token_budget or 2 * lm.token_budget
        self.true_labels = [example.label for example in examples]
        self._label_counts = [self.true_labels.count(label) for label in range(classes)]
        self._rows = [self._training_row(template.prompt(example.text), example.label) for example in examples]
        reused = expected_draws is None or expected_draws >= MIN_REUSE * len(examples)

        def cache(rows: Sequence[Row], *, wanted: bool = True) -> ActivationCache | PromptCache:
            if position == "last_token" and lm.row_attention:
                return PromptCache(lm, self._layers[0], rows, max_bytes=cache_bytes, token_budget=token_budget, folder=cache_folder)
            max_bytes = cache_bytes if wanted else 0
            return ActivationCache(lm, self._layers[0], rows, max_bytes=max_bytes, token_budget=token_budget)

        known = prompts is not None and position == "last_token" and prompts.is_of(self._layers[0], self._rows)
        self._activations = prompts if prompts is not None and known else cache(self._rows, wanted=reused)
        self.held_out = HeldOut(lm, template, labels, held_out, classes=classes, cache=cache, token_budget=token_budget)

    def run(
        self,
        coefficients: Coefficients,
        plan: LocalPlan,
        *,
        head: LabelHead | None = None,
        progress: Progress | None = None,
    ) -> LocalResult:
        """Take the steps of `plan` from `coefficients`: AdamW (arXiv 1711.05101) on Λ alone, batches from shuffled epochs.

        The same coefficients, plan and head give the same bytes, independent of earlier runs.

        Args:
            head: the label head that is read, if calibration goes through it.
            progress: called after each step with the steps taken and the steps in all; an exception it raises ends the steps.

        Raises:
            LayoutMismatch: the coefficients are not for these layers, or G does not divide d.
        """
        values = self._parameter(coefficients)
        objective = self._objective(head, plan.logit_adjustment)
        optimizer = torch.optim.AdamW([values], lr=plan.learning_rate, weight_decay=plan.weight_decay)
        losses: list[float] = []
        for step, indices in enumerate(sample_batches(len(self._rows), plan.batch_size, plan.steps, plan.seed)):
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate + (plan.learning_rate_end - plan.learning_rate) * step / plan.steps
            optimizer.zero_grad()
            losses.append(self._backward(values, indices, objective))
            optimizer.step()
            if progress is not None:
                progress(step + 1, plan.steps)
        return LocalResult(Coefficients(values.detach().cpu().numpy()), float(np.mean(losses)), len(self._rows))

    def mean_gradient(
        self,
        coefficients: Coefficients,
        *,
        batch_size: int,
        seed: int,
        logit_adjustment: float = 0.0,
        head: LabelHead | None = None,
    ) -> LocalGradient:
        """Return the gradient of the mean loss over one batch, for an aggregator that takes the step (arXiv 2003.00295).

        Raises:
            LayoutMismatch: the coefficients are not for these layers, or G does not divide d.
        """
        (indices,) = sample_batches(len(self._rows), batch_size, 1, seed)
        return self.gradient_of(coefficients, indices, logit_adjustment=logit_adjustment, head=head)

    def gradient_of(
        self, coefficients: Coefficients, indices: Sequence[int], *, logit_adjustment: float = 0.0, head: LabelHead | None = None
    ) -> LocalGradient:
        """Return the gradient of the mean loss over the training examples of these indices.

        Raises:
            LayoutMismatch: the coefficients are not for these layers, or G does not divide d.
        """
        values = self._parameter(coefficients)
        loss = self._backward(values, indices, self._objective(head, logit_adjustment))
        assert values.grad is not None
        return LocalGradient(values.grad.to(torch.float32).cpu().numpy(), loss, len(self._rows))

    @property
    def has_words(self) -> bool:
        """Whether the labels can be read by their words."""
        return self._labels is not None

    def evaluate(self, coefficients: Coefficients) -> Int64:
        """Return the confusion counts on the held-out examples: int64, (C, C), true labels in rows, predicted ones in columns."""
        return self.measure(coefficients).confusion

    def measure(self, coefficients: Coefficients, *, words: bool = True, head: LabelHead | None = None) -> Measurement:
        """Return the evaluation of a version on the held-out examples, read by its label words, its head, or both."""
        scores = self.held_out.scores(self.injection(coefficients), words=words, head=head)
        return Measurement.of(self.held_out.true_labels, scores)

    def final_states(self, coefficients: Coefficients) -> Float32:
        """Return the final hidden state at the last token of each training prompt, float32, (n, d)."""
        injections = [self.injection(coefficients)] * len(self._rows)
        states = run_rows(self._lm, self._rows, injections, token_budget=self._token_budget, activations=self._activations)
        return torch.stack([row_states[0] for row_states in states]).float().cpu().numpy()

    def injection(self, coefficients: Coefficients) -> Injection:
        """Return the injection of a version for this task."""
        device, dtype = self._lm.device, self._lm.dtype
        return injection_of(self._context, coefficients, self._layers, device=device, dtype=dtype, position=self._position)

    def _training_row(self, prompt: Prompt, label: int) -> Row:
        if self._through_head:
            return Row.for_last_token(prompt.ids)
        assert self._labels is not None, "calibration reads label words unless it goes through a head"
        return training_row(prompt.ids, self._labels.ids[label])

    def _objective(self, head: LabelHead | None, tau: float) -> Objective | HeadObjective:
        if self._through_head:
            assert head is not None, "calibration through the head needs one"
            return HeadObjective(self._lm, head, self._label_counts, tau)
        assert self._labels is not None, "calibration reads label words unless it goes through a head"
        return Objective(self._lm, self._labels, self._label_counts, tau)

    def _parameter(self, coefficients: Coefficients) -> Tensor:
        values = torch.tensor(coefficients.values, dtype=self._lm.injection_dtype, device=self._lm.device)
        return values.requires_grad_(True)

    def _backward(self, values: Tensor, indices: Sequence[int], objective: Objective | HeadObjective) -> float:
        """Add the gradient of the mean loss over the label tokens of these examples to `values.grad`; return the loss."""
        prompts = self._activations if isinstance(self._activations, PromptCache) else None
        rows = [self._rows[index] if prompts is None else prompts.row(index) for index in indices]
        layout: BatchLayout = layout_for(self._lm) if prompts is None else "packed"
        tokens, losses = sum(len(row.output_positions) for row in rows), []
        context = torch.tensor(self._context.values, dtype=values.dtype, device=values.device)

        def run(group: list[int]) -> None:
            batch = Batch.of([rows[position] for position in group], layout=layout, device=self._lm.device)
            batch_indices = [indices[position] for position in group]
            with torch.enable_grad(), self._activations.replayed(batch, batch_indices):
                injection = Injection(self._layers, *scale_and_shift(values, context), self._position)
                with inject_by_row(self._lm, batch, [injection] * len(group)):
                    hidden = output_states(self._lm, batch)
                loss = objective.total(hidden, [self.true_labels[index] for index in batch_indices]) / tokens
                # Λ is the only leaf, and its gradient comes last: if the memory runs out, nothing has been added yet.
                (gradient,) = torch.autograd.grad(loss, values)
            values.grad = gradient if values.grad is None else values.grad + gradient
            losses.append(float(loss.detach()))

        for group in group_by_budget([len(row.ids) for row in rows], self._token_budget, layout):
            run_with_halving(group, run)
        return sum(losses)


def training_row(prompt: tuple[int, ...], label: tuple[int, ...]) -> Row:
    """Return the prompt and the label without its last token; the output positions are those that predict each label token."""
    ids = prompt + label[:-1]
    return Row(ids, tuple(range(len(prompt) - 1, len(ids))))


def sample_batches(examples: int, batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of example indices from successive shuffled epochs, so that every example is drawn equally often."""
    generator = np.random.default_rng(seed)
    pending: list[int] = []
    for _ in range(steps):
        while len(pending) < min(batch_size, examples):
            pending += generator.permutation(examples).tolist()
        yield pending[:batch_size]
        del pending[:batch_size]
