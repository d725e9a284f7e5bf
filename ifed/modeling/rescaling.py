"""A site's output under a scale and a shift by channel, in as few passes over memory as torch can. Knows no tasks and no layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)
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
    that the caches would have to hold. Rows of a batch that are looked up token by token go without.

    Args:
        scale: (d,), or (row, d).
        shift: likewise.
        rows: int64, (B, W): the row each token takes; without it row i of the scale is for row i of the batch.
        runs: the same as `rows`, where going run by run pays.
    """

    def __init__(self, scale: Tensor, shift: Tensor, rows: Tensor | None = None, runs: Runs | None = None) -> None:
        self._scale, self._shift, self._rows = scale, shift, rows
        self._lengths: tuple[int, ...] | None = None  # of the runs
        self._parts = [(scale, shift)]
        if scale.ndim > 1 and runs is not None:
            scales, shifts = scale.unbind(), shift.unbind()
            self._parts, self._lengths = [(scales[row], shifts[row]) for row in runs.rows], runs.lengths
        self._as_norm = scale.device.type == "cpu" and scale.dtype is torch.float32 and (scale.ndim == 1 or runs is not None)

    def of(self, activation: Tensor) -> Tensor:
        """The changed output, (B, W, d), as `activation`."""
        if not self._as_norm or activation.dtype not in NARROW or torch.is_grad_enabled():
            scale, shift = self._of_tokens()
            return torch.addcmul(shift, activation, scale).to(activation.dtype)
        if self._lengths is None:
            return _in_one_pass(activation, *self._parts[0])
        pieces = zip(activation.split(self._lengths, 1), self._parts, strict=True)
        return torch.cat([_in_one_pass(piece, *part) for piece, part in pieces], 1)

    def _of_tokens(self) -> tuple[Tensor, Tensor]:
        """Both for each token; looked up when they are used, so that one site's copies at a time are held."""
        if self._scale.ndim == 1:
            return self._scale, self._shift
        if (rows := self._rows) is None:
            return self._scale[:, None], self._shift[:, None]
        scale, shift = (one.index_select(0, rows.flatten()).view(*rows.shape, -1) for one in (self._scale, self._shift))
        return scale, shift  # five times as fast as scale[rows]


def _in_one_pass(activation: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """One scale and shift for all tokens of (B, W, d)."""
    mean, variance = _neutral(len(scale))
    changed = torch.batch_norm(activation.reshape(-1, len(scale)), scale, shift, mean, variance, False, 0.0, 0.0, False)
    return changed.view_as(activation)


@cache
def _neutral(channels: int) -> tuple[Tensor, Tensor]:
    """The mean and the variance that change nothing."""
    return torch.zeros(channels), torch.ones(channels)
