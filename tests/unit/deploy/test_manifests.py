"""Every overlay renders to manifests without a fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.deploy import configuration_checks, manifest_checks
from tests.unit.deploy.manifests import OVERLAYS, Manifests, rendered

pytestmark = pytest.mark.slow

CHECKS = (
    manifest_checks.unknown_to_kubernetes,
    manifest_checks.unknown_ports,
    manifest_checks.empty_selectors,
    manifest_checks.excess_privileges,
    configuration_checks.wrong_settings,
    configuration_checks.missing_references,
    configuration_checks.wrong_addresses,
)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_overlay_passes_every_check(overlay: str, check: Callable[[Manifests], list[str]]) -> None:
    faults = check(rendered(overlay))
    assert not faults, "\n".join(faults)
