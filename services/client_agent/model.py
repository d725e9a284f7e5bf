"""Run the frozen model on this organisation's examples; the agent's only module that loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from ifed.downloads import cache_folder
from ifed.errors import BadTemplate
from ifed.messages.bodies import HeadBody, HeadQuery, HeldOutCounts
from ifed.messages.enums import HeadQuestion
from ifed.messages.rounds import Assignment, ContributionMeta, LocalWork, Reading, TaskBrief
from ifed.messages.tasks import ModelIdentity, resolve_layers
from ifed.messages.texts import LabelledText
from ifed.modeling.batching import Row
from ifed.modeling.calibration import CACHE_BYTES, Calibrator, LocalPlan
from ifed.modeling.extraction import context_vector
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import DType, Options, load
from ifed.modeling.probing import probe_of
from ifed.modeling.prompt_cache import PromptCache
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import Measurement
from ifed.modeling.standardization import public_standardization
from ifed.tensors.probes import Probe
from ifed.tensors.quantization import QuantizedRows, rows_dtype
from ifed.tensors.regression import LabelHead, RegressionData, Standardization, log_likelihoods
from ifed.tensors.values import Coefficients, ContextVector, Float64, Gradient
from services.client_agent.demonstrations import Split

Progress = Callable[[int, int], None]


class LocalModel:
    """One loaded model, and its caches between the rounds of a task. Its methods block, and it is not thread-safe.

    Every method that takes `progress` calls it with the steps done and the steps in all.

    Args:
        model: the loaded model.
        token_budget: padded tokens in one batch at most; a default for the device when None.
    """

    def __init__(self, model: LanguageModel, *, token_budget: int | None = None) -> None:
        self._model, self._token_budget = model, token_budget
        self._calibrator: Calibrator | None = None
        self._states: tuple[Float64, Float64] | None = None
        self._prompts: PromptCache | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        cache: Path | None,
        device: str,
        dtype: DType,
        threads: int | None,
        int8: bool,
        token_budget: int | None,
        announce: Callable[[str], None],
    ) -> Self:
        """Load a model by catalogue name, Hugging Face id or folder.

        Raises:
            UnknownModel: the name is none of these, the model is not available, or an option needs a package that is not installed.
            UnsupportedFamily: the architecture is not supported.
            DownloadFailed: the model could not be downloaded.
        """
        options = Options(int8=int8)
        model = load(
            name, cache=cache_folder(cache), device=device, dtype=dtype, threads=threads, options=options, announce=announce
        )
        return cls(model, token_budget=token_budget)

    @property
    def identity(self) -> ModelIdentity:
        """The model's fingerprint, family and sizes."""
        return self._model.identity

    def probe(self, task: TaskBrief) -> Probe:
        """Return the model's activations on public texts in the task's template, which the aggregator compares between clients.

        Raises:
            BadTemplate: the task's labels cannot be scored with this tokenizer.
            ProbeMismatch: an activation is not finite.
        """
        template = PromptTemplate.of(self._model, task.template, chat=task.chat)
        return probe_of(self._model, template, self._words(task, template))

    def standardization(self, task: TaskBrief) -> Standardization:
        """Return the statistics of the final state over public texts in the task's template, with the base model."""
        return public_standardization(self._model, PromptTemplate.of(self._model, task.template, chat=task.chat))

    def condense(self, task: TaskBrief, examples: Sequence[LabelledText[int]], progress: Progress) -> ContextVector:
        """Return this client's context vector, the mean of the demonstrations' activations, shape (layer, site, d).

        Raises:
            BadTemplate: the task's labels cannot be scored with this tokenizer.
        """
        template, layers = PromptTemplate.of(self._model, task.template, chat=task.chat), self._layers(task)
        last_token = task.injection == "last_token"
        prompts = None
        if last_token and self._model.row_attention:
            rows = [Row.for_last_token(template.prompt(example.text).ids) for example in examples]
            prompts = PromptCache(self._model, layers[0], rows, max_bytes=CACHE_BYTES, token_budget=self._token_budget)
        # Once rounds are prepared for, a vector is of texts that are added; their cache would only take memory.
        self._prompts = prompts if self._calibrator is None else None
        return context_vector(
            self._model,
            template,
            None if last_token else self._words(task, template),
            examples,
            layers=layers,
            token_budget=self._token_budget,
            prompts=prompts,
            progress=progress,
        )

    def adopt(self, task: TaskBrief, context: ContextVector, split: Split) -> None:
        """Prepare the training and the held-out examples for rounds with the task's global context vector."""
        template, policy = PromptTemplate.of(self._model, task.template, chat=task.chat), task.policy
        self._calibrator = Calibrator(
            self._model,
            template,
            self._words(task, template),
            split.training,
            context,
            self._layers(task),
            held_out=split.holdout,
            classes=len(task.labels),
            position=task.injection,
            through_head=task.head != "words",
            expected_draws=policy.rounds * (policy.local_steps if policy.mode == "coefficients" else 1) * policy.batch_size,
            token_budget=self._token_budget,
            prompts=self._prompts,
        )
        self._prompts = None

    def calibrate(
        self, assignment: Assignment, coefficients: Coefficients, head: LabelHead | None, seed: int, progress: Progress
    ) -> tuple[Coefficients | Gradient, float]:
        """Return this client's update of a round and its mean training loss, read by the label words or, if the task has one, by `head`.

        The update is Λ after the round's local steps from `coefficients`, or in gradient mode the mean gradient of the loss there; both
        have the shape of `coefficients`.
        """
        assert assignment.work is not None
        work = assignment.work
        if work.mode == "gradient":
            return self._gradient(work, coefficients, head, seed)
        plan = LocalPlan(
            steps=work.steps,
            batch_size=work.batch_size,
            learning_rate=work.learning_rate,
            learning_rate_end=work.learning_rate_end,
            logit_adjustment=work.logit_adjustment,
            weight_decay=work.weight_decay,
            seed=seed,
        )
        progress(0, work.steps)
        result = self._prepared().run(coefficients, plan, head=head, progress=progress)
        return result.coefficients, result.loss

    def _gradient(self, work: LocalWork, coefficients: Coefficients, head: LabelHead | None, seed: int) -> tuple[Gradient, float]:
        gradient = self._prepared().mean_gradient(
            coefficients, batch_size=work.batch_size, seed=seed, logit_adjustment=work.logit_adjustment, head=head
        )
        return Gradient(gradient.values), gradient.loss

    def evaluate(
        self, coefficients: Coefficients, head: LabelHead | None, progress: Progress, *, every_reading: bool = False
    ) -> tuple[HeldOutCounts, dict[Reading, HeldOutCounts]]:
        """Evaluate a version on the held-out examples, read by the label words or, if the task has one, by `head`.

        Args:
            every_reading: evaluate the words, and the mean of words and head, too.

        Returns:
            the counts, and those of the other ways of reading the labels.
        """
        progress(0, 0)
        calibrator = self._prepared()
        own = _counts(calibrator.measure(coefficients, words=head is None, head=head), with_likelihood=head is not None)
        if not every_reading or not calibrator.has_words:
            return own, {}
        words = _counts(calibrator.measure(coefficients), with_likelihood=True)
        both = _counts(calibrator.measure(coefficients, head=head), with_likelihood=True)
        return own, {"words": words, "both": both}

    def compute_states(self, coefficients: Coefficients, standardization: Standardization) -> None:
        """Compute the standardised final states of the training and held-out examples under a version, for `answer`."""
        calibrator = self._prepared()
        self._states = (
            standardization.apply(calibrator.final_states(coefficients)),
            standardization.apply(calibrator.held_out.final_states(calibrator.injection(coefficients))),
        )

    def answer(self, assignment: Assignment, query: HeadQuery, meta: ContributionMeta) -> HeadBody:
        """Return this client's answer to the question of a head round. `compute_states` comes before."""
        assert self._states is not None, "compute_states() comes before the first answer"
        calibrator, (training, held_out) = self._prepared(), self._states
        dtype = rows_dtype(assignment.task.policy.update_dtype)
        if assignment.question is HeadQuestion.LIKELIHOOD:
            assert query.candidates is not None
            assert query.temperatures is not None
            sums = log_likelihoods(
                held_out, calibrator.held_out.true_labels, query.candidates, query.shares, query.temperatures.tolist()
            )
            return HeadBody(meta, log_likelihoods=sums)
        data = RegressionData(training, calibrator.true_labels, query.shares)
        if assignment.question is HeadQuestion.SUMS:
            gram_dtype = np.float32 if dtype == "float32" else np.float16
            return HeadBody(meta, QuantizedRows.of(data.moment, "float32"), gram=data.gram().astype(gram_dtype))
        if assignment.question is HeadQuestion.MOMENT:
            return HeadBody(meta, QuantizedRows.of(data.moment, dtype))
        assert query.directions is not None
        return HeadBody(meta, QuantizedRows.of(data.product(query.directions), dtype))

    def _words(self, task: TaskBrief, template: PromptTemplate) -> LabelTokens | None:
        """Return the label words; None where a task reads its labels by a head alone, or where they cannot be scored and it may.

        Raises:
            BadTemplate: the task reads label words, and they cannot be scored with this tokenizer.
        """
        if task.head == "regression":
            return None
        try:
            return template.labels(task.labels)
        except BadTemplate:
            if task.head == "words":
                raise
            return None

    def _layers(self, task: TaskBrief) -> tuple[int, ...]:
        return resolve_layers(task.layers, self._model.num_layers)

    def _prepared(self) -> Calibrator:
        assert self._calibrator is not None, "adopt() comes before the first round"
        return self._calibrator


def _counts(measured: Measurement, *, with_likelihood: bool) -> HeldOutCounts:
    likelihood = measured.log_likelihood if with_likelihood else None
    return HeldOutCounts(measured.confusion, measured.label_probabilities, likelihood, measured.confidence)
