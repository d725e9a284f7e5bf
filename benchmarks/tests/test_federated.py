"""The federation in one process: the division of texts, and local steps that equal the product's unless they are corrected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.datasets import DATASETS, MIN_CLIENT_EXAMPLES, Dataset, InvalidDataset, dirichlet_split, read_examples
from benchmarks.federated.aggregation import HeldOutResult
from benchmarks.federated.algorithms import PolicyAlgorithm, local_plan
from benchmarks.federated.baselines import Baseline, FedLALR, FedProx, Scaffold, run_local_steps
from benchmarks.federated.federation import Federation
from ifed.messages.tasks import Policy
from ifed.tensors.values import Coefficients
from testing.random_models import TEMPLATE, build, examples

DATASET = Dataset("subj", "SUBJ", TEMPLATE, ("positive", "negative"))
EMPTY = HeldOutResult(np.zeros((2, 2), dtype=np.int64), None)
SKEW = (0, 0, 0, 0, 0, 0, 1, 1)


def federation(dtype: torch.dtype = torch.float64) -> Federation:
    """Return two clients of 16 examples and one of 32, in float64 so that sums in another order agree."""
    parts = [examples(16), examples(32), examples(16)]
    return Federation(build("llama", dtype=dtype), DATASET, parts, examples(8), "upper_half")


def policy(**changes: object) -> Policy:
    return Policy.model_validate({"rounds": 3, "clients_expected": 3, "local_steps": 3, "batch_size": 4} | changes)


def after_rounds(algorithm: PolicyAlgorithm | Baseline, start: Coefficients, rounds: int = 2) -> Coefficients:
    for index in range(rounds):
        start = algorithm.round(index, start, [EMPTY] * 3).coefficients
    return start


def test_a_division_gives_every_example_to_one_client_and_differs_with_the_seed() -> None:
    truths = [index % 3 for index in range(600)]
    split, other_split = (dirichlet_split(truths, 10, 0.5, seed) for seed in (0, 1))
    assert sorted(index for part in split for index in part) == list(range(600))
    assert min(map(len, split)) >= MIN_CLIENT_EXAMPLES
    assert split == dirichlet_split(truths, 10, 0.5, 0) != other_split


def test_a_small_alpha_makes_clients_one_sided_and_a_large_one_does_not() -> None:
    truths = [index % 2 for index in range(2000)]

    def lopsided(alpha: float) -> float:
        parts = dirichlet_split(truths, 10, alpha, 0)
        return float(np.mean([abs(np.mean([truths[index] for index in part]) - 0.5) for part in parts]))

    assert lopsided(0.5) > 0.2 > 0.05 > lopsided(1000.0)


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(InvalidDataset, match="20 examples are too few for 10 clients of at least 16; take more"):
        dirichlet_split([0] * 20, 10, 0.5, 0)


def test_the_files_are_read_with_the_labels_of_their_source(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "sad"}, {"text": "b", "label": "others"}, {"text": "c", "label": "angry"}]
    (tmp_path / "emoc.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [(example.text, example.label) for example in read_examples(tmp_path, DATASETS["emoc"], "test", 2)] == [
        ("a", 2),
        ("b", 0),
    ]


def test_uncorrected_steps_equal_the_local_steps_of_the_product() -> None:
    federated = federation()
    client, start = federated.clients[1], federated.initial_coefficients(4, 0.1)
    plan = local_plan(policy(), 0, 7)
    ours, expected = run_local_steps(client, start, plan), client.calibrator.run(start, plan)
    np.testing.assert_allclose(ours.values, expected.coefficients.values, atol=2e-6)
    assert ours.loss == pytest.approx(expected.loss, rel=1e-5)


def test_clients_without_a_correction_equal_the_aggregators_fedavg() -> None:
    class Plain(Baseline):
        run_client = staticmethod(run_local_steps)

    federated = federation()
    start = federated.initial_coefficients(4, 0.0)
    averaged = after_rounds(Plain(federated, policy(), 5), start)
    np.testing.assert_allclose(averaged.values, after_rounds(PolicyAlgorithm(federated, policy(), 5), start).values, atol=5e-6)


@pytest.mark.parametrize("kind", [FedProx, Scaffold, FedLALR])
def test_a_correction_changes_the_coefficients_and_the_bytes(kind: Callable[..., Baseline]) -> None:
    federated = federation()
    start = federated.initial_coefficients(4, 0.0)
    plain, corrected = PolicyAlgorithm(federated, policy(), 5), kind(federated, policy(), 5)
    assert np.abs(after_rounds(corrected, start).values - after_rounds(plain, start).values).max() > 1e-4
    plain_round, corrected_round = (algorithm.round(2, start, [EMPTY] * 3) for algorithm in (plain, corrected))
    extra = 0 if kind is FedProx else start.values.nbytes
    assert (corrected_round.bytes_up - plain_round.bytes_up, corrected_round.bytes_down - plain_round.bytes_down) == (extra, extra)


def test_a_strong_proximal_term_keeps_clients_near_the_start() -> None:
    class Strong(FedProx):
        mu = 1000.0

    federated = federation()
    start = federated.initial_coefficients(4, 0.0)
    ways = [np.abs(after_rounds(kind(federated, policy(), 5), start, 1).values - start.values).mean() for kind in (FedProx, Strong)]
    assert ways[1] < 0.7 * ways[0]


def test_control_variates_of_like_clients_change_nothing() -> None:
    lm = build("llama", dtype=torch.float64)
    federated = Federation(lm, DATASET, [examples(16)], examples(8), "upper_half")
    start, task_policy = federated.initial_coefficients(4, 0.0), policy(clients_expected=1)
    for index in range(2):
        scaffold = Scaffold(federated, task_policy, 5)
        scaffold.round(0, start, [EMPTY])
        plain, varied = (
            algorithm.round(index, start, [EMPTY]) for algorithm in (PolicyAlgorithm(federated, task_policy, 5), scaffold)
        )
        np.testing.assert_allclose(plain.coefficients.values, varied.coefficients.values, atol=5e-6)


def test_the_gradient_mode_keeps_the_moments_of_its_optimiser() -> None:
    federated, start = federation(), Coefficients.identity(2, 4)
    task_policy = policy(mode="gradient", server_optimizer="fedadam", local_steps=1)
    stateful, stateless = PolicyAlgorithm(federated, task_policy, 5), [PolicyAlgorithm(federated, task_policy, 5) for _ in range(3)]
    with_moments = without_moments = start
    for index in range(3):
        with_moments = stateful.round(index, with_moments, [EMPTY] * 3).coefficients
        without_moments = stateless[index].round(index, without_moments, [EMPTY] * 3).coefficients
    assert np.abs(with_moments.values - without_moments.values).max() > 1e-3
