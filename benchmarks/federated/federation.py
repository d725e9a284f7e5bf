"""Clients with their calibrators and a common test set, for one data set and one choice of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.datasets import Dataset
from benchmarks.federated.aggregation import InProcessAggregator
from benchmarks.federated.clock import now
from ifed.messages.tasks import LayerChoice, resolve_layers
from ifed.messages.texts import LabelledText
from ifed.modeling.calibration import CACHE_BYTES, Calibrator
from ifed.modeling.extraction import context_vector
from ifed.modeling.forward import ActivationCache
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import HeldOut
from ifed.tensors.values import Coefficients, Float32

HOLDOUT_FRACTION = 0.1
MAX_HOLDOUT = 10


@dataclass(frozen=True, slots=True)
class Client:
    """One client of the federation.

    Attributes:
        examples: number of its training examples.
    """

    name: str
    examples: int
    calibrator: Calibrator


class Federation:
    """Clients that share a model and the global context vector, and a common test set.

    Args:
        parts: each client's examples; a tenth of them, ten at most, are held out.
        layers: the injected layers.
        subset: number of test examples that `subset_scores` scores, the first ones.

    Attributes:
        context_bytes: sizes of the bodies that one client sends (mean over the clients) and receives for the context vector.
        context_seconds: cost of its context vector for a client, mean over the clients; see `clock.now`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        dataset: Dataset,
        parts: Sequence[Sequence[LabelledText[int]]],
        test: Sequence[LabelledText[int]],
        layers: LayerChoice,
        *,
        subset: int = 0,
    ) -> None:
        self.lm, self.dataset = lm, dataset
        self.layers = resolve_layers(layers, lm.num_layers)
        template = PromptTemplate.of(lm, dataset.template)
        labels = template.labels(dataset.labels)
        cuts = [holdout_size(part) for part in parts]
        training = [part[cut:] for cut, part in zip(cuts, parts, strict=True)]
        self.aggregator = InProcessAggregator(lm.fingerprint, len(dataset.labels))
        began = now(lm)
        vectors = [context_vector(lm, template, labels, part, layers=self.layers) for part in training]
        self.context_seconds = (now(lm) - began) / len(parts)
        bodies = [self.aggregator.context_body(vector, len(part)) for vector, part in zip(vectors, training, strict=True)]
        self.context, received = self.aggregator.aggregate_context(bodies)
        self.context_bytes = (float(np.mean([len(body) for body in bodies])), received)
        self.clients = [
            Client(
                f"client-{rank:02}",
                len(part),
                Calibrator(lm, template, labels, part, self.context, self.layers, held_out=examples[:cut]),
            )
            for rank, (part, examples, cut) in enumerate(zip(training, parts, cuts, strict=True))
        ]
        self.truths = np.array([example.label for example in test])
        self._test, self._subset = (
            HeldOut(
                lm,
                template,
                labels,
                examples,
                classes=len(dataset.labels),
                cache=lambda rows: ActivationCache(lm, self.layers[0], rows, max_bytes=CACHE_BYTES),
            )
            for examples in (test, test[:subset])
        )

    def initial_coefficients(self, groups: int, context_weight: float) -> Coefficients:
        """Return the coefficients that the first round starts from: λ is `context_weight`, β is 1."""
        return Coefficients.identity(len(self.layers), groups, context_weight=context_weight)

    def cache_lower_layers(self) -> float:
        """Run the layers below the injected ones at every client and cache their activations; return one client's seconds, mean over the clients.

        Otherwise the first round would do this, and its seconds would not be comparable with those of other rounds.
        """
        if self.layers[0] == 0:
            return 0.0
        initial, began = self.initial_coefficients(1, 0.0), now(self.lm)
        for client in self.clients:
            client.calibrator.measure(initial)
            client.calibrator.gradient_of(initial, [0])
        return (now(self.lm) - began) / len(self.clients)

    def test_scores(self, coefficients: Coefficients) -> Float32:
        """Return the labels' log-probabilities for each test example, float32, (n, C)."""
        return self._test.scores(self._injection(coefficients))

    def subset_scores(self, coefficients: Coefficients) -> Float32:
        """Return the same for the first `subset` test examples."""
        return self._subset.scores(self._injection(coefficients))

    def _injection(self, coefficients: Coefficients) -> Injection:
        return injection_of(self.context, coefficients, self.layers, device=self.lm.device, dtype=self.lm.dtype)


def holdout_size(part: Sequence[LabelledText[int]]) -> int:
    """Return how many of a client's examples, the first ones, are held out from training."""
    return min(MAX_HOLDOUT, int(HOLDOUT_FRACTION * len(part)))
