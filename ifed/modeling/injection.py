"""What is injected: a scale and a shift for each layer, site and channel. Knows no model and no hooks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from ifed.errors import LayoutMismatch
from ifed.tensors.values import ACTIVATION, CONTEXT, SITES, Coefficients, ContextVector

ALIKE = 3  # axes, where all rows take the same: layer, site, channel


@dataclass(frozen=True, eq=False)
class Injection:
    """What replaces the outputs `a` of the sites: `scale · a + shift`, with `scale` = β and `shift` = λ · v.

    Attributes:
        layers: the injected layers, lowest first.
        scale: at least float32, (layer, site, d) for a whole batch, or (row, layer, site, d) where rows differ.
        shift: likewise.

    Raises:
        LayoutMismatch: the shapes differ from each other or do not fit the layers, or the layers do not rise.
    """

    layers: tuple[int, ...]
    scale: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        if self.scale.shape != self.shift.shape or self.scale.shape[-3:-1] != (len(self.layers), len(SITES)):
            shapes = f"scale {tuple(self.scale.shape)} and shift {tuple(self.shift.shape)}"
            raise LayoutMismatch(f"{shapes} do not fit {len(self.layers)} layers of {len(SITES)} sites")
        if list(self.layers) != sorted(set(self.layers)):
            raise LayoutMismatch(f"the layers {list(self.layers)} must rise, each once, as the tensors' first axis does")

    @property
    def hidden_size(self) -> int:
        return int(self.scale.shape[-1])

    def changes(self, rows: Tensor | None = None) -> Sequence[Rescaling]:
        """What each site does, layer after layer and site after site; for a whole batch the same objects each time, so that an injection
        that is to have gradients is not used without them first.

        Args:
            rows: int64, (B, W): which row each token takes, where rows differ. Otherwise row i is for row i of the batch.
        """
        return self._everywhere if self.scale.ndim == ALIKE else self._site_by_site(rows)

    @cached_property
    def _everywhere(self) -> list[Rescaling]:
        return self._site_by_site(None)

    def _site_by_site(self, rows: Tensor | None) -> list[Rescaling]:
        each = (tensor.flatten(-3, -2).unbind(-2) for tensor in (self.scale, self.shift))
        return [Rescaling(scale, shift, rows) for scale, shift in zip(*each, strict=True)]


class SideBySide:
    """Injections for the rows of one batch: row i takes what `injections[i]` does; None leaves it as the bare model, bit for bit.

    Attributes:
        layers: the union of all.

    Raises:
        LayoutMismatch: they are for different hidden sizes, one is for rows of its own already, or there is none but None.
    """

    def __init__(self, injections: Sequence[Injection | None]) -> None:
        self._injections = injections
        self._given = [injection for injection in injections if injection is not None]
        self.layers = tuple(sorted({layer for injection in self._given for layer in injection.layers}))
        sizes = {injection.hidden_size for injection in self._given}
        if len(sizes) != 1 or any(injection.scale.ndim != ALIKE for injection in self._given):
            raise LayoutMismatch(f"injections of the hidden sizes {sorted(sizes)}, or of rows, cannot stand side by side")
        (self.hidden_size,) = sizes

    def changes(self, rows: Tensor | None = None) -> Sequence[Rescaling | RunByRun]:
        """What each site does, as `Injection.changes`: on a CPU no injection is copied where the tokens of long rows stand side by side."""
        runs = None if rows is None else Runs.that_pay(rows)
        if runs is None:
            return self._stacked().changes(rows)
        own = [self._of_one(injection) for injection in self._injections]
        return [RunByRun(parts, runs.lengths) for parts in zip(*(own[row] for row in runs.rows), strict=True)]

    def _of_one(self, injection: Injection | None) -> Sequence[Rescaling | None]:
        """What one does at each site of all layers."""
        if injection is None:
            return [None] * (len(self.layers) * len(SITES))
        if injection.layers == self.layers:  # the usual case
            return injection.changes()
        known = dict(zip(itertools.product(injection.layers, range(len(SITES))), injection.changes(), strict=True))
        return [known.get(place) for place in itertools.product(self.layers, range(len(SITES)))]

    def _stacked(self) -> Injection:
        """All of them in one, (row, layer, site, d)."""
        if len(self._given) == len(self._injections) and all(injection.layers == self.layers for injection in self._given):
            scales, shifts = zip(*((injection.scale, injection.shift) for injection in self._given), strict=True)
            return Injection(self.layers, torch.stack(scales), torch.stack(shifts))
        scale = self._given[0].scale.new_ones(len(self._injections), len(self.layers), len(SITES), self.hidden_size)
        shift = torch.full_like(scale, -0.0)
        for row, injection in enumerate(self._injections):
            if injection is not None:
                places = [self.layers.index(layer) for layer in injection.layers]
                scale[row, places], shift[row, places] = injection.scale, injection.shift
        return Injection(self.layers, scale, shift)


def affine(coefficients: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Λ and v to scale and shift, differentiably; each of the G coefficients of a site serves d / G neighbouring channels.

    Args:
        coefficients: (layer, site, coefficient, G).
        context: (layer, site, d).

    Raises:
        LayoutMismatch: other layers than the context's, or a G that does not divide d.
    """
    groups, hidden_size = coefficients.shape[-1], context.shape[-1]
    if coefficients.shape[:2] != context.shape[:2]:
        raise LayoutMismatch(f"coefficients {tuple(coefficients.shape)} are not for a context vector {tuple(context.shape)}")
    if hidden_size % groups:
        raise LayoutMismatch(f"{groups} coefficient groups do not divide the hidden size {hidden_size}")
    channels = coefficients.repeat_interleave(hidden_size // groups, dim=-1)
    return channels[:, :, ACTIVATION], channels[:, :, CONTEXT] * context


def injection_of(
    context: ContextVector, coefficients: Coefficients, layers: Sequence[int], *, device: torch.device | str, dtype: torch.dtype
) -> Injection:
    """The injection of one task (arXiv 2511.06757, with coefficient groups).

    Args:
        dtype: of the forward pass; scale and shift are kept in at least float32, and rounded only after they were applied.

    Raises:
        LayoutMismatch: context vector, coefficients and layers do not fit each other, or G does not divide d.
    """
    if len(layers) != len(context.values):
        raise LayoutMismatch(f"a context vector of {len(context.values)} layers cannot be injected into {len(layers)} layers")
    dtype = torch.promote_types(dtype, torch.float32)
    scale, shift = affine(torch.tensor(coefficients.values, dtype=dtype), torch.tensor(context.values, dtype=dtype))
    # x + (-0.0) is x for every x, while -0.0 + 0.0 is not -0.0: with this, λ=0 and β=1 give back the very bits of x.
    shift = torch.where(shift == 0, -0.0, shift)
    return Injection(tuple(layers), scale.to(device).contiguous(), shift.to(device).contiguous())


def side_by_side(injections: Sequence[Injection | None]) -> SideBySide | None:
    """What row i of a batch takes; None if no row is injected into.

    Raises:
        LayoutMismatch: as `SideBySide`.
    """
    return SideBySide(injections) if any(injection is not None for injection in injections) else None


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
