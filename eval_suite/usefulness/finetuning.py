"""Fine-tuning as an evaluation: `isotorus finetune` trains the encoder on labels, and its scores are added.

It runs in a process of its own, because a training has its own ranks, signals and checkpoints. Its folder is
named after what the scores depend on. So the next evaluation continues a fine-tuning that was interrupted,
and reads the results of a finished one.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.dataset.index import Dataset
from eval_suite import progress
from eval_suite.attempts import Unmeasurable, attempt
from eval_suite.metrics import METHODS
from eval_suite.usefulness.options import Options
from isotorus import foreign_files
from isotorus.processes import END_WITH_STDIN
from isotorus.scheduled_ranks import without_ranks

RECIPE = 2
"""Version of the defaults of `isotorus finetune`; it increases when they change, as a test makes sure."""
LABELS = {"finetune": None, "finetune_tenth": "10%"}
"""The value of --labels for each metric; None stands for all labels."""
_ROWS = {"finetuned": "pretrained", "scratch": "untrained"}
"""Rows of the evaluation by the names that the fine-tuning's results give to the same encoders."""
_OF_TRAINING = ("val_curve",)
"""Entries of the fine-tuning's results.json that the evaluation does not take over."""


def add(
    measured: dict[str, Any],
    weights: Path,
    data: Mapping[str, Dataset],
    inputs: Mapping[str, Any],
    options: Options,
    out: Path,
    *,
    asked: Sequence[str],
    workers: int,
    force: bool,
) -> None:
    """Add to the results the scores of fine-tuned encoders, for those metrics of the `options` that train.

    `weights` is the encoder's file, `data` are the sets by split, `inputs` is what the evaluation depends on,
    and `asked` are the options of the command that name the targets. The run folders are below `out`. If the
    untrained encoder is evaluated, the same network is also trained from random weights, which takes the same
    time again. The results keep `asked`, because the commands that a report recommends need it.
    """
    measured["target_options"] = list(asked)
    depends_on = {key: inputs[key] for key in ("weights_sha256", "encoder", "data", "targets")}
    for metric in (name for name in options.metrics if METHODS[name].trains):
        from_scratch = "untrained" in measured["representations"]
        given = [str(weights), str(data["train"].path), "--val", str(data["val"].path)]
        given += ["--test", str(data["test"].path)] if "test" in data else []
        given += ["--labels", share] if (share := LABELS[metric]) else []
        given += ["--baselines", "probe,scratch" if from_scratch else "probe", *asked]
        given += ["--seed", str(options.seed), "--workers", str(workers), "tracking.enabled=false"]
        parts = [RECIPE, metric, from_scratch, options.seed, depends_on]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]
        folder = out / "finetune" / f"{metric.removeprefix('finetune_')}-{key}"
        progress.doing(METHODS[metric].label)
        failed: dict[str, str] = {}
        found = attempt(metric, partial(_results, given, folder, force), failed)
        measured["left_out"] += [{"metric": name, "reason": why} for name, why in failed.items()]
        if found is not None:
            _join(measured, metric, found, folder)


def _results(given: Sequence[str], folder: Path, force: bool) -> dict[str, Any]:
    """Run a fine-tuning unless it is finished, and return its results; raise Unmeasurable if it fails.

    The fine-tuning saves its state and ends when this process ends, so that the next evaluation can continue
    it.
    """
    if force:
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "finetune", *given, "--out", str(folder)]
    environment = without_ranks() | {END_WITH_STDIN: "1"}
    stdin, ours = os.pipe()  # `ours` is closed when this process ends, in whatever way
    try:
        done = subprocess.run(
            command, env=environment, stdin=stdin, capture_output=True, text=True, errors="replace"
        )
    finally:
        os.close(stdin)
        os.close(ours)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
        ended = f"ended by {signal.Signals(-done.returncode).name}: " if done.returncode < 0 else ""
        raise Unmeasurable(ended + said[-1].removeprefix("error: "))
    results: dict[str, Any] = foreign_files.read_json(folder / "results.json")
    return results


def _join(measured: dict[str, Any], metric: str, found: Mapping[str, Any], folder: Path) -> None:
    """Add what the fine-tuning in `folder` has found to the rows and differences of the evaluation."""
    for name, row in _ROWS.items():
        if name in found["scores"] and row in measured["representations"]:
            scores = {key: x for key, x in found["scores"][name].items() if key not in _OF_TRAINING}
            measured["representations"][row][metric] = scores | {"reported_on": found["reported_on"]}
    ours = measured["representations"]["pretrained"][metric]
    ours |= {"labels": found["data"]["train"]["labelled"], "run": str(folder)}
    if "probe" in found["differences"]:
        ours["over_probe"] = found["differences"]["probe"]
    if "scratch" in found["differences"]:
        measured["differences"].setdefault("untrained", {})[metric] = found["differences"]["scratch"]
