"""Where each family adds to its residual stream, and the refusal of those we do not know."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, GPTNeoXConfig

from ifed.errors import UnsupportedFamily
from ifed.modeling.batching import Batch, Row
from ifed.modeling.families import FAMILIES, family_of
from ifed.modeling.hooks import capture, final_hidden, layer_input
from testing.random_models import FAMILY_NAMES, HIDDEN, build, build_model


def test_every_known_family_is_tested() -> None:
    assert set(FAMILIES) == set(FAMILY_NAMES)


def test_an_unknown_family_is_refused_by_name() -> None:
    config = GPTNeoXConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(UnsupportedFamily, match=r"'gpt_neox'.*known families: gemma2, gemma3_text, gpt2, llama"):
        family_of(AutoModelForCausalLM.from_config(config))


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(UnsupportedFamily, match="no language-model head"):
        family_of(AutoModel.from_config(build_model("llama").config))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_residual_stream_is_the_sum_of_what_the_sites_give(family: str) -> None:
    lm = build(family, dtype=torch.float64)
    batch = Batch.of([Row.for_last_token((1, 5, 300, 17, 42))], layout="padded")
    with torch.no_grad():
        with capture(lm, range(lm.num_layers)) as captured:
            final_hidden(lm, batch)
        entered = [layer_input(lm, layer, batch) for layer in range(lm.num_layers)]
    for layer in range(lm.num_layers - 1):
        added = captured.outputs[layer, 0] + captured.outputs[layer, 1]
        assert added.shape == (1, 5, HIDDEN)
        torch.testing.assert_close(entered[layer] + added, entered[layer + 1], rtol=1e-12, atol=1e-12)
