"""Clients with their calibrators, and the common test set, for one data set and one choice of layers. Runs no rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.datasets import Source
from benchmarks.federated.aggregation import Wire
from benchmarks.federated.clock import now
from ifed.messages.tasks import LayerChoice, resolve_layers
from ifed.modeling.calibration import CACHE_BYTES, Calibrator
from ifed.modeling.extraction import context_vector
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompts import Example, PromptTemplate
from ifed.modeling.scoring import HeldOut
from ifed.tensors.values import Coefficients, Float32

HOLDOUT = 0.1
MOST_HELD_OUT = 10


@dataclass(frozen=True, slots=True)
class Party:
    """One client: what it may train on, and its work."""

    name: str
    examples: int
    calibrator: Calibrator


class Federation:
    """Clients that share a model and the global context vector, and a test set that no client has.

    Args:
        parts: each client's examples; a tenth of them, ten at the most, are held out for the label prior.
        layers: the injected layers.
        few: so many of the test set are what `few_scores` scores.

    Attributes:
        context_bytes: what one client sends and receives to agree on the context vector, as bodies.
        context_seconds: what its context vector costs a client, mean over the clients.
    """

    def __init__(
        self,
        lm: LanguageModel,
        source: Source,
        parts: Sequence[Sequence[Example]],
        test: Sequence[Example],
        layers: LayerChoice,
        *,
        few: int = 0,
    ) -> None:
        self.lm, self.source = lm, source
        self.layers = resolve_layers(layers, lm.num_layers)
        template = PromptTemplate.of(lm, source.template)
        labels = template.labels(source.labels)
        cuts = [held_back(part) for part in parts]
        training = [part[cut:] for cut, part in zip(cuts, parts, strict=True)]
        wire = Wire(lm.fingerprint, len(source.labels))
        began = now(lm)
        vectors = [context_vector(lm, template, labels, part, layers=self.layers) for part in training]
        self.context_seconds = (now(lm) - began) / len(parts)
        bodies = [wire.context(vector, len(part)) for vector, part in zip(vectors, training, strict=True)]
        self.wire = wire
        self.context, received = wire.global_context(bodies)
        self.context_bytes = (float(np.mean([len(body) for body in bodies])), received)
        self.parties = [
            Party(
                f"client-{rank:02}",
                len(part),
                Calibrator(lm, template, labels, part, self.context, self.layers, held_out=whole[:cut]),
            )
            for rank, (part, whole, cut) in enumerate(zip(training, parts, cuts, strict=True))
        ]
        self.truths = np.array([example.label for example in test])
        first, some = self.layers[0], test[:few]
        self._test = HeldOut(lm, template, labels, test, first_layer=first, cache_bytes=CACHE_BYTES)
        self._few = HeldOut(lm, template, labels, some, first_layer=first, cache_bytes=CACHE_BYTES)

    def first(self, groups: int, context_weight: float) -> Coefficients:
        """Where the first round starts from."""
        return Coefficients.identity(len(self.layers), groups, context_weight=context_weight)

    def keep_lower_layers(self) -> float:
        """Let every client run what no coefficient changes and keep it, before the first round needs it; one client's seconds, mean."""
        if self.layers[0] == 0:
            return 0.0
        first, began = self.first(1, 0.0), now(self.lm)
        for party in self.parties:
            party.calibrator.measure(first)
            party.calibrator.gradient_of(first, [0])
        return (now(self.lm) - began) / len(self.parties)

    def test_scores(self, coefficients: Coefficients) -> Float32:
        """Log-probabilities of the labels of each test example, float32, (n, C)."""
        return self._test.scores(self._injection(coefficients))

    def few_scores(self, coefficients: Coefficients) -> Float32:
        """The same of the first few test examples."""
        return self._few.scores(self._injection(coefficients))

    def _injection(self, coefficients: Coefficients) -> Injection:
        return injection_of(self.context, coefficients, self.layers, device=self.lm.device, dtype=self.lm.dtype)


def held_back(part: Sequence[Example]) -> int:
    """How many of its examples, the first ones, a client does not train on."""
    return min(MOST_HELD_OUT, int(HOLDOUT * len(part)))
