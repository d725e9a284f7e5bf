"""Adapters in a folder are named by their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifed.errors import Malformed, UnknownTask, UnknownVersion
from services.inference.adapter_folder import AdapterFolder
from tests.unit.inference.fakes import body


async def test_a_renamed_file_is_a_task_of_its_new_name(tmp_path: Path) -> None:
    (tmp_path / "mood.safetensors").write_bytes(body("sentiment", 3).to_bytes())
    folder = AdapterFolder(tmp_path)
    assert folder.tasks() == ["mood"]
    answer = await folder.adapter("mood")
    assert answer is not None
    digest, adapter = answer
    assert (adapter.meta.task, adapter.meta.version) == ("mood", 3)
    assert await folder.adapter("mood", known=digest) is None
    with pytest.raises(UnknownTask):
        await folder.adapter("sentiment")


async def test_a_version_other_than_its_files_name_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mood@7.safetensors").write_bytes(body("mood", 8).to_bytes())
    with pytest.raises(Malformed, match=r"mood@7.safetensors holds version 8, not 7; rename it"):
        await AdapterFolder(tmp_path).adapter("mood", version=7)
    with pytest.raises(UnknownVersion):
        await AdapterFolder(tmp_path).adapter("mood", version=8)
