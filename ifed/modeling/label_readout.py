"""A label head as the weights of a stock checkpoint: a sequence classifier, or a language model whose next token is a label.

Neither has a bias for its classes, and without it a head answers otherwise. Two architectures can carry it to rounding:

- Llama, which Mistral, Qwen 2 and Phi-3 become when they are exported: one more layer, whose MLP is the head. Its gates have weights of zero and
  equal biases, so it is linear in what the former final norm returns and has the biases of the labels. It writes each logit, times `GAIN`, to a channel of its own, and
  `GAIN * CONSTANT` to another one. Beside these the other channels vanish, and the final norm divides by the same number whatever the text.
- GPT-2: the channels of its final norm sum to zero. With a weight and a bias of one they sum to d, a constant that holds the biases of the labels.

The constant also gives every token that is no label the logit `FLOOR`, so that the next token is always a label.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from ifed.errors import BadTemplate, NotFoldable
from ifed.modeling.prompts import PromptTemplate, prompt_parts
from ifed.tensors.regression import LabelHead

Weights = dict[str, Tensor]
GAIN = 2.0**34  # over the residual stream: one of 10⁵ changes a logit by 10⁻⁵
CONSTANT = 2.0**26  # over the logits: a thousand of 300 change the divisor by 10⁻⁸; (GAIN * CONSTANT)² is still a float32
OPEN_GATE = 32.0  # where SiLU and GELU are the identity to rounding
FLOOR = -10_000.0


@dataclass(frozen=True, slots=True, eq=False)
class Readout:
    """How logits follow from the final states of a checkpoint.

    Attributes:
        rows: float64, (C, d): the logit of label c is the product of row c with the final state, plus the bias.
        bias: float64, (C,); None if the product includes it.
        floor: float64, (d,): its product with every final state is `FLOOR`; None if there is no such row.
    """

    rows: Tensor
    bias: Tensor | None = None
    floor: Tensor | None = None


def carry(config: PreTrainedConfig, weights: Weights, head: LabelHead) -> Readout:
    """Change configuration and weights, in place, such that their final states carry the biases of a head; leave them as they are if they cannot.

    Raises:
        NotFoldable: the weights are float16, which cannot hold the numbers of the layer that would be added.
    """
    weight, bias = torch.from_numpy(head.weight).double(), torch.from_numpy(head.bias).double()
    if config.model_type == "gpt2":
        return _constant_norm(weights, weight, bias)
    if config.model_type == "llama" and config.mlp_bias and len(bias) < min(config.hidden_size, config.intermediate_size):
        return _add_layer(config, weights, weight, bias)
    return Readout(weight, bias=bias)


def convert_to_classifier(
    config: PreTrainedConfig, weights: Weights, head: LabelHead, labels: Sequence[str], template: PromptTemplate
) -> list[float] | None:
    """Turn the configuration and weights of a language model, in place, into those of a stock `…ForSequenceClassification`.

    The pad token is one that ends no prompt.

    Returns:
        The bias of each label for which there is no place, also as `ifed_label_bias` in the configuration; None if the weights carry it.

    Raises:
        NotFoldable: as `carry`, or every special token of the tokenizer may end a prompt.
    """
    pad = _pad_token(template, config.vocab_size)
    readout = carry(config, weights, head)
    weights.pop("lm_head.weight", None)
    weights["score.weight"] = _like(weights, readout.rows)
    config.architectures = [MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[config.model_type]]
    config.problem_type = "single_label_classification"
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.pad_token_id = pad
    if readout.bias is None:
        return None
    config.ifed_label_bias = bias = readout.bias.float().tolist()
    return bias


def convert_to_next_token_model(config: PreTrainedConfig, weights: Weights, head: LabelHead, tokens: Sequence[int]) -> None:
    """Turn configuration and weights, in place, into those of a causal language model whose next token is one of the labels' `tokens`.

    Its softmax over the vocabulary is that of the head over the labels. The input embeddings stay as they are and are tied to the output no longer.

    Raises:
        NotFoldable: as `carry`, or the architecture has no place for the bias of a label.
    """
    readout = carry(config, weights, head)
    if readout.floor is None:
        raise NotFoldable(
            f"a causal language model of the family {config.model_type} has no place for the biases of {len(head.bias)} labels"
        )
    rows = _like(weights, readout.floor).repeat(config.vocab_size, 1)
    rows[torch.tensor(tokens)] = _like(weights, readout.rows)
    weights["lm_head.weight"] = rows
    config.tie_word_embeddings = False


def single_tokens(template: PromptTemplate, labels: Sequence[str]) -> list[int]:
    """Return the token of each label.

    Raises:
        NotFoldable: a label has more than one, or cannot be read as a word in this template.
    """
    try:
        ids = template.labels(labels).ids
    except BadTemplate as reason:
        raise NotFoldable(f"not every label is one token of its own: {reason.detail}") from reason
    for label, tokens in zip(labels, ids, strict=True):
        if len(tokens) > 1:
            raise NotFoldable(f"the label {label!r} is {len(tokens)} tokens, and a row of lm_head is for one")
    return [tokens[0] for tokens in ids]


def chat_template(template: PromptTemplate) -> str:
    """Return a chat template that puts the last message of a conversation into `template`, begin token included."""
    tokenizer, ends = template.tokenizer, prompt_parts(template.tokenizer, "", "").ends
    ids = tokenizer("").input_ids
    begin = "".join(tokenizer.convert_ids_to_tokens(ids[: len(ids) - ends]))
    before, after = (json.dumps(part, ensure_ascii=False) for part in (begin + template.prefix, template.suffix))
    return f"{{{{ {before} }}}}{{{{ messages[-1]['content'] }}}}{{{{ {after} }}}}"


def _add_layer(config: PreTrainedConfig, weights: Weights, weight: Tensor, bias: Tensor) -> Readout:
    if weights["model.norm.weight"].dtype is torch.float16:
        raise NotFoldable(
            "float16 cannot hold the layer that carries the biases of the labels; write bfloat16 or float32 (--dtype)"
        )
    classes, hidden_size = weight.shape
    first, prefix = "model.layers.0.", f"model.layers.{config.num_hidden_layers}."
    for name in [name for name in weights if name.startswith(first)]:
        weights[prefix + name.removeprefix(first)] = torch.zeros_like(weights[name])
    weights[f"{prefix}input_layernorm.weight"].fill_(1)
    weights[f"{prefix}post_attention_layernorm.weight"] = weights["model.norm.weight"].clone()
    weights["model.norm.weight"] = torch.ones_like(weights["model.norm.weight"])
    labels = torch.arange(classes)
    weights[f"{prefix}mlp.gate_proj.bias"].fill_(OPEN_GATE)
    weights[f"{prefix}mlp.up_proj.weight"][:classes] = _like(weights, weight)
    weights[f"{prefix}mlp.up_proj.bias"][:classes] = _like(weights, bias)
    weights[f"{prefix}mlp.up_proj.bias"][classes] = 1
    gate = float(ACT2FN[config.hidden_act](torch.tensor(OPEN_GATE, dtype=torch.float64)))
    down = weights[f"{prefix}mlp.down_proj.weight"]
    down[labels, labels], down[classes, classes] = GAIN / gate, GAIN * CONSTANT / gate
    config.num_hidden_layers += 1
    after_norm = math.sqrt(hidden_size)  # the channel of the constant; the other ones are smaller by `CONSTANT`
    rows = torch.zeros(classes, hidden_size, dtype=torch.float64)
    rows[labels, labels] = CONSTANT / after_norm
    floor = torch.zeros(hidden_size, dtype=torch.float64)
    floor[classes] = FLOOR / after_norm
    return Readout(rows, floor=floor)


def _constant_norm(weights: Weights, weight: Tensor, bias: Tensor) -> Readout:
    scale, shift = (weights[f"transformer.ln_f.{name}"].double() for name in ("weight", "bias"))
    hidden_size = len(scale)
    rows, constants = weight * scale, weight @ shift + bias
    rows = rows - rows.mean(dim=1, keepdim=True)  # changes no product with channels whose sum is zero
    for name in ("weight", "bias"):
        weights[f"transformer.ln_f.{name}"] = torch.ones_like(weights[f"transformer.ln_f.{name}"])
    floor = torch.full((hidden_size,), FLOOR / hidden_size, dtype=torch.float64)
    return Readout(rows + constants[:, None] / hidden_size, floor=floor)


def _pad_token(template: PromptTemplate, vocabulary: int) -> int:
    """Return a token that ends no prompt, since a classifier reads the last token that is not padding.

    If the tokenizer appends an end token, it is that one, so that it is skipped too.
    """
    tokenizer, last = template.tokenizer, template.prompt("a").ids[-1]
    ids = tokenizer("a").input_ids
    appended = set(ids[len(ids) - prompt_parts(tokenizer, "", "").ends :])
    special = [token for token, content in sorted(tokenizer.added_tokens_decoder.items()) if content.special]
    candidates = [tokenizer.pad_token_id, tokenizer.eos_token_id, *special]
    for token in candidates:
        if token is not None and token != last and token < vocabulary and appended <= {token}:
            return int(token)
    raise NotFoldable(
        f"a sequence classifier reads the last token that is not padding, and of the special tokens {candidates} of this tokenizer none can "
        "be the padding: each ends a prompt, or stands beside another end token; write --format lm-head"
    )


def _like(weights: Weights, values: Tensor) -> Tensor:
    return values.to(next(iter(weights.values())).dtype)
