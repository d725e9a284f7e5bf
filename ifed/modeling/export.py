"""An injection into ordinary weights: W' = β W and b' = β b + λ v, in a configuration that stock code loads. Knows no task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from ifed.errors import AlreadyExists, FingerprintMismatch, LayoutMismatch, UnsupportedFamily
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompts import PromptTemplate

Weights = dict[str, Tensor]
PLAIN_ROPE = ("default", "linear", "llama3")  # these do not look at the longest position, which a sliding window may lower
LEAST_WINDOW = 1024  # the longest prompt of a task
CARRIED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id",
    "tie_word_embeddings", "rope_parameters",
)  # fmt: skip
NO_PLACE = {
    "gemma2": "it normalises what a sub-layer gives before adding it, and that norm has no bias to hold λ·v",
    "gemma3_text": "it normalises what a sub-layer gives before adding it, and that norm has no bias to hold λ·v",
    "qwen3": "its MLP takes no bias to hold λ·v, and no stock family with such biases normalises queries and keys as it does",
}


def fold(lm: LanguageModel, injection: Injection, *, dtype: torch.dtype | None = None) -> tuple[PreTrainedConfig, Weights]:
    """Configuration and weights of an ordinary model that computes what `lm` computes under `injection`.

    Mistral, Qwen 2 and Phi-3 become Llama configurations that hold the same numbers, since only those take biases in both places. A
    sliding window has no place there: the longest position is lowered to it, and within that the two models are the same.

    Args:
        injection: of a whole batch, scale and shift (layer, site, d).
        dtype: of the weights; the model's own when not set. Products are computed in at least float32.

    Raises:
        UnsupportedFamily: the family, or this configuration of it, has no place for the injection; it says why.
        LayoutMismatch: layers the model does not have, another hidden size, or rows with injections of their own.
    """
    _check(lm, injection)
    family = lm.family.name
    if family not in FOLDED:
        raise UnsupportedFamily(f"{lm.name} cannot be exported: {family} has no exact place for an injection; {NO_PLACE[family]}")
    config, weights, outputs = FOLDED[family](lm)
    place = {layer: at for at, layer in enumerate(injection.layers)}
    for layer in range(lm.num_layers):
        for site, name in enumerate(outputs):
            key = name.format(layer)
            if layer in place:
                _scale(weights, key, injection.scale[place[layer], site], injection.shift[place[layer], site])
            elif f"{key}.bias" not in weights:
                weights[f"{key}.bias"] = weights[f"{key}.weight"].new_zeros(lm.hidden_size)
    dtype = dtype or lm.dtype
    config.dtype = dtype
    config.architectures = ["GPT2LMHeadModel" if config.model_type == "gpt2" else "LlamaForCausalLM"]
    return config, {name: tensor.to(dtype).cpu().contiguous() for name, tensor in weights.items()}


def write(lm: LanguageModel, folded: tuple[PreTrainedConfig, Weights], folder: Path) -> None:
    """A checkpoint that `AutoModelForCausalLM.from_pretrained(folder)` loads with no code of ours; the tokenizer beside it."""
    config, weights = folded
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    if lm.model.generation_config is not None:
        lm.model.generation_config.save_pretrained(folder)
    save_torch_state_dict(weights, folder, metadata={"format": "pt"})


def _check(lm: LanguageModel, injection: Injection) -> None:
    if lm.options.int8:
        raise UnsupportedFamily(f"{lm.name} holds its weights in eight bits; load it without that to export it")
    if injection.scale.ndim != 3:
        raise LayoutMismatch("rows with injections of their own cannot be folded: a checkpoint holds one")
    if injection.hidden_size != lm.hidden_size or not all(0 <= layer < lm.num_layers for layer in injection.layers):
        raise LayoutMismatch(
            f"an injection into the layers {list(injection.layers)} of hidden size {injection.hidden_size} is not for {lm.name}"
        )


def _scale(weights: Weights, key: str, scale: Tensor, shift: Tensor) -> None:
    """Output channels of one projection: weight (d, in), or (in, d) in GPT-2, whose scale is spread over the columns."""
    weight, bias = weights[f"{key}.weight"], weights.get(f"{key}.bias")
    channels = scale if key.endswith("c_proj") else scale[:, None]
    weights[f"{key}.weight"] = weight.to(scale.dtype) * channels
    weights[f"{key}.bias"] = shift.clone() if bias is None else bias.to(scale.dtype) * scale + shift


def _gpt2(lm: LanguageModel) -> tuple[PreTrainedConfig, Weights, tuple[str, str]]:
    names = ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj")
    return GPT2Config(**lm.model.config.to_dict()), _weights(lm), names


def _llama_like(lm: LanguageModel) -> tuple[PreTrainedConfig, Weights, tuple[str, str]]:
    """A Llama configuration with both kinds of bias, zero wherever the family has none."""
    told, weights = lm.model.config, _weights(lm)
    fields: dict[str, Any] = {name: getattr(told, name) for name in CARRIED}
    heads, kept = told.num_attention_heads, told.num_key_value_heads
    fields["head_dim"] = size = getattr(told, "head_dim", None) or told.hidden_size // heads
    fields["max_position_embeddings"] = _within_window(lm)
    for layer in range(lm.num_layers):
        at = f"model.layers.{layer}"
        if lm.family.name == "phi3":
            query, key, value = weights.pop(f"{at}.self_attn.qkv_proj.weight").split([heads * size, kept * size, kept * size])
            gate, up = weights.pop(f"{at}.mlp.gate_up_proj.weight").chunk(2)
            weights |= {
                f"{at}.self_attn.{name}_proj.weight": part.clone() for name, part in zip("qkv", (query, key, value), strict=True)
            }
            weights |= {f"{at}.mlp.gate_proj.weight": gate.clone(), f"{at}.mlp.up_proj.weight": up.clone()}
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
            weight = weights[f"{at}.{name}.weight"]
            weights.setdefault(f"{at}.{name}.bias", weight.new_zeros(len(weight)))
    config = LlamaConfig(**fields, attention_bias=True, mlp_bias=True)
    return config, weights, ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj")


def _within_window(lm: LanguageModel) -> int:
    """The longest position at which a Llama configuration computes the same."""
    config = lm.model.config
    rope = config.rope_parameters or {}
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedFamily(f"{lm.name} cannot be exported: it rotates a part of each head, which Llama configurations do not")
    if lm.family.name == "phi3" and rope.get("rope_type", "default") not in PLAIN_ROPE:
        raise UnsupportedFamily(f"{lm.name} cannot be exported: its {rope['rope_type']} positions are Phi-3's own")
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    slides = getattr(config, "sliding_window", None) is not None and "sliding_attention" in kinds
    longest = int(config.max_position_embeddings)
    if not slides or config.sliding_window >= longest:
        return longest
    if config.sliding_window < min(LEAST_WINDOW, longest) or rope.get("rope_type", "default") not in PLAIN_ROPE:
        raise UnsupportedFamily(
            f"{lm.name} cannot be exported: it looks back {config.sliding_window} tokens in some layers, and the Llama configurations "
            "that hold the biases look back without end"
        )
    return int(config.sliding_window)


def _weights(lm: LanguageModel) -> Weights:
    """The weights by name, without the second name of tied ones."""
    weights = dict(lm.model.state_dict())
    if lm.model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return weights


FOLDED: Mapping[str, Callable[[LanguageModel], tuple[PreTrainedConfig, Weights, tuple[str, str]]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "phi3"), _llama_like),
    "gpt2": _gpt2,
}
SNIPPET = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file is
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
template, labels = {template}, {labels}

def classify(text):
    prompt = tokenizer(template.replace("{{text}}", text)).input_ids
    scores = []
    for tokens in labels.values():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
        scores.append(logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum())
    return dict(zip(labels, torch.stack(scores).softmax(0).tolist()))
"""


def export(lm: LanguageModel, adapter: AdapterBody, folder: Path) -> None:
    """Write weights, configuration, tokenizer and README.md for one task to `folder`, in the dtype of `lm`.

    Raises:
        FingerprintMismatch: the adapter was made for another model.
        UnsupportedFamily: the model has no exact place for an injection; it says why.
        AlreadyExists: the folder holds something.
    """
    meta = adapter.meta
    if not meta.identity.agrees_with(lm.identity):
        raise FingerprintMismatch(
            f"task {meta.task!r} was calibrated on {meta.identity.name} ({meta.identity.fingerprint}), "
            f"the model here is {lm.name} ({lm.fingerprint}); name the task's own model"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AlreadyExists(f"{folder} holds something already; name a new folder")
    injection = injection_of(adapter.context, adapter.coefficients, meta.layout.layers, device=lm.device, dtype=lm.dtype)
    folded = fold(lm, injection)
    template = PromptTemplate.of(lm, meta.template, chat=meta.chat)
    labels = dict(zip(meta.labels, map(list, template.labels(meta.labels).ids), strict=True))
    write(lm, folded, folder)
    positions = folded[0].max_position_embeddings
    (folder / "README.md").write_text(card(meta, template.template, labels, positions), encoding="utf-8")


def card(meta: AdapterMeta, template: str, labels: dict[str, list[int]], positions: int) -> str:
    """The model card: what was trained, from what, how well it did, and how it is asked.

    Args:
        template: what stands around a text, its special tokens included.
        labels: the tokens of each label, as they follow the prompt.
        positions: the longest input for which the checkpoint is the injected model.
    """
    snippet = SNIPPET.format(template=json.dumps(template), labels=json.dumps(labels, ensure_ascii=False))
    found = "not measured"
    if (measured := meta.evaluation) is not None:
        found = (
            f"{measured.accuracy:.1%}, macro-F1 {measured.macro_f1:.3f}, on {measured.examples} held-out examples of all clients"
        )
    return f"""---
base_model: {json.dumps(meta.identity.name)}
library_name: transformers
pipeline_tag: text-generation
tags: [in-context-learning, federated-learning, ifed-icl]
---

# {meta.task}

{meta.identity.name} with the injection of one federated task folded into its weights: an ordinary checkpoint, no other code needed. The
licence is that of the base model.

| | |
|---|---|
| task | `{meta.task}` |
| labels | {", ".join(f"`{label}`" for label in meta.labels)} |
| template | `{json.dumps(template, ensure_ascii=False)}` |
| base model | `{meta.identity.name}` ({meta.identity.family}, {meta.identity.num_layers} layers of {meta.identity.hidden_size}) |
| fingerprint of the base model | `{meta.identity.fingerprint}` |
| calibration rounds | {meta.version} |
| accuracy | {found} |
| injected layers | {", ".join(map(str, meta.layout.layers))} |
| coefficient groups | {meta.layout.groups} |
| made | {meta.created_at:%Y-%m-%d %H:%M} UTC |

The next token after the prompt is the label. Inputs of up to {positions} tokens give what the injected model gives, to rounding.

```python
{snippet}```
"""
