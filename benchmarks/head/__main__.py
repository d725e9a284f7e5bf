"""`python -m benchmarks.head`: the head of ten skewed clients by four ways of conjugate gradients, against the pooled solution.

A simulation with numpy alone: states of a falling spectrum, labels drawn from a linear model, clients by Dirichlet shares.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import RESULTS, measure_or_report
from benchmarks.tables import markdown_table
from ifed.tensors.quantization import QuantizedRows
from ifed.tensors.regression import RegressionData, full_matrix
from ifed.tensors.values import Float64
from services.aggregator.aggregation.head_solver import KrylovSolver, solve_sums

RIDGE, ROUNDS = 0.3, 12
WAYS = ("projection, float64", "projection, int8", "projection, int8, error feedback", "recurrence, int8")


class Federation:
    """Clients' statistics, and the pooled solution.

    Args:
        seed: of states, labels and division.
        channels: d.
        clients: their number.
        labels: C.
        examples: training examples of all clients together.
    """

    def __init__(self, seed: int, *, channels: int = 640, clients: int = 10, labels: int = 4, examples: int = 1500) -> None:
        generator = np.random.default_rng(seed)
        spectrum = np.arange(1, channels + 1) ** -1.1
        turn = np.linalg.qr(generator.normal(size=(channels, channels)))[0]
        states = generator.normal(size=(examples, channels)) * np.sqrt(spectrum * channels / spectrum.sum()) @ turn.T
        logits = 0.5 * states @ turn[:, :60] @ generator.normal(size=(60, labels))
        truths = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
        shares = generator.dirichlet([0.5] * clients, size=labels)
        owners = np.array([generator.choice(clients, p=shares[truth]) for truth in truths])
        parts = [part for client in range(clients) if len(part := np.flatnonzero(owners == client))]
        of_labels = np.bincount(truths, minlength=labels) / examples
        self.data = [RegressionData(states[part], truths[part].tolist(), of_labels) for part in parts]
        self.weights = [len(part) / examples for part in parts]
        pooled = RegressionData(states, truths.tolist(), of_labels)
        self.exact = solve_sums(full_matrix(pooled.gram(), channels), pooled.moment, RIDGE)

    def mean(self, values: Callable[[int, RegressionData], Float64]) -> Float64:
        """Return the mean of what each client sends, weighted by its examples."""
        pairs = zip(self.weights, self.data, strict=True)
        return np.asarray(sum(weight * values(client, data) for client, (weight, data) in enumerate(pairs)))

    def error(self, solution: Float64) -> float:
        """Return the distance from the pooled solution, relative to its length."""
        return float(np.linalg.norm(solution - self.exact) / np.linalg.norm(self.exact))


def in_eight_bits(values: Float64) -> Float64:
    """Return values as they arrive in int8 with a scale a row."""
    return QuantizedRows.of(values, "int8").restored()


def by_projection(federation: Federation, *, exact: bool, feedback: bool) -> list[float]:
    """Return the error after each round of the aggregator's solver."""
    sent = (lambda values: values) if exact else in_eight_bits
    moment = federation.mean(lambda _, data: sent(data.moment))
    directions, products = np.zeros((0, moment.shape[1])), np.zeros((0, moment.shape[1]))
    lost: dict[int, Float64] = {}
    errors = []

    def answer(client: int, data: RegressionData, asked: Float64) -> Float64:
        whole = data.product(asked)
        if feedback and client in lost and lost[client].shape == whole.shape:
            whole = whole + lost[client]
        lost[client] = whole - sent(whole)
        return sent(whole)

    for _ in range(ROUNDS):
        new = KrylovSolver(moment, directions, products).next_directions(RIDGE, most=len(moment)).astype(np.float16)
        if len(new):
            asked = new.astype(np.float64)
            directions = np.concatenate([directions, asked])
            products = np.concatenate([products, federation.mean(lambda client, data, asked=asked: answer(client, data, asked))])  # type: ignore[misc]  # a lambda's default
        errors.append(federation.error(KrylovSolver(moment, directions, products).solution(RIDGE)))
    return errors


def by_recurrence(federation: Federation) -> list[float]:
    """Return the error after each round of conjugate gradients by their two-term recurrence, column by column, answers in int8."""
    residual = federation.mean(lambda _, data: in_eight_bits(data.moment))
    solution, direction, errors = np.zeros_like(residual), residual.copy(), []
    square = (residual**2).sum(axis=1, keepdims=True)
    for _ in range(ROUNDS):
        asked = direction.astype(np.float16).astype(np.float64)
        product = federation.mean(lambda _, data, asked=asked: in_eight_bits(data.product(asked))) + RIDGE * asked  # type: ignore[misc]  # as above
        step = square / np.maximum((asked * product).sum(axis=1, keepdims=True), 1e-30)
        solution, residual = solution + step * asked, residual - step * product
        new_square = (residual**2).sum(axis=1, keepdims=True)
        direction = residual + asked * np.minimum(new_square / np.maximum(square, 1e-30), 5)
        square = new_square
        errors.append(federation.error(solution))
    return errors


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the simulation for each seed; return the median errors of each way, by round."""
    runs: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for seed in range(options.seeds):
        federation = Federation(seed)
        results = (
            by_projection(federation, exact=True, feedback=False),
            by_projection(federation, exact=False, feedback=False),
            by_projection(federation, exact=False, feedback=True),
            by_recurrence(federation),
        )
        for way, errors in zip(WAYS, results, strict=True):
            runs[way].append(errors)
    medians = {way: np.median(errors, axis=0).round(4).tolist() for way, errors in runs.items()}
    return {"seeds": options.seeds, "ridge": RIDGE, "median_errors": medians}


def markdown(results: dict[str, Any]) -> str:
    """Return the table of the results."""
    shown = (1, 2, 4, 6, 8, 10, 12)
    rows = [[way, *(f"{errors[round_ - 1]:.3f}" for round_ in shown)] for way, errors in results["median_errors"].items()]
    table = markdown_table(
        ["distance from the pooled solution after round", *map(str, shown)], rows, ["distance from the pooled solution after round"]
    )
    return f"640 channels, 4 labels, 10 clients, 1,500 examples, λ = {results['ridge']}; medians of {results['seeds']} seeds.\n\n{table}"


def main() -> None:
    """Parse the command line, then measure or report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5, help="simulated federations")
    parser.add_argument("--out", type=Path, default=RESULTS / "head.json", help="where the results are written")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the table again from the stored results")
    measure_or_report("head", parser.parse_args(), measure, markdown)


if __name__ == "__main__":
    main()
