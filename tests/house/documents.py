"""Markdown read for what it promises: links, headings, commands, table rows, settings. Judges nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from tests.house.sources import ROOT, published

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```", re.M | re.S)
LINK = re.compile(r"!?\[(?P<words>[^\]]*)\]\((?P<target>[^)\s]+)\)")
IMAGE = re.compile(r"!\[(?P<words>[^\]]*)\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^(?P<level>#+) +(?P<words>.+?) *$", re.M)
SHELL = ("bash", "sh", "console", "shell")
PLACEHOLDER = re.compile(r"<<\w+>>")


@dataclass(frozen=True)
class Document:
    """One Markdown file; `path` is relative to the root of the repository."""

    path: str
    text: str = field(repr=False)

    @cached_property
    def prose(self) -> str:
        """The text without its code blocks and code spans."""
        return re.sub(r"`[^`\n]+`", "``", FENCE.sub("", self.text))

    @cached_property
    def links(self) -> list[str]:
        return [match["target"] for match in LINK.finditer(self.prose)]

    @cached_property
    def images(self) -> list[tuple[str, str]]:
        """Alternative text and target."""
        return [(match["words"], match["target"]) for match in IMAGE.finditer(self.prose)]

    @cached_property
    def anchors(self) -> set[str]:
        """What `#…` may name here, as the common Markdown hosts make it."""
        return {anchor(match["words"]) for match in HEADING.finditer(FENCE.sub("", self.text))}

    @cached_property
    def shell(self) -> list[str]:
        """Every line of the shell blocks, continued lines joined, prompts and comments left out."""
        blocks = [match["body"] for match in FENCE.finditer(self.text) if match["language"] in SHELL]
        joined = "\n".join(re.sub(r"\\\n\s*", " ", block) for block in blocks)
        return [
            line.strip().removeprefix("$ ") for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")
        ]

    @cached_property
    def spans(self) -> list[str]:
        """Code spans in the prose."""
        return re.findall(r"`([^`\n]+)`", FENCE.sub("", self.text))

    def rows(self, section: str = "") -> list[tuple[str, ...]]:
        """Cells of every table row, headings and rules left out; of one section alone when it is named."""
        text = self.section(section) if section else self.text
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
        cells = [tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines]
        return [row for row in cells if not all(set(cell) <= set(":- ") for cell in row)]

    def section(self, heading: str) -> str:
        """The text under a heading, up to the next of its level or a higher one; empty when there is none."""
        heading_match = next((match for match in HEADING.finditer(self.text) if match["words"] == heading), None)
        if heading_match is None:
            return ""
        rest = self.text[heading_match.end() :]
        end = re.search(rf"^#{{1,{len(heading_match['level'])}}} ", rest, re.M)
        return rest[: end.start()] if end else rest


def anchor(heading: str) -> str:
    """The anchor of a heading: lower case, spaces to dashes, no punctuation."""
    words = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def documents() -> list[Document]:
    """Every published Markdown file."""
    return [
        Document(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in published()
        if path.suffix == ".md"
    ]


def document(path: str) -> Document:
    """One Markdown file; an empty one when it is not there, so that every rule on it fails with its own words."""
    file = ROOT / path
    return Document(path, file.read_text(encoding="utf-8") if file.is_file() else "")


def make_targets(makefile: str) -> set[str]:
    """Targets that a person types."""
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))


def make_variables(makefile: str) -> set[str]:
    """Variables that a person gives to make."""
    return set(re.findall(r"\$\(([A-Z]+)\)", makefile))


def made(document: Document) -> Iterator[str]:
    """Targets of every `make …` that a document names."""
    for line in [*document.shell, *document.spans]:
        for match in re.finditer(r"(?:^|&& )make(?: +[A-Z]+=\S+)* +([a-z][\w-]*)", line):
            yield match[1]
