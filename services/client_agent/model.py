"""The frozen model at work on this organisation's examples. The only file of the agent that reaches the torch room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from ifed.downloads import cache_folder
from ifed.messages.rounds import Assignment, LocalWork, TaskBrief
from ifed.messages.tasks import ModelIdentity, resolve_layers
from ifed.modeling.calibration import Calibrator, LocalPlan
from ifed.modeling.extraction import context_vector
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import DType, Options, load
from ifed.modeling.probing import probe_of
from ifed.modeling.prompts import Example, PromptTemplate
from ifed.tensors.probes import Probe
from ifed.tensors.values import Coefficients, ContextVector, Gradient
from services.client_agent.demonstrations import Demonstration, Split
from services.client_agent.participation import Calibrated, Evaluated, Progress


class LocalModel:
    """One loaded model, and what it keeps between the rounds of one task. Blocking; not for two threads at once."""

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
            UnknownModel: it is none of these, or cannot be had, or an option needs what is not installed.
            UnsupportedFamily: an architecture whose residual stream we do not know.
            DownloadFailed: it could not be fetched.
        """
        options = Options(int8=int8)
        model = load(
            name, cache=cache_folder(cache), device=device, dtype=dtype, threads=threads, options=options, announce=announce
        )
        return cls(model, token_budget=token_budget)

    @property
    def identity(self) -> ModelIdentity:
        return self._model.identity

    def probe(self, task: TaskBrief) -> Probe:
        """What the model does with public texts in the task's template, for the aggregator to compare.

        Raises:
            BadTemplate: the task's labels cannot be scored with this tokenizer.
            ProbeMismatch: its numbers are not finite.
        """
        template = PromptTemplate.of(self._model, task.template, chat=task.chat)
        return probe_of(self._model, template, template.labels(task.labels))

    def condense(self, task: TaskBrief, examples: Sequence[Demonstration], progress: Progress) -> ContextVector:
        """The mean of the demonstrations' activations: this client's context vector, shape (layer, site, d).

        Raises:
            BadTemplate: the task's labels cannot be scored with this tokenizer.
        """
        template = PromptTemplate.of(self._model, task.template, chat=task.chat)
        return context_vector(
            self._model,
            template,
            template.labels(task.labels),
            _examples(examples),
            layers=self._layers(task),
            token_budget=self._token_budget,
            progress=progress,
        )

    def adopt(self, task: TaskBrief, context: ContextVector, split: Split) -> None:
        """Take the task's global context vector and get both parts of the examples ready for its rounds."""
        template, policy = PromptTemplate.of(self._model, task.template, chat=task.chat), task.policy
        self._calibrator = Calibrator(
            self._model,
            template,
            template.labels(task.labels),
            _examples(split.training),
            context,
            self._layers(task),
            held_out=_examples(split.holdout),
            expected_draws=policy.rounds * (policy.local_steps if policy.mode == "coefficients" else 1) * policy.batch_size,
            token_budget=self._token_budget,
        )

    def calibrate(self, assignment: Assignment, coefficients: Coefficients, seed: int, progress: Progress) -> Calibrated:
        """The local steps of one round from the round's coefficients, or in gradient mode the gradient there."""
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
        result = self._ready().run(coefficients, plan, progress=progress)
        return Calibrated(result.coefficients, result.loss)

    def _gradient(self, work: LocalWork, coefficients: Coefficients, seed: int) -> Calibrated:
        found = self._ready().mean_gradient(
            coefficients, batch_size=work.batch_size, seed=seed, logit_adjustment=work.logit_adjustment
        )
        return Calibrated(None, found.loss, Gradient(found.values))

    def evaluate(self, coefficients: Coefficients, progress: Progress) -> Evaluated:
        """Confusion counts on the held-out examples, int64, shape (truth, prediction), and the mean probability of each label."""
        progress(0, 0)
        return Evaluated(*self._ready().measure(coefficients))

    def _layers(self, task: TaskBrief) -> tuple[int, ...]:
        return resolve_layers(task.layers, self._model.num_layers)

    def _ready(self) -> Calibrator:
        assert self._calibrator is not None, "a round asks for work only after its context vector was adopted"
        return self._calibrator


def _examples(demonstrations: Sequence[Demonstration]) -> list[Example]:
    return [Example(one.text, one.label) for one in demonstrations]
