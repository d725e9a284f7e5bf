"""Storage of the cells, one JSON file each, so that an interrupted run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.datasets import DATASETS
from benchmarks.paper.methods import (
    EARLIER_LORA,
    LORA,
    SETTINGS,
    SWEEP_SEED,
    TASKS,
    TITLES,
    TUNED,
    Cell,
    Plan,
)
from benchmarks.paper.texts import DEVELOPMENT

BYTE_COUNTS = "wire"  # the file of the bytes on the wire
_METHODS = (*SETTINGS, *LORA, *TASKS)


class CellMismatch(Exception):
    """A folder contains cells of another plan, of another model or number format, of other texts, or of a method with other settings."""


class CellStore:
    """The cells of one plan and one model under a folder.

    Cells of the first release, which were evaluated on texts A alone, belong to a plan of the same texts A and are as valid.

    Attributes:
        machine: what new cells run on; each cell stores it, since a folder may travel from one machine to another.
        loaded: fingerprint and number format of the model, known once it is loaded; cells of another model are refused.
        texts: digests of each data set's texts by its key, of all of them and of those without texts B; known once they are read. Cells
            of other texts are refused.
        titles: of the data sets by key; a cell stores it.
    """

    def __init__(self, folder: Path, plan: Plan, model: str) -> None:
        self.folder, self._plan, self._run = folder, plan, {"plan": asdict(plan), "model": model}
        self._first_run = self._run | {"plan": asdict(replace(plan, test=plan.first_texts))}
        self.machine: dict[str, Any] | None = None
        self.loaded: dict[str, str] = {}
        self.texts: dict[str, tuple[str, str]] = {}
        self.titles = {key: dataset.title for key, dataset in DATASETS.items()}

    def has(self, key: str, name: str) -> bool:
        """Return whether a cell is stored.

        Raises:
            CellMismatch: see `read`.
        """
        return self.read(key, name) is not None

    def read(self, key: str, name: str) -> dict[str, Any] | None:
        """Return a stored cell, or None if it is missing.

        Raises:
            CellMismatch: it was made under another plan, with other weights or texts, or with other settings of its method, such as
                earlier defaults of the product.
        """
        path = self._path(key, name)
        if not path.exists():
            return None
        cell: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        first = cell.get("plan") == self._first_run["plan"] and "readings" not in cell
        expected = self._provenance(key, cell.get("method"), first=first)
        if differing := [field for field, value in expected.items() if cell.get(field) != value]:
            raise CellMismatch(f"{path} differs in {' and '.join(differing)} from this run; name another folder with --out")
        return cell

    def byte_counts(self, key: str) -> dict[str, Any] | None:
        """Return the bytes by method, of the methods whose settings have not changed since; None if none are counted.

        Raises:
            CellMismatch: they were counted under another plan or with another model.
        """
        stored = self.read(key, BYTE_COUNTS)
        if stored is None:
            return None
        then, now = stored.get("settings", {}), self._settings()
        return {method: stored[method] for method in now if method in stored and then.get(method) == now[method]}

    def write_byte_counts(self, key: str, counts: Mapping[str, Any]) -> None:
        """Store the bytes of these methods."""
        settings = self._settings()
        self.write(key, BYTE_COUNTS, {**counts, "settings": {method: settings[method] for method in counts}})

    def _provenance(self, key: str, method: str | None, *, first: bool = False) -> dict[str, Any]:
        """Return the provenance that a cell must have, as far as it is known; `first`: that of a cell of texts A alone."""
        texts = {"texts": self.texts[key][first]} if key in self.texts else {}
        setting = {} if method is None or method not in _METHODS else {"setting": self._setting(method)}
        return (self._first_run if first else self._run) | self.loaded | texts | setting

    def _setting(self, method: str) -> dict[str, Any]:
        """Return the setting of a method that has rounds; LoRA has the loss, the schedule and the batches of the first release."""
        setting: Any = SETTINGS.get(method) or LORA.get(method) or TASKS.get(method)
        described: dict[str, Any] = setting.describe(self._plan)
        return described

    def _settings(self) -> dict[str, Any]:
        """Return the settings of the methods whose bytes are counted apart."""
        return {method: self._setting(method) for method in (*SETTINGS, *LORA)}

    def write(self, key: str, name: str, result: dict[str, Any]) -> None:
        """Store a cell, atomically."""
        path = self._path(key, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")  # another process may write the bytes of the same data set
        provenance = self._provenance(key, result.get("method")) | {"machine": self.machine}
        if key in self.titles:
            provenance["title"] = self.titles[key]
        part.write_text(json.dumps(result | provenance, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)

    def best_rate(self, key: str, rates: Sequence[float], method: str = TUNED) -> float | None:
        """Return LoRA's learning rate of the highest accuracy after the last round; None until all rates have run.

        It is the accuracy on the development texts; for `lora`, the stored cells of the first release, that on texts A. Of the accuracies
        with the label prior kept and matched the higher one counts; of equal rates the lowest is chosen. A single rate is not compared.
        """
        if len(rates) == 1 and method not in EARLIER_LORA:
            return rates[0]
        cells = {rate: cell for rate in rates if (cell := self.read(key, Cell(method, SWEEP_SEED, rate).name))}
        if len(cells) < len(rates) or any(_choice(cell) is None for cell in cells.values()):
            return None
        return max(sorted(rates), key=lambda rate: _choice(cells[rate]) or 0.0)

    def collect(self, rates: Sequence[float]) -> dict[str, Any]:
        """Return all stored cells by data set: the runs by method and seed, LoRA's at its best rate, the sweep of rates, the bytes.

        Raises:
            CellMismatch: see `read`.
        """
        data: dict[str, Any] = {}
        stored = sorted(path.name for path in (self.folder / "cells").glob("*") if path.is_dir())
        for key in (*DATASETS, *(key for key in stored if key not in DATASETS)):
            best = {method: self.best_rate(key, rates, method) for method in (TUNED, "lora")}
            runs = {method: self._runs(key, method, best["lora" if method in EARLIER_LORA else TUNED]) for method in TITLES}
            sweep = [
                cell
                for method in (TUNED, "lora")
                for rate in rates
                if (cell := self.read(key, Cell(method, SWEEP_SEED, rate).name))
            ]
            if any(runs.values()) or sweep:
                cells = [*(run for runs_of_method in runs.values() for run in runs_of_method), *sweep]
                title = next((cell["title"] for cell in cells if "title" in cell), self.titles.get(key, key))
                rate = {method: best[method] for method in best}
                data[key] = {"title": title, "runs": runs, "sweep": sweep, "rate": rate, "wire": self.byte_counts(key)}
        return self._run | {"machines": _machines(data), "data": data}

    def _runs(self, key: str, method: str, best: float | None) -> list[dict[str, Any]]:
        if method in LORA and best is None:
            return []
        prefix = Cell(method, 0, best if method in LORA else None).name.removesuffix("0")
        paths = sorted((self.folder / "cells" / key).glob(f"{prefix}*.json"))
        names = [path.stem for path in paths if path.stem.removeprefix(prefix).isdigit()]
        return [cell for name in names if (cell := self.read(key, name))]

    def _path(self, key: str, name: str) -> Path:
        return self.folder / "cells" / key / f"{name}.json"


def _machines(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the machines that the cells ran on, each once."""
    cells = [cell for results in data.values() for runs in (*results["runs"].values(), results["sweep"]) for cell in runs]
    machines = {json.dumps(cell["machine"], sort_keys=True): cell["machine"] for cell in cells if cell.get("machine")}
    return list(machines.values())


def _choice(cell: Mapping[str, Any]) -> float | None:
    """Return the accuracy by which a learning rate is chosen; None where it was not measured."""
    if "readings" not in cell:
        row = cell["rows"][-1]
        return max(float(row["accuracy_plain"]), float(row["accuracy_prior_matched"]))
    figures = [cell["readings"][reading].get(DEVELOPMENT) for reading in ("plain", "matched")]
    return max((float(found["accuracy"]) for found in figures if found), default=None)
