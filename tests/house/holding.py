"""Turns rules into tests: one for each file, failing with one sentence a violation."""

from __future__ import annotations

import pytest

from tests.house.sources import files_matching, sources


def hold(violations: list[str]) -> None:
    """Fail with one sentence a violation."""
    __tracebackhide__ = True
    if violations:
        pytest.fail("\n".join(violations), pytrace=False)


def matching(*patterns: str) -> pytest.MarkDecorator:
    """The test once for each code file that matches; no match is a mistake in the patterns."""
    found = files_matching(*patterns)
    assert found, f"no file matches {patterns}: the room table names files that are gone"
    return pytest.mark.parametrize("source", found, ids=lambda source: source.path)


def below(*folders: str) -> pytest.MarkDecorator:
    """The test once for each Python file below `folders`."""
    return pytest.mark.parametrize("source", sources(*folders), ids=lambda source: source.path)
