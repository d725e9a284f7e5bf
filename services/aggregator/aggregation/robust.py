"""Robust means of the updates of a round, which a minority of hostile contributions cannot move at will.

The aggregation rules take rows, one for each contribution, shape (n, m), of any float dtype, and returns float64, shape (m,) unless it says
otherwise. Rows are first sorted by their values, so the same rows give the same bytes in whatever order they arrive.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch, NonFinite, WrongState
from ifed.tensors.values import Float64

Rows = npt.NDArray[np.floating]
COLUMNS_AT_ONCE = 1 << 16
SMOOTHING = 1e-6
TOLERANCE = 1e-12
MAX_ITERATIONS = 500


def coordinate_median(rows: Rows) -> Float64:
    """Return the median of each coordinate (arXiv 1803.01498, definition 1).

    Fewer than half of the rows cannot move a coordinate beyond the values of the others.
    """
    _check(rows)
    return _by_columns(rows, lambda block: np.asarray(np.median(block, axis=0)))


def trimmed_mean(rows: Rows, hostile: int) -> Float64:
    """Return the mean of each coordinate without its `hostile` least and `hostile` greatest values (arXiv 1803.01498, definition 2).

    Raises:
        WrongState: nothing would be left.
    """
    _check(rows)
    if len(rows) <= 2 * hostile:
        raise WrongState(
            f"a trimmed mean that drops {hostile} at either end needs {2 * hostile + 1} contributions, {len(rows)} came"
        )
    remaining = slice(hostile, len(rows) - hostile)
    return _by_columns(rows, lambda block: np.asarray(np.sort(block, axis=0)[remaining].mean(axis=0)))


def multi_krum(rows: Rows, hostile: int) -> Float64:
    """Return the mean of the n - f - 2 rows closest to their neighbours, where f is `hostile` (arXiv 1703.02757, section 4).

    The score of a row is the sum of its squared distances to the n - f - 2 nearest other rows.

    Raises:
        WrongState: there are fewer than 2 f + 3 rows, for which the rule guarantees nothing.
    """
    rows = _sorted(rows)
    if len(rows) < 2 * hostile + 3:
        raise WrongState(f"multi-Krum against {hostile} needs {2 * hostile + 3} contributions, {len(rows)} came")
    count = len(rows) - hostile - 2
    # The nearest row is the row itself, at distance 0.
    scores = np.sort(squared_distances(rows), axis=1)[:, 1 : count + 1].sum(axis=1)
    chosen = np.sort(np.argsort(scores, kind="stable")[:count])
    return np.asarray(rows[chosen].mean(axis=0, dtype=np.float64))


def geometric_median(rows: Rows, weights: npt.ArrayLike) -> Float64:
    """Return the point with the least weighted sum of distances to the rows, by the smoothed Weiszfeld algorithm.

    RFA, arXiv 1912.13445, algorithm 2. It starts at the coordinate-wise median instead of the mean, which distant rows move less.
    Rows with less than half of the weight cannot move the result at will.

    Args:
        rows: (n, m).
        weights: (n,), none negative.

    Raises:
        LayoutMismatch: there is not one weight of at least 0 for each row.
        WrongState: all weights are 0.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != (len(rows),) or (shares < 0).any():
        raise LayoutMismatch(f"{len(rows)} rows need as many weights from 0, got {shares.shape}")
    order = _order(rows, shares)
    points, shares = rows[order].astype(np.float64), shares[order]
    if shares.sum() <= 0:
        raise WrongState("there is no median of contributions that carry no weight")
    shares = shares / shares.sum()
    centre = coordinate_median(points)
    for _ in range(MAX_ITERATIONS):
        pulls = shares / np.maximum(SMOOTHING, _distances_to(points, centre))
        moved = np.asarray((pulls[:, None] * points).sum(axis=0) / pulls.sum())
        converged = np.linalg.norm(moved - centre) <= TOLERANCE * (1.0 + np.linalg.norm(centre))
        centre = moved
        if converged:
            break
    return centre


def nearest_neighbour_mixing(rows: Rows, hostile: int) -> Float64:
    """Return each row replaced by the mean of the n - f rows nearest to it, itself included, where f is `hostile`; shape (n, m).

    Algorithm 2 of arXiv 2302.01772: a step before a robust rule, which then also holds when clients differ. The rows come back sorted,
    not in the order of the argument.

    Raises:
        WrongState: at least half of the rows would be hostile.
    """
    rows = _sorted(rows)
    if len(rows) <= 2 * hostile:
        raise WrongState(f"mixing against {hostile} needs {2 * hostile + 1} contributions, {len(rows)} came")
    nearest = np.argsort(squared_distances(rows), axis=1, kind="stable")[:, : len(rows) - hostile]
    return np.stack([rows[np.sort(chosen)].mean(axis=0, dtype=np.float64) for chosen in nearest])


def bounded(values: Float64, bound: float) -> Float64:
    """Return `values` scaled down to an L2 norm of `bound`, or as they are when they are within it (norm bounding, arXiv 1911.07963).

    Raises:
        WrongState: the bound is not above 0.
        NonFinite: a value is NaN or infinite.
    """
    if bound <= 0:
        raise WrongState("a bound on norms is above 0")
    largest = float(np.abs(values).max(initial=0.0))
    if not np.isfinite(largest):
        raise NonFinite("an update that is not finite has no norm to bound")
    if largest == 0.0:
        return values
    norm = largest * float(np.linalg.norm(values / largest))  # scaled first, so that no square overflows
    return values if norm <= bound else values * (bound / norm)


def squared_distances(rows: Rows) -> Float64:
    """Return the squared distances between all rows, (n, n). They are computed from differences, without cancellation."""
    points = rows.astype(np.float64)
    return np.stack([np.square(points - point).sum(axis=1) for point in points])


def _distances_to(points: Float64, centre: Float64) -> Float64:
    return np.asarray(np.sqrt(np.square(points - centre).sum(axis=1)))


def _check(rows: Rows) -> None:
    if rows.ndim != 2 or len(rows) == 0:
        raise WrongState("there is no mean of no contributions")
    if not np.isfinite(rows).all():
        raise NonFinite("a contribution that is NaN or infinite cannot be aggregated")


def _sorted(rows: Rows) -> Rows:
    return rows[_order(rows, np.zeros(len(rows)))]


def _order(rows: Rows, weights: Float64) -> list[int]:
    """Return the order of the rows by their bytes and then by weight."""
    _check(rows)
    return sorted(range(len(rows)), key=lambda index: (rows[index].tobytes(), float(weights[index])))


def _by_columns(rows: Rows, rule: Callable[[Float64], Float64]) -> Float64:
    """Apply `rule` to blocks of columns in float64, so that there is no second copy of all rows."""
    starts = range(0, rows.shape[1], COLUMNS_AT_ONCE)
    return np.concatenate([rule(rows[:, start : start + COLUMNS_AT_ONCE].astype(np.float64)) for start in starts])
