"""What to do after an evaluation: one thing to try, and the command that does it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eval_suite.metrics import BASELINES, METHODS
from eval_suite.report.standing import Standing, standings
from eval_suite.results import ELSEWHERE
from pretrain.checkpoint.mirror.address import is_copy

Results = Mapping[str, Any]


class Advice(NamedTuple):
    """What to try, and a command for it; the command is empty where there is none."""

    text: str
    command: str = ""


def advice(results: Results) -> Advice:
    """Return what to do next, by where the pretrained encoder stands among its baselines."""
    found, checkpoint = standings(results), results["checkpoint"]
    run, folder = checkpoint["run"], str(checkpoint["folder"])
    if not found:
        return _without_standing(results)
    supervised = checkpoint.get("supervised")
    if found[0].outcome == "ahead":
        return Advice("use it", _export(folder, supervised) if run or supervised else "")
    if supervised:
        return Advice("fine-tune with another --lr or more labels, or use the encoder that it started from")
    if not run:
        weights = command("train", "--config", "RECIPE", f"encoder.weights={folder}")
        return Advice("pretrain it on these images", weights)
    return _after_a_run(results, found[0], Path(run))


def _export(folder: str, supervised: Mapping[str, str] | None) -> str:
    """Return the command that exports an encoder, of a fine-tuned run with its layer.

    A classifier of timm reads the model's own vector alone, and predicts no masks.
    """
    timm = not supervised or (supervised["features"] == "embedding" and supervised["task"] != "segmentation")
    return command("export", folder, "--out", "encoder", *(() if timm else ("--format", "onnx")))


def what_next(results: Results) -> str:
    """Say in one sentence what to do after this outcome, with a command."""
    return "Next: " + ": ".join(filter(None, advice(results)))


def build_on(results: Results) -> dict[str, str]:
    """Return commands that use a run's encoder, by what they do: write vectors and, if train and val have
    labels, fine-tune.
    """
    run, data = results["checkpoint"]["run"], results["data"]
    if not run:
        return {}
    shards = next(iter(data.values()))["path"]
    found = {"Vectors": command("embed", run, str(shards), "--out", "vectors.parquet")}
    if all(data.get(split, {}).get("labelled") for split in ("train", "val")):
        sets = [
            word for split in ("val", "test") if split in data for word in (f"--{split}", data[split]["path"])
        ]
        words = [
            run,
            data["train"]["path"],
            *sets,
            "--out",
            f"{Path(run).name if is_copy(Path(run)) else run}-tuned",
            *results.get("target_options", ()),
        ]
        found["Fine-tune"] = command("finetune", *map(str, words))
    return found


def _after_a_run(results: Results, standing: Standing, run: Path) -> Advice:
    """Return what to try with a run that is not ahead of the best baseline."""
    config, steps = str(run / "config.yaml"), 2 * results["checkpoint"]["step"]
    longer = command("train", "--config", config, f"name={run.name}-longer", f"steps={steps}")
    if standing.outcome == "behind":
        if results["representations"]["pretrained"].get("collapsed"):
            weight = command("sweep", "--config", config, "objective.weight=0.05,0.2")
            return Advice("train with a larger objective.weight, which prevents a collapse", weight)
        rates = command("sweep", "--config", config, "optimizer.lr=3e-4,1e-3,3e-3")
        return Advice("try other learning rates", rates)
    if standing.outcome == "ahead of untrained":
        if standing.best.baseline in BASELINES:
            return Advice("train longer, or try other crops (views.global_scale)", longer)
        return Advice("train longer, or start from those weights (encoder.weights=FOLDER)", longer)
    if "seeds" in results["checkpoint"]:
        return Advice(
            "train longer, or train more seeds; four times as many seeds halve the interval", longer
        )
    if results["reported_on"] != "folds":
        folds = "train longer, or score with --folds 5, which uses the labelled images of train and val"
        return Advice(folds, longer)
    return Advice(
        "train longer, or label four times as many images, which shows an effect half as large", longer
    )


def _without_standing(results: Results) -> Advice:
    """Return what to do where labels, scores or baselines are missing, so that nothing says if pretraining
    helps.
    """
    checkpoint, splits = results["checkpoint"], results.get("data", {})
    scored = any(name in results["representations"]["pretrained"] for name in METHODS)
    labelled = any(of.get("labelled") for of in splits.values())
    if checkpoint.get("encoder") == ELSEWHERE:
        again = command("eval", str(checkpoint["folder"]))
        if not labelled:
            return Advice(
                "add labels to the file, as the array or column labels, and evaluate it again", again
            )
        return Advice("compare it with other features of the same images", f"{again} --against OTHER.npz")
    given = [word for split, of in splits.items() for word in (f"--{split}", of["path"])]
    again = command("eval", str(checkpoint["run"] or checkpoint["folder"]), *given)
    if scored:
        return Advice("compare it with baselines", f"{again} --baselines {','.join(BASELINES)}")
    if labelled:
        return Advice("score it against the labels", f"{again} --metrics probe,knn")
    return Advice(
        "give labels of some images in a table with the columns key and label",
        f"{again} --targets labels.csv --target-columns label",
    )


def command(*words: str) -> str:
    """Return a command of isotorus as it is typed, with quotes where a shell needs them."""
    return f"isotorus {shlex.join(words)}"
