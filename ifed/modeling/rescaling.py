"""A site's output under a scale and a shift by channel, in as few passes over memory as torch can. Knows no tasks and no layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)
FLAT = 2  # axes: token, channel
RUN_PAYS = 16  # tokens of a run, on average: with fewer, looking up the row of each token is faster


@dataclass(frozen=True, slots=True)
class Runs:
    """Tokens that stand side by side and take the same row of an injection: which row, and how many tokens, in their order."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def that_pay(cls, rows: Tensor) -> Runs | None:
        """The runs in `rows`, int64, (B, W); None where there are many short ones, rows one under the other, or a GPU: there rows are looked up."""
        if rows.device.type != "cpu" or len(rows) > 1:
            return None
        found, lengths = torch.unique_consecutive(rows[0], return_counts=True)
        return cls(tuple(found.tolist()), tuple(lengths.tolist())) if rows.shape[1] >= RUN_PAYS * len(found) else None


class Rescaling:
    """`scale · a + shift` at one site, in the dtype of the two, at least float32, and then rounded to that of `a`, which stays as it is.

    A multiplication and an addition with one rounding for both (`addcmul`), and then the result's; however it is computed, the bits are
    the same. Where `a` is bfloat16 or float16 on a CPU, the two are float32 and no gradient is wanted, it is a batch norm of known mean 0
    and variance 1: the one operator of torch that reads 16 bits, computes in float32 and writes 16 bits, without a tensor in between
    that the caches would have to hold. Rows of a batch that differ go without.

    Args:
        scale: (d,), or (row, d).
        shift: likewise.
        rows: int64, (B, W): the row each token takes; without it row i of the scale is for row i of the batch.
    """

    def __init__(self, scale: Tensor, shift: Tensor, rows: Tensor | None = None) -> None:
        self._scale, self._shift, self._rows = scale, shift, rows
        self._as_norm = scale.device.type == "cpu" and scale.dtype is torch.float32 and scale.ndim == 1

    def of(self, activation: Tensor) -> Tensor:
        """The changed output, as `activation`: (B, W, d), or (tokens, d) where all take the same."""
        if not self._as_norm or activation.dtype not in NARROW or torch.is_grad_enabled():
            scale, shift = self._of_tokens()
            return torch.addcmul(shift, activation, scale).to(activation.dtype)
        tokens = activation if activation.ndim == FLAT else activation.flatten(0, -2)
        mean, variance = _neutral(tokens.shape[-1])
        changed = torch.batch_norm(tokens, self._scale, self._shift, mean, variance, False, 0.0, 0.0, False)
        return changed if tokens is activation else changed.view(activation.shape)

    def _of_tokens(self) -> tuple[Tensor, Tensor]:
        """Both for each token; looked up when they are used, so that one site's copies at a time are held."""
        if self._scale.ndim == 1:
            return self._scale, self._shift
        if (rows := self._rows) is None:
            return self._scale[:, None], self._shift[:, None]
        scale, shift = (one.index_select(0, rows.flatten()).view(*rows.shape, -1) for one in (self._scale, self._shift))
        return scale, shift  # five times as fast as scale[rows]


class RunByRun:
    """One site's output where tokens that stand side by side take the same change: each run by that of its row, None leaving it as it is."""

    def __init__(self, parts: Sequence[Rescaling | None], lengths: Sequence[int]) -> None:
        self._parts, self._lengths = parts, list(lengths)

    def of(self, activation: Tensor) -> Tensor:
        """The changed output, (1, W, d), as `activation`."""
        pieces = zip(activation.flatten(0, -2).split(self._lengths), self._parts, strict=True)
        return torch.cat([piece if part is None else part.of(piece) for piece, part in pieces]).view(activation.shape)


@cache
def _neutral(channels: int) -> tuple[Tensor, Tensor]:
    """The mean and the variance that change nothing."""
    return torch.zeros(channels), torch.ones(channels)
