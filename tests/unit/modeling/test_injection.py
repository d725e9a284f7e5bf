"""Scale and shift of an injection, and the one formula of a site, however it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ifed.errors import LayoutMismatch
from ifed.modeling.injection import (
    ChannelAffine,
    SegmentedAffine,
    Segments,
    injection_of,
)
from ifed.tensors.values import Coefficients
from testing.random_models import (
    ALL,
    HIDDEN,
    build,
    random_coefficients,
    random_context,
)


def one_formula(activation: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift.expand_as(activation), activation.to(scale.dtype), scale.expand_as(activation)).to(activation.dtype)


@pytest.mark.parametrize(
    ("channels", "lengths", "dtype", "gradients"),
    [
        pytest.param(101, (40, 30, 26), torch.bfloat16, False, id="batch norm on bfloat16, odd channels"),
        pytest.param(576, (47, 1, 16), torch.float16, False, id="batch norm on float16, a segment of one token"),
        pytest.param(576, (64,), torch.bfloat16, False, id="one segment"),
        pytest.param(101, (40, 30, 26), torch.float32, False, id="addcmul in float32"),
        pytest.param(101, (40, 30, 26), torch.bfloat16, True, id="addcmul on bfloat16, with gradients"),
        pytest.param(8, (3, 1, 2, 5), torch.bfloat16, False, id="segments too short"),
    ],
)
def test_a_site_gives_the_bits_of_one_formula_however_it_computes_them(
    channels: int, lengths: tuple[int, ...], dtype: torch.dtype, gradients: bool
) -> None:
    chance = torch.Generator().manual_seed(3)
    activation = torch.randn(1, sum(lengths), channels, generator=chance).to(dtype)
    scale, shift = (torch.randn(3, channels, generator=chance) for _ in range(2))
    rows = torch.repeat_interleave(torch.arange(len(lengths)) % 3, torch.tensor(lengths))[None]
    before, runs = activation.clone(), Segments.if_long(rows)
    assert (runs is None) == (sum(lengths) < 16 * len(lengths))
    expected = one_formula(activation, scale[rows], shift[rows])
    with torch.set_grad_enabled(gradients):
        assert torch.equal(ChannelAffine(scale, shift, rows).apply(activation), expected)
        if runs is not None:
            parts = [ChannelAffine(scale[row], shift[row]) for row in runs.rows]
            assert torch.equal(SegmentedAffine(parts, runs.lengths).apply(activation), expected)
        assert torch.equal(ChannelAffine(scale[0], shift[0]).apply(activation), one_formula(activation, scale[0], shift[0]))
        padded = activation.expand(3, -1, -1)
        assert torch.equal(ChannelAffine(scale, shift).apply(padded), one_formula(padded, scale[:, None], shift[:, None]))
    assert torch.equal(activation, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_formula_is_the_exact_one_but_for_rounding(dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(4)
    activation = torch.randn(1, 50, 24, generator=chance).to(dtype)
    scale, shift = (torch.randn(24, generator=chance) for _ in range(2))
    exact = activation.double() * scale.double() + shift.double()
    with torch.no_grad():
        actual = ChannelAffine(scale, shift).apply(activation)
    torch.testing.assert_close(actual.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_segment_without_a_transform_keeps_its_bits_beside_others(dtype: torch.dtype) -> None:
    activation = torch.cat([torch.full((1, 30, 8), -0.0), torch.ones(1, 30, 8)], 1).to(dtype)
    change = ChannelAffine(torch.full((8,), 2.0), torch.ones(8))
    with torch.no_grad():
        actual = SegmentedAffine([None, change], (30, 30)).apply(activation)
    assert actual[0, :30].signbit().all()
    assert actual[0, 30:].eq(3).all()


def test_segments_are_neighbouring_tokens_of_one_row_in_their_order() -> None:
    rows = torch.tensor([[1] * 20 + [0] * 30 + [1] * 10])
    assert Segments.if_long(rows) == Segments((1, 0, 1), (20, 30, 10))
    assert Segments.if_long(rows.view(2, 30)) is None


def test_one_group_is_the_published_scalar_coefficient() -> None:
    lm = build(dtype=torch.float64)
    context, scalars = random_context(3), random_coefficients(3, 1)
    spread = Coefficients(scalars.values.repeat(HIDDEN, axis=3))
    injected = injection_of(context, scalars, ALL, device="cpu", dtype=lm.dtype)
    full = injection_of(context, spread, ALL, device="cpu", dtype=lm.dtype)
    values, vector = torch.tensor(scalars.values, dtype=lm.dtype), torch.tensor(context.values, dtype=lm.dtype)
    assert torch.equal(injected.scale, full.scale)
    assert torch.equal(injected.shift, full.shift)
    assert torch.equal(injected.scale, values[:, :, 1].expand(3, 2, HIDDEN))
    assert torch.equal(injected.shift, values[:, :, 0] * vector)


def test_a_group_is_a_run_of_neighbouring_channels() -> None:
    coefficients = random_coefficients(3, 4)
    injected = injection_of(random_context(3), coefficients, ALL, device="cpu", dtype=torch.float32)
    for group in range(4):
        channels = injected.scale[1, 0, group * 8 : group * 8 + 8]
        assert channels.tolist() == [coefficients.values[1, 0, 1, group]] * 8


@pytest.mark.parametrize(
    ("layers", "groups", "match"), [((0, 1, 2), 5, "do not divide"), ((0, 1), 4, "2 layers"), ((2, 1, 0), 4, "strictly rising")]
)
def test_shapes_that_do_not_fit_are_refused(layers: tuple[int, ...], groups: int, match: str) -> None:
    with pytest.raises(LayoutMismatch, match=match):
        injection_of(random_context(3), random_coefficients(3, groups), layers, device="cpu", dtype=torch.float32)


def test_coefficients_near_one_are_not_rounded_to_the_dtype_of_the_model() -> None:
    values = Coefficients.identity(3, 1).values.copy()
    values[:, :, 1] = 1.001  # the neighbouring bfloat16 numbers are 1.0 and 1.0078
    injected = injection_of(random_context(3), Coefficients(values), ALL, device="cpu", dtype=torch.bfloat16)
    assert injected.scale.dtype == torch.float32
    assert injected.scale.max().item() == pytest.approx(1.001)
