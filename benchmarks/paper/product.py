"""A task from its first round to its last, with the product's aggregator and the product's agents over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets import Dataset
from benchmarks.federated.clock import now
from benchmarks.federated.federation import holdout_size
from benchmarks.paper.byte_counter import ByteCounter, serve_counted
from benchmarks.paper.methods import Plan, TaskSetting
from benchmarks.paper.texts import EvaluationTexts
from benchmarks.paper.traffic import ADMIN_TOKEN, warnings_only
from ifed.clients import AggregatorClient
from ifed.errors import BadTemplate
from ifed.messages.bodies import AdapterBody, HeadBody, HeadQuery, HeldOutCounts
from ifed.messages.enums import AssignmentKind, RoundKind, RoundState
from ifed.messages.rounds import Assignment, ContributionMeta, Reading, RoundInfo, TaskBrief, TaskInfo
from ifed.messages.tasks import TaskSpec, resolve_layers
from ifed.messages.texts import LabelledText
from ifed.modeling.batching import Row
from ifed.modeling.calibration import CACHE_BYTES
from ifed.modeling.forward import ActivationCache
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompt_cache import PromptCache
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import HeldOut
from ifed.tensors.label_prior import without_bias
from ifed.tensors.probes import Probe
from ifed.tensors.regression import LabelHead, Standardization
from ifed.tensors.values import Coefficients, ContextVector, Float32, Gradient, Int64
from services.aggregator.app import serve
from services.aggregator.settings import Settings
from services.client_agent.demonstrations import Split
from services.client_agent.model import LocalModel
from services.client_agent.participation import Participant
from services.client_agent.state import AgentState, ReleasedTexts
from services.client_agent.status import Status
from services.inference.model import LoadedAdapter, Scorer

Progress = Callable[[str], None]
WAIT_SECONDS = 2.0  # of a long poll: agents take turns, so that one that waits holds up the others


@dataclass
class Cost:
    """What one part of a task cost, all clients together.

    Attributes:
        up, down: bytes of HTTP, headers included.
        rounds: numbers of the rounds.
    """

    seconds: float = 0.0
    up: int = 0
    down: int = 0
    rounds: set[int] = field(default_factory=set)


class MeasuredModel(LocalModel):
    """An agent's model that measures what its work costs.

    Args:
        context: whether context vectors are sent as they are; otherwise they are zero.

    Attributes:
        seconds: cost of all work so far; see `clock.now`.
    """

    def __init__(self, model: LanguageModel, *, context: bool = True) -> None:
        super().__init__(model)
        self._lm, self._context = model, context
        self.seconds = 0.0

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        began = now(self._lm)
        try:
            yield
        finally:
            self.seconds += now(self._lm) - began

    def probe(self, task: TaskBrief) -> Probe:
        with self._measured():
            return super().probe(task)

    def standardization(self, task: TaskBrief) -> Standardization:
        with self._measured():
            return super().standardization(task)

    def condense(
        self, task: TaskBrief, examples: Sequence[LabelledText[int]], progress: Callable[[int, int], None]
    ) -> ContextVector:
        if not self._context:
            layers = resolve_layers(task.layers, self._lm.num_layers)
            return ContextVector(np.zeros((len(layers), 2, self._lm.hidden_size), dtype=np.float32))
        with self._measured():
            return super().condense(task, examples, progress)

    def adopt(self, task: TaskBrief, context: ContextVector, split: Split) -> None:
        with self._measured():
            super().adopt(task, context, split)

    def calibrate(
        self,
        assignment: Assignment,
        coefficients: Coefficients,
        head: LabelHead | None,
        seed: int,
        progress: Callable[[int, int], None],
    ) -> tuple[Coefficients | Gradient, float]:
        with self._measured():
            return super().calibrate(assignment, coefficients, head, seed, progress)

    def evaluate(
        self,
        coefficients: Coefficients,
        head: LabelHead | None,
        progress: Callable[[int, int], None],
        *,
        every_reading: bool = False,
    ) -> tuple[HeldOutCounts, dict[Reading, HeldOutCounts]]:
        with self._measured():
            return super().evaluate(coefficients, head, progress, every_reading=every_reading)

    def compute_states(self, coefficients: Coefficients, standardization: Standardization) -> None:
        with self._measured():
            super().compute_states(coefficients, standardization)

    def answer(self, assignment: Assignment, query: HeadQuery, meta: ContributionMeta) -> HeadBody:
        with self._measured():
            return super().answer(assignment, query, meta)


@dataclass(frozen=True, slots=True)
class Agent:
    """One client: its connection to the aggregator, its model and the product's participant."""

    aggregator: AggregatorClient
    model: MeasuredModel
    participant: Participant


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """What a task left behind.

    Attributes:
        rounds: all rounds, in order.
        adapters: the adapter of each version that a head or calibration round made.
        costs: by part: joining, and the kinds of rounds.
    """

    info: TaskInfo
    rounds: Sequence[RoundInfo]
    adapters: Mapping[int, AdapterBody]
    costs: Mapping[str, Cost]


class ServedTexts:
    """The evaluation texts, classified by adapters as the inference service does; what no adapter changes is cached."""

    def __init__(self, lm: LanguageModel, spec: TaskSpec, texts: EvaluationTexts) -> None:
        template, layers = PromptTemplate.of(lm, spec.template, chat=spec.chat), resolve_layers(spec.layers, lm.num_layers)
        try:
            labels = None if spec.head == "regression" else template.labels(spec.labels)
        except BadTemplate:
            labels = None

        def cache(rows: Sequence[Row]) -> ActivationCache | PromptCache:
            if spec.injection == "last_token" and lm.row_attention:
                return PromptCache(lm, layers[0], rows, max_bytes=CACHE_BYTES)
            return ActivationCache(lm, layers[0], rows, max_bytes=CACHE_BYTES)

        self._scorer, self._texts = Scorer(lm), texts
        self._held_out = HeldOut(lm, template, labels, texts.examples, classes=len(spec.labels), cache=cache)
        self._truths: Int64 = np.array([example.label for example in texts.examples])

    def scores(self, body: AdapterBody) -> Float32:
        """Return the scores of the labels of each text, float32, (n, C), with the label prior matched as the adapter says."""
        loaded: LoadedAdapter = self._scorer.load_adapter(body)
        scores = self._held_out.scores(loaded.injection, words=loaded.labels is not None, head=loaded.head)
        return np.stack([without_bias(row, body.meta.label_bias) for row in scores])

    def figures(self, body: AdapterBody) -> dict[str, dict[str, float]]:
        """Return accuracy and macro-F1 on each set of texts."""
        return self._texts.figures(self._truths, self.scores(body))


def run_task(
    lm: LanguageModel,
    dataset: Dataset,
    parts: Sequence[Sequence[LabelledText[int]]],
    texts: EvaluationTexts,
    setting: TaskSetting,
    plan: Plan,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Run all rounds of a task with one agent for each part of the examples, one agent after the other.

    A tenth of each part, ten texts at most, are held out, as for every method.

    Returns:
        JSON-ready: the figures of the version that the task serves, a row for every version that a round made, and what each part of the
        task cost a client: seconds, bytes of HTTP, bytes of the bodies alone.
    """
    spec = setting.spec(f"paper-{seed}", lm.identity.name, dataset, plan)
    cuts = [holdout_size(part) for part in parts]
    splits = [Split(tuple(part[cut:]), tuple(part[:cut])) for part, cut in zip(parts, cuts, strict=True)]
    finished = run_rounds(lm, spec, splits, setting, progress)
    served = ServedTexts(lm, spec, texts)
    figures = {version: served.figures(body) for version, body in finished.adapters.items()}
    chosen = finished.info.served if finished.info.served in figures else max(figures)
    assert chosen is not None
    rows, costs = _rows(finished, figures), _parts(finished, len(parts))
    if setting.head_alone:  # the calibration round was for the evaluation that comes with it
        chosen, rows = min(figures), rows[:1]
        costs.pop("calibration")
    return {
        "readings": {"served": figures[chosen]},
        "served": {"version": chosen, "reading": finished.adapters[chosen].meta.reading},
        "rows": rows,
        "parts": costs,
        "ended": finished.info.reason,
        "groups": spec.groups,
        "layers": len(resolve_layers(spec.layers, lm.num_layers)),
    }


def run_rounds(
    lm: LanguageModel, spec: TaskSpec, splits: Sequence[Split], setting: TaskSetting, progress: Progress
) -> FinishedTask:
    """Run a task on an aggregator of its own until it is done, or where the setting says so until its first head is evaluated."""
    with warnings_only():
        return asyncio.run(_run(lm, spec, splits, setting, progress))


async def _run(
    lm: LanguageModel, spec: TaskSpec, splits: Sequence[Split], setting: TaskSetting, progress: Progress
) -> FinishedTask:
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory() as folder:
        values = {"database_url": f"sqlite+aiosqlite:///{Path(folder) / 'aggregator.db'}", "admin_token": ADMIN_TOKEN}
        limits = {"requests_per_minute": None, "tick_seconds": 0.05, "migrate_on_start": True}
        async with (
            serve_counted(serve(Settings.model_validate(values | limits))) as counter,
            AggregatorClient(counter.direct_url, ADMIN_TOKEN) as admin,
            contextlib.AsyncExitStack() as stack,
        ):
            await admin.create_task(spec)
            await admin.start(spec.name)
            agents = []
            for rank, split in enumerate(splits):
                name = f"client-{rank:02}"
                client = await stack.enter_async_context(AggregatorClient(counter.url, (await admin.enrol(name)).token))
                model, state = MeasuredModel(lm, context=setting.context), Path(folder) / name
                released = ReleasedTexts(state, task=spec.name, data_file=state / "texts", fewest=1)
                participant = Participant(client, model, split, AgentState(state, task=spec.name, client=name), released, Status())
                agents.append(Agent(client, model, participant))
            counter.reset()
            await _take_turns(agents, spec.name, counter, costs, head_alone=setting.head_alone, progress=progress)
            return await _finished(admin, spec.name, costs)


async def _take_turns(
    agents: Sequence[Agent],
    task: str,
    counter: ByteCounter,
    costs: dict[str, Cost],
    *,
    head_alone: bool,
    progress: Progress,
) -> None:
    """Let each agent do its assignment in turn, until the task is done, or with `head_alone` until its first head is evaluated."""
    announced = 0
    calibrated: Counter[int] = Counter()
    while True:
        for agent in agents:
            assignment = await agent.aggregator.assignment(task, wait=WAIT_SECONDS)
            kind = assignment.kind
            if kind is AssignmentKind.WAIT:
                continue
            if kind in (AssignmentKind.DONE, AssignmentKind.WITHDRAWN):
                return
            before = agent.model.seconds
            if kind is AssignmentKind.JOIN:
                await agent.participant.join(assignment.task)
            else:
                await agent.participant.contribute(assignment)
            cost = costs.setdefault("joining" if kind is AssignmentKind.JOIN else kind.value, Cost())
            counts = counter.reset()
            cost.seconds += agent.model.seconds - before
            cost.up, cost.down = cost.up + counts["up"], cost.down + counts["down"]
            if assignment.round is None:
                continue
            cost.rounds.add(assignment.round)
            if kind is AssignmentKind.CALIBRATION:
                calibrated[assignment.round] += 1
                if assignment.round > announced:
                    announced = assignment.round
                    progress(f"calibration round {len(calibrated)} of at most {assignment.task.policy.rounds}")
        if head_alone and calibrated and max(calibrated.values()) == len(agents):
            return


async def _finished(admin: AggregatorClient, task: str, costs: Mapping[str, Cost]) -> FinishedTask:
    """Return what the task left behind, once no round is being aggregated."""
    while True:
        info, rounds = await admin.task(task), await admin.rounds(task)
        if not any(round_.state is RoundState.AGGREGATING for round_ in rounds) and not any(
            round_.state is RoundState.OPEN and not round_.missing for round_ in rounds
        ):
            break
        await asyncio.sleep(0.05)
    failed = [round_ for round_ in rounds if round_.state is RoundState.FAILED]
    if failed:
        raise RuntimeError(f"round {failed[0].number} failed: {failed[0].reason}")
    kinds = (RoundKind.HEAD, RoundKind.CALIBRATION)
    versions = [round_.produced for round_ in rounds if round_.kind in kinds and round_.produced is not None]
    adapters = {}
    for version in versions:
        answer = await admin.adapter(task, version=version)
        assert answer is not None, "nothing was known of it before"
        adapters[version] = answer[1]
    return FinishedTask(info, rounds, adapters, costs)


def _rows(finished: FinishedTask, figures: Mapping[int, dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """Return a row for every version: the calibration rounds before it, what made it, its figures, and its evaluation by the clients."""
    evaluations = {evaluation.version: evaluation for evaluation in finished.info.evaluations}
    rows: list[dict[str, Any]] = []
    calibrated = 0
    for round_ in finished.rounds:
        calibrated += round_.kind is RoundKind.CALIBRATION and round_.produced is not None
        if round_.produced not in figures:
            continue
        version = round_.produced
        row: dict[str, Any] = {"round": calibrated, "version": version, "made_by": round_.kind.value, "loss": round_.loss}
        row |= {"figures": figures[version], "reading": finished.adapters[version].meta.reading}
        if (evaluation := evaluations.get(version)) is not None:
            row |= {"held_out": {"accuracy": evaluation.accuracy, "log_likelihood": evaluation.log_likelihood}}
            row["held_out"]["readings"] = [reading.model_dump() for reading in evaluation.readings]
        rows.append(row)
    return rows


def _parts(finished: FinishedTask, clients: int) -> dict[str, Any]:
    """Return what each part cost one client, mean over the clients, and the largest body that a client sent in one of its rounds."""
    parts: dict[str, Any] = {}
    for name, cost in finished.costs.items():
        sizes = [
            client.bytes_up
            for round_ in finished.rounds
            if round_.number in cost.rounds
            for client in round_.clients
            if client.bytes_up is not None
        ]
        parts[name] = {
            "rounds": len(cost.rounds),
            "seconds": cost.seconds / clients,
            "up": cost.up / clients,
            "down": cost.down / clients,
            "largest_body": max(sizes, default=0),
            "mean_body": float(np.mean(sizes)) if sizes else 0.0,
        }
    return parts
