"""MkDocs hooks: the site contains the files of benchmarks/results, outside of docs/, that a page links to."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

LINK = re.compile(r"\]\(\.\./benchmarks/results/(?P<path>[^)#\s]+)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the linked files under results/; a link to a file that does not exist is left to the link check of MkDocs."""
    results = Path(config.docs_dir).parent / "benchmarks/results"
    paths = {match["path"] for page in files.documentation_pages() for match in LINK.finditer(page.content_string)}
    for path in sorted(path for path in paths if (results / path).is_file()):
        files.append(
            File.generated(config, f"results/{path}", abs_src_path=str(results / path), inclusion=InclusionLevel.NOT_IN_NAV)
        )
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point the links to the place of the files in the site."""
    return LINK.sub(r"](results/\g<path>", markdown)
