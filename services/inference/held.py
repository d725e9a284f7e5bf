"""One version of one task as it is held. Knows nothing of where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from ifed.contracts import AdapterMeta

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True, eq=False)
class Adapter(Generic[Loaded]):
    """One version of one task, ready for the model. Never changed; a newer version is another object."""

    digest: str
    meta: AdapterMeta
    loaded: Loaded
    size: int


@dataclass(slots=True)
class Held(Generic[Loaded]):
    """An adapter, and until when on the clock of `monotonic` it counts as fresh."""

    adapter: Adapter[Loaded]
    fresh_until: float
