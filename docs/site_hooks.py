"""MkDocs hooks: the site contains the files of benchmarks/results, outside of docs/, that a page links to."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

LINK = re.compile(r"\]\(\.\./benchmarks/results/(?P<path>[^)#\s]+)")
IMAGE = re.compile(r"!\[[^\]]*\]\((?P<path>[^)\s]+)\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the linked files under results/, and the images of those that are pages; MkDocs reports links to files that do not exist."""
    results = Path(config.docs_dir).parent / "benchmarks/results"
    paths = {results / match["path"] for page in files.documentation_pages() for match in LINK.finditer(page.content_string)}
    pages = [path for path in paths if path.suffix == ".md" and path.is_file()]
    paths |= {page.parent / match["path"] for page in pages for match in IMAGE.finditer(page.read_text(encoding="utf-8"))}
    for path in sorted(path for path in paths if path.is_file()):
        name = f"results/{path.relative_to(results).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point the links to the place of the files in the site."""
    return LINK.sub(r"](results/\g<path>", markdown)
