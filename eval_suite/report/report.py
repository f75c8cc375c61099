"""report.html: one file for a person, with everything in it and nothing fetched from anywhere."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from markupsafe import Markup
from numpy.typing import NDArray

from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.inputs.targets import Targets
from eval_suite.report import figures, geometry_figures, pictures
from eval_suite.report.pages import template
from eval_suite.report.reading import CLOUDS, HEADLINES, METHODS, TITLES, geometry, reading
from eval_suite.report.training_log import logged
from isotorus import randomness

if TYPE_CHECKING:
    from eval_suite.inputs.splits import Splits

NAMES = {"pretrained": "pretrained encoder", "untrained": "same encoder, untrained", "pixels": "raw pixels"}
CURVES = {
    "loss": "loss",
    "lr": "learning rate",
    "images_per_second": "throughput, images per second",
    "grad_norm": "gradient norm",
    "data_wait": "waiting for data",
}
NOT_CURVES = {"step", "samples", "epoch", "time", "memory_gib", "skipped_steps"}
QUANTITIES = (
    ("intrinsic dimension, TwoNN", "dimension/two_nn"),
    ("intrinsic dimension, MLE", "dimension/mle"),
    ("effective rank", "rank/effective_rank"),
    ("components of the k-NN graph", "graph/components"),
    ("spectral gap λ₁", "graph/gap"),
    ("gap over a flat torus's", "graph/torus_ratio"),
    ("gap over a Gaussian's", "graph/gaussian_ratio"),
    ("λ₅₋₈ / λ₁₋₄ (flat torus: 2)", "graph/second_band"),
    ("SIGReg over its null, as it is", "normality/sigreg"),
    ("SIGReg over its null, standardised", "normality/shape"),
    ("uniformity on the sphere", "shape/uniformity"),
    ("Gromov δ (tree: 0)", "shape/hyperbolicity/relative"),
    ("hubness (skewness)", "shape/hubness/skewness"),
    ("collisions between classes (chance: 0.5)", "collisions"),
)
"""Of a cloud, as rows of the page's table."""
DIRECTIONS = (
    ("effective rank", "rank/effective_rank"),
    ("participation ratio", "rank/participation_ratio"),
    ("RankMe", "rank/rankme"),
    ("RankMe, centred", "rank/rankme_centred"),
    ("α-ReQ", "rank/alpha_req"),
    ("LiDAR, of augmented views", "views/lidar"),
    ("alignment of augmented views (same: 0)", "views/alignment"),
)
"""Of a representation."""
LEGEND = 12
"""Most classes that the legend names."""
Sets = Mapping[str, Mapping[str, Mapping[str, NDArray[np.float32]]]]


def render(
    results: Mapping[str, Any],
    features: Sets,
    targets: Mapping[str, Targets],
    seed: int,
    checkpoint: Checkpoint | None,
    splits: "Splits | None",
) -> str:
    """The page for `results`, with pictures from `features` (representation → set → split → (n, d)).

    Without checkpoint and splits, as of vectors from elsewhere, there are neither curves nor images.
    """
    embeddings = {name: sets["embedding"] for name, sets in features.items()}
    reported = results["reported_on"] if results["reported_on"] in embeddings["pretrained"] else "train"
    encoders = [name for name in ("pretrained", "untrained") if name in features]
    shown = randomness.rows(len(embeddings["pretrained"][reported]), pictures.MAP_POINTS, seed)
    colours = figures.class_colours(len(results["classes"]))
    labels = _labels(targets[reported])[shown]
    measured = results["representations"]["pretrained"]
    channels = checkpoint.encoder.channels if checkpoint else 3
    return template("report").render(
        results=results,
        reported=reported,
        methods={m: name for m, name in METHODS.items() if m in measured},
        scores=HEADLINES.get(results["kind"], ()),
        titles=TITLES,
        names=NAMES,
        quantities=QUANTITIES,
        colours=figures.COLOURS,
        reading=reading(results),
        geometry_reading=geometry(results),
        geometry=[_cloud(name, found, splits, channels) for name, found in results["geometry"].items()],
        intervals=_intervals(results),
        curves=_curves(checkpoint) if checkpoint else [],
        maps=[
            (
                f"{kind}, {NAMES[name]}",
                Markup(figures.scatter(points(embeddings[name][reported][shown]), labels, colours)),
            )
            for kind, points in (("PCA", pictures.pca_map), ("t-SNE", pictures.tsne_map))
            for name in encoders
        ],
        mapped=len(shown),
        legend=list(zip(results["classes"], colours, strict=True))[:LEGEND],
        more_classes=max(0, len(results["classes"]) - LEGEND),
        unlabelled=figures.UNLABELLED if (labels < 0).any() else "",
        neighbours=pictures.neighbour_rows(
            splits.train,
            embeddings["pretrained"]["train"],
            splits.items()[reported],
            embeddings["pretrained"][reported],
            channels,
            seed,
        )
        if splits
        else [],
        spectrum=_spectrum(results, encoders),
        directions=DIRECTIONS if "rank" in measured or "views" in measured else (),
        configuration=_configuration(checkpoint) if checkpoint else "",
        options=json.dumps(results["inputs"]["options"], indent=2),
    )


def _labels(targets: Targets) -> NDArray[np.int64]:
    """Class indices for colours, −1 where there is none."""
    if targets.kind != "multiclass":
        return np.full(len(targets.known), -1)
    return np.where(targets.known, targets.values, -1)


def _cloud(name: str, found: Mapping[str, Any], splits: "Splits | None", channels: int) -> dict[str, Any]:
    """What the page shows of a cloud's geometry: figures and evidence, as far as it was measured."""
    shown: dict[str, Any] = {"name": CLOUDS[name], "found": found, "figures": [], "turns": []}
    if "circular" in found:
        circular = found["circular"]
        for number, angles in enumerate(circular["angles"], start=1):
            drawn = geometry_figures.circle_map(np.array(circular["map"]), np.array(angles))
            shown["figures"].append((f"landmarks by angle along loop {number}", Markup(drawn)))
            if splits and circular["samples"]:
                turn = pictures.turn(splits.train, circular["samples"], angles, channels)
                shown["turns"].append((number, turn))
    if "homology" in found:
        homology = found["homology"]
        bars, null, threshold = homology["bars"]["2"], homology["null_longest"], homology["threshold"]
        shown["figures"] += [
            ("holes: when they appear and fill", Markup(geometry_figures.diagram(bars, null, threshold))),
            ("the longest bars, over the null's", Markup(geometry_figures.barcode(bars, null, threshold))),
        ]
    if "graph" in found:
        spectra = {
            "measured": found["graph"]["eigenvalues"],
            "flat torus": found["graph"]["torus"],
            "Gaussian": found["graph"]["gaussian"],
        }
        shown["figures"].append(
            ("smallest eigenvalues of the k-NN graph", Markup(geometry_figures.eigenvalues(spectra)))
        )
    return shown


def _intervals(results: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    panels = []
    guessing = {"balanced_accuracy": 1 / max(len(results["classes"]), 1), "auroc": 0.5}
    for method, title in METHODS.items():
        for score in HEADLINES.get(results["kind"], ()):
            rows = [
                (name, found[method][score], found[method][f"{score}_interval"])
                for name, found in results["representations"].items()
                if method in found and found[method][score] is not None
            ]
            if rows:
                drawn = figures.intervals(rows, guessing.get(score, 0.0), f"{TITLES[score]}, %")
                panels.append((f"{TITLES[score]}, {title}", Markup(drawn)))
    return panels


def _curves(checkpoint: Checkpoint) -> list[tuple[str, Markup]]:
    """The loss, its parts in the order they were logged, then rates; constant quantities are left out."""
    rows = logged(checkpoint.run) if checkpoint.run else []
    keys = [key for key in {key: None for row in rows for key in row} if key not in NOT_CURVES]
    parts = [key for key in keys if key not in CURVES]
    curves = []
    for key in ("loss", *parts, *[key for key in CURVES if key != "loss"]):
        points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
        if not points or (key not in CURVES and len({value for _, value in points}) == 1 < len(points)):
            continue
        steps, values = zip(*points, strict=True)
        figure = figures.curve(steps, values, checkpoint.step)
        curves.append((CURVES.get(key, key.replace("_", " ")), Markup(figure)))
    return curves


def _spectrum(results: Mapping[str, Any], encoders: list[str]) -> Markup | None:
    found = results["representations"]
    values = {name: found[name]["rank"]["eigenspectrum"] for name in encoders if "rank" in found[name]}
    return Markup(figures.spectrum(values)) if values else None


def _configuration(checkpoint: Checkpoint) -> str:
    if checkpoint.run and (checkpoint.run / "config.yaml").is_file():
        return (checkpoint.run / "config.yaml").read_text(encoding="utf-8", errors="replace")
    return yaml.safe_dump(asdict(checkpoint.encoder), sort_keys=False, allow_unicode=True)
