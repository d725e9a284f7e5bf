"""The shape of the code: openings, sizes, names, and silence on import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.house import rules
from tests.house.holding import below, hold
from tests.house.quiet_import import LOUD
from tests.house.sources import CODE, PYTHON, ROOT, Source, sources

# Each with its reason; a new line here needs one as good.
MAY_BE_LONG = {
    "services/aggregator/migrations/versions/0001_the_first_schema.py": "a migration is one list of statements, in order",
}


@below(*PYTHON)
def test_a_file_opens_with_one_sentence(source: Source) -> None:
    hold(rules.missing_opening(source))


@below(*PYTHON)
def test_a_file_is_named_for_its_job(source: Source) -> None:
    hold(rules.empty_names(source))


@below(*CODE)
def test_a_file_can_be_read_in_one_sitting(source: Source) -> None:
    hold(rules.too_long(source))


@below(*CODE)
def test_a_function_can_be_read_at_once(source: Source) -> None:
    if source.path not in MAY_BE_LONG:
        hold(rules.long_functions(source))


@below(*CODE)
def test_a_module_only_defines_names(source: Source) -> None:
    if source.path not in LOUD:
        hold(rules.acts_on_import(source))


@pytest.mark.parametrize("listed", [*LOUD, *MAY_BE_LONG])
def test_an_exception_names_a_file_that_is_there(listed: str) -> None:
    assert (ROOT / listed).is_file(), f"{listed} is gone; take it off the list of exceptions"


def test_importing_every_module_opens_nothing() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-B",
            "-m",
            "tests.house.quiet_import",
            *(source.module for source in sources(*CODE) if source.path not in LOUD),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"an import did more than define names:\n{done.stdout}{done.stderr[-2000:]}"


@below("tests")
def test_no_test_is_skipped_without_a_reason(source: Source) -> None:
    hold(rules.skips_without_reason(source))


@below("tests")
def test_tests_use_fakes_and_not_patches(source: Source) -> None:
    hold(rules.mocks(source))


@below("tests")
def test_a_test_is_named_for_its_claim(source: Source) -> None:
    names = [function.name for function in source.functions if function.name.startswith("test")]
    short = [name for name in names if len(name.split("_")) < 4]
    assert not short, (
        f"{source.path}: {', '.join(short)}: a name is a claim in words, like test_a_closed_round_refuses_a_late_update"
    )
