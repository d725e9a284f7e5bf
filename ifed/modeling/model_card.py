"""The README.md of an exported checkpoint: the task, its base model, its accuracy, and code that classifies a text as the service does."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from ifed.messages.rounds import AdapterMeta
from ifed.modeling.prompts import PromptTemplate, prompt_parts

Reads = Literal["words", "sequence-classification", "lm-head"]

CODE_FOR_PROMPT = """\
import torch
from transformers import {auto}, AutoTokenizer

folder = "."  # where this file is
model = {auto}.from_pretrained(folder, trust_remote_code=False)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
before, after = {before}, {after}  # a text
{constants}
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
"""
CODE_FOR_WORDS = """\
    scores = []
    for tokens in labels.values():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
        scores.append(logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum())
    return dict(zip(labels, (torch.stack(scores) - torch.tensor(bias)).softmax(0).tolist()))
"""
CODE_FOR_CLASSIFIER = """\
    logits = model(torch.tensor([prompt])).logits[0].float(){bias}
    return dict(zip(model.config.id2label.values(), logits.softmax(0).tolist()))
"""
CODE_FOR_LM_HEAD = """\
    probabilities = model(torch.tensor([prompt])).logits[0, -1].float().softmax(0)
    return {label: probabilities[token].item() for label, token in labels.items()}
"""
PIPELINE_FOR_CLASSIFIER = """\
It takes a text in the template; what looks like a special token in a text is read as one here, which the code below avoids.

```python
from transformers import pipeline

classifier = pipeline("text-classification", model=".", top_k=None)
classifier({before} + "a text" + {after})
```"""
PIPELINE_FOR_LM_HEAD = """\
```python
from transformers import pipeline

classifier = pipeline("text-generation", model=".")
classifier([{"role": "user", "content": "a text"}])  # the chat template is the task's template
```"""
WITHOUT_BIAS = (
    "**The stock class leaves out the bias of each label**, since it has no place for it. Add `ifed_label_bias` of config.json to the logits, as the "
    "code below does: without it, `pipeline` answers with other labels than the service."
)
ADDED_LAYER = (
    "The last layer is not one of the base model: its MLP is the label head, since the stock classes have no bias for their labels. It holds numbers "
    "beyond float16: load the checkpoint in float32 or bfloat16."
)


@dataclass(frozen=True, slots=True)
class Card:
    """What the model card of a checkpoint says besides the task's own facts.

    Attributes:
        reads: how the checkpoint reads the labels.
        positions: the longest input, in tokens, for which it computes what the injected model does.
        tokens: the tokens of each label, as they follow the prompt; empty for a sequence classifier.
        bias: of each label, to be added to the logits by the caller; None if the checkpoint carries it.
        added_layer: whether a layer carries the biases of the labels.
    """

    reads: Reads
    positions: int
    tokens: dict[str, list[int]] = field(default_factory=dict)
    bias: list[float] | None = None
    added_layer: bool = False

    def text(self, meta: AdapterMeta, template: PromptTemplate) -> str:
        """Return the model card.

        Args:
            template: the prompt around a text, its special tokens included.
        """
        accuracy = "not measured"
        if (result := meta.evaluation) is not None:
            accuracy = (
                f"{result.accuracy:.1%}, macro-F1 {result.macro_f1:.3f}, on {result.examples} held-out examples of all clients"
            )
        return f"""---
base_model: {json.dumps(meta.identity.name)}
library_name: transformers
pipeline_tag: {"text-classification" if self.reads == "sequence-classification" else "text-generation"}
tags: [in-context-learning, federated-learning, ifed-icl]
---

# {meta.task}

{meta.identity.name} with the {"injection" if self.reads == "words" else "injection and the label head"} of one federated task folded into its weights: an ordinary checkpoint, no other code needed. The
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

{self._usage(template)}

For inputs of up to {self.positions} tokens the checkpoint computes what the injected model does, to rounding: a float32 checkpoint answers as a service in
float32. A service or a checkpoint in bfloat16 rounds more, which changes probabilities in the second decimal place.

```python
{self.code(meta, template)}```
"""

    def code(self, meta: AdapterMeta, template: PromptTemplate) -> str:
        """Return Python code whose `classify(text)` returns the probability of each label as the service computes it."""
        parts = prompt_parts(template.tokenizer, template.prefix, template.suffix)
        classifier = self.reads == "sequence-classification"
        prompt_code = CODE_FOR_PROMPT.format(
            auto="AutoModelForSequenceClassification" if classifier else "AutoModelForCausalLM",
            before=json.dumps(template.prefix),
            after=json.dumps(template.suffix),
            constants="\n".join(self._constants(meta)),
            left=json.dumps(parts.left),
            right=json.dumps(parts.right),
            head=list(parts.head),
            tail=list(parts.tail),
            begins=not parts.head,
            ends=parts.ends,
            longest=template.max_tokens,
        )
        if classifier:
            return prompt_code + CODE_FOR_CLASSIFIER.format(bias="" if self.bias is None else " + torch.tensor(bias)")
        return prompt_code + (CODE_FOR_WORDS if self.reads == "words" else CODE_FOR_LM_HEAD)

    def _constants(self, meta: AdapterMeta) -> list[str]:
        if self.reads == "words":
            labels, bias = json.dumps(self.tokens, ensure_ascii=False), json.dumps(meta.label_bias or [0.0] * len(self.tokens))
            note = "of each label; without it the label prior is that of the texts the task was measured on"
            return [f"labels = {labels}", f"bias = {bias}  # {note}"]
        if self.reads == "lm-head":
            tokens = {label: token for label, (token,) in self.tokens.items()}
            return [f"labels = {json.dumps(tokens, ensure_ascii=False)}"]
        return (
            []
            if self.bias is None
            else ["bias = model.config.ifed_label_bias  # of each label; the stock class has no place for it"]
        )

    def _usage(self, template: PromptTemplate) -> str:
        if self.reads == "words":
            return (
                "The next token after the prompt is the label, and the bias of each label is subtracted from its log-probability, "
                "as the service does."
            )
        notes = [ADDED_LAYER] if self.added_layer else []
        if self.reads == "lm-head":
            notes += [
                "The next token after the prompt is the label, and the probabilities of all tokens are those of the labels: every other token "
                "has the logit -10,000. The checkpoint classifies and writes no text. Its output embeddings are no longer tied to the input embeddings.",
                PIPELINE_FOR_LM_HEAD,
            ]
        elif self.bias is not None:
            notes.append(WITHOUT_BIAS)
        else:
            before, after = json.dumps(template.prefix), json.dumps(template.suffix)
            notes.append(PIPELINE_FOR_CLASSIFIER.format(before=before, after=after))
        return "\n\n".join(notes)
