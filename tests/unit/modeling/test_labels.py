"""Labels as tokens: their prefix tree, their priors, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifed.errors import BadTemplate
from ifed.modeling.labels import LabelTokens
from ifed.modeling.prompts import PromptTemplate
from testing.random_models import TEMPLATE, build_tokenizer


def test_labels_of_several_tokens_share_their_beginning() -> None:
    labels = PromptTemplate(TEMPLATE, build_tokenizer()).labels(["topic sport", "positive", "topic science"])
    topic = labels.ids[0][:1]
    assert labels.ids[2][:1] == topic
    assert labels.extensions == (topic,), "one row serves the root and what follows the shared token"
    assert labels.nodes_by_extension == (((), topic),)


def test_single_tokens_need_the_bare_prompt_alone() -> None:
    labels = PromptTemplate(TEMPLATE, build_tokenizer()).labels(["positive", "negative"])
    assert labels.extensions == ((),)


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=2, max_size=8, unique=True).filter(
        lambda ids: not any(row != other and other[: len(row)] == row for row in ids for other in ids)
    )
)
def test_every_inner_node_is_read_once_and_within_its_row(ids: list[tuple[int, ...]]) -> None:
    labels = LabelTokens(tuple(map(str, ids)), tuple(ids))
    answered = [node for nodes in labels.nodes_by_extension for node in nodes]
    assert sorted(answered) == sorted({label[:length] for label in ids for length in range(len(label))})
    for row, nodes in zip(labels.extensions, labels.nodes_by_extension, strict=True):
        assert all(row[: len(node)] == node for node in nodes)
    assert not any(
        extension != other and other[: len(extension)] == extension
        for extension in labels.extensions
        for other in labels.extensions
    ), "no row within another"


def test_priors_are_conditional_at_each_node_of_the_tree() -> None:
    labels = LabelTokens(("a", "b", "c"), ((5,), (6, 1), (6, 2)))
    priors = labels.log_priors([2, 1, 1])
    assert priors[()] == pytest.approx({5: -0.6931, 6: -0.6931}, abs=1e-4)
    assert priors[(6,)] == pytest.approx({1: -0.6931, 2: -0.6931}, abs=1e-4)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["positive"], "at least two labels"),
        (["positive", ""], "has no tokens"),
        (["positive", "positive"], "are the same tokens"),
        (["topic", "topic sport"], "'topic' is a prefix of the label 'topic sport'"),
        (["positive", " negative"], "white space around it"),
        (["positive", "good " * 40 + "bad"], "32 at most"),
    ],
)
def test_labels_that_cannot_be_scored_are_refused_by_name(names: list[str], match: str) -> None:
    with pytest.raises(BadTemplate, match=match):
        PromptTemplate(TEMPLATE, build_tokenizer()).labels(names)
