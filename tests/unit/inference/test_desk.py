"""Few-shot prompts are made once, and anew when the operator edits the file they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ifed.errors import BadData, IFedError, NoDemonstrations
from ifed.messages.bodies import AdapterBody
from services.inference.adapters import Adapter
from services.inference.demonstrations import Demonstration, DemonstrationFolder
from services.inference.preparation import Preprocessor
from services.inference.service import Prepared
from tests.unit.inference.fakes import body


class Reader:
    """Remembers the demonstrations it was shown; its prompts are their texts."""

    def __init__(self) -> None:
        self.shown: list[list[str]] = []

    def load_adapter(self, body: AdapterBody) -> str:
        return body.meta.task

    def bare(self, loaded: str) -> str:
        return loaded

    def few_shot(self, loaded: str, demonstrations: Sequence[Demonstration]) -> str:
        self.shown.append([one.text for one in demonstrations])
        return " ".join([*self.shown[-1], loaded])

    def prepare(self, loaded: str, text: str, *, truncate: bool) -> Prepared[str] | IFedError:
        return Prepared(loaded + text, 1, truncated=False)


ADAPTER = Adapter("digest", body("sentiment", 1).meta, "sentiment", 1)


def write(folder: Path, *texts: str) -> None:
    lines = (json.dumps({"text": text, "label": "yes"}) for text in texts)
    (folder / "sentiment.jsonl").write_text("\n".join(lines) + "\n")


async def test_demonstrations_are_read_once_and_anew_when_their_file_is_edited(tmp_path: Path) -> None:
    reader = Reader()
    desk = Preprocessor(reader, DemonstrationFolder(tmp_path))
    write(tmp_path, "one", "two", "three")
    for _ in range(2):
        assert await desk.few_shot(ADAPTER, 2) == "one two sentiment"
    assert reader.shown == [["one", "two"]]
    write(tmp_path, "another", "two")
    assert await desk.few_shot(ADAPTER, 2) == "another two sentiment"
    write(tmp_path, "one", "two", "three")
    assert await desk.few_shot(ADAPTER, 2) == "one two sentiment"
    assert len(reader.shown) == 2, "the first prompt is known by what is in the file"
    await desk.close()


async def test_a_file_that_is_gone_too_short_or_not_text_is_told(tmp_path: Path) -> None:
    desk = Preprocessor(Reader(), DemonstrationFolder(tmp_path))
    with pytest.raises(NoDemonstrations, match="gave no demonstrations"):
        await desk.few_shot(ADAPTER, 1)
    write(tmp_path, "one")
    with pytest.raises(NoDemonstrations, match="has 1"):
        await desk.few_shot(ADAPTER, 2)
    (tmp_path / "sentiment.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(BadData, match="not UTF-8"):
        await desk.few_shot(ADAPTER, 1)
    (tmp_path / "sentiment.jsonl").write_text("\n{}\n")
    with pytest.raises(BadData, match="line 2"):
        await desk.few_shot(ADAPTER, 1)
    await desk.close()
