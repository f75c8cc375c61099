"""report.html: the results of one evaluation as a single file that loads nothing from the network."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup
from numpy.typing import NDArray

from data_pipeline.targets.targets import Targets
from eval_suite.attempts import attempt
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.inputs.splits import Splits
from eval_suite.metrics import CLOUD, METHODS, REPRESENTATION, SCORES, headlines
from eval_suite.report import certified, figures, geometry_figures, names, pictures
from eval_suite.report.cautions import cautions
from eval_suite.report.pages import template
from eval_suite.report.sentences import (
    CLOUDS,
    SPLITS,
    about_finetuning,
    about_geometry,
    about_masks,
    about_scores,
    disagreements,
)
from eval_suite.report.standing import baselines, lead, leaders, standings
from eval_suite.report.summary.advice import build_on
from eval_suite.report.summary.lines import summary
from eval_suite.report.training.charts import FIRST, Chart, charts
from eval_suite.report.training.healthy import SOURCE
from eval_suite.report.training.log import logged
from eval_suite.results import dig
from isotorus import foreign_files, randomness
from isotorus.errors import UserError

LEGEND = 12
"""Largest number of classes in the legend."""
Sets = Mapping[str, Mapping[str, Mapping[str, NDArray[np.float32]]]]
Undrawn = dict[str, str]
"""Titles of the pictures that could not be drawn, with the reasons."""


def render(
    results: Mapping[str, Any],
    features: Sets,
    targets: Mapping[str, Targets],
    seed: int,
    checkpoint: Checkpoint | None,
    splits: Splits | None,
    certificate: Mapping[str, Any] | None = None,
) -> str:
    """Return the page for `results` as HTML, with a section about the content of a certificate.json.

    `features` (n, d) by representation, feature set and split are drawn as maps. Features that were made
    elsewhere have no checkpoint and no splits: then the page has neither curves nor images. A picture that
    cannot be drawn is left out, and the page says why.
    """
    undrawn: Undrawn = {}
    embeddings = {name: sets["embedding"] for name, sets in features.items() if "embedding" in sets}
    shown_of = (results["reported_on"], "test", "val", "train")
    reported = next(split for split in shown_of if split in embeddings["pretrained"])
    encoders = [name for name in ("pretrained", "untrained") if name in features]
    shown = randomness.rows(len(embeddings["pretrained"][reported]), pictures.MAP_POINTS, seed)
    colours = figures.class_colours(len(results["classes"]))
    labels = targets[reported].class_indices()[shown]
    measured = results["representations"]["pretrained"]
    channels = checkpoint.encoder.channels if checkpoint else 3
    rows = logged(checkpoint.run) if checkpoint and checkpoint.run else []
    return template("report").render(
        results=results,
        reported=reported,
        methods=_methods(results),
        on_test=_on_test(results),
        few_split=_few_split(results),
        all_shots=[shots for shots, of in measured.get("few_shot", {}).items() if isinstance(of, Mapping)],
        headlines=headlines(results["kind"]),
        leaders=partial(leaders, results),
        leads=_leads(results),
        split=SPLITS.get(results["reported_on"], ""),
        scores=SCORES,
        names={name: names.title(name) for name in results["representations"]},
        cloud_metrics=[
            m for m in CLOUD if any(dig(of, m.path) is not None for of in results["geometry"].values())
        ],
        colours={name: figures.colour(name) for name in results["representations"]},
        summary=summary(
            results,
            [row for row in rows if row["step"] <= (checkpoint.step if checkpoint else 0)],
            certificate,
        ),
        about_scores=" ".join(filter(None, (disagreements(results), about_scores(results)))),
        about_geometry=about_geometry(results),
        build_on=build_on(results),
        about_finetuning=about_finetuning(results),
        certificate=certified.section(certificate),
        geometry=[_cloud(name, of, splits, channels, undrawn) for name, of in results["geometry"].items()],
        intervals=_intervals(results, undrawn),
        label_curves=_label_curves(results, undrawn),
        charts=_charts(rows, checkpoint.step, undrawn) if checkpoint else ([], []),
        source=SOURCE,
        cautions=cautions(results),
        about_masks=about_masks(results),
        mask_leads={name: lead(results, "segmentation_probe/miou", name) for name in baselines(results)},
        maps=_maps({name: embeddings[name][reported][shown] for name in encoders}, labels, colours, undrawn),
        mapped=len(shown),
        legend=list(zip(results["classes"], colours, strict=True))[:LEGEND],
        more_classes=max(0, len(results["classes"]) - LEGEND),
        unlabelled=figures.UNLABELLED if (labels < 0).any() else "",
        neighbours=_neighbours(splits, embeddings["pretrained"], reported, channels, seed, undrawn),
        spectrum=_spectrum(results, encoders, undrawn),
        representation_metrics=REPRESENTATION if "rank" in measured or "views" in measured else (),
        configuration=_configuration(checkpoint) if checkpoint else "",
        options=json.dumps(results["inputs"]["options"], indent=2),
        undrawn=undrawn,
    )


def _methods(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of the table of scores: the methods, with the split of those that have another."""
    measured, titles = results["representations"]["pretrained"], {}
    for name, method in METHODS.items():
        if method.predicts and name in measured:
            own = measured[name].get("reported_on", results["reported_on"])
            titles[name] = method.label if own == results["reported_on"] else f"{method.label}, {own} split"
    return titles


def _few_split(results: Mapping[str, Any]) -> str:
    """Return the split of few-shot and retrieval as text, or "" if it is that of the other scores."""
    measured = results["representations"]["pretrained"]
    splits = {measured[name].get("reported_on") for name in ("few_shot", "retrieval") if name in measured}
    return "".join(f", {split} split" for split in splits - {None, results["reported_on"]})


def _on_test(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the methods that have scores on a test split beside those of the folds."""
    measured = results["representations"]["pretrained"]
    return {f"{name}/test": title for name, title in _methods(results).items() if "test" in measured[name]}


def _leads(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the column of leads shows: its method, its score, and a lead for each baseline."""
    found = standings(results)
    if not found:
        return {}
    method, score = found[0].method, found[0].score
    over = {name: lead(results, f"{method}/{score}", name) for name in baselines(results)}
    return {"method": METHODS[method].label, "score": SCORES[score].label, "over": over}


def _drawn(title: str, draw: Callable[[], str], undrawn: Undrawn) -> list[tuple[str, Markup]]:
    """Return the title and the SVG that `draw` returns; on failure, return [] and note why in `undrawn`."""
    drawn = attempt(title, draw, undrawn)
    return [] if drawn is None else [(title, Markup(drawn))]


def _maps(
    points: Mapping[str, NDArray[np.floating]],
    labels: NDArray[np.integer],
    colours: list[str],
    undrawn: Undrawn,
) -> list[tuple[str, Markup]]:
    """Draw the samples (n, d) of each encoder in two dimensions, in the colours of their labels."""
    maps = []
    for kind, project in (("PCA", pictures.pca_map), ("t-SNE", pictures.tsne_map)):
        for name, x in points.items():

            def draw(project: Any = project, x: Any = x) -> str:
                return figures.scatter(project(x), labels, colours)

            maps += _drawn(f"{kind}, {names.title(name)}", draw, undrawn)
    return maps


def _neighbours(
    splits: Splits | None,
    embedding: Mapping[str, NDArray[np.floating]],
    reported: str,
    channels: int,
    seed: int,
    undrawn: Undrawn,
) -> list[tuple[pictures.Picture, list[pictures.Picture]]]:
    """Return some images of the reported split beside the train images that are most similar to them."""
    if splits is None:
        return []
    train, queries = splits.train, splits.items()[reported]
    found = attempt(
        "nearest neighbours",
        lambda: pictures.neighbour_rows(
            train, embedding["train"], queries, embedding[reported], channels, seed
        ),
        undrawn,
    )
    return found or []


def _cloud(
    name: str, measured: Mapping[str, Any], splits: Splits | None, channels: int, undrawn: Undrawn
) -> dict[str, Any]:
    """Collect what the page shows of one cloud: its numbers, its figures, and images along its loops."""
    shown: list[tuple[str, Markup]] = []
    turns = []

    def add(title: str, draw: Callable[..., str], *values: Any) -> None:
        failed: Undrawn = {}
        shown.extend(_drawn(title, partial(draw, *values), failed))
        undrawn.update({f"{CLOUDS[name]}, {what}": why for what, why in failed.items()})

    if "circular" in measured:
        circular = measured["circular"]
        for number, angles in enumerate(circular["angles"], start=1):
            title = f"landmarks by angle along loop {number}"
            add(title, geometry_figures.circle_map, np.array(circular["map"]), np.array(angles))
            if splits and circular["samples"]:
                along = partial(pictures.turn, splits.train, circular["samples"], angles, channels)
                if images := attempt(f"{CLOUDS[name]}, images along loop {number}", along, undrawn):
                    turns.append((number, images))
    if "homology" in measured:
        homology = measured["homology"]
        bars = homology["bars"]["2"], homology["null_longest"], homology["threshold"]
        add("holes: when they appear and fill", geometry_figures.diagram, *bars)
        add("the longest bars, over the null's", geometry_figures.barcode, *bars)
    if "graph" in measured:
        graph = measured["graph"]
        spectra = {
            "measured": graph["eigenvalues"],
            "flat torus": graph["torus"],
            "Gaussian": graph["gaussian"],
        }
        add("smallest eigenvalues of the k-NN graph", geometry_figures.eigenvalues, spectra)
    if fit := measured.get("verdict", {}).get("flat_torus"):
        spectra = {
            "measured": measured["verdict"]["measured"]["eigenvalues"],
            "fitted torus": fit["eigenvalues"],
        }
        title = f"eigenvalues beside the nearest flat torus, circles {fit['ratio']:.2f} : 1"
        add(title, geometry_figures.eigenvalues, spectra)
    return {"name": CLOUDS[name], "found": measured, "figures": shown, "turns": turns}


def _label_curves(results: Mapping[str, Any], undrawn: Undrawn) -> list[tuple[str, Markup]]:
    """Draw the decisive score of the probe over the number of labels, of all representations."""
    score = next((SCORES[name] for name in headlines(results["kind"]) if SCORES[name].decides), None)
    series: dict[str, list[tuple[int, float, float, float]]] = {}
    for name, found in results["representations"].items():
        for labels, point in found.get("label_curve", {}).items():
            if score and point[score.path] is not None and point[f"{score.path}_interval"][0] is not None:
                values = (point[score.path], *point[f"{score.path}_interval"])
                series.setdefault(name, []).append((int(labels), *values))
    if score is None or not series:
        return []
    title = f"{score.label} of the linear probe over the number of labelled images"
    return _drawn(title, partial(figures.label_curves, series, f"{score.label}, %"), undrawn)


def _intervals(results: Mapping[str, Any], undrawn: Undrawn) -> list[tuple[str, Markup]]:
    """Draw every headline score of every method with its interval, one figure each with its title."""
    panels: list[tuple[str, Markup]] = []
    for method, described in METHODS.items():
        for score in (SCORES[path] for path in headlines(results["kind"]) if described.predicts):
            rows = [
                (name, measured[method][score.path], measured[method][f"{score.path}_interval"])
                for name, measured in results["representations"].items()
                if method in measured and None not in measured[method][f"{score.path}_interval"]
            ]
            if rows:
                chance = 1 / max(len(results["classes"]), 1) if score.chance is None else score.chance
                draw = partial(figures.intervals, rows, chance)
                panels += _drawn(f"{score.label}, {described.label}", draw, undrawn)
    return panels


def _charts(
    rows: Sequence[dict[str, Any]], step: int, undrawn: Undrawn
) -> tuple[list[tuple[Chart, Markup]], list[tuple[Chart, Markup]]]:
    """Draw what the run logged: the charts that the page shows at once, and those that it folds."""
    drawn = [
        (chart, figure)
        for chart in charts(rows, step)
        for _, figure in _drawn(chart.title, chart.draw, undrawn)
    ]
    return drawn[:FIRST], drawn[FIRST:]


def _spectrum(results: Mapping[str, Any], encoders: list[str], undrawn: Undrawn) -> Markup | None:
    """Draw the eigenvalues of the encoders' covariances; None if rank was not measured."""
    measured = results["representations"]
    values = {name: measured[name]["rank"]["eigenspectrum"] for name in encoders if "rank" in measured[name]}
    drawn = _drawn("eigenvalues", partial(figures.spectrum, values), undrawn) if values else []
    return drawn[0][1] if drawn else None


def _configuration(checkpoint: Checkpoint) -> str:
    """Return the configuration of the training run, or else the description of the encoder, as YAML."""
    if checkpoint.run:
        with contextlib.suppress(OSError, UserError):
            return foreign_files.read_text(checkpoint.run / "config.yaml")
    return yaml.safe_dump(asdict(checkpoint.encoder), sort_keys=False, allow_unicode=True)
