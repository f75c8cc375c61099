"""report.html: one file for a person, with everything in it and nothing fetched from anywhere."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import yaml
from markupsafe import Markup
from numpy.typing import NDArray

from eval_suite import figures, pictures
from eval_suite.checkpoints import Checkpoint

if TYPE_CHECKING:
    from eval_suite.splits import Splits

METHODS = {"probe": "linear probe", "knn": "k-NN"}
NAMES = {"pretrained": "pretrained encoder", "untrained": "same encoder, untrained", "pixels": "raw pixels"}
BASELINES = {"untrained": "the same encoder untrained", "pixels": "raw pixels"}
SCORES = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}
NO_EFFECT = "No clear effect of pretraining"
CURVES = {
    "loss": "loss",
    "lr": "learning rate",
    "images_per_second": "throughput, images per second",
    "grad_norm": "gradient norm",
    "data_wait": "waiting for data",
}
NOT_CURVES = {"step", "samples", "epoch", "time", "memory_gib", "skipped_steps"}
LEGEND = 12
"""Most classes that the legend names."""


def render(
    results: Mapping[str, Any],
    checkpoint: Checkpoint,
    splits: "Splits",
    features: Mapping[str, Mapping[str, NDArray[np.float32]]],
    seed: int,
) -> str:
    """The page for `results`, with pictures from `features` (representation → split → (n, d))."""
    reported = splits.items()[splits.reported]
    encoders = [name for name in ("pretrained", "untrained") if name in features]
    shown = pictures.sample(len(reported), pictures.MAP_POINTS, seed)
    colours = figures.class_colours(len(reported.classes))
    return _template().render(
        results=results,
        methods={m: name for m, name in METHODS.items() if m in results["representations"]["pretrained"]},
        names=NAMES,
        colours=figures.COLOURS,
        reading=reading(results),
        intervals=_intervals(results),
        curves=_curves(checkpoint),
        maps=[
            (
                f"{kind}, {NAMES[name]}",
                Markup(
                    figures.scatter(
                        points(features[name][splits.reported][shown]), reported.labels[shown], colours
                    )
                ),
            )
            for kind, points in (("PCA", pictures.pca_map), ("t-SNE", pictures.tsne_map))
            for name in encoders
        ],
        mapped=len(shown),
        legend=list(zip(reported.classes, colours, strict=True))[:LEGEND],
        more_classes=max(0, len(reported.classes) - LEGEND),
        unlabelled=figures.UNLABELLED if (reported.labels[shown] < 0).any() else "",
        neighbours=pictures.neighbour_rows(
            splits.train,
            features["pretrained"]["train"],
            reported,
            features["pretrained"][splits.reported],
            checkpoint.encoder.channels,
            seed,
        ),
        spectrum=_spectrum(results, encoders),
        configuration=_configuration(checkpoint),
        options=json.dumps(results["inputs"]["options"], indent=2),
    )


def reading(results: Mapping[str, Any]) -> str:
    """The result in a sentence for each method, with no more certainty than their intervals allow."""
    measured = results["representations"]["pretrained"]
    methods = [method for method in METHODS if method in measured]
    if not methods:
        reasons = {entry["reason"] for entry in results["left_out"]}
        return (
            f"There are no scores against labels: {', '.join(sorted(reasons)) or 'they were not asked for'}."
        )
    where = "the test split" if results["reported_on"] == "test" else "the validation split"
    sentences = []
    for method in methods:
        for score, title in SCORES.items():
            compared = [
                _compared(name, found[method][score]) for name, found in results["differences"].items()
            ]
            value = f"{title} {100 * measured[method][score]:.1f}\u00a0%"
            sentences.append(", ".join([f"{METHODS[method]} {value}", *compared]))
    verdict = _verdict(results["differences"].get("untrained", {}), methods)
    return f"{verdict}The pretrained encoder on {where}, with 95\u00a0% intervals: {'; '.join(sentences)}."


def _verdict(differences: Mapping[str, Any], methods: list[str]) -> str:
    """What the AUROC of pretrained minus untrained says, by method where they say different things.

    AUROC needs no threshold, so it tells smaller differences apart than balanced accuracy does.
    """
    said: dict[str, list[str]] = {}
    for method in methods:
        if method in differences:
            low, high = differences[method]["auroc"]["interval"]
            effect = "Pretraining helps" if low > 0 else "Pretraining hurts" if high < 0 else NO_EFFECT
            said.setdefault(effect, []).append(METHODS[method])
    if len(said) == 1:
        return f"{next(iter(said))} (AUROC). "
    return "".join(f"{effect} by {' and '.join(by)} (AUROC). " for effect, by in said.items())


def _compared(name: str, difference: Mapping[str, Any]) -> str:
    value = 100 * difference["value"]
    low, high = (_signed(100 * bound) for bound in difference["interval"])
    return f"{_signed(value)} points against {BASELINES[name]} ({low} to {high})"


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.4g}"
    return environment.from_string(files("eval_suite").joinpath("report.html.j2").read_text(encoding="utf-8"))


def _intervals(results: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    panels = []
    for method, title in METHODS.items():
        for score, chance in (("balanced_accuracy", 1 / max(len(results["classes"]), 1)), ("auroc", 0.5)):
            rows = [
                (name, found[method][score], found[method][f"{score}_interval"])
                for name, found in results["representations"].items()
                if method in found and found[method][score] is not None
            ]
            label = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}[score]
            if rows:
                panels.append((f"{label}, {title}", Markup(figures.intervals(rows, chance, f"{label}, %"))))
    return panels


def _curves(checkpoint: Checkpoint) -> list[tuple[str, Markup]]:
    """The loss, its parts in the order they were logged, then rates; constant quantities are left out."""
    rows = _metrics(checkpoint.run / "metrics.jsonl") if checkpoint.run else []
    keys = [key for key in {key: None for row in rows for key in row} if key not in NOT_CURVES]
    parts = [key for key in keys if key not in CURVES]
    curves = []
    for key in ("loss", *parts, *[key for key in CURVES if key != "loss"]):
        points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
        if not points or (key not in CURVES and len({value for _, value in points}) == 1 < len(points)):
            continue
        steps, values = zip(*points, strict=True)
        figure = figures.curve(steps, values, checkpoint.encoder.step)
        curves.append((CURVES.get(key, key.replace("_", " ")), Markup(figure)))
    return curves


def _metrics(file: Path) -> list[dict[str, Any]]:
    """Logged rows by ascending step, the last one of each; a line cut by a kill is passed over."""
    by_step: dict[float, dict[str, Any]] = {}
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
            by_step[row["step"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return [by_step[step] for step in sorted(by_step)]


def _spectrum(results: Mapping[str, Any], encoders: list[str]) -> Markup | None:
    found = results["representations"]
    values = {name: found[name]["rank"]["eigenspectrum"] for name in encoders if "rank" in found[name]}
    return Markup(figures.spectrum(values)) if values else None


def _configuration(checkpoint: Checkpoint) -> str:
    if checkpoint.run and (checkpoint.run / "config.yaml").is_file():
        return (checkpoint.run / "config.yaml").read_text(encoding="utf-8", errors="replace")
    return yaml.safe_dump(asdict(checkpoint.encoder), sort_keys=False, allow_unicode=True)
