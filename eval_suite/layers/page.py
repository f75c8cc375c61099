"""The page layers.html: a heat map of checkpoints by blocks for each quantity, in one self-contained file."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, LogNorm, Normalize, TwoSlopeNorm
from matplotlib.ticker import LogLocator, ScalarFormatter
from numpy.typing import NDArray

from eval_suite.layers import bending
from eval_suite.layers.conclusion import conclusion
from eval_suite.layers.quantities import QUANTITIES, Quantity
from eval_suite.report.figures import INK, hide_axes, svg
from eval_suite.report.pages import template

PLAIN, AROUND = "viridis", "RdYlBu_r"
"""Colour maps of quantities without and with a reference value."""
MOST_TEXT = 14
"""Largest number of blocks for which the cells of a heat map show their numbers."""
WIDE = 40.0
"""Ratio of the largest to the smallest value from which on colours follow the logarithm."""


def render(results: Mapping[str, Any]) -> str:
    """Return the page for results in the form of layers.json."""
    return template("layers").render(
        found=results, runs=[_run(run, results["inputs"]) for run in results["runs"]]
    )


def _run(run: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Draw one run: its conclusion, figures by theme, quantities without any value, and holonomy maps."""
    themes: dict[str, list[dict[str, Any]]] = {}
    missing = []
    for quantity in QUANTITIES:
        if quantity.name not in inputs["metrics"]:
            continue
        values = _matrix(run, quantity.name)
        first = _row(run, run.get("untrained") or {}, quantity.name)
        if np.isnan(values).all():
            missing.append(quantity.title)
            continue
        steps = [f"{c['step']:,}" for c in run["checkpoints"]]
        shown = values
        if not np.isnan(first).all():
            shown, steps = np.vstack([first, values]), ["untrained", *steps]
        drawn = heat_map(shown, steps, quantity)
        card = {"quantity": quantity, "figure": Markup(drawn), "change": _change(first, values)}
        themes.setdefault(quantity.theme, []).append(card)
    maps = [(x["image"], x["sample"], Markup(image_map(x["defect"]))) for x in run.get("holonomy_maps", [])]
    paths = run.get("paths", [])
    said = bending.reading(paths) if paths else ""
    lines = conclusion(run, inputs["data"])
    return {
        "run": run,
        "summary": lines,
        "themes": themes,
        "missing": missing,
        "maps": maps,
        "paths": paths,
        "said": said,
    }


def _matrix(run: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """Return the values of a quantity, (checkpoints, blocks), with nan where it has no value."""
    return np.array([_row(run, c["values"], name) for c in run["checkpoints"]], dtype=np.float64)


def _row(run: Mapping[str, Any], values: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """Return the values (blocks,) of a quantity, with nan where it has no value."""
    row = values.get(name, [None] * len(run["blocks"]))
    return np.array([np.nan if value is None else value for value in row], dtype=np.float64)


def _change(untrained: NDArray[np.float64], values: NDArray[np.float64]) -> str:
    """Return a caption with means over blocks: untrained, at the first and at the last checkpoint."""
    whole = [row for row in values if not np.isnan(row).all()]
    means = [f"{np.nanmean(row):.3g}" for row in (whole[0], whole[-1])[2 - min(2, len(whole)) :]]
    before = "" if np.isnan(untrained).all() else f"untrained {np.nanmean(untrained):.3g}, "
    return f"mean over blocks {before}{' → '.join(means)}"


def heat_map(values: NDArray[np.float64], steps: Sequence[str], quantity: Quantity) -> str:
    """Draw `values` (checkpoints, blocks) as SVG, first checkpoint at the top; nan leaves a cell empty.

    `steps` names the rows.
    """
    rows, columns = values.shape
    norm, colours = _colours(values, quantity.reference)

    def draw(axes: Axes) -> None:
        mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, norm=norm, edgecolors="none")
        axes.invert_yaxis()
        shown = np.unique(np.linspace(0, rows - 1, min(rows, 10)).astype(int))
        axes.set_yticks(shown + 0.5, [steps[i] for i in shown])
        every = max(1, -(-columns // 14))
        axes.set_xticks(np.arange(0, columns, every) + 0.5, [str(i) for i in range(0, columns, every)])
        axes.set_xlabel("block")
        axes.set_ylabel("step")
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if columns <= MOST_TEXT and rows <= 12:
            _write(axes, values, norm, colours)
        if np.nanmin(values) == np.nanmax(values):
            return
        bar = _colour_bar(axes, mesh)
        if isinstance(norm, LogNorm):
            bar.set_ticks(LogLocator(subs=(1, 2, 5)), format=ScalarFormatter())
        bar.ax.minorticks_off()
        if isinstance(norm, TwoSlopeNorm):
            bar.ax.axhline(norm.vcenter, color=INK, linewidth=1.2)

    return svg(draw, 4.6, 1.1 + 0.3 * min(rows, 12))


def image_map(values: Sequence[Sequence[float | None]]) -> str:
    """Draw `values` (rows, columns) at places of an image as SVG, first row at the top."""
    matrix = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=np.float64)

    def draw(axes: Axes) -> None:
        mesh = axes.pcolormesh(np.ma.masked_invalid(matrix), cmap=PLAIN, edgecolors="none")
        axes.invert_yaxis()
        axes.set_aspect("equal")
        hide_axes(axes)
        _colour_bar(axes, mesh)

    return svg(draw, 2.6, 2.2)


def _colour_bar(axes: Axes, mesh: QuadMesh) -> Colorbar:
    """Draw the scale of colours to the right of a heat map."""
    assert axes.figure is not None
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    return bar


def _colours(values: NDArray[np.float64], reference: float | None) -> tuple[Normalize, Colormap]:
    """Choose colours: around the reference if it lies among the values, else logarithmic or linear."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if high <= low:
        pad = abs(low) * 0.05 or 0.05
        low, high = low - pad, high + pad
    if reference is not None and low < reference < high:
        return TwoSlopeNorm(reference, low, high), matplotlib.colormaps[AROUND]
    if low > 0 and high / low > WIDE:
        return LogNorm(low, high), matplotlib.colormaps[PLAIN]
    return Normalize(low, high), matplotlib.colormaps[PLAIN]


def _write(axes: Axes, values: NDArray[np.float64], norm: Normalize, colours: Colormap) -> None:
    """Write each value into its cell, dark on bright colours and white on dark ones."""
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        red, green, blue, _ = colours(norm(value))
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
        digits = 3 if values.shape[1] <= 8 else 2
        text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"
        axes.text(
            column + 0.5,
            row + 0.5,
            text,
            ha="center",
            va="center",
            fontsize=7.5,
            color="#111111" if bright else "#ffffff",
        )
