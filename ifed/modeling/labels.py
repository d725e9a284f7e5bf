"""The labels of a task as tokens, and the prefix tree that these form."""

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

    The probability of a label is the product of its tokens'. The tokens are the edges of a tree whose inner nodes are the prefixes that
    labels share, with the empty one at the root; the model's distribution at a node is needed once, however many labels pass it.

    Attributes:
        names: the labels, in the order of the task.
        ids: the tokens of each, one or more.

    Raises:
        BadTemplate: there are fewer than two labels, one has no tokens, two have the same tokens, or one is a prefix of another.
    """

    names: tuple[str, ...]
    ids: tuple[Tokens, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise BadTemplate(f"a task has at least two labels, got {list(self.names)}")
        for name, tokens in zip(self.names, self.ids, strict=True):
            if not tokens:
                raise BadTemplate(f"the label {name!r} has no tokens; a label is at least one character that is not white space")
        in_order = sorted(zip(self.names, self.ids, strict=True), key=lambda label: label[1])
        for (name, tokens), (other, other_tokens) in itertools.pairwise(in_order):  # a label comes right before those it begins
            if tokens == other_tokens:
                raise BadTemplate(f"the labels {name!r} and {other!r} are the same tokens; rename one of them")
            if other_tokens[: len(tokens)] == tokens:
                raise BadTemplate(
                    f"the label {name!r} is a prefix of the label {other!r}, so scores cannot separate them; rename one of them"
                )

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], *, after: str, space: str = " ") -> LabelTokens:
        """Tokenise each label as it follows text that ends in `after`, with `space` between the two.

        Raises:
            BadTemplate: as the class; or a label has white space around it, or merges with the token before it.
        """
        before = tuple(tokenizer(after, add_special_tokens=False).input_ids)
        ids: list[Tokens] = []
        for name in names:
            if name != name.strip():
                raise BadTemplate(f"the label {name!r} has white space around it; it follows the prompt after exactly one space")
            combined = tuple(tokenizer(f"{after}{space}{name}", add_special_tokens=False).input_ids)
            if combined[: len(before)] != before:
                raise BadTemplate(
                    f"after {after!r} the label {name!r} merges with the token before it; end the template differently"
                )
            ids.append(combined[len(before) :] if name else ())
        return cls(tuple(names), tuple(ids))

    @cached_property
    def children(self) -> dict[Tokens, Tokens]:
        """The tokens that may follow at each inner node, in rising order of their ids, independent of the order of the labels."""
        following: dict[Tokens, set[int]] = {}
        for tokens in self.ids:
            for length, token in enumerate(tokens):
                following.setdefault(tokens[:length], set()).add(token)
        return {node: tuple(sorted(following[node])) for node in sorted(following)}

    @cached_property
    def extensions(self) -> tuple[Tokens, ...]:
        """The fewest nodes that, each appended to a prompt, contain every inner node as a prefix."""
        nodes = list(self.children)  # in order, so that a node comes right before those that it begins
        return tuple(node for node, after in zip(nodes, [*nodes[1:], ()], strict=True) if after[: len(node)] != node or not after)

    @cached_property
    def nodes_by_extension(self) -> tuple[tuple[Tokens, ...], ...]:
        """The inner nodes that are read from each of `extensions`, shortest first; every node once."""
        unassigned = set(self.children)
        assigned: list[tuple[Tokens, ...]] = []
        for extension in self.extensions:
            nodes = [extension[:length] for length in range(len(extension) + 1) if extension[:length] in unassigned]
            unassigned.difference_update(nodes)
            assigned.append(tuple(nodes))
        return tuple(assigned)

    def log_priors(self, weights: Sequence[float]) -> dict[Tokens, dict[int, float]]:
        """Return the log prior of each edge given its node, for labels of these weights.

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
