"""A caller's look-ups are counted by the minute."""

from __future__ import annotations

import pytest

from ifed.errors import Overloaded
from services.inference.lookup_limit import LookupLimit


def test_a_caller_has_its_look_ups_again_when_the_minute_is_over() -> None:
    now = [1000.0]
    limit = LookupLimit(2, clock=lambda: now[0])
    limit.count("one")
    now[0] = 1055.5
    limit.count("one")
    with pytest.raises(Overloaded) as refused:
        limit.count("one")
    assert refused.value.retry_after == 5
    limit.count("two")
    now[0] = 1060.0
    limit.count("one")
