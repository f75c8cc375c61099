"""Figures of a cloud's geometry: persistent homology, graph spectra and circular coordinates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from eval_suite.report.figures import INK, svg

DIMENSIONS = ("#8d8d8d", "#3f7fd9", "#e0703c")
"""Colours of components, loops and voids, the homology of dimension 0, 1 and 2."""
NAMES = ("components", "loops", "voids")
REFERENCES = {
    "measured": "#3f7fd9",
    "flat torus": "#2f9e78",
    "Gaussian": "#c9973f",
    "fitted torus": "#d9577a",
}

Bars = Sequence[Sequence[tuple[float, float | None]]]
"""For each dimension, (birth, death) of its holes; death is None for a hole alive at the threshold."""


def diagram(bars: Bars, null_longest: Sequence[Sequence[float]], threshold: float) -> str:
    """Draw births and deaths; holes below their dimension's line live no longer than the null's longest."""

    def draw(axes: Axes) -> None:
        axes.plot([0, threshold], [0, threshold], color=INK, linewidth=0.6)
        for dimension, rows in enumerate(bars):
            colour = DIMENSIONS[dimension]
            if len(null_longest[dimension]) and dimension:
                band = max(null_longest[dimension])
                dashes: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (4, 3))}
                axes.plot([0, threshold - band], [band, threshold], color=colour, **dashes)
            points = np.array([(b, threshold if d is None else d) for b, d in rows]).reshape(-1, 2)
            dots: dict[str, Any] = {"s": 14, "color": colour, "linewidths": 0, "alpha": 0.8}
            axes.scatter(points[:, 0], points[:, 1], label=NAMES[dimension], **dots)
        axes.set_xlim(-0.02 * threshold, threshold)
        axes.set_ylim(-0.02 * threshold, 1.04 * threshold)
        axes.set_xlabel("born at distance")
        axes.set_ylabel("filled at distance")
        axes.xaxis.set_major_locator(MaxNLocator(5))

    return svg(draw, 3.2, 3.0)


def barcode(bars: Bars, null_longest: Sequence[Sequence[float]], threshold: float, shown: int = 8) -> str:
    """Draw the longest bars of loops and voids, in front of the length of the null's longest bar."""

    def draw(axes: Axes) -> None:
        place, ticks = 0, []
        for dimension in range(1, len(bars)):
            rows = bars[dimension][:shown]
            band = max(null_longest[dimension], default=0.0)
            for birth, death in rows:
                end = threshold if death is None else death
                axes.plot([birth, birth + band], [place, place], color=INK, alpha=0.12, linewidth=7)
                axes.plot([birth, end], [place, place], color=DIMENSIONS[dimension], linewidth=3)
                place += 1
            if rows:
                ticks.append((place - (len(rows) + 1) / 2, NAMES[dimension]))
            place += 1
        axes.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
        axes.set_ylim(place - 0.5, -0.8)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, threshold)
        axes.set_xlabel("distance")

    return svg(draw, 3.6, 3.0)


def eigenvalues(spectra: Mapping[str, Sequence[float]]) -> str:
    """Draw the smallest eigenvalues of graph Laplacians, measured and of the references, by name."""

    def draw(axes: Axes) -> None:
        for name, values in spectra.items():
            style = "-" if name == "measured" else (0, (4, 2))
            line: dict[str, Any] = {"color": REFERENCES[name], "linewidth": 1.2, "linestyle": style}
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=4, **line)
        axes.set_xlabel("eigenvalue")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))

    return svg(draw, 3.6, 2.4)


def circle_map(points: NDArray[np.floating], angles: NDArray[np.floating]) -> str:
    """Draw the first two principal components (n, 2) in the colour of a circular coordinate (n,), in radians.

    A bar beside the axes says which colour is which angle.
    """

    def draw(axes: Axes) -> None:
        dots: dict[str, Any] = {"cmap": "hsv", "vmin": 0, "vmax": 360, "s": 9, "linewidths": 0}
        drawn = axes.scatter(points[:, 0], points[:, 1], c=np.degrees(np.mod(angles, 2 * np.pi)), **dots)
        drawn.set_rasterized(True)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel("principal component 1")
        axes.set_ylabel("principal component 2")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
        assert axes.figure is not None
        bar = axes.figure.colorbar(drawn, ax=axes, ticks=range(0, 361, 90), format="%d°", fraction=0.05)
        bar.outline.set_visible(False)

    return svg(draw, 3.6, 3.0)
