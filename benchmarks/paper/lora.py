"""FedAvg of low-rank adapters (arXiv 2106.09685) by `peft`, on the local work, the draws and the objective of a task. Not in the product."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from benchmarks.datasets import Source
from benchmarks.federated.algorithms import plan_of, seed_of
from benchmarks.federated.clock import now
from benchmarks.federated.evaluation import bias_from, three_ways
from benchmarks.federated.federation import held_back
from benchmarks.paper.calibration import Told, as_served
from ifed.messages.tasks import Policy
from ifed.modeling.batching import Batch, Row, group_by_budget, layout_for, run_with_halving
from ifed.modeling.calibration import LocalPlan, sample_batches, training_row
from ifed.modeling.hooks import output_states
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loss import Objective
from ifed.modeling.prompts import Example, PromptTemplate
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.values import Float32, Int64, TensorBody
from services.aggregator.aggregation.rules import WeightedMean

TARGETS = ("q_proj", "v_proj")
Weights = dict[str, Float32]


def fits(lm: LanguageModel) -> bool:
    """Whether the model has query and value projections of their own; GPT-2 and Phi-3 compute them together with the keys."""
    return set(TARGETS) <= {name.rpartition(".")[2] for name, _ in lm.model.named_modules()}


@contextlib.contextmanager
def adapted(lm: LanguageModel, rank: int, seed: int) -> Iterator[dict[str, nn.Parameter]]:
    """Within the block the query and value projections of all layers have adapters: A random, B zero, in float32; by their names.

    Raises:
        ValueError: the family has no modules `q_proj` and `v_proj`.
    """
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(TARGETS))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, lm.model)
    try:
        trained = {name: one for name, one in lm.model.named_parameters() if one.requires_grad}
        for one in trained.values():
            one.data = one.data.float()
        yield trained
    finally:
        _take_off(lm.model)


def _take_off(model: nn.Module) -> None:
    """The projections as they were."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


@dataclass(frozen=True, slots=True)
class Learner:
    """One client's texts, ready for round after round."""

    name: str
    rows: Sequence[Row]
    truths: Sequence[int]
    objective: Objective

    def walk(self, lm: LanguageModel, parameters: Mapping[str, nn.Parameter], plan: LocalPlan) -> float:
        """The optimiser steps of `Calibrator.run`, of these parameters in place of Λ; the mean loss."""
        optimiser = torch.optim.AdamW(parameters.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        losses = []
        for step, indices in enumerate(sample_batches(len(self.rows), plan.batch_size, plan.steps, plan.seed)):
            for group in optimiser.param_groups:
                group["lr"] = plan.learning_rate + (plan.learning_rate_end - plan.learning_rate) * step / plan.steps
            optimiser.zero_grad()
            losses.append(self._backward(lm, list(parameters.values()), indices))
            optimiser.step()
        return float(np.mean(losses))

    def _backward(self, lm: LanguageModel, parameters: Sequence[nn.Parameter], indices: Sequence[int]) -> float:
        rows = [self.rows[index] for index in indices]
        layout, tokens, losses = layout_for(lm), sum(len(row.output_positions) for row in rows), []

        def run(group: list[int]) -> None:
            batch = Batch.of([rows[place] for place in group], layout=layout, device=lm.device)
            with torch.enable_grad():
                part = self.objective.total(output_states(lm, batch), [self.truths[indices[place]] for place in group]) / tokens
                gradients = torch.autograd.grad(part, parameters)
            for one, gradient in zip(parameters, gradients, strict=True):
                one.grad = gradient if one.grad is None else one.grad + gradient
            losses.append(float(part.detach()))

        for group in group_by_budget([len(row.ids) for row in rows], 2 * lm.token_budget, layout):
            run_with_halving(group, run)
        return sum(losses)


def federated(
    lm: LanguageModel,
    source: Source,
    parts: Sequence[Sequence[Example]],
    test: Sequence[Example],
    policy: Policy,
    rank: int,
    seed: int,
    told: Told,
) -> dict[str, Any]:
    """All rounds of a policy, with adapters of this rank: from the weights' mean each client takes its steps, and its weights count by its examples.

    Returns:
        JSON-ready: a row for every round, as those of coefficients.
    """
    learners = learners_of(lm, source, parts, policy.logit_adjustment)
    reading = _Reading.of(lm, source, parts, test)
    rows: list[dict[str, Any]] = []
    with adapted(lm, rank, seed) as parameters:
        current = weights_of(parameters)
        for index in range(policy.rounds):
            began = now(lm)
            plans = [plan_of(policy, index, seed_of(seed, index, learner.name)) for learner in learners]
            current, loss = one_round(lm, parameters, current, learners, plans)
            spent, body = (now(lm) - began) / len(learners), len(body_of(current))
            put(parameters, current)
            row = reading.row(lm) | {"round": index + 1, "loss": loss, "seconds": spent, "body_up": body, "body_down": body}
            rows.append(row)
            ways = f"{row['accuracy_plain']:.1%}, {row['accuracy_prior_matched']:.1%} with the prior matched"
            told(f"round {index + 1} of {policy.rounds}, loss {loss:.3f}, accuracy {ways}, {spent:.1f} s a client")
    return {"rate": policy.learning_rate, "parameters": sum(values.size for values in current.values()), "rows": rows}


@dataclass(frozen=True, slots=True)
class _Reading:
    """The test set and the clients' held-out texts, the latter for the label prior."""

    items: Sequence[ScoringItem]
    truths: Int64
    own: Int64

    @classmethod
    def of(cls, lm: LanguageModel, source: Source, parts: Sequence[Sequence[Example]], test: Sequence[Example]) -> _Reading:
        template = PromptTemplate.of(lm, source.template)
        labels = template.labels(source.labels)
        held = [example for part in parts for example in part[: held_back(part)]]
        items = [ScoringItem(template.prompt(example.text), labels, None) for example in (*test, *held)]
        truths, own = (np.array([example.label for example in some]) for some in (test, held))
        return cls(items, truths, own)

    def row(self, lm: LanguageModel) -> dict[str, Any]:
        """Accuracy and macro-F1 of the model as it is now, both ways."""
        scores, count = np.stack(score(lm, self.items)), len(self.truths)
        return as_served(three_ways(self.truths, scores[:count], *bias_from(scores[count:], self.own)), prior=False)


def one_round(
    lm: LanguageModel,
    parameters: Mapping[str, nn.Parameter],
    start: Weights,
    learners: Sequence[Learner],
    plans: Sequence[LocalPlan],
) -> tuple[Weights, float]:
    """Every client's walk from `start`; the mean of where they end, by their numbers of examples, and the mean loss."""
    mean, losses = {name: WeightedMean() for name in parameters}, []
    for learner, plan in zip(learners, plans, strict=True):
        put(parameters, start)
        losses.append(learner.walk(lm, parameters, plan))
        for name, values in weights_of(parameters).items():
            mean[name].add(values, len(learner.rows))
    return {name: one.value().astype(np.float32) for name, one in mean.items()}, float(np.mean(losses))


def learners_of(lm: LanguageModel, source: Source, parts: Sequence[Sequence[Example]], logit_adjustment: float) -> list[Learner]:
    """The clients, with the same training examples and the same loss as those of a task."""
    template = PromptTemplate.of(lm, source.template)
    labels, found = template.labels(source.labels), []
    for rank, part in enumerate(parts):
        mine = part[held_back(part) :]
        truths = [example.label for example in mine]
        counts = [truths.count(label) for label in range(len(source.labels))]
        rows = [training_row(template.prompt(example.text).ids, labels.ids[example.label]) for example in mine]
        found.append(Learner(f"client-{rank:02}", rows, truths, Objective(lm, labels, counts, logit_adjustment)))
    return found


def weights_of(parameters: Mapping[str, nn.Parameter]) -> Weights:
    """Copies, on the CPU."""
    return {name: one.detach().cpu().numpy().copy() for name, one in parameters.items()}


def put(parameters: Mapping[str, nn.Parameter], weights: Weights) -> None:
    """Set the adapters."""
    with torch.no_grad():
        for name, one in parameters.items():
            one.copy_(torch.from_numpy(weights[name]))


def body_of(weights: Weights) -> bytes:
    """The adapters as they travel: one safetensors file in float32."""
    return TensorBody(weights, {}).to_bytes()
