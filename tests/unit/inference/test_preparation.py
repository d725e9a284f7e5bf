"""Few-shot prompts are built once, and again when the file of demonstrations changes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ifed.errors import BadData, NoDemonstrations
from services.inference.adapters import Adapter
from services.inference.demonstrations import DemonstrationFolder
from services.inference.preparation import CHUNK_CHARACTERS, Preprocessor
from tests.unit.inference.fakes import FakeScorer, body

LOADED: Any = "version 1"
ADAPTER = Adapter("digest", body("sentiment", 1).meta, LOADED, 1)


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer()


@pytest.fixture
async def preprocessor(scorer: FakeScorer, tmp_path: Path) -> AsyncIterator[Preprocessor]:
    preprocessor = Preprocessor(scorer, DemonstrationFolder(tmp_path))
    yield preprocessor
    await preprocessor.close()


def write(folder: Path, *texts: str) -> None:
    lines = (json.dumps({"text": text, "label": "yes"}) for text in texts)
    (folder / "sentiment.jsonl").write_text("\n".join(lines) + "\n")


async def test_a_few_shot_prompt_is_built_once_for_each_content_of_the_file(
    preprocessor: Preprocessor, scorer: FakeScorer, tmp_path: Path
) -> None:
    write(tmp_path, "one", "two", "three")
    for _ in range(2):
        assert await preprocessor.few_shot(ADAPTER, 2) == "one two"
    assert scorer.few_shot_prompts == [["one", "two"]]
    write(tmp_path, "another", "two")
    assert await preprocessor.few_shot(ADAPTER, 2) == "another two"
    write(tmp_path, "one", "two", "three")
    assert await preprocessor.few_shot(ADAPTER, 2) == "one two"
    assert len(scorer.few_shot_prompts) == 2, "the first prompt is found again by the digest of the file"


async def test_a_file_with_a_byte_order_mark_is_read(preprocessor: Preprocessor, tmp_path: Path) -> None:
    (tmp_path / "sentiment.jsonl").write_text('{"text": "one", "label": "yes"}\n', encoding="utf-8-sig")
    assert await preprocessor.few_shot(ADAPTER, 1) == "one"


async def test_a_missing_short_or_malformed_file_is_refused(preprocessor: Preprocessor, tmp_path: Path) -> None:
    with pytest.raises(NoDemonstrations, match="has no demonstrations"):
        await preprocessor.few_shot(ADAPTER, 1)
    write(tmp_path, "one")
    with pytest.raises(NoDemonstrations, match="has 1"):
        await preprocessor.few_shot(ADAPTER, 2)
    (tmp_path / "sentiment.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(BadData, match="not UTF-8"):
        await preprocessor.few_shot(ADAPTER, 1)
    (tmp_path / "sentiment.jsonl").write_text("\n{}\n")
    with pytest.raises(BadData, match="line 2"):
        await preprocessor.few_shot(ADAPTER, 1)
    (tmp_path / "sentiment.jsonl").write_text('{"text": "one", "label": "maybe"}\n')
    with pytest.raises(BadData, match="no label of the task"):
        await preprocessor.few_shot(ADAPTER, 1)


async def test_texts_of_several_chunks_keep_their_order(preprocessor: Preprocessor) -> None:
    texts = [letter * CHUNK_CHARACTERS for letter in "abc"]
    prepared = await preprocessor.prepare(LOADED, texts, truncate=True)
    assert [text.item for text in prepared] == texts  # type: ignore[union-attr]  # none is refused
