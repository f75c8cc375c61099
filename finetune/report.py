"""Report the results of a fine-tuning: the page report.html, results.json, and lines on the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_suite import results as files
from eval_suite import tracking
from eval_suite.metrics import SCORES, headlines
from eval_suite.report import figures
from eval_suite.report.pages import template
from finetune.compare import TUNED

TITLES = {
    TUNED: "fine-tuned",
    "probe": "linear probe on the pretrained encoder, which is not trained",
    "scratch": "the same network trained from random weights",
}
_COUNTS = {"support": "images", "share": "share of the pixels"}
"""Names of the numbers of a class that are not scores."""
_SHORT = {"probe": "the linear probe", "scratch": "training from scratch"}


def write(results: dict[str, Any], folder: Path) -> None:
    """Write results.json, then report.html."""
    files.write(folder / "results.json", files.as_json(results))
    files.write_page(folder / "report.html", lambda: page(results, folder))


def show(results: dict[str, Any], folder: Path) -> None:
    """Print the scores, what they mean, and what to do next."""
    score = SCORES[results["score"]]
    for name in results["scores"]:
        if (value := _value(results, name)) is not None:
            print(f"{_title(results, name)}: {score.label} {value}")
    for line in conclusions(results):
        print(line)
    print(f"Report: {folder / 'report.html'} (open it in a browser)")
    command, what = _export(results, folder)
    print(f"Next: {command} ({what})")


def publish(results: dict[str, Any], folder: Path, own: str) -> None:
    """Send scores and page to the MLflow run of the training, if it is in the user's `own` store."""
    record = tracking.store(folder)
    if record is None or not tracking.is_own(record, own):
        return
    values = {
        f"finetune/{name}/{score}": of[score]
        for name, of in results["scores"].items()
        for score in SCORES
        if isinstance(of.get(score), float)
    }
    made = [folder / "results.json", folder / "report.html"]
    if tracking.send(record, own, results["scores"][TUNED]["steps"], values, made, "finetune"):
        print(tracking.where(own))


def conclusions(results: dict[str, Any]) -> list[str]:
    """Return sentences about the differences, the choice of the step, and what is doubtful."""
    lines = [_difference(results, name) for name in results["differences"]]
    for name, of in results["scores"].items():
        for entry in of.get("left_out", []):
            lines.append(f"{_other(results, name).capitalize()} is left out: {entry['reason']}.")
    if results["reported_on"] == "val":
        lines.append(
            "These scores are on val, by which the best step was chosen, so they are somewhat too high; "
            "name a set that was used for no choice with --test."
        )
    tuned = results["scores"][TUNED]
    if len(tuned["val_curve"]) > 3 and tuned["best_step"] == tuned["val_curve"][-1][0] == tuned["steps"]:
        lines.append("The score on val was best at the last step: more --epochs may give a higher one.")
    if (share := tuned.get("blend")) == 0:
        lines.append(
            "Fine-tuning did not help on val, so the network is the encoder as it was, with the probe on it."
        )
    elif share is not None and share < 1:
        after, before = f"{100 * share:.0f} %", f"{100 * (1 - share):.0f} %"
        lines.append(
            f"The network is a blend of {after} of the fine-tuned weights and {before} of the weights before "
            "fine-tuning, which was best on val."
        )
    probe = results["scores"].get("probe", {}).get("feature_set")
    if probe not in (None, _features(results)):
        lines.append(
            f"The linear probe reads the feature set {probe}, and the fine-tuned network's last layer "
            f"{_features(results)}."
        )
    if "scratch" not in results["scores"]:
        lines.append(
            "How much pretraining helps is not known yet: the same command with --baselines probe,scratch "
            "also trains from random weights."
        )
    return lines


def _title(results: dict[str, Any], name: str) -> str:
    """Return what a row is called."""
    title = TITLES[name]
    return title.replace("linear", "segmentation") if results["task"] == "segmentation" else title


def _other(results: dict[str, Any], name: str) -> str:
    """Return what a baseline is called in a sentence."""
    short = _SHORT[name]
    return short.replace("linear", "segmentation") if results["task"] == "segmentation" else short


def _difference(results: dict[str, Any], name: str) -> str:
    """Return how the fine-tuned network compares with a baseline, in a sentence."""
    of, other = results["differences"][name].get(results["score"]), _other(results, name)
    if of is None or None in of["interval"]:
        return f"The difference to {other} is not defined."
    score = SCORES[results["score"]]
    low, high = of["interval"]
    size = abs(of["value"])
    by = f"{100 * size:.1f} points of {score.label}" if score.percent else f"{size:.3f} of {score.label}"
    interval = (
        f"95 % interval of the difference {_signed(low, score.percent)} to {_signed(high, score.percent)}"
    )
    if low > 0:
        return f"Fine-tuning is better than {other} by {by} ({interval})."
    if high < 0:
        return f"Fine-tuning is worse than {other} by {by} ({interval})."
    return f"Between fine-tuning and {other} there is no clear difference on these images ({interval})."


def page(results: dict[str, Any], folder: Path) -> str:
    """Return report.html."""
    score = SCORES[results["score"]]
    rows = [
        {
            "name": _title(results, name),
            "ours": name == TUNED,
            "cells": [_value(results, name, each) for each in _columns(results)],
            "difference": _cell(results, name),
        }
        for name in results["scores"]
    ]
    curves = [
        (_points(of["val_curve"]), name) for name, of in results["scores"].items() if of.get("val_curve")
    ]
    tuned = results["scores"][TUNED]
    return template("finetune").render(
        results=results,
        folder=str(folder),
        score=score,
        columns=[SCORES[each].label for each in _columns(results)],
        rows=rows,
        lines=conclusions(results),
        export=_export(results, folder),
        curves=[{"svg": figures.curve(*points), "name": _title(results, name)} for points, name in curves],
        tuned=tuned,
        classes=_classes(tuned),
        labels=_COUNTS | {name: metric.label for name, metric in SCORES.items()},
        confusion=tuned.get("confusion"),
        recipe=_recipe(results["recipe"]) | {"what the last layer reads": _features(results)},
    )


def _columns(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys([results["score"], *headlines(results["task"])]))


def _points(curve: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    steps, values = zip(*curve, strict=True)
    return list(steps), list(values)


def _export(results: dict[str, Any], folder: Path) -> tuple[str, str]:
    """Return the command that exports the network, and what it makes.

    A classifier of timm reads the model's own vector alone.
    """
    gives = {
        "multiclass": "logits of the classes",
        "multilabel": "logits of the labels",
        "regression": "numbers in their units",
        "segmentation": "logits of the classes of each pixel",
    }[results["task"]]
    if _features(results) == "embedding":
        return f"isotorus export {folder} --out model/", f"a timm model that gives the {gives}"
    return f"isotorus export {folder} --out model/ --format onnx", f"an ONNX file that gives the {gives}"


def _features(results: dict[str, Any]) -> str:
    """Return the feature set that the last layer reads."""
    if results["task"] == "segmentation":
        return "map"
    return str(results["recipe"]["objective"].get("features", "embedding"))


def _classes(tuned: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows of the table of classes: the name and its numbers."""
    return [
        {"name": row["name"], "values": {key: x for key, x in row.items() if key != "name"}}
        for row in tuned.get("per_class", [])
    ]


def _recipe(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that matter most."""
    objective, optimizer = config["objective"], config["optimizer"]
    weighted = "the same for all classes" if objective["balanced"] else "the same for all images or pixels"
    return {
        "steps": config["steps"],
        "batch size": config["data"]["batch_size"],
        "learning rate": optimizer["lr"],
        "layer decay": optimizer["layer_decay"],
        "steps in which only the head learns": objective["head_steps"],
        "frozen blocks": config["encoder"]["freeze"],
        "label smoothing": objective["label_smoothing"],
        "mixup": objective["mixup"],
        "CutMix": objective["cutmix"],
        "seed": config["seed"],
    } | ({"weights in the loss": weighted} if objective["task"] in ("multiclass", "segmentation") else {})


def _value(results: dict[str, Any], name: str, score: str | None = None) -> str | None:
    """Return a score with its interval as text; None if there is none."""
    metric = SCORES[score or results["score"]]
    of = results["scores"][name]
    value, interval = of.get(metric.path), of.get(f"{metric.path}_interval")
    if value is None:
        return None
    shown = _amount(value, metric.percent)
    if interval and None not in interval:
        shown += f" ({_plain(interval[0], metric.percent)} to {_plain(interval[1], metric.percent)})"
    return shown


def _cell(results: dict[str, Any], name: str) -> str:
    of = results["differences"].get(name, {}).get(results["score"])
    if of is None or None in of["interval"]:
        return ""
    percent = SCORES[results["score"]].percent
    low, high = (_signed(x, percent) for x in of["interval"])
    return f"{_signed(of['value'], percent)} ({low} to {high})"


def _plain(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}" if percent else f"{value:.3f}"


def _amount(value: float, percent: bool) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.3f}"


def _signed(value: float, percent: bool) -> str:
    return (f"{100 * value:+.1f}" if percent else f"{value:+.3f}").replace("-", "−")
