"""Questions to a bank in 77 intents, written for this repository: a task with many labels whose texts are real sentences."""

from __future__ import annotations

import itertools
import re
from functools import cache
from pathlib import Path

import numpy as np

from ifed.messages.texts import LabelledText

SENTENCES = 4  # of each intent; the last one is held out, so that a test text shares no wording with training


@cache
def sentences_by_intent() -> dict[str, list[str]]:
    """Return the sentences of each intent, by its name."""
    lines = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    size = SENTENCES + 1
    return {lines[start]: lines[start + 1 : start + size] for start in range(0, len(lines), size)}


def variants(sentence: str) -> list[str]:
    """Return a sentence with each choice of its alternatives, which stand in braces: `{a|b} c` is `a c` and `b c`."""
    parts = [part.split("|") for part in re.split(r"[{}]", sentence)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def intent_texts(*, held_out: bool = False, most: int = 2, seed: int = 0) -> list[LabelledText[int]]:
    """Return texts of every intent, in their order: up to `most` variants of each training sentence, or of the held-out one."""
    generator = np.random.default_rng(seed)
    texts = []
    for label, sentences in enumerate(sentences_by_intent().values()):
        for sentence in sentences[-1:] if held_out else sentences[:-1]:
            choices = variants(sentence)
            texts += [LabelledText(choices[place], label) for place in generator.permutation(len(choices))[:most]]
    return texts
