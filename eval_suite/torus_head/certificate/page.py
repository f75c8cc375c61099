"""The page of a certificate: a headline, images that turn on their circles, and the table of its lines."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup

from eval_suite.attempts import attempt
from eval_suite.geometry import spectral_gap
from eval_suite.geometry.landmarks import reduce
from eval_suite.geometry.verdict import NEIGHBOURS
from eval_suite.report import geometry_figures
from eval_suite.report.certificate_lines import lines
from eval_suite.report.pages import template
from eval_suite.torus_head.certificate import figures
from eval_suite.torus_head.certificate.assemble import Pictures
from eval_suite.torus_head.certificate.conclusion import WORDS
from eval_suite.torus_head.winding_page import picture

RINGS, ORBITS = 1, 4
"""Number of images that are drawn on rings; largest number of orbits that are drawn."""


def render(numbers: Mapping[str, Any], pictures: Pictures) -> str:
    """Return the page for the content of certificate.json; a figure that cannot be drawn is left out."""
    actions = numbers["inputs"]["actions"]
    undrawn: dict[str, str] = {}

    def drawn(title: str, draw: partial[str]) -> list[tuple[str, Markup]]:
        svg = attempt(title, draw, undrawn)
        return [] if svg is None else [(title, Markup(svg))]

    turning = [[[picture(x) for x in stops] for stops in of_image] for of_image in pictures.turning]
    first = numbers["angles"]["clouds"][0]
    shape = [*_densities(actions, pictures, drawn), *_shape(first, drawn)]
    follows = []
    for place, action in enumerate(actions):
        order = numbers["inputs"]["orders"][place]
        said = f"angle of {WORDS[action]}, a line an image"
        follows += drawn(said, partial(figures.curves, pictures.ours.paths[:, place, :, place], order))
        errors = {
            "untrained": pictures.blank.missed[:, place],
            "pretrained": pictures.ours.missed[:, place],
        }
        follows += drawn(
            f"error of {WORDS[action]}: trained, behind it untrained", partial(figures.missed, errors)
        )
    return template("certificate").render(
        found=numbers,
        actions=[WORDS[action] for action in actions],
        rings=_rings(turning, pictures, numbers, drawn),
        rows=_rows(turning, pictures),
        lines=lines(numbers),
        shape=shape,
        follows=follows,
        orbits=_orbits(numbers, pictures, drawn),
        undrawn=undrawn,
    )


def _rings(
    turning: Any, pictures: Pictures, numbers: Mapping[str, Any], drawn: Any
) -> list[tuple[str, Markup]]:
    """Draw the first image on the circle of each action, where its angle says that it lies."""
    rings: list[tuple[str, Markup]] = []
    for of_image, read in zip(turning[:RINGS], pictures.read, strict=False):
        for place, (stops, order) in enumerate(zip(of_image, numbers["inputs"]["orders"], strict=True)):
            angles = read[place, :, place] / (order if abs(order) == 1 else 1)
            rings += drawn(WORDS[numbers["inputs"]["actions"][place]], partial(figures.ring, stops, angles))
    return rings


def _rows(turning: Any, pictures: Pictures) -> list[list[list[tuple[str, int]]]]:
    """Return, by image and action, the pictures on the way round with how far the angle has turned."""
    rows = []
    for of_image, read in zip(turning, pictures.read, strict=True):
        of_actions = []
        for place, stops in enumerate(of_image):
            turned = np.rad2deg(read[place, :, place] - read[place, 0, place]) % 360
            of_actions.append([(uri, round(float(x)) % 360) for uri, x in zip(stops, turned, strict=True)])
        rows.append(of_actions)
    return rows


def _densities(actions: list[str], pictures: Pictures, drawn: Any) -> list[tuple[str, Markup]]:
    """Draw the density of the first two angles, of the trained and of the untrained encoder."""
    labels = [WORDS[action] for action in actions[:2]]
    panels: list[tuple[str, Markup]] = []
    for title, found in (("density of angles", pictures.ours), ("the same, untrained", pictures.blank)):
        panels += drawn(title, partial(figures.density, found.cloud[:, :2], labels))
    return panels


def _shape(cloud: Mapping[str, Any], drawn: Any) -> list[tuple[str, Markup]]:
    """Draw the barcode of a judged cloud in front of the null's band, and its spectrum beside a torus's."""
    if "homology" not in cloud:
        return []
    homology, measured = cloud["homology"], cloud["measured"]
    bars = homology["bars"]["2"], homology["null_longest"], homology["threshold"]
    panels: list[tuple[str, Markup]] = drawn(
        "loops and voids; grey: the longest of shuffled angles", partial(geometry_figures.barcode, *bars)
    )
    spectra = {"measured": measured["eigenvalues"]}
    title = "eigenvalues of the k-NN graph"
    if len(cloud["angles"]) == 2:
        spectra["flat torus"] = spectral_gap.torus_reference(measured["samples"], NEIGHBOURS).tolist()
        title += "; dashed: of a square flat torus"
        if fit := cloud.get("flat_torus"):
            spectra = {"measured": measured["eigenvalues"], "fitted torus": fit["eigenvalues"]}
            title = f"eigenvalues; dashed: of the fitted flat torus, circles {fit['ratio']:.2f} : 1"
    return panels + drawn(title, partial(geometry_figures.eigenvalues, spectra))


def _orbits(numbers: Mapping[str, Any], pictures: Pictures, drawn: Any) -> list[dict[str, Any]]:
    """Return the orbits with their verdicts in embedding and pose slice; the first ones are drawn."""
    found = []
    kind = "pose" if "orbits_pose" in numbers else "embedding"
    for place, of_embedding in enumerate(numbers["orbits"]["each"]):
        panels: list[tuple[str, Markup]] = []
        for number, action in enumerate(numbers["inputs"]["actions"]) if place < ORBITS else ():
            turns = pictures.orbits.turns[place]
            draw = partial(_orbit, pictures.orbits.clouds[place][kind], turns[:, number])
            panels += drawn(f"{kind}, coloured by {WORDS[action]}", draw) if turns[:, number].any() else []
        of_pose = numbers["orbits_pose"]["each"][place] if "orbits_pose" in numbers else None
        found.append(
            {
                "image": picture(pictures.orbit_images[place], 72),
                "embedding": of_embedding,
                "pose": of_pose,
                "panels": panels,
            }
        )
    return found


def _orbit(cloud: Any, turns: Any) -> str:
    """Draw the first three principal components of an orbit; rows that are equal are drawn once."""
    _, first = np.unique(cloud, axis=0, return_index=True)
    rows = np.sort(first)
    points = reduce(cloud[rows], 3)
    return figures.orbit(np.pad(points, ((0, 0), (0, 3 - points.shape[1]))), turns[rows])
