"""The federation in one process: its division of texts, and local steps that are those of the product until they are corrected."""

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
    """Two clients of 16 examples and one of 32, in float64 so that two ways to add give one number."""
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
    one, other = (dirichlet_split(truths, 10, 0.5, seed) for seed in (0, 1))
    assert sorted(index for part in one for index in part) == list(range(600))
    assert min(map(len, one)) >= MIN_CLIENT_EXAMPLES
    assert one == dirichlet_split(truths, 10, 0.5, 0) != other


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
    assert [(one.text, one.label) for one in read_examples(tmp_path, DATASETS["emoc"], "test", 2)] == [("a", 2), ("b", 0)]


def test_an_uncorrected_walk_is_the_local_work_of_the_product() -> None:
    made = federation()
    client, start = made.clients[1], made.initial_coefficients(4, 0.1)
    plan = local_plan(policy(), 0, 7)
    ours, theirs = run_local_steps(client, start, plan), client.calibrator.run(start, plan)
    np.testing.assert_allclose(ours.values, theirs.coefficients.values, atol=2e-6)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)


def test_clients_without_a_correction_are_fedavg_of_the_aggregator() -> None:
    class Plain(Baseline):
        run_client = staticmethod(run_local_steps)

    made = federation()
    start = made.initial_coefficients(4, 0.0)
    given = after_rounds(Plain(made, policy(), 5), start)
    np.testing.assert_allclose(given.values, after_rounds(PolicyAlgorithm(made, policy(), 5), start).values, atol=5e-6)


@pytest.mark.parametrize("kind", [FedProx, Scaffold, FedLALR])
def test_a_correction_changes_where_rounds_lead_and_what_travels(kind: Callable[..., Baseline]) -> None:
    made = federation()
    start = made.initial_coefficients(4, 0.0)
    plain, other = PolicyAlgorithm(made, policy(), 5), kind(made, policy(), 5)
    assert np.abs(after_rounds(other, start).values - after_rounds(plain, start).values).max() > 1e-4
    one, two = (algorithm.round(2, start, [EMPTY] * 3) for algorithm in (plain, other))
    extra = 0 if kind is FedProx else start.values.nbytes
    assert (two.bytes_up - one.bytes_up, two.bytes_down - one.bytes_down) == (extra, extra)


def test_a_strong_proximal_term_keeps_clients_near_the_start() -> None:
    class Strong(FedProx):
        mu = 1000.0

    made = federation()
    start = made.initial_coefficients(4, 0.0)
    ways = [np.abs(after_rounds(kind(made, policy(), 5), start, 1).values - start.values).mean() for kind in (FedProx, Strong)]
    assert ways[1] < 0.7 * ways[0]


def test_control_variates_of_like_clients_change_nothing() -> None:
    lm = build("llama", dtype=torch.float64)
    made = Federation(lm, DATASET, [examples(16)], examples(8), "upper_half")
    start, said = made.initial_coefficients(4, 0.0), policy(clients_expected=1)
    for index in range(2):
        one = Scaffold(made, said, 5)
        one.round(0, start, [EMPTY])
        plain, varied = (algorithm.round(index, start, [EMPTY]) for algorithm in (PolicyAlgorithm(made, said, 5), one))
        np.testing.assert_allclose(plain.coefficients.values, varied.coefficients.values, atol=5e-6)


def test_the_gradient_mode_keeps_the_moments_of_its_optimiser() -> None:
    made, start = federation(), Coefficients.identity(2, 4)
    said = policy(mode="gradient", server_optimizer="fedadam", local_steps=1)
    kept, forgetful = PolicyAlgorithm(made, said, 5), [PolicyAlgorithm(made, said, 5) for _ in range(3)]
    one = other = start
    for index in range(3):
        one = kept.round(index, one, [EMPTY] * 3).coefficients
        other = forgetful[index].round(index, other, [EMPTY] * 3).coefficients
    assert np.abs(one.values - other.values).max() > 1e-3
