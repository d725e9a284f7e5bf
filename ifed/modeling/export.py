"""Export of an injected model as an ordinary checkpoint: W' = β W and b' = β b + λ v, loaded by stock transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ifed.errors import AlreadyExists, FingerprintMismatch, LayoutMismatch, NotFoldable, UnsupportedFamily
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.modeling.injection import UNBATCHED_NDIM, Injection, injection_of
from ifed.modeling.label_readout import (
    Weights,
    chat_template,
    convert_to_classifier,
    convert_to_next_token_model,
    single_tokens,
)
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.model_card import Card
from ifed.modeling.prompts import PromptTemplate
from ifed.tensors.regression import LabelHead

Form = Literal["auto", "sequence-classification", "lm-head"]
Folded = tuple[PreTrainedConfig, Weights, tuple[str, ...]]  # configuration, weights, names of the output projections of a layer
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


def export(
    lm: LanguageModel,
    adapter: AdapterBody,
    folder: Path,
    *,
    form: Form = "auto",
    announce: Callable[[str], None] = lambda _sentence: None,
) -> None:
    """Write weights, configuration, tokenizer and README.md of one task to `folder`, in the dtype of `lm`.

    Args:
        form: of a task that reads its labels by a head: a sequence classifier, or a language model whose next token is a label; by default the
            latter if each label is one token and the family has a place for its bias, else the former.
        announce: called with a sentence about what differs from the base model.

    Raises:
        FingerprintMismatch: the adapter was calibrated on another model.
        UnsupportedFamily: the model cannot represent an injection exactly; the detail says why.
        NotFoldable: the task injects at the last token alone, reads its labels by words and head together, or cannot take this form.
        LayoutMismatch: the head does not fit the labels or the model.
        AlreadyExists: the folder is not empty.
    """
    meta = adapter.meta
    if not meta.identity.agrees_with(lm.identity):
        raise FingerprintMismatch(
            f"task {meta.task!r} was calibrated on {meta.identity.name} ({meta.identity.fingerprint}), "
            f"the model here is {lm.name} ({lm.fingerprint}); name the task's own model"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AlreadyExists(f"{folder} is not empty; name a new folder")
    injection = injection_of(adapter.context, adapter.coefficients, meta.layout.layers, device=lm.device, dtype=lm.dtype)
    _check_foldable(meta, injection, form)
    template = PromptTemplate.of(lm, meta.template, chat=meta.chat)
    head = None if meta.reading == "words" else _head(adapter, lm.hidden_size)
    config, weights = fold(lm, injection)
    if head is None:
        labels = dict(zip(meta.labels, map(list, template.labels(meta.labels).ids), strict=True))
        card = Card("words", config.max_position_embeddings, labels)
        write(lm, config, weights, folder)
    else:
        card = _write_head(lm, (config, weights), head, meta, template, folder, form=form, announce=announce)
    (folder / "README.md").write_text(card.text(meta, template), encoding="utf-8")


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
    try:
        config, weights, projections = _folding(lm)
    except UnsupportedFamily:
        if not _is_identity(injection):
            raise
        config, weights, projections = copy.deepcopy(lm.model.config), _weights(lm), ()
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
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    return config, {name: tensor.to(dtype).cpu().contiguous() for name, tensor in weights.items()}


def write(
    lm: LanguageModel,
    config: PreTrainedConfig,
    weights: Weights,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generation: GenerationConfig | None = None,
) -> None:
    """Write a checkpoint that stock `AutoModelForCausalLM.from_pretrained(folder)` loads.

    Args:
        tokenizer: that of `lm` by default.
        generation: likewise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    (tokenizer or lm.tokenizer).save_pretrained(folder)
    if (generation := generation or lm.model.generation_config) is not None:
        generation.save_pretrained(folder)
    save_torch_state_dict(weights, folder, metadata={"format": "pt"})


def _write_head(
    lm: LanguageModel,
    folded: tuple[PreTrainedConfig, Weights],
    head: LabelHead,
    meta: AdapterMeta,
    template: PromptTemplate,
    folder: Path,
    *,
    form: Form,
    announce: Callable[[str], None],
) -> Card:
    """Write a folded model that reads its labels by a head, in the first form that can, and return what its model card says."""
    config, weights = folded
    layers, positions = config.num_hidden_layers, config.max_position_embeddings
    tokenizer, generation = copy.deepcopy(lm.tokenizer), None
    tokenizer.chat_template, config.ifed_template = chat_template(template), template.template
    tokens = (
        [] if form == "sequence-classification" else _convert_to_next_token(config, weights, head, meta, template, form, announce)
    )
    if tokens:
        generation = GenerationConfig(max_new_tokens=1, do_sample=False, pad_token_id=lm.tokenizer.pad_token_id)
        announce(
            "the output embeddings are rows of the label head now, tied to the input embeddings no longer, which stay as they are"
        )
        card = Card("lm-head", positions, {label: [token] for label, token in zip(meta.labels, tokens, strict=True)})
    else:
        bias = convert_to_classifier(config, weights, head, meta.labels, template)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
        card = Card("sequence-classification", positions, bias=bias)
        if bias is not None:
            announce(
                "stock code leaves out the bias of each label, for which this model has no place: add ifed_label_bias of config.json"
            )
    if config.num_hidden_layers > layers:
        card = replace(card, added_layer=True)
        announce("one more layer carries the biases of the labels; load the checkpoint in float32 or bfloat16, not in float16")
    write(lm, config, weights, folder, tokenizer=tokenizer, generation=generation)
    return card


def _convert_to_next_token(
    config: PreTrainedConfig,
    weights: Weights,
    head: LabelHead,
    meta: AdapterMeta,
    template: PromptTemplate,
    form: Form,
    announce: Callable[[str], None],
) -> list[int]:
    """Return the token of each label; none if the model cannot answer with them and another form will do."""
    try:
        tokens = single_tokens(template, meta.labels)
        convert_to_next_token_model(config, weights, head, tokens)
    except NotFoldable as reason:
        if form == "lm-head":
            raise NotFoldable(f"{reason.detail}; write a sequence classifier (--format sequence-classification)") from reason
        announce(f"a sequence classifier is written: {reason.detail}")
        return []
    return tokens


def _check_foldable(meta: AdapterMeta, injection: Injection, form: Form) -> None:
    if meta.injection == "last_token" and not _is_identity(injection):
        raise NotFoldable(
            f"task {meta.task!r} injects at the last token alone, and a weight acts on every token; "
            "train a task with injection 'all_tokens' to export it, or serve the adapter (--adapter)"
        )
    if meta.reading == "both":
        raise NotFoldable(
            f"version {meta.version} of task {meta.task!r} reads its labels by the mean of words and head, and a checkpoint has one of them; "
            "train a task with head 'regression' or 'words' to export it, or serve the adapter (--adapter)"
        )
    if meta.reading == "words" and form != "auto":
        raise NotFoldable(
            f"version {meta.version} of task {meta.task!r} reads its labels by their words; a form is for label heads, leave --format out"
        )


def _head(adapter: AdapterBody, hidden_size: int) -> LabelHead:
    """Return the head with the label bias that a service subtracts from its scores."""
    meta, head = adapter.meta, adapter.head
    if head is None or head.weight.shape != (len(meta.labels), hidden_size):
        shape = None if head is None else head.weight.shape
        raise LayoutMismatch(f"the adapter reads {len(meta.labels)} labels by a head of {hidden_size} channels; it carries {shape}")
    return head if meta.label_bias is None else LabelHead(head.weight, head.bias - np.asarray(meta.label_bias, dtype=np.float32))


def _is_identity(injection: Injection) -> bool:
    """Whether an injection leaves the model as it is: λ = 0, β = 1."""
    return bool((injection.scale == 1).all() and (injection.shift == 0).all())


def _folding(lm: LanguageModel) -> Folded:
    if (family := lm.family.name) not in FOLDING:
        raise UnsupportedFamily(
            f"{lm.name} cannot be exported: {family} cannot represent an injection exactly; {UNFOLDABLE[family]}"
        )
    return FOLDING[family](lm)


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
