"""What a practitioner would pick instead: frozen sentence embeddings and a federated linear head on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.federated.federation import holdout_size
from benchmarks.federated.head import ClientStates, solve_head
from benchmarks.paper.texts import EvaluationTexts
from ifed.downloads import digest_of_file
from ifed.messages.tasks import Policy, Solver
from ifed.messages.texts import LabelledText
from ifed.modeling.standardization import PUBLIC_TEXTS
from ifed.tensors.regression import Standardization
from ifed.tensors.values import Float32

MAX_TOKENS, BATCH = 256, 32
READINGS: dict[str, Solver] = {"sums": "sums", "gradient": "conjugate_gradient"}


class NoEncoder(Exception):
    """A folder has no sentence-embedding model that transformers can load."""


@dataclass(frozen=True, slots=True)
class SentenceEncoder:
    """A frozen encoder: the mean of the last hidden states over the tokens of a text, of length 1.

    Attributes:
        weights: SHA-256 of its file of weights, in hexadecimal.
    """

    weights: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, folder: Path) -> SentenceEncoder:
        """Load an encoder in float32.

        Raises:
            NoEncoder: the folder does not hold one.
        """
        try:
            loaded: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            weights = digest_of_file(folder / "model.safetensors")
        except (OSError, ValueError) as error:
            raise NoEncoder(
                f"{folder} holds no sentence-embedding model; --embedding-model names a folder with config.json, model.safetensors and a tokenizer"
            ) from error
        return cls(weights, loaded.eval(), tokenizer)

    def embed(self, texts: Sequence[str]) -> Float32:
        """Return the embeddings of texts, float32, (n, d)."""
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            with torch.inference_mode():
                states = self.model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].to(states.dtype)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
            parts.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.model.config.hidden_size), dtype=np.float32)


def run_encoder(
    encoder: SentenceEncoder,
    parts: Sequence[Sequence[LabelledText[int]]],
    texts: EvaluationTexts,
    labels: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """Embed all texts, and solve the label head of a task on the embeddings from full sums and by conjugate gradients.

    Args:
        clock: returns seconds; the difference of two calls is the cost of the work between them.

    Returns:
        JSON-ready: the figures of both heads, and the seconds and the bytes of bodies that they cost a client.
    """
    began = clock()
    standardization = Standardization.of(encoder.embed(PUBLIC_TEXTS))
    statistics_seconds = clock() - began  # which every client spends
    began = clock()
    states = []
    for part in parts:
        cut, truths = holdout_size(part), [example.label for example in part]
        embeddings = encoder.embed([example.text for example in part])
        states.append(ClientStates(embeddings[cut:], truths[cut:], embeddings[:cut], truths[:cut]))
    embedding_seconds = statistics_seconds + (clock() - began) / len(states)
    test = encoder.embed([example.text for example in texts.examples])
    truths_of_test = np.array([example.label for example in texts.examples])
    readings, costs = {}, {}
    for reading, solver in READINGS.items():
        began = clock()
        dtype = {"update_dtype": "float32"} if solver == "sums" else {}  # by conjugate gradients in the product's default
        policy = Policy.model_validate({"solver": solver, "clients_expected": len(states)} | dtype)
        solved = solve_head(states, standardization, labels, policy)
        seconds = embedding_seconds + (clock() - began) / len(states)
        readings[reading] = texts.figures(truths_of_test, solved.head.log_probabilities(test))
        costs[reading] = {"seconds": seconds, "bodies_up": solved.bodies_up, "bodies_down": solved.bodies_down}
    return {"readings": readings, "head": costs, "encoder": encoder.weights}
