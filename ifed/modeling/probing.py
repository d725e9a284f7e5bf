"""The probe of a model: its activations and logits on public texts, computed as for private ones."""

from __future__ import annotations

import hashlib
import json

import torch

from ifed.modeling.batching import Batch, Row, layout_for
from ifed.modeling.hooks import capture, final_hidden
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.logits import vocabulary_logits
from ifed.modeling.prompts import PromptTemplate
from ifed.tensors.probes import TEXTS, Probe

LONG_TEXT = "word " * 2000  # its tokens show where a long text is truncated


def probe_of(lm: LanguageModel, template: PromptTemplate, labels: LabelTokens | None) -> Probe:
    """Return the probe of a model under the template and the label words of a task, if it reads any; texts of different lengths share one batch, as in every other pass.

    Raises:
        ProbeMismatch: an activation or a logit is not finite.
    """
    rows = [Row.for_last_token(template.prompt(text).ids) for text in TEXTS]
    batch = Batch.of(rows, layout=layout_for(lm), device=lm.device)
    with torch.inference_mode(), capture(lm, range(lm.num_layers), batch=batch) as captured:
        hidden = batch.select_outputs(final_hidden(lm, batch))
        logits = vocabulary_logits(lm, hidden).to(torch.float32).cpu().numpy()
    activations = captured.stacked().to(torch.float32).cpu().numpy()
    return Probe.of(tokens_digest(template, labels), activations, logits)


def tokens_digest(template: PromptTemplate, labels: LabelTokens | None) -> str:
    """Return the sha256, in hexadecimal, of the tokens of the probe texts, of an empty and a truncated text, and of the labels."""
    prompts = [template.prompt(text).ids for text in (*TEXTS, "", LONG_TEXT)]
    return hashlib.sha256(json.dumps([prompts, () if labels is None else labels.ids]).encode()).hexdigest()
