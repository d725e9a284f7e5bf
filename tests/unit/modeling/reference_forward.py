"""Forward passes of three families written out from their papers, for one row of tokens, without transformers' own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu, softmax

from ifed.modeling.language_model import LanguageModel


def rms(values: Tensor, weight: Tensor, eps: float) -> Tensor:
    return values / torch.sqrt(values.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotated(values: Tensor, base: float) -> Tensor:
    """Rotary positions on (head, token, width): the halves of a head are the two coordinates of each rotation."""
    width = values.shape[-1]
    angles = torch.arange(values.shape[1])[:, None] * base ** (-torch.arange(0, width, 2) / width)
    cosine, sine = angles.cos().double(), angles.sin().double()
    real, imaginary = values[..., : width // 2], values[..., width // 2 :]
    return torch.cat([real * cosine - imaginary * sine, imaginary * cosine + real * sine], -1)


def attended(query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
    """Causal attention within a window; (head, token, width) to (token, head · width)."""
    tokens = query.shape[1]
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None]
    hidden = (distance < 0) | (distance >= (window or tokens))
    weights = softmax((query @ key.transpose(1, 2) * scale).masked_fill(hidden, float("-inf")), -1)
    return (weights @ value).transpose(0, 1).flatten(1)


def split(values: Tensor, heads: int) -> Tensor:
    return values.unflatten(-1, (heads, -1)).transpose(0, 1)


def shared(values: Tensor, heads: int) -> Tensor:
    return values.repeat_interleave(heads // len(values), 0)


def llama_by_hand(lm: LanguageModel, ids: Tensor) -> Tensor:
    model, activations = lm.model.model, []
    stream = model.embed_tokens.weight[ids]
    base = lm.model.config.rope_parameters["rope_theta"]
    heads, key_value_heads = lm.model.config.num_attention_heads, lm.model.config.num_key_value_heads
    for layer in model.layers:
        normed = rms(stream, layer.input_layernorm.weight, lm.model.config.rms_norm_eps)
        at = layer.self_attn
        query, key = split(normed @ at.q_proj.weight.T, heads), split(normed @ at.k_proj.weight.T, key_value_heads)
        value = split(normed @ at.v_proj.weight.T, key_value_heads)
        mixed = attended(rotated(query, base), shared(rotated(key, base), heads), shared(value, heads), scale=key.shape[-1] ** -0.5)
        attention = mixed @ at.o_proj.weight.T
        stream = stream + attention
        normed = rms(stream, layer.post_attention_layernorm.weight, lm.model.config.rms_norm_eps)
        mlp = (silu(normed @ layer.mlp.gate_proj.weight.T) * (normed @ layer.mlp.up_proj.weight.T)) @ layer.mlp.down_proj.weight.T
        stream = stream + mlp
        activations.append(torch.stack([attention[-1], mlp[-1]]))
    return torch.stack(activations)


def gemma3_by_hand(lm: LanguageModel, ids: Tensor) -> Tensor:
    model, config, activations = lm.model.model, lm.model.config, []
    stream = model.embed_tokens.weight[ids] * model.embed_tokens.embed_scale.double()
    heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
    for layer, kind in zip(model.layers, config.layer_types, strict=True):
        eps = config.rms_norm_eps
        base = config.rope_parameters[kind]["rope_theta"]
        normed = rms(stream, 1 + layer.input_layernorm.weight, eps)
        at = layer.self_attn
        query = rms(split(normed @ at.q_proj.weight.T, heads), 1 + at.q_norm.weight, eps)
        key = rms(split(normed @ at.k_proj.weight.T, key_value_heads), 1 + at.k_norm.weight, eps)
        value = split(normed @ at.v_proj.weight.T, key_value_heads)
        window = config.sliding_window if kind == "sliding_attention" else None
        mixed = attended(
            rotated(query, base),
            shared(rotated(key, base), heads),
            shared(value, heads),
            scale=key.shape[-1] ** -0.5,
            window=window,
        )
        attention = rms(mixed @ at.o_proj.weight.T, 1 + layer.post_attention_layernorm.weight, eps)
        stream = stream + attention
        normed = rms(stream, 1 + layer.pre_feedforward_layernorm.weight, eps)
        gate = gelu(normed @ layer.mlp.gate_proj.weight.T, approximate="tanh")
        inner = (gate * (normed @ layer.mlp.up_proj.weight.T)) @ layer.mlp.down_proj.weight.T
        mlp = rms(inner, 1 + layer.post_feedforward_layernorm.weight, eps)
        stream = stream + mlp
        activations.append(torch.stack([attention[-1], mlp[-1]]))
    return torch.stack(activations)


def gpt2_by_hand(lm: LanguageModel, ids: Tensor) -> Tensor:
    model, activations = lm.model.transformer, []
    stream = model.wte.weight[ids] + model.wpe.weight[: len(ids)]

    def normed(values: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias

    for block in model.h:
        mixed_in = normed(stream, block.ln_1) @ block.attn.c_attn.weight + block.attn.c_attn.bias
        query, key, value = (split(part, model.config.n_head) for part in mixed_in.chunk(3, -1))
        mixed = attended(query, key, value, scale=key.shape[-1] ** -0.5)
        attention = mixed @ block.attn.c_proj.weight + block.attn.c_proj.bias
        stream = stream + attention
        inner = gelu(normed(stream, block.ln_2) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias, approximate="tanh")
        mlp = inner @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
        stream = stream + mlp
        activations.append(torch.stack([attention[-1], mlp[-1]]))
    return torch.stack(activations)
