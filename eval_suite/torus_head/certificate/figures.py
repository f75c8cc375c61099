"""The figures of a certificate's page, as SVG text."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from eval_suite.report.figures import COLOURS, DASHED, svg
from pretrain.geometry.winding import unwrapped

BINS = 36
"""Cells of a density in each direction, 10 degrees each."""
MIDDLE, RADIUS, THUMB = 160, 118, 46
"""Half the side of the drawing of a ring, the radius of the ring, and the side of its pictures."""


def ring(pictures: Sequence[str], angles: NDArray[np.floating]) -> str:
    """Draw the pictures, as data URIs, on a circle where the angles (n,), in radians, say that they lie.

    The first one is put at angle 0; ticks are where the angles of a perfect head would lie.
    """
    parts = [f'<svg viewBox="0 0 {2 * MIDDLE} {2 * MIDDLE}" role="img">']
    circle = f'<circle cx="{MIDDLE}" cy="{MIDDLE}" fill="none" stroke="currentColor"'
    parts.append(f'{circle} r="{RADIUS}" stroke-opacity=".35"/>')
    for place in np.arange(len(pictures)) * 2 * np.pi / len(pictures):
        (x1, y1), (x2, y2) = _at(place, RADIUS - 34), _at(place, RADIUS - 28)
        line = f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        parts.append(f'{line} stroke="currentColor" stroke-opacity=".6"/>')
    for uri, angle in zip(pictures, angles - angles[0], strict=True):
        x, y = _at(angle, RADIUS)
        side = f'width="{THUMB}" height="{THUMB}"'
        place = f'x="{x - THUMB / 2:.1f}" y="{y - THUMB / 2:.1f}"'
        parts.append(f'<image href="{uri}" {place} {side} style="clip-path:circle(50%)"/>')
    return "".join([*parts, "</svg>"])


def curves(paths: NDArray[np.floating], order: int) -> str:
    """Draw how often an angle has turned while images are turned once round, a line for each of n images.

    `paths` (n, samples) are in radians. The dashed line is that of a perfect head.
    """

    def draw(axes: Axes) -> None:
        turned = unwrapped(torch.from_numpy(np.ascontiguousarray(paths))[..., None], closed=True)[..., 0]
        along = np.linspace(0, 360, turned.shape[1])
        for row in turned.numpy():
            colour = COLOURS["pretrained"] if round(row[-1]) == order else COLOURS["angles"]
            axes.plot(along, 360 * row, color=colour, linewidth=0.9, alpha=0.4)
        axes.plot([0, 360], [0, 360 * order], **{**DASHED, "alpha": 1})
        axes.set_xticks(range(0, 361, 90))
        axes.set_xlabel("turn of the image, degrees")
        axes.set_ylabel("turn of the angle")

    return svg(draw, 3.2, 2.6)


def density(angles: NDArray[np.floating], labels: Sequence[str]) -> str:
    """Draw the density of pairs of angles (n, 2), or of one angle (n, 1), over that of uniform ones."""
    degrees = np.rad2deg(angles) % 360
    edges = np.linspace(0, 360, BINS // (1 if angles.shape[1] == 1 else 2) + 1)

    def draw(axes: Axes) -> None:
        if angles.shape[1] == 1:
            counts, _ = np.histogram(degrees[:, 0], edges)
            axes.bar(
                edges[:-1], counts / counts.mean(), 360 / BINS, align="edge", color=COLOURS["pretrained"]
            )
            axes.axhline(1, **DASHED)
            axes.set_ylabel("density over uniform")
        else:
            counts, _, _ = np.histogram2d(degrees[:, 1], degrees[:, 0], [edges, edges])
            shares = counts / counts.mean()
            mesh = axes.pcolormesh(edges, edges, shares, cmap="viridis", vmin=0, vmax=3, edgecolors="none")
            mesh.set_rasterized(True)
            axes.set_aspect("equal")
            axes.set_yticks(range(0, 361, 90))
            axes.set_ylabel(f"angle of {labels[1]}, degrees")
            assert axes.figure is not None
            bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.05)
            bar.outline.set_visible(False)
            bar.ax.tick_params(length=0, labelsize=7)
        axes.set_xticks(range(0, 361, 90))
        axes.set_xlabel(f"angle of {labels[0]}, degrees")
        axes.grid(visible=False)

    return svg(draw, 3.2, 2.7)


def missed(errors: Mapping[str, NDArray[np.floating]]) -> str:
    """Draw the errors (n,) in degrees of an action, within ±180, by representation."""

    def draw(axes: Axes) -> None:
        edges = np.linspace(-180, 180, 73)
        for name, values in errors.items():
            counts, _ = np.histogram(values, edges)
            filled: dict[str, Any] = {"color": COLOURS[name], "alpha": 0.55, "label": name}
            axes.stairs(100 * counts / len(values), edges, fill=True, **filled)
        axes.set_xticks(range(-180, 181, 90))
        axes.set_xlabel("missed by, degrees")
        axes.set_ylabel("images, %")

    return svg(draw, 3.2, 2.2)


def orbit(points: NDArray[np.floating], turns: NDArray[np.floating]) -> str:
    """Draw points (n, 3) in perspective from above, in the colour of their turn (n,), in radians."""

    def draw(axes: Axes) -> None:
        tilt = np.deg2rad(35)
        x = points[:, 0]
        y = points[:, 1] * np.sin(tilt) + points[:, 2] * np.cos(tilt)
        depth = points[:, 1] * np.cos(tilt) - points[:, 2] * np.sin(tilt)
        order = np.argsort(-depth)
        colours = matplotlib.colormaps["hsv"](turns[order] / (2 * np.pi) % 1)
        axes.scatter(x[order], y[order], c=colours, s=7, linewidths=0, rasterized=True)
        axes.set_aspect("equal")
        axes.set_axis_off()

    return svg(draw, 2.4, 2.0)


def _at(angle: float, radius: float) -> tuple[float, float]:
    """Return the place of an angle, counterclockwise from the right, on a ring."""
    return MIDDLE + radius * float(np.cos(angle)), MIDDLE - radius * float(np.sin(angle))
