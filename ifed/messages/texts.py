"""Labelled texts: demonstrations, training examples and held-out texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

LabelT = TypeVar("LabelT", int, str)


@dataclass(frozen=True, slots=True)
class LabelledText(Generic[LabelT]):
    """A text and its label: the label's name, or its index among the task's labels."""

    text: str
    label: LabelT
