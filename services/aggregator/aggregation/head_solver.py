"""The label head of all clients' examples, from their sums or from rounds of products (conjugate gradients)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ifed.errors import LayoutMismatch, WrongState
from ifed.tensors.values import Float32, Float64

DEPENDENT = 1e-6  # a direction of which less than this share is new adds nothing
CONVERGED = 1e-4  # residual relative to the moment


def solve_sums(gram: Float64, moment: Float64, ridge: float) -> Float64:
    """Return `(gram + ridge · I)⁻¹ moment`, (C - 1, d).

    Args:
        gram: ZᵀZ / n, (d, d).
        moment: TᵀZ / n, (C - 1, d).

    Raises:
        LayoutMismatch: the shapes do not fit each other.
        WrongState: `ridge` is not above 0.
    """
    if gram.shape != (moment.shape[1], moment.shape[1]):
        raise LayoutMismatch(f"a matrix {gram.shape} and a moment {moment.shape} are not of the same channels")
    if ridge <= 0:
        raise WrongState("a ridge is above 0")
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(len(gram)), moment.T).T)


class KrylovSolver:
    """Block conjugate gradients with every direction kept: the best solution for any ridge in the space of the directions so far.

    Each round asks clients for the products of the matrix ZᵀZ / n with up to C - 1 new directions. The solution for a ridge λ minimises
    the quadratic form over all directions asked for, which without rounding is what conjugate gradients give (block form, O'Leary 1980;
    several λ from one space, Frommer and Maass 1999). Keeping the directions costs memory at the aggregator and makes the
    solution insensitive to products in eight bits, whose errors would else break the directions' conjugacy.

    Args:
        moment: TᵀZ / n over all clients, (C - 1, d).
        directions: those asked for so far, (m, d), orthonormal to rounding.
        products: their products with the matrix, (m, d).

    Raises:
        LayoutMismatch: the shapes do not fit each other.
    """

    def __init__(self, moment: Float64, directions: Float64, products: Float64) -> None:
        if directions.shape != products.shape or directions.shape[1:] != moment.shape[1:]:
            raise LayoutMismatch(
                f"directions {directions.shape}, products {products.shape} and a moment {moment.shape} do not fit each other"
            )
        self._moment, self._directions, self._products = moment, directions, products

    def solution(self, ridge: float) -> Float64:
        """Return the best head for a ridge in the space of the directions, (C - 1, d); zero before the first product."""
        return np.asarray(self._weights(ridge) @ self._directions)

    def residual(self, ridge: float) -> Float64:
        """Return what the solution leaves of the moment, (C - 1, d)."""
        weights = self._weights(ridge)
        return np.asarray(self._moment - weights @ (self._products + ridge * self._directions))

    def next_directions(self, ridge: float, *, most: int) -> Float32:
        """Return the next directions to ask for, float32, (m, d), m ≤ C - 1; none when the residual is negligible or the space is full.

        Args:
            ridge: the λ whose residual gives the directions.
            most: directions at the most.
        """
        residual = self.residual(ridge)
        scale = float(np.linalg.norm(self._moment))
        if scale == 0 or float(np.linalg.norm(residual)) <= CONVERGED * scale:
            return np.zeros((0, self._moment.shape[1]), dtype=np.float32)
        asked, channels = self._directions.shape
        basis = np.concatenate([self._directions, np.zeros((min(most, max(channels - asked, 0)), channels))])
        count = asked
        _, sizes, rows = np.linalg.svd(residual, full_matrices=False)  # the largest parts of the residual first
        for row, size in zip(rows, sizes, strict=True):
            if size <= CONVERGED * scale or count == len(basis):
                break
            direction = row.copy()
            for _ in range(2):  # once more against rounding
                direction -= (basis[:count] @ direction) @ basis[:count]
            length = float(np.linalg.norm(direction))
            if length > DEPENDENT:
                basis[count] = direction / length
                count += 1
        return basis[asked:count].astype(np.float32)

    def _weights(self, ridge: float) -> Float64:
        if ridge <= 0:
            raise WrongState("a ridge is above 0")
        inner = self._directions @ self._products.T
        system = (inner + inner.T) / 2 + ridge * self._directions @ self._directions.T
        return (
            np.asarray(np.linalg.solve(system, self._directions @ self._moment.T).T)
            if len(system)
            else np.zeros((len(self._moment), 0))
        )


def best_candidate(likelihoods: Float64, ridges: Sequence[float], temperatures: Sequence[float]) -> tuple[int, int]:
    """Return the places of the ridge and the temperature of the highest held-out likelihood; of equal ones the larger ridge.

    Args:
        likelihoods: sums over all clients' held-out examples, (ridges, temperatures).

    Raises:
        LayoutMismatch: not one sum for each pair.
    """
    if likelihoods.shape != (len(ridges), len(temperatures)):
        raise LayoutMismatch(
            f"likelihoods {likelihoods.shape} are not for {len(ridges)} ridges and {len(temperatures)} temperatures"
        )
    order = np.argsort(ridges)[::-1]
    place = int(np.argmax(likelihoods[order]))
    row, column = divmod(place, len(temperatures))
    return int(order[row]), column
