"""The files of the project, parsed once, with what they import and define."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
CODE = ("ifed", "services")
TESTS = ("tests", "benchmarks/tests")
LEFT_OUT = {
    ".git", ".venv", ".demo", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".import_linter_cache", ".hypothesis", "__pycache__", "build", "dist", "site",
}  # fmt: skip
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file; `path` is relative to the root of the repository."""

    path: str
    text: str = field(repr=False)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        """The dotted name under which it is imported."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def in_files(self, *patterns: str) -> bool:
        return any(_matches(self.path, pattern) for pattern in patterns)


def _matches(path: str, pattern: str) -> bool:
    if pattern.endswith("/**"):
        return path.startswith(pattern.removesuffix("**"))
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(PurePosixPath(part).match(piece) for part, piece in zip(parts, wanted, strict=True))


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Return every Python file under `folders`, by path."""
    return tuple(
        Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if LEFT_OUT.isdisjoint(path.relative_to(ROOT).parts)
    )


def files_matching(*patterns: str) -> list[Source]:
    """Return the files of `ifed` and `services` that match any pattern; `services/*/app.py` matches one level, `ifed/**` all below."""
    return [source for source in sources(*CODE) if source.in_files(*patterns)]


@cache
def published() -> tuple[Path, ...]:
    """Return every file that is or will be part of the repository: what git tracks, or would if it were added."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0:
        paths = [ROOT / line for line in listing.stdout.splitlines()]
    else:  # a source archive without its history
        paths = [path for path in ROOT.rglob("*") if LEFT_OUT.isdisjoint(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in paths if path.is_file()))


def published_texts() -> Iterator[tuple[str, str]]:
    """Yield path and text of every published file that is text."""
    for path in published():
        try:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
