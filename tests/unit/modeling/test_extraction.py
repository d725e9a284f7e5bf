"""Captured vectors against forward passes written out by hand, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu, softmax

from ifed.errors import Malformed
from ifed.modeling.extraction import context_vector
from ifed.modeling.language_model import LanguageModel
from ifed.tensors import ContextVector
from tests.unit.modeling.builders import ALL, FAMILY_NAMES, TEMPLATE, build, examples, template

HEADS, KEY_VALUE_HEADS = 4, 2
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}  # rotary angles and norms are float32 in the models


def rms(values: Tensor, weight: Tensor, eps: float) -> Tensor:
    return values / torch.sqrt(values.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotated(values: Tensor, base: float) -> Tensor:
    """Rotary positions on (head, token, width): the halves of a head are the two coordinates of each rotation."""
    width = values.shape[-1]
    angles = torch.arange(values.shape[1])[:, None] * base ** (-torch.arange(0, width, 2) / width)
    cosine, sine = angles.cos().double(), angles.sin().double()
    one, other = values[..., : width // 2], values[..., width // 2 :]
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], -1)


def attended(query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
    """Causal attention within a window; (head, token, width) to (token, head · width)."""
    tokens = query.shape[1]
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None]
    hidden = (distance < 0) | (distance >= (window or tokens))
    weights = softmax((query @ key.transpose(1, 2) * scale).masked_fill(hidden, float("-inf")), -1)
    return (weights @ value).transpose(0, 1).flatten(1)


def split(values: Tensor, heads: int) -> Tensor:
    return values.unflatten(-1, (heads, -1)).transpose(0, 1)


def shared(values: Tensor) -> Tensor:
    return values.repeat_interleave(HEADS // KEY_VALUE_HEADS, 0)


def llama_by_hand(lm: LanguageModel, ids: Tensor) -> Tensor:
    model, found = lm.model.model, []
    stream = model.embed_tokens.weight[ids]
    base = lm.model.config.rope_parameters["rope_theta"]
    for layer in model.layers:
        normed = rms(stream, layer.input_layernorm.weight, lm.model.config.rms_norm_eps)
        at = layer.self_attn
        query, key = split(normed @ at.q_proj.weight.T, HEADS), split(normed @ at.k_proj.weight.T, KEY_VALUE_HEADS)
        value = split(normed @ at.v_proj.weight.T, KEY_VALUE_HEADS)
        mixed = attended(rotated(query, base), shared(rotated(key, base)), shared(value), scale=8**-0.5)
        attention = mixed @ at.o_proj.weight.T
        stream = stream + attention
        normed = rms(stream, layer.post_attention_layernorm.weight, lm.model.config.rms_norm_eps)
        mlp = (silu(normed @ layer.mlp.gate_proj.weight.T) * (normed @ layer.mlp.up_proj.weight.T)) @ layer.mlp.down_proj.weight.T
        stream = stream + mlp
        found.append(torch.stack([attention[-1], mlp[-1]]))
    return torch.stack(found)


def gemma3_by_hand(lm: LanguageModel, ids: Tensor) -> Tensor:
    model, config, found = lm.model.model, lm.model.config, []
    stream = model.embed_tokens.weight[ids] * model.embed_tokens.embed_scale.double()
    for layer, kind in zip(model.layers, config.layer_types, strict=True):
        eps = config.rms_norm_eps
        base = config.rope_parameters[kind]["rope_theta"]
        normed = rms(stream, 1 + layer.input_layernorm.weight, eps)
        at = layer.self_attn
        query = rms(split(normed @ at.q_proj.weight.T, HEADS), 1 + at.q_norm.weight, eps)
        key = rms(split(normed @ at.k_proj.weight.T, KEY_VALUE_HEADS), 1 + at.k_norm.weight, eps)
        value = split(normed @ at.v_proj.weight.T, KEY_VALUE_HEADS)
        window = config.sliding_window if kind == "sliding_attention" else None
        mixed = attended(rotated(query, base), shared(rotated(key, base)), shared(value), scale=8**-0.5, window=window)
        attention = rms(mixed @ at.o_proj.weight.T, 1 + layer.post_attention_layernorm.weight, eps)
        stream = stream + attention
        normed = rms(stream, 1 + layer.pre_feedforward_layernorm.weight, eps)
        gate = gelu(normed @ layer.mlp.gate_proj.weight.T, approximate="tanh")
        inner = (gate * (normed @ layer.mlp.up_proj.weight.T)) @ layer.mlp.down_proj.weight.T
        mlp = rms(inner, 1 + layer.post_feedforward_layernorm.weight, eps)
        stream = stream + mlp
        found.append(torch.stack([attention[-1], mlp[-1]]))
    return torch.stack(found)


def gpt2_by_hand(lm: LanguageModel, ids: Tensor) -> Tensor:
    model, found = lm.model.transformer, []
    stream = model.wte.weight[ids] + model.wpe.weight[: len(ids)]

    def normed(values: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias

    for block in model.h:
        mixed_in = normed(stream, block.ln_1) @ block.attn.c_attn.weight + block.attn.c_attn.bias
        query, key, value = (split(part, HEADS) for part in mixed_in.chunk(3, -1))
        mixed = attended(query, key, value, scale=8**-0.5)
        attention = mixed @ block.attn.c_proj.weight + block.attn.c_proj.bias
        stream = stream + attention
        inner = gelu(normed(stream, block.ln_2) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias, approximate="tanh")
        mlp = inner @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
        stream = stream + mlp
        found.append(torch.stack([attention[-1], mlp[-1]]))
    return torch.stack(found)


@pytest.mark.parametrize(("family", "by_hand"), [("llama", llama_by_hand), ("gemma3_text", gemma3_by_hand), ("gpt2", gpt2_by_hand)])
def test_captured_vectors_equal_a_forward_pass_written_by_hand(
    family: str, by_hand: Callable[[LanguageModel, Tensor], Tensor]
) -> None:
    lm = build(family, dtype=torch.float64)
    prompts = template(lm)
    labels = prompts.labels(["positive", "topic science"])
    demonstrations = [torch.tensor(prompts.demonstration(one.text, one.label, labels)) for one in examples()]
    expected = torch.stack([by_hand(lm, ids) for ids in demonstrations]).mean(0)
    found = context_vector(lm, prompts, labels, examples(), layers=ALL)
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values, expected.numpy(), **TOLERANCE)


def test_a_demonstration_is_the_template_one_space_and_the_label() -> None:
    lm = build()
    prompts = template(lm)
    labels = prompts.labels(["positive", "topic science"])
    ids = prompts.demonstration("good film", 1, labels)
    assert list(ids) == lm.tokenizer(TEMPLATE.replace("{text}", "good film") + " topic science").input_ids


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_mean_does_not_depend_on_batches_or_order(family: str) -> None:
    lm = build(family, dtype=torch.float64)
    prompts = template(lm)
    labels = prompts.labels(["positive", "negative"])
    one_by_one = context_vector(lm, prompts, labels, examples(12), layers=ALL, token_budget=1)
    together = context_vector(lm, prompts, labels, examples(12)[::-1], layers=ALL, token_budget=10_000)
    np.testing.assert_allclose(one_by_one.values, together.values, **TOLERANCE)


def test_a_vector_of_some_layers_is_those_rows_of_the_whole() -> None:
    lm = build()
    prompts = template(lm)
    labels = prompts.labels(["positive", "negative"])
    whole = context_vector(lm, prompts, labels, examples(), layers=ALL)
    assert context_vector(lm, prompts, labels, examples(), layers=[0, 1]) == ContextVector(whole.values[:2])


def test_the_forward_pass_ends_at_the_last_layer_asked_for() -> None:
    lm = build()
    prompts = template(lm)
    ran: list[int] = []
    layers = lm.family.layers(lm.model)
    counters = [layer.register_forward_pre_hook(lambda *_, at=at: ran.append(at)) for at, layer in enumerate(layers)]
    context_vector(lm, prompts, prompts.labels(["positive", "negative"]), examples(), layers=[0, 1], token_budget=10_000)
    for counter in counters:
        counter.remove()
    assert ran == [0, 1]


def test_progress_counts_every_example() -> None:
    lm = build()
    prompts = template(lm)
    told: list[tuple[int, int]] = []
    context_vector(
        lm, prompts, prompts.labels(["positive", "negative"]), examples(), layers=ALL, token_budget=40,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told[-1] == (8, 8)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_no_examples_is_a_refusal() -> None:
    lm = build()
    prompts = template(lm)
    with pytest.raises(Malformed, match="there are none"):
        context_vector(lm, prompts, prompts.labels(["positive", "negative"]), [], layers=ALL)
