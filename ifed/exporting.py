"""An adapter into an ordinary checkpoint with its model card. Fetches nothing; the model is loaded by the caller."""

from __future__ import annotations

import json
from pathlib import Path

from ifed.bodies import AdapterBody
from ifed.contracts import AdapterMeta
from ifed.errors import AlreadyExists, FingerprintMismatch
from ifed.identity import identity_of
from ifed.modeling.folding import fold, write
from ifed.modeling.injection import injection_of
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompts import PromptTemplate

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
    if not meta.identity.agrees_with(identity_of(lm)):
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
