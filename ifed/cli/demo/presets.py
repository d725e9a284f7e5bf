"""The demo's defaults for each model, as measured; see docs/decisions/0001-demo-model.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from ifed.errors import LayoutMismatch
from ifed.messages.tasks import LayerChoice, Policy

DEFAULT_MODEL = "smollm2-135m"
EXAMPLES = 200


@dataclass(frozen=True, slots=True)
class Preset:
    """A task's settings for one model."""

    groups: int
    layers: LayerChoice = "upper_half"
    template: str = "Review: {text}\nSentiment:"
    rounds: int = 6
    local_steps: int = 8
    batch_size: int = 16
    learning_rate: float = 0.08
    examples: int = EXAMPLES

    def changed(self, **values: object) -> Self:
        """Return a copy of this preset with the given values; a value of None keeps the preset's own."""
        chosen = {name: value for name, value in values.items() if value is not None}
        if chosen.get("layers", "all") not in ("all", "upper_half", "upper_third"):
            raise LayoutMismatch(f"--layers takes all, upper_half or upper_third, not {chosen['layers']}")
        return replace(self, **chosen)  # type: ignore[arg-type]

    def policy(self, *, clients: int) -> Policy:
        return Policy(
            rounds=self.rounds,
            clients_expected=clients,
            local_steps=self.local_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            deadline_seconds=1800,
        )


PRESETS = {
    "smollm2-135m": Preset(groups=64),
    "gemma-3-270m": Preset(groups=64),
}


def preset_for(model: str) -> Preset:
    """Return the measured preset of a catalogue model; for another model one group, which divides every hidden size."""
    return PRESETS.get(model, Preset(groups=1))
