"""Every overlay renders, and nothing in it is unknown, lost, idle, missing or more than is needed."""

from __future__ import annotations

import pytest

from tests.unit.deploy import faults, given
from tests.unit.deploy.manifests import OVERLAYS, rendered

LOOKS = (
    faults.unknown_to_kubernetes,
    faults.lost_ports,
    faults.idle_selectors,
    faults.needless_rights,
    given.unread_settings,
    given.missing,
    given.wrong_address,
)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.__name__)
def test_an_overlay_has_no_fault(overlay: str, look) -> None:
    found = look(rendered(overlay))
    assert not found, "\n".join(found)
