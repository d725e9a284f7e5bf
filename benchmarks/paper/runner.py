"""Run the missing cells of one data set under one seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.datasets import Dataset, count_examples, dirichlet_split, read_examples
from benchmarks.federated.federation import Federation, holdout_size
from benchmarks.paper import lora, prompting, traffic
from benchmarks.paper.calibration import Progress, run_calibration
from benchmarks.paper.encoder import SentenceEncoder, run_encoder
from benchmarks.paper.methods import EARLIER_LORA, LORA, SETTINGS, SWEEP_SEED, TASKS, TITLES, TUNED, Cell, Plan, runs_on
from benchmarks.paper.product import run_task
from benchmarks.paper.store import CellStore
from benchmarks.paper.texts import BOTH, DEVELOPMENT_TEXTS, A, EvaluationTexts
from ifed.errors import BadTemplate
from ifed.messages.tasks import LayerChoice
from ifed.messages.texts import LabelledText
from ifed.modeling.language_model import LanguageModel

CellFunction = Callable[[Progress], dict[str, Any]]


class CellRunner:
    """The cells of a data set divided by a seed.

    Args:
        rates: learning rates of LoRA; all run on `SWEEP_SEED`, and the best of them on other seeds and with more steps.
        progress: receives lines about the progress.
        encoder: of sentences; None leaves its method out.
        development: evaluate on the development texts in place of the test texts.
        renew: run cells of the first release again, which were evaluated on texts A alone.
    """

    def __init__(
        self,
        lm: LanguageModel,
        dataset: Dataset,
        data: Path,
        plan: Plan,
        store: CellStore,
        seed: int,
        rates: Sequence[float],
        progress: Progress,
        *,
        encoder: SentenceEncoder | None = None,
        development: bool = False,
        renew: bool = False,
    ) -> None:
        self._lm, self._dataset, self._data, self._plan = lm, dataset, data, plan
        self._store, self._seed, self._rates, self._progress = store, seed, rates, progress
        self._encoder, self._development, self._renew = encoder, development, renew
        self._federations: dict[str, tuple[Federation, float]] = {}

    def run(self, methods: Sequence[str]) -> None:
        """Run every missing cell of these methods that runs under this seed on this data set, and count their bytes."""
        methods = [method for method in methods if runs_on(method, self._seed, self._dataset.key)]
        for method in methods:
            if method in SETTINGS:
                self._run_cell(Cell(method, self._seed), lambda progress, method=method: self._calibrate(method, progress))
        self._federations.clear()  # frees the clients' cached activations before the other methods need the memory
        if "zero-shot" in methods:  # the seed changes only the reading with the prior matched
            held_out = [example for part in self._parts for example in part[: holdout_size(part)]]
            self._run_cell(
                Cell("zero-shot", self._seed), lambda _: prompting.zero_shot(self._lm, self._dataset, held_out, self._texts)
            )
        if "icl" in methods:
            self._run_cell(Cell("icl", self._seed), lambda _: self._few_shot())
        if "embedding" in methods and (encoder := self._encoder) is not None:
            self._run_cell(
                Cell("embedding", self._seed),
                lambda _: run_encoder(encoder, self._parts, self._texts, len(self._dataset.labels)),
            )
        for method in TASKS:
            if method in methods:
                self._run_cell(Cell(method, self._seed), lambda progress, method=method: self._run_task(method, progress))
        for method in LORA:
            if method in methods:
                self._run_lora(method)
        self._count_bytes(methods)

    def _run_lora(self, method: str) -> None:
        title = self._dataset.title
        if not lora.fits(self._lm):
            modules = " and ".join(lora.TARGET_MODULES)
            self._progress(f"{title}: {self._lm.name} has no modules {modules}, {TITLES[method]} is left out")
            return
        if method in EARLIER_LORA:
            self._progress(f"{title}: {TITLES[method]} is shown from its stored cells alone; {TITLES[TUNED]} is its successor")
            return
        sweeps = method == TUNED and self._seed == SWEEP_SEED
        best = None if sweeps else self._store.best_rate(self._dataset.key, self._rates)
        if not sweeps and best is None:
            self._progress(
                f"{title}: {TITLES[method]}, seed {self._seed}, waits for all learning rates of {TITLES[TUNED]} on seed {SWEEP_SEED} "
                f"and its development texts; run these with --methods {TUNED} --seeds {SWEEP_SEED}, or name one rate with --lora-rates"
            )
            return
        rates = self._rates if best is None else [best]
        for rate in rates:
            self._run_cell(Cell(method, self._seed, rate), lambda progress, rate=rate: self._train_adapters(method, rate, progress))

    def _run_cell(self, cell: Cell, function: CellFunction) -> None:
        stored = self._store.read(self._dataset.key, cell.name)
        if stored is not None and ("readings" in stored or not self._renew):
            return
        prefix = f"{self._dataset.title}, {cell.name}"
        began, core = time.monotonic(), time.process_time()
        try:
            result = function(lambda message: self._progress(f"{prefix}: {message}"))
        except BadTemplate as refusal:
            self._progress(f"{prefix}: left out, {refusal.detail}")
            return
        result |= {
            "data": self._dataset.key,
            "method": cell.method,
            "seed": cell.seed,
            "wall_seconds": time.monotonic() - began,
            "core_seconds": time.process_time() - core,
        }
        self._store.write(self._dataset.key, cell.name, result)
        figures = [f"{name} {by_set.get(BOTH, by_set[A])['accuracy']:.1%}" for name, by_set in result["readings"].items()]
        self._progress(f"{prefix}: finished in {result['wall_seconds']:.0f} s, accuracy {', '.join(figures)}")

    def _run_task(self, method: str, progress: Progress) -> dict[str, Any]:
        return run_task(self._lm, self._dataset, self._parts, self._texts, TASKS[method], self._plan, self._seed, progress)

    def _calibrate(self, method: str, progress: Progress) -> dict[str, Any]:
        setting = SETTINGS[method]
        federation, cache_seconds = self._federation(setting.layers, progress)
        local = self._seed < self._plan.few_seeds and method in ("published", "ours")
        result = run_calibration(federation, self._texts, setting, self._plan, self._seed, progress, local=local)
        return result | {"context_seconds": federation.context_seconds, "kept_seconds": cache_seconds}

    def _federation(self, layers: LayerChoice, progress: Progress) -> tuple[Federation, float]:
        """Return the federation for these layers, and one client's seconds to cache the activations below them."""
        if str(layers) not in self._federations:
            progress(f"context vectors; clients have {', '.join(str(len(part)) for part in self._parts)} examples")
            self._federations.clear()
            federation = Federation(self._lm, self._dataset, self._parts, self._texts.examples, layers, subset=self._plan.few)
            self._federations[str(layers)] = federation, federation.cache_lower_layers()
        return self._federations[str(layers)]

    def _few_shot(self) -> dict[str, Any]:
        training = [part[holdout_size(part) :] for part in self._parts]
        return prompting.few_shot(self._lm, self._dataset, training, self._texts, self._plan.shots, self._seed)

    def _train_adapters(self, method: str, rate: float, progress: Progress) -> dict[str, Any]:
        policy = LORA[method].policy_for(self._plan).model_copy(update={"learning_rate": rate})
        chosen_by_it = method == TUNED and self._seed == SWEEP_SEED and len(self._rates) > 1
        rank, texts = self._plan.lora_rank, self._texts_with_development if chosen_by_it else self._texts
        return lora.run_fedavg(self._lm, self._dataset, self._parts, texts, policy, rank, self._seed, progress)

    def _count_bytes(self, methods: Sequence[str]) -> None:
        """Count the bytes on the wire of the methods whose bytes are not counted yet."""
        known = self._store.byte_counts(self._dataset.key) or {}
        missing = {method: SETTINGS[method] for method in methods if method in SETTINGS and method not in known}
        adapters = [method for method in methods if method in LORA and method not in known and lora.fits(self._lm)]
        if not missing and not adapters:
            return
        self._progress(f"{self._dataset.title}: bytes on the wire")
        identity = self._lm.identity
        counts = {
            method: traffic.count_task_bytes(identity, self._dataset, setting, self._plan) for method, setting in missing.items()
        }
        if adapters:
            counted = next((known[method] for method in LORA if method in known), None)
            counts |= dict.fromkeys(adapters, counted or self._count_adapter_bytes())
        self._store.write_byte_counts(self._dataset.key, known | counts)

    def _count_adapter_bytes(self) -> dict[str, Any]:
        """Count the bytes of a round of LoRA, which do not depend on its steps."""
        with lora.inject_adapters(self._lm, self._plan.lora_rank, self._seed) as parameters:
            return traffic.count_lora_bytes(lora.copy_weights(parameters))

    @cached_property
    def _training(self) -> list[LabelledText[int]]:
        return read_examples(self._data, self._dataset, "train", self._plan.training)

    @cached_property
    def _texts(self) -> EvaluationTexts:
        """The test texts; for choices the development texts in their place."""
        if self._development:
            texts = self._development_examples
            return EvaluationTexts(texts, len(texts))
        examples = read_examples(self._data, self._dataset, "test", self._plan.test)
        return EvaluationTexts(examples, self._plan.first_texts)

    @cached_property
    def _texts_with_development(self) -> EvaluationTexts:
        """The same, and after them the development texts, on which LoRA's learning rate is chosen."""
        texts, more = self._texts, self._development_examples
        return EvaluationTexts([*texts.examples, *more], texts.first, len(more))

    @cached_property
    def _development_examples(self) -> list[LabelledText[int]]:
        """Up to 500 training texts after those that clients have."""
        available = count_examples(self._data, self._dataset, "train")
        count = min(available, self._plan.training + DEVELOPMENT_TEXTS)
        return read_examples(self._data, self._dataset, "train", count)[self._plan.training :]

    @cached_property
    def _parts(self) -> list[list[LabelledText[int]]]:
        """Each client's examples."""
        labels = [example.label for example in self._training]
        split = dirichlet_split(labels, self._plan.clients, self._plan.alpha, self._seed)
        return [[self._training[index] for index in part] for part in split]
