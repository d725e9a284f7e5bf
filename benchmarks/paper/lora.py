"""FedAvg of low-rank adapters (LoRA, arXiv 2106.09685) by `peft`, with the local work, the batches and the loss of a task."""

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

from benchmarks.datasets import Dataset
from benchmarks.federated.algorithms import batch_seed, local_plan
from benchmarks.federated.clock import now
from benchmarks.federated.evaluation import estimate_bias, evaluate_readings, select_reading
from benchmarks.federated.federation import holdout_size
from benchmarks.paper.calibration import Progress
from ifed.messages.tasks import Policy
from ifed.messages.texts import LabelledText
from ifed.modeling.batching import Batch, Row, group_by_budget, layout_for, run_with_halving
from ifed.modeling.calibration import LocalPlan, sample_batches, training_row
from ifed.modeling.hooks import output_states
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loss import Objective
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.values import Float32, Int64, TensorBody
from services.aggregator.aggregation.rules import WeightedMean

TARGET_MODULES = ("q_proj", "v_proj")
Weights = dict[str, Float32]


def fits(lm: LanguageModel) -> bool:
    """Return whether the model has separate query and value projections; GPT-2 and Phi-3 compute them together with the keys."""
    return set(TARGET_MODULES) <= {name.rpartition(".")[2] for name, _ in lm.model.named_modules()}


@contextlib.contextmanager
def inject_adapters(lm: LanguageModel, rank: int, seed: int) -> Iterator[dict[str, nn.Parameter]]:
    """Add adapters to the query and value projections of all layers within the block, and yield their parameters by name.

    A is random, B is zero, both are float32.

    Raises:
        ValueError: the family has no modules `q_proj` and `v_proj`.
    """
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(TARGET_MODULES))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, lm.model)
    try:
        trainable = {name: parameter for name, parameter in lm.model.named_parameters() if parameter.requires_grad}
        for parameter in trainable.values():
            parameter.data = parameter.data.float()
        yield trainable
    finally:
        _remove_adapters(lm.model)


def _remove_adapters(model: nn.Module) -> None:
    """Put the projections back in place of their adapters."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


@dataclass(frozen=True, slots=True)
class LoraClient:
    """One client's training rows, labels and loss."""

    name: str
    rows: Sequence[Row]
    truths: Sequence[int]
    objective: Objective

    def train(self, lm: LanguageModel, parameters: Mapping[str, nn.Parameter], plan: LocalPlan) -> float:
        """Run the optimiser steps of `Calibrator.run` on these parameters in place of Λ; return the mean loss."""
        optimizer = torch.optim.AdamW(parameters.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        losses = []
        for step, indices in enumerate(sample_batches(len(self.rows), plan.batch_size, plan.steps, plan.seed)):
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate + (plan.learning_rate_end - plan.learning_rate) * step / plan.steps
            optimizer.zero_grad()
            losses.append(self._backward(lm, list(parameters.values()), indices))
            optimizer.step()
        return float(np.mean(losses))

    def _backward(self, lm: LanguageModel, parameters: Sequence[nn.Parameter], indices: Sequence[int]) -> float:
        rows = [self.rows[index] for index in indices]
        layout, tokens, losses = layout_for(lm), sum(len(row.output_positions) for row in rows), []

        def accumulate(group: list[int]) -> None:
            batch = Batch.of([rows[place] for place in group], layout=layout, device=lm.device)
            with torch.enable_grad():
                loss = self.objective.total(output_states(lm, batch), [self.truths[indices[place]] for place in group]) / tokens
                gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            losses.append(float(loss.detach()))

        for group in group_by_budget([len(row.ids) for row in rows], 2 * lm.token_budget, layout):
            run_with_halving(group, accumulate)
        return sum(losses)


def run_fedavg(
    lm: LanguageModel,
    dataset: Dataset,
    parts: Sequence[Sequence[LabelledText[int]]],
    test: Sequence[LabelledText[int]],
    policy: Policy,
    rank: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Run all rounds of a policy: each client trains from the global weights, which become the mean weighted by examples.

    Returns:
        JSON-ready: a row for every round, with the keys of `run_calibration`.
    """
    clients = make_clients(lm, dataset, parts, policy.logit_adjustment)
    test_set = _TestSet.of(lm, dataset, parts, test)
    rows: list[dict[str, Any]] = []
    with inject_adapters(lm, rank, seed) as parameters:
        current = copy_weights(parameters)
        for index in range(policy.rounds):
            began = now(lm)
            plans = [local_plan(policy, index, batch_seed(seed, index, client.name)) for client in clients]
            current, loss = run_round(lm, parameters, current, clients, plans)
            seconds, size = (now(lm) - began) / len(clients), len(weights_body(current))
            load_weights(parameters, current)
            row = test_set.evaluate(lm) | {
                "round": index + 1,
                "loss": loss,
                "seconds": seconds,
                "body_up": size,
                "body_down": size,
            }
            rows.append(row)
            accuracy = f"accuracy {row['accuracy_plain']:.1%}, {row['accuracy_prior_matched']:.1%} with the prior matched"
            progress(f"round {index + 1} of {policy.rounds}, loss {loss:.3f}, {accuracy}, {seconds:.1f} s a client")
    return {"rate": policy.learning_rate, "parameters": sum(values.size for values in current.values()), "rows": rows}


@dataclass(frozen=True, slots=True)
class _TestSet:
    """The test set, and the clients' held-out texts for the label prior; `items` holds both, in this order."""

    items: Sequence[ScoringItem]
    truths: Int64
    held_out_truths: Int64

    @classmethod
    def of(
        cls, lm: LanguageModel, dataset: Dataset, parts: Sequence[Sequence[LabelledText[int]]], test: Sequence[LabelledText[int]]
    ) -> _TestSet:
        template = PromptTemplate.of(lm, dataset.template)
        labels = template.labels(dataset.labels)
        held_out = [example for part in parts for example in part[: holdout_size(part)]]
        items = [ScoringItem(template.prompt(example.text), labels, None) for example in (*test, *held_out)]
        truths, held_out_truths = (np.array([example.label for example in examples]) for examples in (test, held_out))
        return cls(items, truths, held_out_truths)

    def evaluate(self, lm: LanguageModel) -> dict[str, Any]:
        """Return accuracy and macro-F1 of the model as it is now, with the label prior kept and matched."""
        scores, count = np.stack(score(lm, self.items)), len(self.truths)
        readings = evaluate_readings(self.truths, scores[:count], *estimate_bias(scores[count:], self.held_out_truths))
        return select_reading(readings, prior_matched=False)


def run_round(
    lm: LanguageModel,
    parameters: Mapping[str, nn.Parameter],
    start: Weights,
    clients: Sequence[LoraClient],
    plans: Sequence[LocalPlan],
) -> tuple[Weights, float]:
    """Train every client from `start`; return the mean of their weights, weighted by examples, and the mean loss."""
    means, losses = {name: WeightedMean() for name in parameters}, []
    for client, plan in zip(clients, plans, strict=True):
        load_weights(parameters, start)
        losses.append(client.train(lm, parameters, plan))
        for name, values in copy_weights(parameters).items():
            means[name].add(values, len(client.rows))
    return {name: mean.value().astype(np.float32) for name, mean in means.items()}, float(np.mean(losses))


def make_clients(
    lm: LanguageModel, dataset: Dataset, parts: Sequence[Sequence[LabelledText[int]]], logit_adjustment: float
) -> list[LoraClient]:
    """Return the clients, with the same training examples and the same loss as those of a task."""
    template = PromptTemplate.of(lm, dataset.template)
    labels, clients = template.labels(dataset.labels), []
    for rank, part in enumerate(parts):
        training = part[holdout_size(part) :]
        truths = [example.label for example in training]
        counts = [truths.count(label) for label in range(len(dataset.labels))]
        rows = [training_row(template.prompt(example.text).ids, labels.ids[example.label]) for example in training]
        clients.append(LoraClient(f"client-{rank:02}", rows, truths, Objective(lm, labels, counts, logit_adjustment)))
    return clients


def copy_weights(parameters: Mapping[str, nn.Parameter]) -> Weights:
    """Return copies of the adapters' weights on the CPU."""
    return {name: parameter.detach().cpu().numpy().copy() for name, parameter in parameters.items()}


def load_weights(parameters: Mapping[str, nn.Parameter], weights: Weights) -> None:
    """Set the adapters' weights."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(weights[name]))


def weights_body(weights: Weights) -> bytes:
    """Encode the adapters as they travel: one safetensors file in float32."""
    return TensorBody(weights, {}).to_bytes()
