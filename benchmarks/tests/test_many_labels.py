"""A task of 77 intents on a real model: too long for `make test`, whose own test of it has a random model."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ifed.downloads import cache_folder
from ifed.modeling.loading import load
from services.client_agent.model import LocalModel
from testing.intents import intent_texts
from tests.integration.aggregator.deployment import Deployment
from tests.integration.federation.test_label_head import accuracy, federate, served_scores
from tests.integration.federation.test_many_labels import LIMITS, deployment, splits, task_spec

__all__ = ["deployment"]


@pytest.mark.model
@pytest.mark.timeout(900)
async def test_smollm2_tells_77_intents_by_sentences_that_it_was_not_trained_on(deployment: Deployment, tmp_path: Path) -> None:
    cache = os.environ.get("MODEL_CACHE")
    model = load("smollm2-135m", cache=cache_folder(Path(cache) if cache else None), dtype="float32")
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # the three agents share the model, one after the other
    held_out = intent_texts(held_out=True, most=1)
    await federate(
        deployment,
        tmp_path,
        task_spec(solver="sums", local_steps=1),
        splits(intent_texts(most=1), intent_texts(held_out=True, most=1, seed=1)),
        new_model=lambda: LocalModel(model),
        limits=LIMITS,
    )
    assert accuracy(await served_scores(deployment, model, held_out), held_out) > 7 / 77, "seven times what guessing has"
