"""The project's files, parsed once, with what they import and define. Judges nothing."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
CODE = ("ifed", "services")
PYTHON = (*CODE, "tests", "benchmarks")
LEFT_OUT = {".git", ".venv", ".demo", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "__pycache__", "build", "dist"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One imported name: `sqlalchemy.select` for `from sqlalchemy import select`."""

    name: str
    line: int

    def under(self, *roots: str) -> bool:
        return any(self.name == root or self.name.startswith(f"{root}.") for root in roots)


@dataclass(frozen=True)
class Source:
    """One Python file; `path` is relative to the root of the repository."""

    path: str
    text: str = field(repr=False)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def module(self) -> str:
        """The dotted name it is imported by."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def imports(self) -> list[Import]:
        """All imports, those inside functions too."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [Import(alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [Import(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
        return found

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
    """Every Python file under `folders`, by path."""
    return tuple(
        Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if LEFT_OUT.isdisjoint(path.relative_to(ROOT).parts)
    )


def files_matching(*patterns: str) -> list[Source]:
    """The code files that match any pattern; `services/*/app.py` matches one level, `ifed/**` everything below."""
    return [source for source in sources(*CODE) if source.in_files(*patterns)]


@cache
def published() -> tuple[Path, ...]:
    """Every file that is or will be part of the repository: what git tracks, or would if it were added."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0:
        paths = [ROOT / line for line in listing.stdout.splitlines()]
    else:  # a source archive without its history
        paths = [path for path in ROOT.rglob("*") if LEFT_OUT.isdisjoint(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in paths if path.is_file()))


def published_texts() -> Iterator[tuple[str, str]]:
    """Path and text of every published file that is text."""
    for path in published():
        try:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def reached_from(start: str) -> dict[str, str]:
    """Every import reached from a module, imports inside functions too, with the project's file that names it."""
    known = {source.module: source for source in sources(*CODE)}
    reached: dict[str, str] = {}
    waiting, seen = [start], set[str]()
    while waiting:
        module = waiting.pop()
        if module in seen or module not in known:
            continue
        seen.add(module)
        for found in known[module].imports:
            reached.setdefault(found.name, f"{known[module].path}:{found.line}")
            waiting += [found.name, *_packages_of(found.name)]
    return reached


def _packages_of(name: str) -> list[str]:
    """Importing `a.b.c` also runs `a` and `a.b`."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]
