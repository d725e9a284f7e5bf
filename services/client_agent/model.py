"""Run the frozen model on this organisation's examples; the agent's only module that loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from ifed.downloads import cache_folder
from ifed.messages.rounds import Assignment, LocalWork, TaskBrief
from ifed.messages.tasks import ModelIdentity, resolve_layers
from ifed.messages.texts import LabelledText
from ifed.modeling.calibration import Calibrator, LocalPlan
from ifed.modeling.extraction import context_vector
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import DType, Options, load
from ifed.modeling.probing import probe_of
from ifed.modeling.prompts import PromptTemplate
from ifed.tensors.probes import Probe
from ifed.tensors.values import Coefficients, ContextVector, Float32, Gradient, Int64
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
        return probe_of(self._model, template, template.labels(task.labels))

    def condense(self, task: TaskBrief, examples: Sequence[LabelledText[int]], progress: Progress) -> ContextVector:
        """Return this client's context vector, the mean of the demonstrations' activations, shape (layer, site, d).

        Raises:
            BadTemplate: the task's labels cannot be scored with this tokenizer.
        """
        template = PromptTemplate.of(self._model, task.template, chat=task.chat)
        return context_vector(
            self._model,
            template,
            template.labels(task.labels),
            examples,
            layers=self._layers(task),
            token_budget=self._token_budget,
            progress=progress,
        )

    def adopt(self, task: TaskBrief, context: ContextVector, split: Split) -> None:
        """Prepare the training and the held-out examples for rounds with the task's global context vector."""
        template, policy = PromptTemplate.of(self._model, task.template, chat=task.chat), task.policy
        self._calibrator = Calibrator(
            self._model,
            template,
            template.labels(task.labels),
            split.training,
            context,
            self._layers(task),
            held_out=split.holdout,
            expected_draws=policy.rounds * (policy.local_steps if policy.mode == "coefficients" else 1) * policy.batch_size,
            token_budget=self._token_budget,
        )

    def calibrate(
        self, assignment: Assignment, coefficients: Coefficients, seed: int, progress: Progress
    ) -> tuple[Coefficients | Gradient, float]:
        """Return this client's update of a round and its mean training loss.

        The update is Λ after the round's local steps from `coefficients`, or in gradient mode the mean gradient of the loss there; both
        have the shape of `coefficients`.
        """
        assert assignment.work is not None
        work = assignment.work
        if work.mode == "gradient":
            return self._gradient(work, coefficients, seed)
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
        result = self._prepared().run(coefficients, plan, progress=progress)
        return result.coefficients, result.loss

    def _gradient(self, work: LocalWork, coefficients: Coefficients, seed: int) -> tuple[Gradient, float]:
        gradient = self._prepared().mean_gradient(
            coefficients, batch_size=work.batch_size, seed=seed, logit_adjustment=work.logit_adjustment
        )
        return Gradient(gradient.values), gradient.loss

    def evaluate(self, coefficients: Coefficients, progress: Progress) -> tuple[Int64, Float32 | None]:
        """Evaluate coefficients on the held-out examples.

        Returns:
            the confusion counts, int64, shape (truth, prediction), and the mean probability of each label, float32, shape (labels,).
        """
        progress(0, 0)
        return self._prepared().measure(coefficients)

    def _layers(self, task: TaskBrief) -> tuple[int, ...]:
        return resolve_layers(task.layers, self._model.num_layers)

    def _prepared(self) -> Calibrator:
        assert self._calibrator is not None, "adopt() comes before the first round"
        return self._calibrator
