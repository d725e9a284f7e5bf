"""Capture, injection and replay on a random model of every family: exact, and gone afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ifed.errors import LayoutMismatch
from ifed.modeling import injection as injection_module
from ifed.modeling.batching import Batch, BatchLayout, Row
from ifed.modeling.hooks import capture, final_hidden, inject, layer_input, replay
from ifed.modeling.injection import ChannelAffine, Injection, InjectionBatch, SegmentedAffine, batch_injections, injection_of
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.values import Coefficients
from testing.random_models import (
    ALL,
    CODE_PATHS,
    FAMILY_NAMES,
    HIDDEN,
    ROUNDING,
    TEXTS,
    build,
    random_coefficients,
    random_context,
    template,
)

families = pytest.mark.parametrize("family", FAMILY_NAMES)
code_paths = pytest.mark.parametrize("family", CODE_PATHS)
# Every family once; dtype and layout vary where a code path differs.
forward_cases = pytest.mark.parametrize(
    ("family", "dtype", "layout"),
    [
        *((family, torch.float32, "packed") for family in FAMILY_NAMES),
        ("llama", torch.bfloat16, "packed"),
        ("gemma3_text", torch.bfloat16, "padded"),
        ("gpt2", torch.float32, "padded"),
    ],
)


def batch_of(lm: LanguageModel, layout: BatchLayout = "packed") -> Batch:
    prompts = template(lm)
    return Batch.of([Row.for_last_token(prompts.prompt(text).ids) for text in TEXTS], layout=layout)


def injection(lm: LanguageModel, layers: tuple[int, ...] = ALL, *, groups: int = 4, seed: int = 2) -> Injection:
    context, coefficients = random_context(len(layers), seed=seed), random_coefficients(len(layers), groups, seed=seed)
    return injection_of(context, coefficients, layers, device="cpu", dtype=lm.dtype)


def bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def hooks_on(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in module.__dict__) for module in model.modules()
    )


@forward_cases
def test_zero_context_weight_and_unit_activation_weight_are_the_base_model_bit_for_bit(
    family: str, dtype: torch.dtype, layout: BatchLayout
) -> None:
    lm = build(family, dtype=dtype)
    batch = batch_of(lm, layout)
    same = injection_of(random_context(3), Coefficients.identity(3, 8), ALL, device="cpu", dtype=dtype)
    bare = final_hidden(lm, batch)
    with inject(lm, same):
        assert torch.equal(bits(final_hidden(lm, batch)), bits(bare))


@code_paths
def test_an_injected_layer_gives_exactly_the_equation(family: str) -> None:
    lm = build(family, dtype=torch.float64)
    batch, layer = batch_of(lm), 1
    injected = injection(lm, (layer,))
    with capture(lm, ALL) as bare, torch.no_grad():
        final_hidden(lm, batch)
    with capture(lm, ALL) as before, inject(lm, injected), capture(lm, ALL) as after, torch.no_grad():
        final_hidden(lm, batch)
    for site in (0, 1):
        assert torch.equal(after.outputs[0, site], bare.outputs[0, site]), "the layer below is untouched"
        expected = torch.addcmul(injected.shift[0, site], before.outputs[layer, site], injected.scale[0, site])
        assert torch.equal(after.outputs[layer, site], expected)
    assert torch.equal(before.outputs[layer, 0], bare.outputs[layer, 0]), "what enters the first site is untouched"
    assert not torch.allclose(after.outputs[2, 0], bare.outputs[2, 0]), "what comes after has changed"


@families
def test_the_residual_stream_follows_the_equation_computed_by_hand(family: str) -> None:
    lm = build(family, dtype=torch.float64)
    batch, injected = batch_of(lm), injection(lm)
    entered: list[Tensor] = []
    layers = lm.family.layers(lm.model)
    readers = [
        layer.register_forward_hook(
            lambda module, arguments, output: entered.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in layers
    ]
    with capture(lm, ALL) as raw, inject(lm, injected), torch.no_grad():
        stream = layer_input(lm, 0, batch)
        final_hidden(lm, batch)
    for reader in readers:
        reader.remove()
    for layer in ALL:
        attention, mlp = raw.outputs[layer, 0], raw.outputs[layer, 1]
        stream = stream + (injected.shift[layer, 0] + injected.scale[layer, 0] * attention)
        stream = stream + (injected.shift[layer, 1] + injected.scale[layer, 1] * mlp)
        torch.testing.assert_close(entered[layer], stream, rtol=1e-12, atol=1e-12)


@code_paths
def test_after_the_block_the_model_is_the_base_model(family: str) -> None:
    lm = build(family)
    batch = batch_of(lm)
    bare = final_hidden(lm, batch)
    with inject(lm, injection(lm)):
        assert not torch.allclose(final_hidden(lm, batch), bare)
    assert hooks_on(lm.model) == 0
    assert torch.equal(final_hidden(lm, batch), bare)


@code_paths
def test_no_hook_survives_an_exception(family: str) -> None:
    lm = build(family)
    batch = batch_of(lm)
    bare, hidden = final_hidden(lm, batch), layer_input(lm, 1, batch)
    with pytest.raises(ZeroDivisionError), inject(lm, injection(lm, (1, 2))), capture(lm, ALL), replay(lm, 1, hidden):
        raise ZeroDivisionError
    assert hooks_on(lm.model) == 0
    assert torch.equal(final_hidden(lm, batch), bare)
    with inject(lm, injection(lm)):
        final_hidden(lm, batch)


def test_a_layer_that_does_not_exist_is_refused_and_leaves_no_hook() -> None:
    lm = build()
    with pytest.raises(LayoutMismatch, match=r"layers 0 to 2, got \[3\]"), inject(lm, injection(lm, (1, 3))):
        pass
    with pytest.raises(LayoutMismatch), capture(lm, [0, -1]):
        pass
    assert hooks_on(lm.model) == 0


def test_an_injection_of_another_hidden_size_is_refused() -> None:
    lm = build()
    narrow = Injection((0,), torch.ones(1, 2, HIDDEN // 2), torch.zeros(1, 2, HIDDEN // 2))
    with pytest.raises(LayoutMismatch, match="hidden size 16"), inject(lm, narrow):
        pass
    assert hooks_on(lm.model) == 0


def test_a_second_injection_is_refused_and_the_first_stays_in_place() -> None:
    lm = build()
    batch, injected = batch_of(lm), injection(lm)
    with inject(lm, injected):
        once = final_hidden(lm, batch)
        with pytest.raises(RuntimeError, match="carries an injection already"), inject(lm, injected):
            pass
        assert torch.equal(final_hidden(lm, batch), once)
    with inject(lm, injected):
        assert torch.equal(final_hidden(lm, batch), once)


@code_paths
def test_nothing_is_written_in_place(family: str) -> None:
    lm = build(family)
    batch, injected = batch_of(lm), injection(lm)
    scale, shift = injected.scale.clone(), injected.shift.clone()
    with capture(lm, ALL) as raw, torch.no_grad():
        final_hidden(lm, batch)
    original = {place: output.clone() for place, output in raw.outputs.items() if place == (0, 0)}
    with capture(lm, [0]) as before, inject(lm, injected), torch.no_grad():
        final_hidden(lm, batch)
    assert torch.equal(before.outputs[0, 0], original[0, 0])
    assert torch.equal(injected.scale, scale)
    assert torch.equal(injected.shift, shift)


@pytest.mark.parametrize(
    ("family", "layout", "min_tokens", "kind"),
    [
        *((family, "packed", 1, SegmentedAffine) for family in (*CODE_PATHS, "gemma2")),
        ("llama", "packed", 10**6, ChannelAffine),
        ("llama", "padded", 1, ChannelAffine),
        ("gemma3_text", "padded", 1, ChannelAffine),
    ],
)
def test_rows_with_different_injections_compute_what_each_computes_alone(
    family: str, layout: BatchLayout, min_tokens: int, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injection_module, "MIN_SEGMENT_TOKENS", min_tokens)
    lm = build(family)
    batch = batch_of(lm, layout)
    several = [injection(lm), None, injection(lm, (2,), seed=5), injection(lm, (0, 1), groups=1, seed=6)]
    by_row = [several[index % len(several)] for index in range(len(TEXTS))]
    batched = InjectionBatch(by_row)
    assert isinstance(batched.transforms(batch.row_of)[0], kind)
    with inject(lm, batched, rows=batch.row_of), torch.no_grad():
        together = batch.split(final_hidden(lm, batch))
    for text, row_injection, states in zip(TEXTS, by_row, together, strict=True):
        alone = Batch.of([Row.for_last_token(template(lm).prompt(text).ids)], layout="padded")
        with inject(lm, row_injection), torch.no_grad():
            torch.testing.assert_close(states, final_hidden(lm, alone)[0], **ROUNDING)


def test_injections_of_different_hidden_sizes_or_with_rows_cannot_be_batched() -> None:
    lm = build()
    other = Injection((0,), *torch.ones(2, 1, 2, HIDDEN // 2))
    rows = Injection((0,), *torch.ones(2, 3, 1, 2, HIDDEN))
    for refused in (other, rows):
        with pytest.raises(LayoutMismatch, match="cannot be batched"):
            batch_injections([injection(lm), None, refused])


def test_without_a_token_map_row_i_of_the_injection_is_row_i_of_the_batch() -> None:
    lm = build()
    batch = batch_of(lm, "padded")
    by_row = batch_injections([injection(lm, seed=seed) for seed in range(len(TEXTS))])
    with inject(lm, by_row):
        implied = final_hidden(lm, batch)
    with inject(lm, by_row, rows=batch.row_of):
        torch.testing.assert_close(final_hidden(lm, batch), implied)


@pytest.mark.parametrize(
    ("family", "dtype", "min_tokens"),
    [
        *((family, torch.float32, 1) for family in FAMILY_NAMES),
        ("llama", torch.bfloat16, 1),
        ("llama", torch.float32, 10**6),
        ("gemma3_text", torch.bfloat16, 10**6),
    ],
)
def test_rows_without_an_injection_beside_others_are_the_base_model_bit_for_bit(
    family: str, dtype: torch.dtype, min_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injection_module, "MIN_SEGMENT_TOKENS", min_tokens)
    lm = build(family, dtype=dtype)
    batch = batch_of(lm)
    bare = batch.split(final_hidden(lm, batch))
    with inject(lm, batch_injections([None, *[injection(lm)] * (len(TEXTS) - 1)]), rows=batch.row_of):
        assert torch.equal(bits(batch.split(final_hidden(lm, batch))[0]), bits(bare[0]))


@forward_cases
def test_replay_equals_the_full_forward_bit_for_bit(family: str, dtype: torch.dtype, layout: BatchLayout) -> None:
    check_replay(build(family, dtype=dtype), layout, first_layer=1)


@pytest.mark.parametrize("first_layer", [0, 2])
def test_replay_may_start_at_any_layer(first_layer: int) -> None:
    check_replay(build(), "packed", first_layer=first_layer)


def check_replay(lm: LanguageModel, layout: BatchLayout, *, first_layer: int) -> None:
    batch, injected = batch_of(lm, layout), injection(lm, tuple(range(first_layer, 3)))
    with inject(lm, injected):
        full = final_hidden(lm, batch)
    hidden = layer_input(lm, first_layer, batch)
    with replay(lm, first_layer, batch.arrange(batch.split(hidden))), inject(lm, injected):
        replayed = final_hidden(lm, batch)
    assert torch.equal(bits(batch.arrange(batch.split(replayed))), bits(batch.arrange(batch.split(full))))
    assert hooks_on(lm.model) == 0
    assert torch.equal(layer_input(lm, first_layer, batch), hidden)


def test_a_replayed_layer_cannot_be_injected_into_or_replayed_again() -> None:
    lm = build()
    hidden = layer_input(lm, 2, batch_of(lm))
    with replay(lm, 2, hidden):
        with pytest.raises(RuntimeError, match=r"layers \[0, 1\].*replayed"), inject(lm, injection(lm)):
            pass
        with pytest.raises(RuntimeError, match="replayed"), replay(lm, 1, hidden):
            pass
    assert hooks_on(lm.model) == 0


@pytest.mark.parametrize("family", [*CODE_PATHS, "mistral"])
def test_the_padding_side_changes_no_state_beyond_rounding(family: str) -> None:
    lm = build(family)
    injected = injection_of(random_context(3), random_coefficients(3, 4), ALL, device="cpu", dtype=lm.dtype)
    ids = [template(lm).prompt(text).ids for text in TEXTS]
    width, actual = max(map(len, ids)), []
    for side in ("left", "right"):
        rows, masks = [], []
        for tokens in ids:
            padding = [0] * (width - len(tokens))
            rows.append([*padding, *tokens] if side == "left" else [*tokens, *padding])
            masks.append([*padding, *[1] * len(tokens)] if side == "left" else [*[1] * len(tokens), *padding])
        mask = torch.tensor(masks)
        with torch.no_grad(), inject(lm, injected):
            states = lm.model.base_model(
                input_ids=torch.tensor(rows), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=False
            ).last_hidden_state
        actual.append(torch.cat([row[real.bool()] for row, real in zip(states, mask, strict=True)]))
    torch.testing.assert_close(actual[0], actual[1], **ROUNDING)
    packed = Batch.of([Row.for_last_token(tokens) for tokens in ids], layout="packed")
    with torch.no_grad(), inject(lm, injected):
        torch.testing.assert_close(final_hidden(lm, packed)[0], actual[0], **ROUNDING)


def test_the_mlp_of_the_last_layer_runs_at_the_output_positions_alone() -> None:
    lm = build()
    token_counts: list[int] = []
    mlps = [layer.get_submodule("mlp") for layer in lm.family.layers(lm.model)]
    hooks = [
        mlp.get_submodule("down_proj").register_forward_pre_hook(
            lambda _module, arguments: token_counts.append(arguments[0].shape[-2])
        )
        for mlp in (mlps[0], mlps[-1])
    ]
    prompts = template(lm)
    scored = [ScoringItem(prompts.prompt(text), prompts.labels(["positive", "negative"]), None) for text in TEXTS]
    score(lm, scored, token_budget=10_000)
    for hook in hooks:
        hook.remove()
    assert token_counts[0] > 5 * len(TEXTS)
    assert token_counts[1] == len(TEXTS)
    assert not any("forward" in mlp.__dict__ for mlp in mlps)
