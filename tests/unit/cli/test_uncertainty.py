"""Intervals and tests against published or hand-worked numbers, and what the demo says of a difference."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ifed.cli.demo.corpora import Organisation
from ifed.cli.demo.measure import Accuracy, Outcome
from ifed.cli.demo.uncertainty import PairedComparison, exact_mcnemar, wilson_interval
from ifed.messages.texts import LabelledText


def test_the_interval_is_wilsons() -> None:
    # By hand for 8 of 10 with z = 2: centre 0.8 + 4/20 = 1, margin 2·√(0.016 + 0.01) = 0.32249, both over 1.4.
    assert wilson_interval(8, 10, z=2) == pytest.approx(((1 - 2 * math.sqrt(0.026)) / 1.4, (1 + 2 * math.sqrt(0.026)) / 1.4))
    # R. G. Newcombe, Stat. Med. 17, 1998, pp. 857-872, table I.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(ValueError, match="no texts"):
        wilson_interval(0, 0)


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_an_interval_holds_its_share_and_mirrors(counts: tuple[int, int]) -> None:
    correct, total = counts
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    mirrored = wilson_interval(total - correct, total)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))


def test_the_test_is_exact() -> None:
    assert exact_mcnemar(0, 0) == 1.0
    assert exact_mcnemar(5, 5) == 1.0
    assert exact_mcnemar(0, 5) == 2 / 32
    assert exact_mcnemar(1, 6) == exact_mcnemar(6, 1) == 2 * (1 + 7) / 128


def test_two_texts_are_no_evidence_and_twenty_are() -> None:
    right, wrong = [True] * 400, [False] * 100
    first, second = right + wrong, [*right, True, True, *wrong[2:]]
    assert PairedComparison.of(first, second) == PairedComparison(500, 0, 2)
    assert PairedComparison.of(first, second).verdict("a", "b") == "no evidence of a difference"
    assert PairedComparison.of(first, right + [True] * 20 + wrong[20:]).verdict("a", "b") == "evidence for b"
    with pytest.raises(ValueError, match="longer"):
        PairedComparison.of(right, first)


def test_the_table_of_the_demo_fits_80_columns_and_cuts_no_name() -> None:
    names = ("tweets", "movie-reviews", "product-reviews", "editorials")
    organisations = [Organisation(name, Path(name), 200, (LabelledText("a", "negative"),) * 125) for name in names]
    accuracies = dict.fromkeys(names, Accuracy.of([True] * 100 + [False] * 25))
    terminal = Console(width=80, file=io.StringIO())
    terminal.print(Outcome(organisations, base=accuracies, federated=accuracies, alone=accuracies).table())
    assert isinstance(terminal.file, io.StringIO)
    shown = terminal.file.getvalue()
    assert all(name in shown for name in names)
    assert shown.count("76–83 %") == 3


def outcome(together: list[bool], alone: list[bool]) -> Outcome:
    organisation = Organisation("tweets", Path("tweets"), 10, (LabelledText("a", "negative"),) * len(together))
    return Outcome(
        [organisation],
        base={"tweets": Accuracy.of([False] * len(together))},
        federated={"tweets": Accuracy.of(together)},
        alone={"tweets": Accuracy.of(alone)},
    )


def test_the_demo_says_when_together_and_alone_cannot_be_told_apart() -> None:
    against_base, against_alone = outcome([True] * 18 + [False] * 2, [True] * 16 + [False] * 4).conclusions()
    assert (
        "the four together 90.0 % (69.9 to 97.2 %), calibrated alone 80.0 % (58.4 to 91.9 %): no evidence of a difference"
        in against_alone
    )
    assert "2 were right only with the four together and 0 only with calibrated alone" in against_alone
    assert "evidence for the four together (exact McNemar test, p = 7.6e-06" in against_base
