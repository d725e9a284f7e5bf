"""Contributions of clients to rounds, and the checks that each of them must pass."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ifed.errors import FingerprintMismatch, LayoutMismatch, Malformed, WrongState
from ifed.messages.bodies import HeadBody, HeldOutCounts
from ifed.messages.enums import HeadQuestion, RoundKind
from ifed.tensors.confusion import Counts
from ifed.tensors.quantization import QuantizedUpdate, UpdateDType, rows_dtype
from ifed.tensors.regression import Standardization
from ifed.tensors.updates import Update
from ifed.tensors.values import ContextVector, Float32, Gradient, check_layout


@dataclass(frozen=True, slots=True)
class ContributionSchema:
    """What the contributions of one client to one task must conform to.

    Attributes:
        fingerprint: of the task's model.
        context_shape: (layer, site, d).
        coefficients_shape: (layer, site, coefficient, group).
        labels: the number of labels; confusion counts are labels × labels.
        holdout: the most held-out examples that the client may count.
        gradient: whether a calibration round takes a gradient instead of coefficients.
        update_dtype: how coefficients travel; any but float32 takes a quantised change instead of coefficients. Answers of head rounds
            travel alike, those of int4 in int8.
        has_head: whether the task has a label head.
        question: of a head round, what it asks.
        directions: of the question `product`, the number of rows of an answer.
        likelihoods: of the question `likelihood`, the shape of an answer.
    """

    fingerprint: str
    context_shape: tuple[int, ...]
    coefficients_shape: tuple[int, ...]
    labels: int
    holdout: int
    gradient: bool = False
    update_dtype: UpdateDType = "float32"
    has_head: bool = False
    question: HeadQuestion | None = None
    directions: int = 0
    likelihoods: tuple[int, int] = (0, 0)

    @property
    def hidden_size(self) -> int:
        """The hidden size, d."""
        return self.context_shape[-1]

    def accepts(self, update: Update | None) -> bool:
        """Return whether a calibration round takes this kind of update; shapes are not looked at."""
        if isinstance(update, QuantizedUpdate):
            return not self.gradient and update.dtype == self.update_dtype
        if isinstance(update, Gradient):  # a subclass of Coefficients
            return self.gradient
        return update is not None and not self.gradient and self.update_dtype == "float32"

    def takes(self, kind: RoundKind) -> str:
        """Describe what a round of this kind takes, for an error detail."""
        if kind is RoundKind.CONTEXT:
            return "a context vector at …/context"
        if kind is RoundKind.HEAD:
            return f"an answer in {rows_dtype(self.update_dtype)} to the question {self.question} at …/head"
        if kind is RoundKind.EVALUATION:
            return "confusion counts alone at …/update"
        compact = self.update_dtype != "float32"
        update = "a gradient" if self.gradient else f"a change in {self.update_dtype}" if compact else "coefficients"
        return f"{update} and confusion counts at …/update"


@dataclass(frozen=True, slots=True)
class ContributionRecord:
    """What is known of a contribution without its tensors.

    Attributes:
        digest: sha256 of the body, in hexadecimal.
        weight: the number of examples behind it.
        size: of the body, in bytes.
        loss: the mean training loss that the client reported.
        seconds: the time that the client's work took.
        correct: correct predictions on the client's held-out examples.
        evaluated: the number of these examples.
    """

    client: str
    digest: str
    received_at: datetime
    weight: int
    size: int
    loss: float | None = None
    seconds: float | None = None
    correct: int | None = None
    evaluated: int | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """A parsed contribution, whose values are finite; `check` compares it with what the round takes."""

    entry: ContributionRecord
    body: bytes
    fingerprint: str
    version: int | None = None
    context: ContextVector | None = None
    update: Update | None = None
    confusion: Counts | None = None
    label_probabilities: Float32 | None = None
    others: tuple[HeldOutCounts, ...] = ()
    standardization: Standardization | None = None
    head: HeadBody | None = None

    def check(self, kind: RoundKind, form: ContributionSchema) -> None:
        """Refuse a contribution that a round of this kind cannot aggregate.

        Raises:
            WrongState: a context vector for a round that takes updates, or an update for a context round.
            FingerprintMismatch: made with another model than the task's.
            LayoutMismatch: a tensor is missing, superfluous or of another shape.
            Malformed: it has no examples behind it, or counts more held-out examples than the client has.
        """
        if (self.context is not None) is not (kind is RoundKind.CONTEXT) or (self.head is not None) is not (kind is RoundKind.HEAD):
            raise WrongState(f"this is a {kind} round; it takes {form.takes(kind)}")
        if self.fingerprint != form.fingerprint:
            raise FingerprintMismatch(f"made with model {self.fingerprint[:12]}…, the task runs on {form.fingerprint[:12]}…")
        if self.context is not None:
            self._check_context(self.context, form)
        elif self.head is not None:
            _check_answer(self.head, form)
        else:
            self._check_update(kind, form)
        may_be_empty = kind is RoundKind.EVALUATION or form.question is HeadQuestion.LIKELIHOOD
        if not may_be_empty and self.entry.weight < 1:
            raise Malformed("a contribution has at least one example behind it")

    def _check_context(self, context: ContextVector, form: ContributionSchema) -> None:
        check_layout(context.values, form.context_shape, what="the context vector")
        if (self.standardization is not None) is not form.has_head:
            takes = "needs state_mean and state_deviation" if form.has_head else "takes no state_mean and no state_deviation"
            raise LayoutMismatch(f"the context vector of this task {takes}")
        if self.standardization is not None:
            check_layout(self.standardization.mean, (form.hidden_size,), what="state_mean")

    def _check_update(self, kind: RoundKind, form: ContributionSchema) -> None:
        if not (self.update is None if kind is RoundKind.EVALUATION else form.accepts(self.update)):
            raise LayoutMismatch(f"this is a {kind} round; it takes {form.takes(kind)}")
        if self.update is not None:
            check_layout(self.update.values, form.coefficients_shape, what="the update")
        if self.confusion is None:
            raise LayoutMismatch("an update needs the confusion counts of the version it started from")
        check_layout(self.confusion, (form.labels, form.labels), what="the confusion counts")
        if self.label_probabilities is not None:
            check_layout(self.label_probabilities, (form.labels,), what="the mean label probabilities")
        for other in self.others:
            check_layout(other.confusion, (form.labels, form.labels), what="the confusion counts")
            if other.label_probabilities is not None:
                check_layout(other.label_probabilities, (form.labels,), what="the mean label probabilities")
        for counts in (self.confusion, *(other.confusion for other in self.others)):
            if counts.max() > form.holdout or counts.sum() > form.holdout:
                raise Malformed(f"the confusion counts hold more than the {form.holdout} held-out examples this client may count")


def _check_answer(answer: HeadBody, form: ContributionSchema) -> None:
    """Refuse an answer to another question than the round's, or of another shape or dtype."""
    question, rows = form.question, answer.answer
    has = (rows is not None, answer.gram is not None, answer.log_likelihoods is not None)
    expected = (question is not HeadQuestion.LIKELIHOOD, question is HeadQuestion.SUMS, question is HeadQuestion.LIKELIHOOD)
    if has != expected or (rows is not None and question is not HeadQuestion.SUMS and rows.dtype != rows_dtype(form.update_dtype)):
        raise LayoutMismatch(f"this is a head round; it takes {form.takes(RoundKind.HEAD)}")
    if rows is not None:
        count = form.directions if question is HeadQuestion.PRODUCT else form.labels - 1
        check_layout(rows.values, (count, form.hidden_size), what="the answer")
    if answer.gram is not None:
        check_layout(answer.gram, (form.hidden_size * (form.hidden_size + 1) // 2,), what="the matrix")
    if answer.log_likelihoods is not None:
        check_layout(answer.log_likelihoods, form.likelihoods, what="the log-likelihoods")
        if answer.meta.examples > form.holdout:
            raise Malformed(f"the log-likelihoods are of more than the {form.holdout} held-out examples this client may count")
