"""Where files that can be had again are kept on this machine. Knows no service."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_cache_path


def cache_folder(given: Path | None = None) -> Path:
    """The folder of downloads and converted models: `given`, or one in the user's cache that all clones and services share."""
    return given if given is not None else user_cache_path("ifed-icl", appauthor=False)
