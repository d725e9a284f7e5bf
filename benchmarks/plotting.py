"""Figures as PNG and SVG, the same bytes from the same figures. Measures nothing."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

INK, GRID = "#1f2933", "#d9dee4"
STYLE = {"svg.hashsalt": "ifed", "font.size": 8, "axes.edgecolor": INK, "text.color": INK}
DOTS = 130  # per inch


def save(figure: Figure, folder: Path, name: str, title: str) -> Iterator[Path]:
    """Write `name`.png and `name`.svg, the latter with a title that a screen reader reads out. Yields the paths that were written."""
    with mpl.rc_context(STYLE):
        raster, vector = folder / f"{name}.png", folder / f"{name}.svg"
        figure.savefig(raster, dpi=DOTS)
        yield raster
        figure.savefig(vector, metadata={"Date": None})
        drawn = vector.read_text(encoding="utf-8")
        vector.write_text(drawn.replace("<metadata>", f"<title>{html.escape(title)}</title>\n <metadata>", 1), encoding="utf-8")
        yield vector
