"""Storage of the cells, one JSON file each, so that an interrupted run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.datasets import DATASETS
from benchmarks.paper.methods import LORA, SETTINGS, SWEEP_SEED, TITLES, Cell, Plan

BYTE_COUNTS = "wire"  # the file of the bytes on the wire


class CellMismatch(Exception):
    """A folder contains cells of another plan, of another model or number format, of other texts, or of a method with other settings."""


class CellStore:
    """The cells of one plan and one model under a folder.

    Attributes:
        machine: what new cells run on; each cell stores it, since a folder may travel from one machine to another.
        loaded: fingerprint and number format of the model, known once it is loaded; cells of another model are refused.
        texts: digest of each data set's texts by its key, known once they are read; cells of other texts are refused.
    """

    def __init__(self, folder: Path, plan: Plan, model: str) -> None:
        self.folder, self._plan, self._run = folder, plan, {"plan": asdict(plan), "model": model}
        self.machine: dict[str, Any] | None = None
        self.loaded: dict[str, str] = {}
        self.texts: dict[str, str] = {}

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
        expected = self._provenance(key, cell.get("method"))
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

    def _provenance(self, key: str, method: str | None) -> dict[str, Any]:
        """Return the provenance that a cell must have, as far as it is known."""
        texts = {"texts": self.texts[key]} if key in self.texts else {}
        setting = {"setting": described} if method is not None and (described := self._settings().get(method)) else {}
        return self._run | self.loaded | texts | setting

    def _settings(self) -> dict[str, Any]:
        """Return the settings of each method that has rounds; LoRA has the loss, the schedule and the batches of ours."""
        return {method: setting.describe(self._plan) for method, setting in (*SETTINGS.items(), *LORA.items())}

    def write(self, key: str, name: str, result: dict[str, Any]) -> None:
        """Store a cell, atomically."""
        path = self._path(key, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")  # another process may write the bytes of the same data set
        provenance = self._provenance(key, result.get("method")) | {"machine": self.machine}
        part.write_text(json.dumps(result | provenance, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)

    def best_rate(self, key: str, rates: Sequence[float]) -> float | None:
        """Return LoRA's learning rate of the highest test accuracy after the last round; None until all rates have run.

        Of the accuracies with the label prior kept and matched the higher one counts; of equal rates the lowest is chosen.
        """
        cells = {rate: self.read(key, Cell("lora", SWEEP_SEED, rate).name) for rate in rates}
        if any(cell is None for cell in cells.values()):
            return None
        return max(sorted(rates), key=lambda rate: _better_reading((cells[rate] or {})["rows"][-1]))

    def collect(self, rates: Sequence[float]) -> dict[str, Any]:
        """Return all stored cells by data set: the runs by method and seed, LoRA's at its best rate, the sweep of rates, the bytes.

        Raises:
            CellMismatch: see `read`.
        """
        data = {}
        for key in DATASETS:
            best = self.best_rate(key, rates)
            runs = {method: self._runs(key, method, best) for method in TITLES}
            sweep = [cell for rate in rates if (cell := self.read(key, Cell("lora", SWEEP_SEED, rate).name))]
            if any(runs.values()) or sweep:
                data[key] = {"runs": runs, "sweep": sweep, "rate": best, "wire": self.byte_counts(key)}
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


def _better_reading(row: Mapping[str, Any]) -> float:
    return max(float(row["accuracy_plain"]), float(row["accuracy_prior_matched"]))
