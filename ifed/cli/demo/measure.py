"""The demo's figures: accuracy over HTTP on test texts, and the cost of the rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from ifed.cli.console import percent
from ifed.cli.demo.corpora import Organisation
from ifed.clients import InferenceClient
from ifed.messages.enums import RoundKind, RoundState
from ifed.messages.rounds import RoundInfo, TaskInfo

BATCH = 32


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Correct answers and their total, so that several organisations can be added up."""

    correct: int
    total: int

    @property
    def share(self) -> float:
        return self.correct / self.total

    @staticmethod
    def over(parts: Sequence[Accuracy]) -> Accuracy:
        return Accuracy(sum(part.correct for part in parts), sum(part.total for part in parts))


async def accuracy(
    inference: InferenceClient, model: str, organisation: Organisation, *, answered: Callable[[int], None]
) -> Accuracy:
    """Return the accuracy of `model` on an organisation's test texts; call `answered` with the number of texts done."""
    correct = 0
    for start in range(0, len(organisation.test), BATCH):
        batch = organisation.test[start : start + BATCH]
        response = await inference.classify(model, [example.text for example in batch])
        correct += sum(result.label == example.label for result, example in zip(response.data, batch, strict=True))
        answered(len(batch))
    return Accuracy(correct, len(organisation.test))


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
        table.add_column("organisation")
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
        overall = (percent(Accuracy.over(list(values.values())).share) for _, values in columns)
        table.add_row("overall", str(sum(organisation.examples for organisation in self.organisations)), *overall, style="bold")
        return table

    def summary(self, task: TaskInfo, rounds: Sequence[RoundInfo]) -> dict[str, object]:
        """Return the figures of `summary.json`: accuracies as shares from 0 to 1, times in seconds, sizes in bytes."""
        overall = {name: Accuracy.over(list(values.values())).share for name, values in self._named().items()}
        closed = [round_ for round_ in rounds if round_.closed_at is not None]
        calibrations = [round_ for round_ in closed if round_.kind is RoundKind.CALIBRATION and round_.state is RoundState.CLOSED]
        return {
            **overall,
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


def _span(closed: Sequence[RoundInfo]) -> float:
    ends = [round_.closed_at for round_ in closed if round_.closed_at is not None]
    return round((max(ends) - min(round_.opened_at for round_ in closed)).total_seconds(), 1)


def _largest(rounds: Sequence[RoundInfo]) -> int:
    return max((client.bytes_up or 0 for round_ in rounds for client in round_.clients), default=0)
