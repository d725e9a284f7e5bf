"""Export of an injected model as an ordinary checkpoint: W' = β W and b' = β b + λ v, loaded by stock transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from ifed.errors import AlreadyExists, FingerprintMismatch, LayoutMismatch, NotFoldable, UnsupportedFamily
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.modeling.injection import UNBATCHED_NDIM, Injection, injection_of
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompts import PromptTemplate, prompt_parts

Weights = dict[str, Tensor]
Folded = tuple[PreTrainedConfig, Weights, tuple[str, str]]  # configuration, weights, names of the output projections of a layer
WINDOW_SAFE_ROPE = ("default", "linear", "llama3")  # independent of the longest position, which a sliding window may lower
MIN_WINDOW = 1024  # the longest prompt of a task
SHARED_CONFIG_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id",
    "tie_word_embeddings", "rope_parameters",
)  # fmt: skip
UNFOLDABLE = {
    "gemma2": "it normalises the output of a sub-layer before adding it, and that norm has no bias to hold λ·v",
    "gemma3_text": "it normalises the output of a sub-layer before adding it, and that norm has no bias to hold λ·v",
    "qwen3": "its MLP takes no bias to hold λ·v, and no stock family with such biases normalises queries and keys as it does",
}
SNIPPET = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file is
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
before, after = {before}, {after}  # a text
labels = {labels}
bias = {bias}  # of each label; without it the label prior is that of the texts the task was measured on
special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]

def tokens_of(text):
    if not any(token in text for token in special):
        ids = tokenizer(before + text + after).input_ids
        return ids[: len(ids) - {ends}]
    # What looks like a special token in a text is read as plain characters.
    ids = tokenizer({left} + text + {right}, add_special_tokens={begins}, split_special_tokens=True).input_ids
    return {head} + ids[: len(ids) - ({ends} if {begins} else 0)] + {tail}

@torch.no_grad()
def classify(text):
    prompt = tokens_of(text)
    if len(prompt) > {longest}:
        raise ValueError("the text is too long: shorten it; the service leaves out the middle of such texts")
    scores = []
    for tokens in labels.values():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
        scores.append(logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum())
    return dict(zip(labels, (torch.stack(scores) - torch.tensor(bias)).softmax(0).tolist()))
"""


def export(lm: LanguageModel, adapter: AdapterBody, folder: Path) -> None:
    """Write weights, configuration, tokenizer and README.md of one task to `folder`, in the dtype of `lm`.

    Raises:
        FingerprintMismatch: the adapter was calibrated on another model.
        UnsupportedFamily: the model cannot represent an injection exactly; the detail says why.
        NotFoldable: the task injects at the last token alone, or reads its labels by a head.
        AlreadyExists: the folder is not empty.
    """
    meta = adapter.meta
    if meta.injection == "last_token":
        raise NotFoldable(
            f"task {meta.task!r} injects at the last token alone, and a weight acts on every token; "
            "a task with injection 'all_tokens' can be exported"
        )
    if meta.reading != "words":
        raise NotFoldable(
            f"version {meta.version} of task {meta.task!r} reads its labels by a label head, which a causal language model has no place "
            "for; a task with head 'words' can be exported"
        )
    if not meta.identity.agrees_with(lm.identity):
        raise FingerprintMismatch(
            f"task {meta.task!r} was calibrated on {meta.identity.name} ({meta.identity.fingerprint}), "
            f"the model here is {lm.name} ({lm.fingerprint}); name the task's own model"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AlreadyExists(f"{folder} is not empty; name a new folder")
    injection = injection_of(adapter.context, adapter.coefficients, meta.layout.layers, device=lm.device, dtype=lm.dtype)
    config, weights = fold(lm, injection)
    template = PromptTemplate.of(lm, meta.template, chat=meta.chat)
    labels = dict(zip(meta.labels, map(list, template.labels(meta.labels).ids), strict=True))
    write(lm, config, weights, folder)
    card = model_card(meta, template, labels, config.max_position_embeddings)
    (folder / "README.md").write_text(card, encoding="utf-8")


def fold(lm: LanguageModel, injection: Injection, *, dtype: torch.dtype | None = None) -> tuple[PreTrainedConfig, Weights]:
    """Return configuration and weights of an ordinary model that computes what `lm` computes under `injection`.

    Mistral, Qwen 2 and Phi-3 become Llama configurations that hold the same numbers, since only those take biases in both places. They have
    no sliding window: the longest position is lowered to it, and up to there the two models are the same.

    Args:
        injection: of a whole batch, scale and shift (layer, site, d).
        dtype: of the weights; the model's own by default. Products are computed in at least float32.

    Raises:
        UnsupportedFamily: the family, or this configuration of it, cannot represent the injection; the detail says why.
        LayoutMismatch: the model does not have one of the layers or has another hidden size, or the injection differs between rows.
    """
    _check(lm, injection)
    family = lm.family.name
    if family not in FOLDING:
        raise UnsupportedFamily(
            f"{lm.name} cannot be exported: {family} cannot represent an injection exactly; {UNFOLDABLE[family]}"
        )
    config, weights, projections = FOLDING[family](lm)
    index_of = {layer: index for index, layer in enumerate(injection.layers)}
    for layer in range(lm.num_layers):
        for site, projection in enumerate(projections):
            key = projection.format(layer)
            if layer in index_of:
                _fold_site(weights, key, injection.scale[index_of[layer], site], injection.shift[index_of[layer], site])
            elif f"{key}.bias" not in weights:
                weights[f"{key}.bias"] = weights[f"{key}.weight"].new_zeros(lm.hidden_size)
    dtype = dtype or lm.dtype
    config.dtype = dtype
    config.architectures = ["GPT2LMHeadModel" if config.model_type == "gpt2" else "LlamaForCausalLM"]
    return config, {name: tensor.to(dtype).cpu().contiguous() for name, tensor in weights.items()}


def write(lm: LanguageModel, config: PreTrainedConfig, weights: Weights, folder: Path) -> None:
    """Write a checkpoint that stock `AutoModelForCausalLM.from_pretrained(folder)` loads, with the tokenizer of `lm`."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    if lm.model.generation_config is not None:
        lm.model.generation_config.save_pretrained(folder)
    save_torch_state_dict(weights, folder, metadata={"format": "pt"})


def model_card(meta: AdapterMeta, template: PromptTemplate, labels: dict[str, list[int]], positions: int) -> str:
    """Return the model card: the task, its base model, its accuracy, and the code that classifies a text.

    Args:
        template: the prompt around a text, its special tokens included.
        labels: the tokens of each label, as they follow the prompt.
        positions: the longest input, in tokens, for which the checkpoint computes what the injected model does.
    """
    snippet = classification_code(meta, template, labels)
    accuracy = "not measured"
    if (result := meta.evaluation) is not None:
        accuracy = f"{result.accuracy:.1%}, macro-F1 {result.macro_f1:.3f}, on {result.examples} held-out examples of all clients"
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
| template | `{json.dumps(template.template, ensure_ascii=False)}` |
| base model | `{meta.identity.name}` ({meta.identity.family}, {meta.identity.num_layers} layers of {meta.identity.hidden_size}) |
| fingerprint of the base model | `{meta.identity.fingerprint}` |
| calibration rounds | {meta.version} |
| accuracy | {accuracy} |
| injected layers | {", ".join(map(str, meta.layout.layers))} |
| coefficient groups | {meta.layout.groups} |
| made | {meta.created_at:%Y-%m-%d %H:%M} UTC |

The next token after the prompt is the label, and the bias of each label is subtracted from its log-probability, as the service does. For inputs of up to {positions}
tokens the checkpoint computes what the injected model does, to rounding: a float32 checkpoint answers as a service in float32. A service or a checkpoint
in bfloat16 rounds more, which changes probabilities in the second decimal place.

```python
{snippet}```
"""


def classification_code(meta: AdapterMeta, template: PromptTemplate, labels: dict[str, list[int]]) -> str:
    """Return Python code whose `classify(text)` returns the probability of each label as the service computes it."""
    parts = prompt_parts(template.tokenizer, template.prefix, template.suffix)
    return SNIPPET.format(
        before=json.dumps(template.prefix),
        after=json.dumps(template.suffix),
        labels=json.dumps(labels, ensure_ascii=False),
        bias=json.dumps(meta.label_bias or [0.0] * len(labels)),
        left=json.dumps(parts.left),
        right=json.dumps(parts.right),
        head=list(parts.head),
        tail=list(parts.tail),
        begins=not parts.head,
        ends=parts.ends,
        longest=template.max_tokens,
    )


def _check(lm: LanguageModel, injection: Injection) -> None:
    if lm.options.int8:
        raise UnsupportedFamily(f"{lm.name} stores its weights in eight bits; load it without int8 to export it")
    if injection.scale.ndim != UNBATCHED_NDIM:
        raise LayoutMismatch("an injection that differs between rows cannot be folded: a checkpoint contains a single injection")
    if injection.hidden_size != lm.hidden_size or not all(0 <= layer < lm.num_layers for layer in injection.layers):
        raise LayoutMismatch(
            f"an injection into the layers {list(injection.layers)} of hidden size {injection.hidden_size} is not for {lm.name}"
        )


def _fold_site(weights: Weights, key: str, scale: Tensor, shift: Tensor) -> None:
    """Fold scale and shift, (d,), into one output projection, in place: weight (d, in), or (in, d) in GPT-2."""
    weight, bias = weights[f"{key}.weight"], weights.get(f"{key}.bias")
    channels = scale if key.endswith("c_proj") else scale[:, None]
    weights[f"{key}.weight"] = weight.to(scale.dtype) * channels
    weights[f"{key}.bias"] = shift.clone() if bias is None else bias.to(scale.dtype) * scale + shift


def _gpt2(lm: LanguageModel) -> Folded:
    projections = ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj")
    return GPT2Config(**lm.model.config.to_dict()), _weights(lm), projections


def _llama_like(lm: LanguageModel) -> Folded:
    """Return a Llama configuration with both kinds of bias, zero wherever the family has none."""
    config, weights = lm.model.config, _weights(lm)
    fields: dict[str, Any] = {name: getattr(config, name) for name in SHARED_CONFIG_FIELDS}
    heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
    fields["head_dim"] = size = getattr(config, "head_dim", None) or config.hidden_size // heads
    fields["max_position_embeddings"] = _longest_position(lm)
    for layer in range(lm.num_layers):
        prefix = f"model.layers.{layer}"
        if lm.family.name == "phi3":
            query, key, value = weights.pop(f"{prefix}.self_attn.qkv_proj.weight").split(
                [heads * size, key_value_heads * size, key_value_heads * size]
            )
            gate, up = weights.pop(f"{prefix}.mlp.gate_up_proj.weight").chunk(2)
            weights |= {
                f"{prefix}.self_attn.{name}_proj.weight": part.clone()
                for name, part in zip("qkv", (query, key, value), strict=True)
            }
            weights |= {f"{prefix}.mlp.gate_proj.weight": gate.clone(), f"{prefix}.mlp.up_proj.weight": up.clone()}
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
            weight = weights[f"{prefix}.{name}.weight"]
            weights.setdefault(f"{prefix}.{name}.bias", weight.new_zeros(len(weight)))
    projections = ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj")
    return LlamaConfig(**fields, attention_bias=True, mlp_bias=True), weights, projections


def _longest_position(lm: LanguageModel) -> int:
    """Return the longest position up to which a Llama configuration computes the same."""
    config = lm.model.config
    rope = config.rope_parameters or {}
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedFamily(f"{lm.name} cannot be exported: it rotates a part of each head, which Llama configurations cannot")
    if lm.family.name == "phi3" and rope.get("rope_type", "default") not in WINDOW_SAFE_ROPE:
        raise UnsupportedFamily(f"{lm.name} cannot be exported: its {rope['rope_type']} positions are Phi-3's own")
    layer_types = getattr(config, "layer_types", None) or ["sliding_attention"]
    has_window = getattr(config, "sliding_window", None) is not None and "sliding_attention" in layer_types
    longest = int(config.max_position_embeddings)
    if not has_window or config.sliding_window >= longest:
        return longest
    if config.sliding_window < min(MIN_WINDOW, longest) or rope.get("rope_type", "default") not in WINDOW_SAFE_ROPE:
        raise UnsupportedFamily(
            f"{lm.name} cannot be exported: it looks back {config.sliding_window} tokens in some layers, and the Llama configurations "
            "that hold the biases have no sliding window"
        )
    return int(config.sliding_window)


def _weights(lm: LanguageModel) -> Weights:
    """Return the weights by name, tied weights under their first name alone."""
    weights = dict(lm.model.state_dict())
    if lm.model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return weights


FOLDING: Mapping[str, Callable[[LanguageModel], Folded]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "phi3"), _llama_like),
    "gpt2": _gpt2,
}
