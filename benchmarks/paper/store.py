"""One JSON file a cell, so that a killed run goes on; and what all of them hold, put together. Runs nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.datasets import SOURCES
from benchmarks.paper.methods import LORA, SETTINGS, SWEEP_SEED, TITLES, Cell, Plan

WIRE = "wire"  # the cell of bytes


class OtherRun(Exception):
    """A folder holds cells of another plan, of other weights or number formats of the model, of other texts, or of a method set otherwise."""


class Store:
    """The cells of one plan and one model under a folder.

    Attributes:
        machine: what cells run on from now on; each keeps it, since a folder may travel from one machine to the next.
        loaded: fingerprint and number format of the model, once it is loaded; cells of another are refused.
        texts: digest of each data set's files by its key, once they were looked at; likewise.
    """

    def __init__(self, folder: Path, plan: Plan, model: str) -> None:
        self.folder, self._plan, self._made = folder, plan, {"plan": asdict(plan), "model": model}
        self.machine: dict[str, Any] | None = None
        self.loaded: dict[str, str] = {}
        self.texts: dict[str, str] = {}

    def has(self, key: str, name: str) -> bool:
        """Whether a cell is there.

        Raises:
            OtherRun: it is there, but not as `read` wants it.
        """
        return self.read(key, name) is not None

    def read(self, key: str, name: str) -> dict[str, Any] | None:
        """What a cell found, or None.

        Raises:
            OtherRun: it was made under another plan, with other weights or texts, or with its method set otherwise, as before a default
                of the product changed.
        """
        path = self._path(key, name)
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted = self._wanted(key, found.get("method"))
        if differing := [word for word, value in wanted.items() if found.get(word) != value]:
            raise OtherRun(f"{path} differs in {' and '.join(differing)} from this run; name another folder with --out")
        return found

    def wire(self, key: str) -> dict[str, Any] | None:
        """Bytes by method, of the methods that are set now as they were then; None where none were counted.

        Raises:
            OtherRun: they were counted under another plan or with another model.
        """
        found = self.read(key, WIRE)
        if found is None:
            return None
        then, now = found.get("settings", {}), self._told()
        return {method: found[method] for method in now if method in found and then.get(method) == now[method]}

    def keep_wire(self, key: str, found: Mapping[str, Any]) -> None:
        """Write the bytes of these methods."""
        told = self._told()
        self.keep(key, WIRE, {**found, "settings": {method: told[method] for method in found}})

    def _wanted(self, key: str, method: str | None) -> dict[str, Any]:
        """What a cell must have been made with, as far as that is known by now."""
        texts = {"texts": self.texts[key]} if key in self.texts else {}
        setting = {"setting": told} if method is not None and (told := self._told().get(method)) else {}
        return self._made | self.loaded | texts | setting

    def _told(self) -> dict[str, Any]:
        """How each method that has rounds is set; LoRA has the loss, the schedule and the draws of ours."""
        return {one: setting.told(self._plan) for one, setting in (*SETTINGS.items(), *LORA.items())}

    def keep(self, key: str, name: str, found: dict[str, Any]) -> None:
        """Write a cell, whole or not at all."""
        path = self._path(key, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")  # others may write the bytes of the same data set
        made = self._wanted(key, found.get("method")) | {"machine": self.machine}
        part.write_text(json.dumps(found | made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)

    def best_rate(self, key: str, rates: Sequence[float]) -> float | None:
        """LoRA's learning rate of the highest accuracy after the last round, on the test set itself; None until all were tried.

        Of the accuracies with and without the label prior matched the higher one counts; where two rates are level, the lower.
        """
        tried = {rate: self.read(key, Cell("lora", SWEEP_SEED, rate).name) for rate in rates}
        if any(found is None for found in tried.values()):
            return None
        return max(sorted(rates), key=lambda rate: _higher((tried[rate] or {})["rows"][-1]))

    def collect(self, rates: Sequence[float]) -> dict[str, Any]:
        """All that is there, data set by data set: runs by method and seed, LoRA at its best rate, the sweep, the bytes."""
        data = {}
        for key in SOURCES:
            best = self.best_rate(key, rates)
            runs = {method: self._runs(key, method, best) for method in TITLES}
            sweep = [one for rate in rates if (one := self.read(key, Cell("lora", SWEEP_SEED, rate).name))]
            if any(runs.values()) or sweep:
                data[key] = {"runs": runs, "sweep": sweep, "rate": best, "wire": self.wire(key)}
        return self._made | {"machines": _machines(data), "data": data}

    def _runs(self, key: str, method: str, best: float | None) -> list[dict[str, Any]]:
        if method in LORA and best is None:
            return []
        begins = Cell(method, 0, best if method in LORA else None).name.removesuffix("0")
        paths = sorted((self.folder / "cells" / key).glob(f"{begins}*.json"))
        names = [path.stem for path in paths if path.stem.removeprefix(begins).isdigit()]
        return [one for name in names if (one := self.read(key, name))]

    def _path(self, key: str, name: str) -> Path:
        return self.folder / "cells" / key / f"{name}.json"


def _machines(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the cells ran on, each once."""
    cells = [cell for one in data.values() for runs in (*one["runs"].values(), one["sweep"]) for cell in runs]
    told = {json.dumps(cell["machine"], sort_keys=True): cell["machine"] for cell in cells if cell.get("machine")}
    return list(told.values())


def _higher(row: Mapping[str, Any]) -> float:
    return max(float(row["accuracy_plain"]), float(row["accuracy_prior_matched"]))
