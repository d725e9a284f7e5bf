"""What an injection makes of one site's output: one formula, whatever the order in which it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ifed.modeling.injection import ChannelAffine, SegmentedAffine, Segments


def one_formula(activation: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift.expand_as(activation), activation.to(scale.dtype), scale.expand_as(activation)).to(activation.dtype)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("lengths", [(64,), (40, 30, 26), (47, 1, 16), (3, 1, 2, 5)])
@pytest.mark.parametrize("channels", [8, 101, 576])
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
        found = ChannelAffine(scale, shift).apply(activation)
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_run_without_a_change_keeps_its_bits_beside_others(dtype: torch.dtype) -> None:
    activation = torch.cat([torch.full((1, 30, 8), -0.0), torch.ones(1, 30, 8)], 1).to(dtype)
    change = ChannelAffine(torch.full((8,), 2.0), torch.ones(8))
    with torch.no_grad():
        found = SegmentedAffine([None, change], (30, 30)).apply(activation)
    assert found[0, :30].signbit().all()
    assert found[0, 30:].eq(3).all()


def test_runs_are_neighbouring_tokens_of_one_row_in_their_order() -> None:
    rows = torch.tensor([[1] * 20 + [0] * 30 + [1] * 10])
    assert Segments.if_long(rows) == Segments((1, 0, 1), (20, 30, 10))
    assert Segments.if_long(rows.view(2, 30)) is None
