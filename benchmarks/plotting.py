"""Plots as PNG and SVG; the same data give the same bytes."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

TEXT_COLOUR, GRID_COLOUR = "#1f2933", "#d9dee4"
STYLE = {"svg.hashsalt": "ifed", "font.size": 8, "axes.edgecolor": TEXT_COLOUR, "text.color": TEXT_COLOUR}
DOTS_PER_INCH = 130


def save(figure: Figure, folder: Path, name: str, title: str) -> Iterator[Path]:
    """Write `name`.png and `name`.svg and yield their paths; the SVG carries `title` for screen readers."""
    with mpl.rc_context(STYLE):
        png, svg = folder / f"{name}.png", folder / f"{name}.svg"
        figure.savefig(png, dpi=DOTS_PER_INCH)
        yield png
        figure.savefig(svg, metadata={"Date": None})
        drawing = svg.read_text(encoding="utf-8")
        svg.write_text(drawing.replace("<metadata>", f"<title>{html.escape(title)}</title>\n <metadata>", 1), encoding="utf-8")
        yield svg
