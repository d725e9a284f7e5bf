"""The cells of one data set under one seed, those that are missing, one after the other. Prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.datasets import Source, dirichlet_split, read
from benchmarks.federated.federation import Federation, held_back
from benchmarks.paper import lora, prompting, traffic
from benchmarks.paper.calibration import Told, calibrated
from benchmarks.paper.methods import LORA, SETTINGS, SWEEP_SEED, TITLES, Cell, Plan, runs_on
from benchmarks.paper.store import Store
from ifed.messages.tasks import LayerChoice
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompts import Example

Run = Callable[[Told], dict[str, Any]]


class Work:
    """A data set divided by a seed.

    Args:
        rates: learning rates of LoRA, all tried on the sweep's seed; on others, and with more steps, the best of them.
        tell: told in a sentence what goes on.
    """

    def __init__(
        self,
        lm: LanguageModel,
        source: Source,
        data: Path,
        plan: Plan,
        store: Store,
        seed: int,
        rates: Sequence[float],
        tell: Told,
    ) -> None:
        self._lm, self._source, self._data, self._plan = lm, source, data, plan
        self._store, self._seed, self._rates, self._tell = store, seed, rates, tell
        self._made: dict[str, tuple[Federation, float]] = {}

    def run(self, methods: Sequence[str]) -> None:
        """Every cell of these methods that is not there yet, of those that run under this seed on this data set, and their bytes."""
        methods = [method for method in methods if runs_on(method, self._seed, self._source.key)]
        for method in methods:
            if method in SETTINGS:
                self._cell(Cell(method, self._seed), lambda told, method=method: self._calibrated(method, told))
        self._made.clear()  # the clients' kept activations, before anything else needs the memory
        if "zero-shot" in methods:  # under one seed, which changes only its prior-matched reading
            held = [example for part in self._parts for example in part[: held_back(part)]]
            self._cell(Cell("zero-shot", self._seed), lambda _: prompting.zero_shot(self._lm, self._source, held, self._test))
        if "icl" in methods:
            self._cell(Cell("icl", self._seed), lambda _: self._prompted())
        for method in LORA:
            if method in methods:
                self._lora(method)
        self._count_bytes(methods)

    def _lora(self, method: str) -> None:
        if not lora.fits(self._lm):
            self._tell(
                f"{self._source.title}: {self._lm.name} has no modules {' and '.join(lora.TARGETS)}, {TITLES[method]} is left out"
            )
            return
        sweeps = method == "lora" and self._seed == SWEEP_SEED
        best = None if sweeps else self._store.best_rate(self._source.key, self._rates)
        if not sweeps and best is None:
            self._tell(
                f"{self._source.title}: {TITLES[method]}, seed {self._seed}, waits for all learning rates of {TITLES['lora']} "
                f"on seed {SWEEP_SEED}; run these with --methods lora --seeds {SWEEP_SEED}, then this again"
            )
            return
        rates = self._rates if best is None else [best]
        for rate in rates:
            self._cell(Cell(method, self._seed, rate), lambda told, rate=rate: self._adapted(method, rate, told))

    def _cell(self, cell: Cell, run: Run) -> None:
        if self._store.has(self._source.key, cell.name):
            return
        began = time.monotonic()
        found = run(lambda words: self._tell(f"{self._source.title}, {cell.name}: {words}"))
        found |= {"data": self._source.key, "method": cell.method, "seed": cell.seed, "wall_seconds": time.monotonic() - began}
        self._store.keep(self._source.key, cell.name, found)
        accuracy = found["rows"][-1]["accuracy"] if "rows" in found else found["accuracy"]
        self._tell(f"{self._source.title}, {cell.name}: done in {found['wall_seconds']:.0f} s, accuracy {accuracy:.1%}")

    def _calibrated(self, method: str, told: Told) -> dict[str, Any]:
        setting = SETTINGS[method]
        federation, kept = self._federation(setting.layers, told)
        local = self._seed < self._plan.few_seeds and method in ("published", "ours")
        found = calibrated(federation, setting, self._plan, self._seed, told, local=local)
        return found | {"context_seconds": federation.context_seconds, "kept_seconds": kept}

    def _federation(self, layers: LayerChoice, told: Told) -> tuple[Federation, float]:
        """The clients of these layers, and what one spends to keep what lies below."""
        if str(layers) not in self._made:
            told(f"context vectors; clients have {', '.join(str(len(part)) for part in self._parts)} examples")
            self._made.clear()
            made = Federation(self._lm, self._source, self._parts, self._test, layers, few=self._plan.few)
            self._made[str(layers)] = made, made.keep_lower_layers()
        return self._made[str(layers)]

    def _prompted(self) -> dict[str, Any]:
        own = [part[held_back(part) :] for part in self._parts]
        return prompting.few_shot(self._lm, self._source, own, self._test, self._plan.shots, self._seed)

    def _adapted(self, method: str, rate: float, told: Told) -> dict[str, Any]:
        policy = LORA[method].policy_for(self._plan).model_copy(update={"learning_rate": rate})
        return lora.federated(self._lm, self._source, self._parts, self._test, policy, self._plan.lora_rank, self._seed, told)

    def _count_bytes(self, methods: Sequence[str]) -> None:
        """On the wire, of those that are not counted yet."""
        known = self._store.wire(self._source.key) or {}
        missing = {method: SETTINGS[method] for method in methods if method in SETTINGS and method not in known}
        adapters = [method for method in methods if method in LORA and method not in known and lora.fits(self._lm)]
        if not missing and not adapters:
            return
        self._tell(f"{self._source.title}: bytes on the wire")
        identity = self._lm.identity
        found = {method: traffic.of_coefficients(identity, self._source, one, self._plan) for method, one in missing.items()}
        if adapters:
            found |= dict.fromkeys(
                adapters, next((known[method] for method in LORA if method in known), None) or self._of_adapters()
            )
        self._store.keep_wire(self._source.key, known | found)

    def _of_adapters(self) -> dict[str, Any]:
        """Bytes of LoRA, whatever its steps."""
        with lora.adapted(self._lm, self._plan.lora_rank, self._seed) as parameters:
            return traffic.of_lora(lora.weights_of(parameters))

    @cached_property
    def _training(self) -> list[Example]:
        return read(self._data, self._source, "train", self._plan.training)

    @cached_property
    def _test(self) -> list[Example]:
        return read(self._data, self._source, "test", self._plan.test)

    @cached_property
    def _parts(self) -> list[list[Example]]:
        """The clients' examples."""
        labels = [example.label for example in self._training]
        split = dirichlet_split(labels, self._plan.clients, self._plan.alpha, self._seed)
        return [[self._training[index] for index in part] for part in split]
