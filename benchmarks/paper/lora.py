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
from benchmarks.federated.evaluation import estimate_bias
from benchmarks.federated.federation import holdout_size
from benchmarks.federated.head import ClientStates, solve_head
from benchmarks.paper.calibration import Progress
from benchmarks.paper.texts import BySet, EvaluationTexts, with_first_texts
from ifed.messages.tasks import Policy
from ifed.messages.texts import LabelledText
from ifed.modeling.batching import Batch, Row, group_by_budget, layout_for, run_with_halving
from ifed.modeling.calibration import LocalPlan, sample_batches, training_row
from ifed.modeling.forward import run_rows
from ifed.modeling.hooks import output_states
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loss import Objective
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import ScoringItem, score
from ifed.modeling.standardization import public_standardization
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
    texts: EvaluationTexts,
    policy: Policy,
    rank: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Run all rounds of a policy: each client trains from the global weights, which become the mean weighted by examples.

    The last weights are read in three ways: by the label words with the label prior kept and matched, and by a label head that is solved
    on the adapted states from full sums, exactly as that of the bare model would be.

    Returns:
        JSON-ready: a row with the costs of every round, and the figures of each reading.
    """
    clients = make_clients(lm, dataset, parts, policy.logit_adjustment)
    rows: list[dict[str, Any]] = []
    with inject_adapters(lm, rank, seed) as parameters:
        current = copy_weights(parameters)
        for index in range(policy.rounds):
            began = now(lm)
            plans = [local_plan(policy, index, batch_seed(seed, index, client.name)) for client in clients]
            current, loss = run_round(lm, parameters, current, clients, plans)
            seconds, size = (now(lm) - began) / len(clients), len(weights_body(current))
            load_weights(parameters, current)
            rows.append({"round": index + 1, "loss": loss, "seconds": seconds, "body_up": size, "body_down": size})
            progress(f"round {index + 1} of {policy.rounds}, loss {loss:.3f}, {seconds:.1f} s a client")
        evaluation = _Evaluation(lm, dataset, parts, texts)
        readings, solved, head_seconds = evaluation.readings(), *evaluation.solve()
    readings["head"] = solved.figures
    rows[-1] |= with_first_texts(readings, "plain")
    return {
        "rate": policy.learning_rate,
        "parameters": sum(values.size for values in current.values()),
        "rows": rows,
        "readings": readings,
        "head": {"bodies_up": solved.bodies_up, "bodies_down": solved.bodies_down, "seconds": head_seconds},
    }


@dataclass(frozen=True, slots=True)
class _SolvedHead:
    figures: BySet
    bodies_up: list[int]
    bodies_down: list[int]


class _Evaluation:
    """The model as it is now, on the evaluation texts and on the clients' held-out texts."""

    def __init__(
        self, lm: LanguageModel, dataset: Dataset, parts: Sequence[Sequence[LabelledText[int]]], texts: EvaluationTexts
    ) -> None:
        self._lm, self._dataset, self._parts, self._texts = lm, dataset, parts, texts
        self._template = PromptTemplate.of(lm, dataset.template)
        self._truths: Int64 = np.array([example.label for example in texts.examples])

    def readings(self) -> dict[str, BySet]:
        """Return the figures of the label words, with the label prior kept and matched to the held-out texts."""
        labels = self._template.labels(self._dataset.labels)
        held_out = [example for part in self._parts for example in part[: holdout_size(part)]]
        examples = [*self._texts.examples, *held_out]
        items = [ScoringItem(self._template.prompt(example.text), labels, None) for example in examples]
        scores, count = np.stack(score(self._lm, items)), len(self._texts.examples)
        prior = estimate_bias(scores[count:], np.array([example.label for example in held_out]))
        return self._texts.readings(self._truths, scores[:count], *prior)

    def solve(self) -> tuple[_SolvedHead, float]:
        """Solve the label head; return its figures, and the seconds of a client for its states, mean over the clients."""
        began = now(self._lm)
        standardization = public_standardization(self._lm, self._template)
        statistics_seconds = now(self._lm) - began  # which every client spends
        began = now(self._lm)
        states = []
        for part in self._parts:
            cut = holdout_size(part)
            labels = [example.label for example in part]
            states.append(ClientStates(self._states(part[cut:]), labels[cut:], self._states(part[:cut]), labels[:cut]))
        policy = Policy(solver="sums", update_dtype="float32", clients_expected=len(states))
        solved = solve_head(states, standardization, len(self._dataset.labels), policy)
        seconds = statistics_seconds + (now(self._lm) - began) / len(states)
        scores = solved.head.log_probabilities(self._states(self._texts.examples))
        return _SolvedHead(self._texts.figures(self._truths, scores), solved.bodies_up, solved.bodies_down), seconds

    def _states(self, examples: Sequence[LabelledText[int]]) -> Float32:
        """Return the final state at the last token of each prompt, (n, d)."""
        if not examples:
            return np.zeros((0, self._lm.hidden_size), dtype=np.float32)
        rows = [Row.for_last_token(self._template.prompt(example.text).ids) for example in examples]
        return torch.cat(run_rows(self._lm, rows, [None] * len(rows))).float().cpu().numpy()


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
