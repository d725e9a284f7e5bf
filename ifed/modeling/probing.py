"""A model at work on the public probe texts, the way it works on private ones. Compares nothing."""

from __future__ import annotations

import hashlib
import json

import torch

from ifed.modeling.batching import Batch, Row, layout_for
from ifed.modeling.hooks import capture, final_hidden
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompts import PromptTemplate
from ifed.tensors.probes import TEXTS, Probe

LONG = "word " * 2000  # shows where a long text is cut


def probe_of(lm: LanguageModel, template: PromptTemplate, labels: LabelTokens) -> Probe:
    """The probe of a model under a task's template and labels; texts of different lengths share one batch, laid out as for any work.

    Raises:
        ProbeMismatch: activations that are not finite.
    """
    rows = [Row.ending(template.prompt(text).ids) for text in TEXTS]
    batch = Batch.of(rows, layout=layout_for(lm), device=lm.device)
    with torch.inference_mode(), capture(lm, range(lm.num_layers), batch=batch, stop=True) as captured:
        final_hidden(lm, batch)
    activations = captured.stacked().to(torch.float32).cpu().numpy()
    return Probe.of(tokens_digest(template, labels), activations)


def tokens_digest(template: PromptTemplate, labels: LabelTokens) -> str:
    """sha256 of the probe texts, and of one that must be cut, as tokens in the template, and of the labels that follow."""
    prompts = [template.prompt(text).ids for text in (*TEXTS, "", LONG)]
    return hashlib.sha256(json.dumps([prompts, labels.ids]).encode()).hexdigest()
