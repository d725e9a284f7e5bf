"""How certain an accuracy is, and whether two of them on the same texts differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054  # the 0.975 quantile of the normal distribution
SIGNIFICANT = 0.05


def wilson_interval(correct: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Return the score interval of a share, by default of 95 % (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927, p. 209).

    Raises:
        ValueError: there are no trials.
    """
    if total <= 0:
        raise ValueError("there is no interval of no texts")
    share = correct / total
    centre = share + z**2 / (2 * total)
    margin = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    # Both ends are exact there; the formula would give them up to rounding.
    return (centre - margin) / scale if correct else 0.0, (centre + margin) / scale if correct < total else 1.0


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's test in its exact form (Q. McNemar, Psychometrika 12, 1947, p. 153).

    Under the null hypothesis each text that only one of two classifiers got right is as likely the one's as the other's: a sign test
    with probability 1/2.

    Args:
        only_first: texts that only the first classifier got right.
        only_second: texts that only the second got right.
    """
    differing = only_first + only_second
    tail = sum(math.comb(differing, count) for count in range(min(only_first, only_second) + 1))
    return float(min(1.0, 2 * tail / 2**differing))


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two classifiers on the same texts.

    Attributes:
        texts: the number of texts.
        only_first: texts that only the first classifier got right.
        only_second: texts that only the second got right.
    """

    texts: int
    only_first: int
    only_second: int

    @staticmethod
    def of(first: Sequence[bool], second: Sequence[bool]) -> PairedComparison:
        """Return the comparison of two lists that say for each text, in the same order, whether it was right.

        Raises:
            ValueError: they are of different length.
        """
        pairs = list(zip(first, second, strict=True))
        return PairedComparison(
            len(pairs), sum(right and not other for right, other in pairs), sum(other and not right for right, other in pairs)
        )

    @property
    def p_value(self) -> float:
        """The probability of a difference this large or larger if the two were equally good."""
        return exact_mcnemar(self.only_first, self.only_second)

    def verdict(self, first: str, second: str) -> str:
        """Name the better classifier, or say that there is no evidence of a difference."""
        if self.p_value >= SIGNIFICANT:
            return "no evidence of a difference"
        return f"evidence for {first if self.only_first > self.only_second else second}"
