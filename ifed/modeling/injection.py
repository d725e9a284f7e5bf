"""The injection of a task as scale and shift of each layer, site and channel, and how a batch applies one or several."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from ifed.errors import LayoutMismatch
from ifed.messages.tasks import InjectionPosition
from ifed.tensors.values import ACTIVATION, CONTEXT, SITES, Coefficients, ContextVector

UNBATCHED_NDIM = 3  # axes of a scale that all rows share: layer, site, channel
TOKENS_NDIM = 2  # axes of an activation without a batch axis: token, channel
HALF_PRECISION = (torch.bfloat16, torch.float16)
MIN_SEGMENT_TOKENS = 16  # mean tokens of a segment: with fewer, looking up the row of each token is faster


@dataclass(frozen=True, eq=False)
class Injection:
    """`scale · a + shift` in place of the output `a` of each injected site, with `scale` = β and `shift` = λ · v.

    Attributes:
        layers: the injected layers, lowest first.
        scale: at least float32, (layer, site, d) for a whole batch, or (row, layer, site, d) if rows differ.
        shift: likewise.
        position: `all_tokens` as published; `last_token` for the last token of the prompt and the label tokens after it alone, so that the
            keys and values of the prompt are those of the base model.

    Raises:
        LayoutMismatch: the shapes differ from each other or do not fit the layers, or the layers are not in strictly rising order.
    """

    layers: tuple[int, ...]
    scale: Tensor
    shift: Tensor
    position: InjectionPosition = "all_tokens"

    def __post_init__(self) -> None:
        if self.scale.shape != self.shift.shape or self.scale.shape[-3:-1] != (len(self.layers), len(SITES)):
            shapes = f"scale {tuple(self.scale.shape)} and shift {tuple(self.shift.shape)}"
            raise LayoutMismatch(f"{shapes} do not fit {len(self.layers)} layers of {len(SITES)} sites")
        if list(self.layers) != sorted(set(self.layers)):
            raise LayoutMismatch(
                f"the layers {list(self.layers)} must be in strictly rising order, that of the tensors' first axis"
            )

    @property
    def hidden_size(self) -> int:
        """The hidden size, d."""
        return int(self.scale.shape[-1])

    def transforms(self, rows: Tensor | None = None) -> Sequence[ChannelAffine]:
        """Return the transform of each site, layer after layer and site after site.

        For a whole batch these are the same objects each time, so an injection that needs gradients must not be used without them first.

        Args:
            rows: int64, (B, W), the row of each token, if rows differ. By default row i is for row i of the batch.
        """
        return self._unbatched if self.scale.ndim == UNBATCHED_NDIM else self._by_site(rows)

    @cached_property
    def _unbatched(self) -> list[ChannelAffine]:
        return self._by_site(None)

    def _by_site(self, rows: Tensor | None) -> list[ChannelAffine]:
        scales, shifts = (tensor.flatten(-3, -2).unbind(-2) for tensor in (self.scale, self.shift))
        return [ChannelAffine(scale, shift, rows) for scale, shift in zip(scales, shifts, strict=True)]


class InjectionBatch:
    """Injections for the rows of one batch: row i takes `injections[i]`; with None it computes what the base model does, bit for bit.

    Attributes:
        layers: the union of the injected layers.
        hidden_size: d.

    Raises:
        LayoutMismatch: the hidden sizes differ, an injection has rows of its own, or all are None.
    """

    def __init__(self, injections: Sequence[Injection | None]) -> None:
        self._injections = injections
        self._present = [injection for injection in injections if injection is not None]
        self.layers = tuple(sorted({layer for injection in self._present for layer in injection.layers}))
        sizes = {injection.hidden_size for injection in self._present}
        if len(sizes) != 1 or any(injection.scale.ndim != UNBATCHED_NDIM for injection in self._present):
            raise LayoutMismatch(f"injections of the hidden sizes {sorted(sizes)}, or with rows of their own, cannot be batched")
        (self.hidden_size,) = sizes

    def transforms(self, rows: Tensor | None = None) -> Sequence[SiteTransform]:
        """Return the transform of each site, as `Injection.transforms`; on a CPU no injection is copied if its tokens form long segments."""
        segments = None if rows is None else Segments.if_long(rows)
        if segments is None:
            return self._stacked().transforms(rows)
        by_row = [self._transforms_of(injection) for injection in self._injections]
        return [
            SegmentedAffine(transforms, segments.lengths)
            for transforms in zip(*(by_row[row] for row in segments.rows), strict=True)
        ]

    def _transforms_of(self, injection: Injection | None) -> Sequence[ChannelAffine | None]:
        """Return the transforms of one injection at each site of all layers."""
        if injection is None:
            return [None] * (len(self.layers) * len(SITES))
        if injection.layers == self.layers:  # the usual case
            return injection.transforms()
        known = dict(zip(itertools.product(injection.layers, range(len(SITES))), injection.transforms(), strict=True))
        return [known.get(place) for place in itertools.product(self.layers, range(len(SITES)))]

    def _stacked(self) -> Injection:
        """Return all of them as one injection, (row, layer, site, d)."""
        if len(self._present) == len(self._injections) and all(injection.layers == self.layers for injection in self._present):
            scales, shifts = zip(*((injection.scale, injection.shift) for injection in self._present), strict=True)
            return Injection(self.layers, torch.stack(scales), torch.stack(shifts))
        scale = self._present[0].scale.new_ones(len(self._injections), len(self.layers), len(SITES), self.hidden_size)
        shift = torch.full_like(scale, -0.0)
        for row, injection in enumerate(self._injections):
            if injection is not None:
                places = [self.layers.index(layer) for layer in injection.layers]
                scale[row, places], shift[row, places] = injection.scale, injection.shift
        return Injection(self.layers, scale, shift)


@dataclass(frozen=True, slots=True)
class Segments:
    """Runs of neighbouring tokens that take the same row of an injection.

    Attributes:
        rows: the row of each segment, in the order of the tokens.
        lengths: the tokens of each segment.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def if_long(cls, rows: Tensor) -> Segments | None:
        """Return the segments of `rows`, int64, (B, W); None if they are short on average, on a GPU, or with more than one batch row."""
        if rows.device.type != "cpu" or len(rows) > 1:
            return None
        segment_rows, lengths = torch.unique_consecutive(rows[0], return_counts=True)
        if rows.shape[1] < MIN_SEGMENT_TOKENS * len(segment_rows):
            return None
        return cls(tuple(segment_rows.tolist()), tuple(lengths.tolist()))


class ChannelAffine:
    """`scale · a + shift` at one site, computed in the dtype of the two, at least float32, then rounded to that of `a`.

    The result has the bits of a multiplication and an addition with one rounding for both (`addcmul`), however it is computed. If `a` is
    bfloat16 or float16 on a CPU, scale and shift are float32 and no gradient is needed, it is a batch norm of known mean 0 and variance 1:
    the one operator of torch that reads 16 bits, computes in float32 and writes 16 bits, without an intermediate tensor that would take up
    the CPU caches. It is not used for batches whose rows differ.

    Args:
        scale: (d,), or (row, d).
        shift: likewise.
        rows: int64, (B, W), the row of each token; by default row i of the scale is for row i of the batch.
    """

    def __init__(self, scale: Tensor, shift: Tensor, rows: Tensor | None = None) -> None:
        self._scale, self._shift, self._rows = scale, shift, rows
        self._batch_norm_fits = scale.device.type == "cpu" and scale.dtype is torch.float32 and scale.ndim == 1

    def apply(self, activation: Tensor) -> Tensor:
        """Return the transform of `activation`, (B, W, d), or (tokens, d) if all tokens take the same; nothing is written in place."""
        if not self._batch_norm_fits or activation.dtype not in HALF_PRECISION or torch.is_grad_enabled():
            scale, shift = self._by_token()
            return torch.addcmul(shift, activation, scale).to(activation.dtype)
        tokens = activation if activation.ndim == TOKENS_NDIM else activation.flatten(0, -2)
        mean, variance = _zero_mean_and_unit_variance(tokens.shape[-1])
        transformed = torch.batch_norm(tokens, self._scale, self._shift, mean, variance, False, 0.0, 0.0, False)
        return transformed if tokens is activation else transformed.view(activation.shape)

    def _by_token(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift of each token; looked up at each use, so that only one site's copies exist at a time."""
        if self._scale.ndim == 1:
            return self._scale, self._shift
        if (rows := self._rows) is None:
            return self._scale[:, None], self._shift[:, None]
        # Five times as fast as scale[rows].
        scale, shift = (tensor.index_select(0, rows.flatten()).view(*rows.shape, -1) for tensor in (self._scale, self._shift))
        return scale, shift


class SegmentedAffine:
    """The transform of one site for a packed batch, segment by segment; None leaves a segment as it is."""

    def __init__(self, transforms: Sequence[ChannelAffine | None], lengths: Sequence[int]) -> None:
        self._transforms, self._lengths = transforms, list(lengths)

    def apply(self, activation: Tensor) -> Tensor:
        """Return the transform of `activation`, (1, W, d)."""
        segments = zip(activation.flatten(0, -2).split(self._lengths), self._transforms, strict=True)
        return torch.cat([part if transform is None else transform.apply(part) for part, transform in segments]).view(
            activation.shape
        )


SiteTransform = ChannelAffine | SegmentedAffine


def scale_and_shift(coefficients: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Return β and λ · v by channel, differentiably; each of the G coefficients of a site serves d / G neighbouring channels.

    Args:
        coefficients: Λ, (layer, site, coefficient, G).
        context: v, (layer, site, d).

    Returns:
        Two tensors, (layer, site, d).

    Raises:
        LayoutMismatch: the layers of the two differ, or G does not divide d.
    """
    groups, hidden_size = coefficients.shape[-1], context.shape[-1]
    if coefficients.shape[:2] != context.shape[:2]:
        raise LayoutMismatch(f"coefficients {tuple(coefficients.shape)} are not for a context vector {tuple(context.shape)}")
    if hidden_size % groups:
        raise LayoutMismatch(f"{groups} coefficient groups do not divide the hidden size {hidden_size}")
    channels = coefficients.repeat_interleave(hidden_size // groups, dim=-1)
    return channels[:, :, ACTIVATION], channels[:, :, CONTEXT] * context


def injection_of(
    context: ContextVector,
    coefficients: Coefficients,
    layers: Sequence[int],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    position: InjectionPosition = "all_tokens",
) -> Injection:
    """Return the injection of one task (arXiv 2511.06757, with coefficient groups).

    Args:
        dtype: of the forward pass; scale and shift have at least float32, and only their result is rounded to it.
        position: the tokens it acts on.

    Raises:
        LayoutMismatch: context vector, coefficients and layers do not fit each other, or G does not divide d.
    """
    if len(layers) != len(context.values):
        raise LayoutMismatch(f"a context vector of {len(context.values)} layers cannot be injected into {len(layers)} layers")
    dtype = torch.promote_types(dtype, torch.float32)
    scale, shift = scale_and_shift(torch.tensor(coefficients.values, dtype=dtype), torch.tensor(context.values, dtype=dtype))
    # x + (-0.0) is x for every x, while -0.0 + 0.0 is not -0.0: with this, λ=0 and β=1 return x bit for bit.
    shift = torch.where(shift == 0, -0.0, shift)
    return Injection(tuple(layers), scale.to(device).contiguous(), shift.to(device).contiguous(), position)


def batch_injections(injections: Sequence[Injection | None]) -> InjectionBatch | None:
    """Return the injections of the rows of a batch as one; None if no row has any.

    Raises:
        LayoutMismatch: as `InjectionBatch`.
    """
    return InjectionBatch(injections) if any(injection is not None for injection in injections) else None


@cache
def _zero_mean_and_unit_variance(channels: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(channels), torch.ones(channels)
