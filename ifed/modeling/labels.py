"""The labels of a task as tokens, and the tree their prefixes form. Knows no model and no text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ifed.errors import BadTemplate

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class LabelTokens:
    """The labels of a task, each as the tokens that follow a prompt.

    A label's probability is the product of its tokens'. The tokens are the edges of a tree whose inner nodes are the prefixes that
    labels share, the empty one at the root; what a model says at a node is needed once, however many labels pass it.

    Attributes:
        names: the labels, in the task's order.
        ids: the tokens of each, one or more.

    Raises:
        BadTemplate: fewer than two labels, one without tokens, two with the same tokens, or one whose tokens begin another's.
    """

    names: tuple[str, ...]
    ids: tuple[Tokens, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise BadTemplate(f"a task has two labels at least, got {list(self.names)}")
        for name, tokens in zip(self.names, self.ids, strict=True):
            if not tokens:
                raise BadTemplate(f"the label {name!r} has no tokens; a label is at least one character that is not white space")
        for (one, first), (other, second) in itertools.permutations(zip(self.names, self.ids, strict=True), 2):
            if first == second:
                raise BadTemplate(f"the labels {one!r} and {other!r} are the same tokens; rename one of them")
            if second[: len(first)] == first:
                raise BadTemplate(
                    f"the label {one!r} is how the label {other!r} begins, so no score tells them apart; rename one of them"
                )

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], *, after: str, space: str = " ") -> LabelTokens:
        """The tokens of ` label` as they follow text that ends in `after`; without a `space` where `after` ends in white space.

        Raises:
            BadTemplate: see the class; also a label with white space around it, or one that melts into the token before it.
        """
        before = tuple(tokenizer(after, add_special_tokens=False).input_ids)
        ids: list[Tokens] = []
        for name in names:
            if name != name.strip():
                raise BadTemplate(f"the label {name!r} has white space around it; it follows the prompt after exactly one space")
            whole = tuple(tokenizer(f"{after}{space}{name}", add_special_tokens=False).input_ids)
            if whole[: len(before)] != before:
                raise BadTemplate(f"after {after!r} the label {name!r} melts into the token before it; end the template otherwise")
            ids.append(whole[len(before) :] if name else ())
        return cls(tuple(names), tuple(ids))

    @cached_property
    def single(self) -> bool:
        """Each label is one token of its own: scored by those rows of the head alone."""
        return all(len(tokens) == 1 for tokens in self.ids)

    @cached_property
    def children(self) -> dict[Tokens, Tokens]:
        """Each inner node with the tokens that may follow there, in rising order of their ids, whatever the order of the labels."""
        following: dict[Tokens, set[int]] = {}
        for tokens in self.ids:
            for length, token in enumerate(tokens):
                following.setdefault(tokens[:length], set()).add(token)
        return {node: tuple(sorted(following[node])) for node in sorted(following)}

    @cached_property
    def rows(self) -> tuple[Tokens, ...]:
        """The fewest prefixes that must be appended to a prompt so that every inner node is the end of, or within, one of them."""
        nodes = list(self.children)
        return tuple(node for node in nodes if not any(other[: len(node)] == node and other != node for other in nodes))

    @cached_property
    def nodes_of_rows(self) -> tuple[tuple[Tokens, ...], ...]:
        """The inner nodes each of `rows` answers for, shortest first; every node once."""
        left = set(self.children)
        taken: list[tuple[Tokens, ...]] = []
        for row in self.rows:
            mine = [row[:length] for length in range(len(row) + 1) if row[:length] in left]
            left.difference_update(mine)
            taken.append(tuple(mine))
        return tuple(taken)

    def log_priors(self, weights: Sequence[float]) -> dict[Tokens, dict[int, float]]:
        """The log prior of each edge given its node, for labels of these weights.

        Args:
            weights: a positive number per label; they need not sum to 1.
        """
        mass: dict[Tokens, float] = {}
        for tokens, weight in zip(self.ids, weights, strict=True):
            for length in range(len(tokens) + 1):
                mass[tokens[:length]] = mass.get(tokens[:length], 0.0) + weight
        return {
            node: {token: math.log(mass[(*node, token)] / mass[node]) for token in tokens} for node, tokens in self.children.items()
        }
