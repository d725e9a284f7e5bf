"""Robust means of one round's updates, which some hostile contributions cannot carry away. Pure numpy: knows no rounds and no policy.

Every function takes rows, one for each contribution, shape (n, m), of any float dtype, and gives float64, shape (m,). Rows are put in
an order of their own first, so the same rows give the same bytes in whatever order they came.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch, NonFinite, WrongState

Float64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.floating]
BLOCK = 1 << 16
SMOOTHING = 1e-6
TOLERANCE = 1e-12
ITERATIONS = 500


def coordinate_median(rows: Rows) -> Float64:
    """The median of each coordinate (arXiv 1803.01498, definition 1). Fewer than half of the rows cannot move it past the others."""
    _check(rows)
    return _by_columns(rows, lambda block: np.asarray(np.median(block, axis=0)))


def trimmed_mean(rows: Rows, hostile: int) -> Float64:
    """The mean of each coordinate without its `hostile` least and `hostile` greatest values (arXiv 1803.01498, definition 2).

    Raises:
        WrongState: nothing would be left.
    """
    _check(rows)
    if len(rows) <= 2 * hostile:
        raise WrongState(
            f"a trimmed mean that drops {hostile} at either end needs {2 * hostile + 1} contributions, {len(rows)} came"
        )
    kept = slice(hostile, len(rows) - hostile)
    return _by_columns(rows, lambda block: np.asarray(np.sort(block, axis=0)[kept].mean(axis=0)))


def multi_krum(rows: Rows, hostile: int) -> Float64:
    """The mean of the n - f - 2 rows that lie closest to their neighbours, f being `hostile` (arXiv 1703.02757, section 4).

    A row's score is the sum of squared distances to its n - f - 2 nearest others.

    Raises:
        WrongState: fewer than 2 f + 3 rows, below which the rule promises nothing.
    """
    rows = _ordered(rows)
    if len(rows) < 2 * hostile + 3:
        raise WrongState(f"multi-Krum against {hostile} needs {2 * hostile + 3} contributions, {len(rows)} came")
    count = len(rows) - hostile - 2
    # The nearest row is the row itself, at distance 0.
    scores = np.sort(squared_distances(rows), axis=1)[:, 1 : count + 1].sum(axis=1)
    chosen = np.sort(np.argsort(scores, kind="stable")[:count])
    return np.asarray(rows[chosen].mean(axis=0, dtype=np.float64))


def geometric_median(rows: Rows, weights: npt.ArrayLike) -> Float64:
    """The point with the least weighted sum of distances to the rows, by the smoothed Weiszfeld algorithm.

    RFA, arXiv 1912.13445, algorithm 2; it starts at the coordinate-wise median instead of the mean, from where far rows pull less.
    Rows with less than half of the weight cannot carry it away.

    Args:
        rows: (n, m).
        weights: (n,), none negative.

    Raises:
        WrongState: no weight.
    """
    parts = np.asarray(weights, dtype=np.float64)
    if parts.shape != (len(rows),) or (parts < 0).any():
        raise LayoutMismatch(f"{len(rows)} rows need as many weights from 0, got {parts.shape}")
    order = _order(rows, parts)
    points, parts = rows[order].astype(np.float64), parts[order]
    if parts.sum() <= 0:
        raise WrongState("there is no median of contributions that carry no weight")
    parts = parts / parts.sum()
    centre = coordinate_median(points)
    for _ in range(ITERATIONS):
        pulls = parts / np.maximum(SMOOTHING, _distances_to(points, centre))
        moved = np.asarray((pulls[:, None] * points).sum(axis=0) / pulls.sum())
        done = np.linalg.norm(moved - centre) <= TOLERANCE * (1.0 + np.linalg.norm(centre))
        centre = moved
        if done:
            break
    return centre


def nearest_neighbour_mixing(rows: Rows, hostile: int) -> Float64:
    """Each row replaced by the mean of the n - f rows nearest to it, itself among them, f being `hostile`; shape (n, m).

    Algorithm 2 of arXiv 2302.01772: a step before a robust rule, which then holds under unlike clients too. The rows come back in
    their own order, not in the order given.

    Raises:
        WrongState: half of the rows or more would be hostile.
    """
    rows = _ordered(rows)
    if len(rows) <= 2 * hostile:
        raise WrongState(f"mixing against {hostile} needs {2 * hostile + 1} contributions, {len(rows)} came")
    nearest = np.argsort(squared_distances(rows), axis=1, kind="stable")[:, : len(rows) - hostile]
    return np.stack([rows[np.sort(chosen)].mean(axis=0, dtype=np.float64) for chosen in nearest])


def bounded(values: Float64, bound: float) -> Float64:
    """`values` scaled down to an L2 norm of `bound`, or as they are when they are within it (norm bounding, arXiv 1911.07963)."""
    if bound <= 0:
        raise WrongState("a bound on norms is above 0")
    largest = float(np.abs(values).max(initial=0.0))
    if not np.isfinite(largest):
        raise NonFinite("an update that is not finite has no norm to bound")
    if largest == 0.0:
        return values
    norm = largest * float(np.linalg.norm(values / largest))  # no square overflows
    return values if norm <= bound else values * (bound / norm)


def hostile_among(count: int, fraction: float) -> int:
    """How many of `count` contributions are taken to be hostile: `fraction` of them, rounded up."""
    return int(np.ceil(round(fraction * count, 9)))


def squared_distances(rows: Rows) -> Float64:
    """Squared distances between all rows, (n, n), from differences: no cancellation, and the same on every machine."""
    points = rows.astype(np.float64)
    return np.stack([np.square(points - point).sum(axis=1) for point in points])


def _distances_to(points: Float64, centre: Float64) -> Float64:
    return np.asarray(np.sqrt(np.square(points - centre).sum(axis=1)))


def _check(rows: Rows) -> None:
    if rows.ndim != 2 or len(rows) == 0:
        raise WrongState("there is no mean of no contributions")
    if not np.isfinite(rows).all():
        raise NonFinite("a contribution that is NaN or infinite cannot be aggregated")


def _ordered(rows: Rows) -> Rows:
    return rows[_order(rows, np.zeros(len(rows)))]


def _order(rows: Rows, weights: Float64) -> list[int]:
    """The order of the rows by their bytes, then by weight: the same whatever order they came in."""
    _check(rows)
    return sorted(range(len(rows)), key=lambda index: (rows[index].tobytes(), float(weights[index])))


def _by_columns(rows: Rows, rule: Callable[[Float64], Float64]) -> Float64:
    """Apply `rule` to blocks of columns in float64, so that no second copy of all rows is made."""
    blocks = [rule(rows[:, start : start + BLOCK].astype(np.float64)) for start in range(0, rows.shape[1], BLOCK)]
    return np.concatenate(blocks)
