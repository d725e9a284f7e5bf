"""Which clients a round asks. Pure: the same task, round and members give the same clients, on every machine and again later."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def sample(members: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of the members by name, drawn without replacement by the sha256 of seed and name; all of them when they are no more.

    A member that joins or leaves changes the place of no other one, so a round that is repeated with the same seed asks the same
    clients as far as they are still there.
    """
    ranked = sorted(members, key=lambda member: hashlib.sha256(f"{seed}/{member}".encode()).digest())
    return sorted(ranked[:count])
