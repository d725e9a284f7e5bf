"""The demo's figures: accuracy over HTTP on test texts, and the cost of the rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from ifed.cli.console import percent
from ifed.cli.demo.corpora import Organisation
from ifed.cli.demo.uncertainty import PairedComparison, wilson_interval
from ifed.clients import InferenceClient
from ifed.messages.enums import RoundKind, RoundState
from ifed.messages.rounds import RoundInfo, TaskInfo

BATCH = 32
NAMES = {"zero_shot_accuracy": "base model", "federated_accuracy": "the four together", "local_accuracy": "calibrated alone"}


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Correct answers and their total, so that several organisations can be added up.

    Attributes:
        hits: for each text in order, whether its answer was correct; empty where that is not known.
    """

    correct: int
    total: int
    hits: tuple[bool, ...] = ()

    @property
    def share(self) -> float:
        return self.correct / self.total

    @staticmethod
    def over(parts: Sequence[Accuracy]) -> Accuracy:
        hits = tuple(hit for part in parts for hit in part.hits)
        return Accuracy(sum(part.correct for part in parts), sum(part.total for part in parts), hits)

    @staticmethod
    def of(hits: Sequence[bool]) -> Accuracy:
        return Accuracy(sum(hits), len(hits), tuple(hits))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share."""
        return wilson_interval(self.correct, self.total)


async def accuracy(
    inference: InferenceClient, model: str, organisation: Organisation, *, answered: Callable[[int], None]
) -> Accuracy:
    """Return the accuracy of `model` on an organisation's test texts; call `answered` with the number of texts done."""
    hits: list[bool] = []
    for start in range(0, len(organisation.test), BATCH):
        batch = organisation.test[start : start + BATCH]
        response = await inference.classify(model, [example.text for example in batch])
        hits += [result.label == example.label for result, example in zip(response.data, batch, strict=True)]
        answered(len(batch))
    return Accuracy.of(hits)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The measurements of the demo, by organisation."""

    organisations: Sequence[Organisation]
    base: Mapping[str, Accuracy]
    federated: Mapping[str, Accuracy]
    alone: Mapping[str, Accuracy] | None

    def table(self) -> Table:
        table = Table(
            title=f"Accuracy on {sum(len(organisation.test) for organisation in self.organisations)} texts that nobody trained on"
        )
        table.add_column("organisation", no_wrap=True)
        table.add_column("texts of its own", justify="right")
        columns = [
            ("base model", self.base),
            *([("calibrated alone", self.alone)] if self.alone else []),
            ("the four together", self.federated),
        ]
        for name, _ in columns:
            table.add_column(name, justify="right")
        for organisation in self.organisations:
            shares = (percent(values[organisation.name].share) for _, values in columns)
            table.add_row(organisation.name, str(organisation.examples), *shares)
        table.add_section()
        overall = [Accuracy.over(list(values.values())) for _, values in columns]
        examples = str(sum(organisation.examples for organisation in self.organisations))
        table.add_row("overall", examples, *(percent(accuracy.share) for accuracy in overall), style="bold")
        intervals = (f"{100 * low:.0f}–{100 * high:.0f} %" for low, high in (accuracy.interval for accuracy in overall))
        table.add_row("95 % interval", "", *intervals)
        return table

    def conclusions(self) -> list[str]:
        """Say of each comparison of the four together whether it is evidence of a difference."""
        together, first = Accuracy.over(list(self.federated.values())), NAMES["federated_accuracy"]
        return [
            f"{first} {percent(together.share)} ({_interval(together)}), {second} {percent(other.share)} ({_interval(other)}): "
            f"{comparison.verdict(first, second)} (exact McNemar test, p = {comparison.p_value:.2g}; of the same {comparison.texts} texts, "
            f"{comparison.only_first} were right only with {first} and {comparison.only_second} only with {second})"
            for second, (other, comparison) in self._comparisons().items()
        ]

    def _comparisons(self) -> dict[str, tuple[Accuracy, PairedComparison]]:
        """Return each accuracy overall with its comparison with the four together, where both are known text by text."""
        together = Accuracy.over(list(self.federated.values()))
        comparisons = {}
        for key, values in self._named().items():
            other = Accuracy.over(list(values.values()))
            if key != "federated_accuracy" and together.hits and other.hits:
                comparisons[NAMES[key]] = (other, PairedComparison.of(together.hits, other.hits))
        return comparisons

    def summary(self, task: TaskInfo, rounds: Sequence[RoundInfo]) -> dict[str, object]:
        """Return the figures of `summary.json`: accuracies as shares from 0 to 1, times in seconds, sizes in bytes."""
        totals = {name: Accuracy.over(list(values.values())) for name, values in self._named().items()}
        overall = {name: accuracy.share for name, accuracy in totals.items()}
        closed = [round_ for round_ in rounds if round_.closed_at is not None]
        calibrations = [round_ for round_ in closed if round_.kind is RoundKind.CALIBRATION and round_.state is RoundState.CLOSED]
        return {
            **overall,
            "intervals_95": {name: list(accuracy.interval) for name, accuracy in totals.items()},
            "together_against": {
                name: asdict(comparison)
                | {"p_value": comparison.p_value, "verdict": comparison.verdict(NAMES["federated_accuracy"], name)}
                for name, (_, comparison) in self._comparisons().items()
            },
            "per_organisation": {
                organisation.name: {name: values[organisation.name].share for name, values in self._named().items()}
                | {"examples": organisation.examples}
                for organisation in self.organisations
            },
            "rounds": len(calibrations),
            "seconds_rounds": _span(closed),
            "bytes_up_per_client_per_round": _largest(calibrations),
            "bytes_context_vector": _largest([round_ for round_ in closed if round_.kind is RoundKind.CONTEXT]),
            "model": task.spec.model,
            "groups": task.spec.groups,
            "layers": task.layout.layers if task.layout else None,
            "served_version": task.served,
            "accuracy_by_version": {str(evaluation.version): evaluation.accuracy for evaluation in task.evaluations},
        }

    def _named(self) -> dict[str, Mapping[str, Accuracy]]:
        named = {"zero_shot_accuracy": self.base, "federated_accuracy": self.federated}
        return named | ({"local_accuracy": self.alone} if self.alone else {})


def _interval(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _span(closed: Sequence[RoundInfo]) -> float:
    ends = [round_.closed_at for round_ in closed if round_.closed_at is not None]
    return round((max(ends) - min(round_.opened_at for round_ in closed)).total_seconds(), 1)


def _largest(rounds: Sequence[RoundInfo]) -> int:
    return max((client.bytes_up or 0 for round_ in rounds for client in round_.clients), default=0)
