"""One evaluation from checkpoint to results; docs/results.md lists what results.json holds."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data_pipeline.atomic import atomic
from data_pipeline.errors import UserError, from_os_error
from eval_suite import embed, neighbors, probe, rank, report, scores
from eval_suite.checkpoints import Checkpoint
from eval_suite.splits import Splits

FORMAT = 1
METRICS = ("probe", "knn", "rank")
BASELINES = ("untrained", "pixels")
SCORES = ("accuracy", "balanced_accuracy", "auroc")
WITH_INTERVAL = ("balanced_accuracy", "auroc")

Features = Mapping[str, Mapping[str, embed.Features]]
"""Of representation, then split."""


class Options(BaseModel):
    """What an evaluation computes; the results are a function of these, the weights and the data."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    metrics: tuple[str, ...] = METRICS
    """Of `METRICS`."""
    baselines: tuple[str, ...] = BASELINES
    """Of `BASELINES`: what the pretrained encoder is compared with."""
    k: tuple[int, ...] | None = None
    """Neighbours to choose from; None takes those of `neighbors.K_GRID` that train is large enough for."""
    temperature: float = 0.07
    """Of the neighbours' votes."""
    pixel_size: int = 32
    """Side of the images that the raw pixels are read from."""
    resamples: int = 1000
    """Bootstrap test sets for each interval."""
    seed: int = 0
    """Of the bootstrap and of the report's random choices."""


def evaluate(
    checkpoint: Checkpoint,
    splits: Splits,
    options: Options,
    out: Path,
    state: PartialState,
    *,
    batch_size: int = 64,
    workers: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Compute or reuse the results of a checkpoint; writes results.json and report.html to `out`.

    Called by all processes; the first one returns the results, the others an empty dict. Raises
    UserError for what the user can mend.
    """
    inputs = _inputs(checkpoint, splits, options)
    left_out = _left_out(splits)
    k = _neighbour_counts(options, splits) if "knn" in options.metrics and not left_out else ()
    _make_folder(out, state)
    file = out / "results.json"
    done = None if force or not (out / "report.html").exists() else _finished(file, inputs)
    decided = [done is not None]  # by the first process: the others may not see its files
    broadcast_object_list(decided)
    if decided[0]:
        return done or {}

    representations = [embed.pretrained(checkpoint)]
    if "untrained" in options.baselines:
        representations.append(embed.untrained(checkpoint))
    if "pixels" in options.baselines:
        representations.append(embed.pixels(checkpoint, options.pixel_size))
    features: dict[str, dict[str, embed.Features]] = {r.name: {} for r in representations}
    for split, data in splits.items().items():
        extracted = embed.extract(
            representations, data, out / "features", state, batch_size=batch_size, workers=workers
        )
        for name, x in extracted.items():
            features[name][split] = x
    if not state.is_main_process:
        return {}
    if "pixels" in features:
        features["pixels"] = _standardised(features["pixels"])

    results = {
        "format": FORMAT,
        "inputs": inputs,
        "checkpoint": {
            "name": checkpoint.name,
            "folder": str(checkpoint.folder),
            "run": str(checkpoint.run) if checkpoint.run else None,
            "step": checkpoint.encoder.step,
            "encoder": checkpoint.encoder.name,
            "embedding_width": checkpoint.encoder.embedding_width,
            "parameters": sum(p.numel() for p in representations[0].model.parameters()),
            "weights_sha256": checkpoint.weights_sha256,
        },
        "data": {
            name: {
                "path": str(data.path),
                "fingerprint": data.fingerprint,
                "samples": len(data),
                "labelled": int((data.labels >= 0).sum()),
            }
            for name, data in splits.items().items()
        },
        "classes": splits.train.classes,
        "reported_on": splits.reported,
        **_measure(features, splits, options, k, left_out, state.device),
    }
    results = _json_safe(results)
    page = report.render(results, checkpoint, splits, features, options.seed)
    _write(out / "report.html", page)
    _write(file, json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


def _measure(
    features: Features,
    splits: Splits,
    options: Options,
    k: Sequence[int],
    left_out: str,
    device: torch.device,
) -> dict[str, Any]:
    labelled = {split: np.flatnonzero(data.labels >= 0) for split, data in splits.items().items()}
    order = ("train", "val", splits.reported)
    representations: dict[str, dict[str, Any]] = {
        name: {"width": x["train"].shape[1]} for name, x in features.items()
    }
    samples: dict[tuple[str, str], scores.Bootstrap] = {}
    for name, x in features.items():
        found = representations[name]
        if not left_out:
            data: list[NDArray[Any]] = []
            for split in order:
                rows = labelled[split]
                data += [x[split][rows], splits.items()[split].labels[rows].astype(np.int64)]
            classes = len(splits.train.classes)
            by_method = {}
            if "probe" in options.metrics:
                by_method["probe"] = probe.linear_probe(*data, classes=classes, device=device)
            if "knn" in options.metrics:
                by_method["knn"] = neighbors.evaluate(
                    *data, k=k, temperature=options.temperature, classes=classes
                )
            for method, result in by_method.items():
                samples[name, method] = scores.bootstrap(
                    data[-1], result.pop("test_scores"), resamples=options.resamples, seed=options.seed
                )
                found[method] = _reported(result, samples[name, method])
        if "rank" in options.metrics:
            found["rank"] = rank.summary(x["train"])
    skipped = [m for m in ("probe", "knn") if m in options.metrics and left_out]
    return {
        "representations": representations,
        "differences": _differences(representations, samples),
        "left_out": [{"metric": metric, "reason": left_out} for metric in skipped],
    }


def _reported(result: dict[str, Any], samples: scores.Bootstrap) -> dict[str, Any]:
    """Scores without their `test_` (they may be val's), with intervals beside them."""
    named = {key.removeprefix("test_"): value for key, value in result.items()}
    for score in WITH_INTERVAL:
        named[f"{score}_interval"] = scores.interval(getattr(samples, score))
    return named


def _differences(
    representations: Mapping[str, Mapping[str, Any]], samples: Mapping[tuple[str, str], scores.Bootstrap]
) -> dict[str, Any]:
    """Pretrained minus each baseline, on the same resampled test sets: baseline → method → score."""
    differences: dict[str, Any] = {}
    for (name, method), theirs in samples.items():
        if name == "pretrained":
            continue
        ours = samples["pretrained", method]
        pair = representations["pretrained"][method], representations[name][method]
        differences.setdefault(name, {})[method] = {
            score: {
                "value": pair[0][score] - pair[1][score],
                "interval": scores.interval(getattr(ours, score) - getattr(theirs, score)),
            }
            for score in WITH_INTERVAL
        }
    return differences


def _left_out(splits: Splits) -> str:
    """Why there can be no scores against labels; '' if there can."""
    for name, data in splits.items().items():
        present = np.unique(data.labels[data.labels >= 0])
        if not len(present):
            return f"{name} has no labels"
        if len(present) == 1:
            return f"all labelled samples of {name} are of one class, {data.classes[present[0]]}"
    return ""


def _neighbour_counts(options: Options, splits: Splits) -> tuple[int, ...]:
    available = int((splits.train.labels >= 0).sum())
    wanted = options.k if options.k is not None else [k for k in neighbors.K_GRID if k <= available]
    if not wanted or max(wanted) > available:
        largest = max(options.k or neighbors.K_GRID[:1])
        raise UserError(
            f"k = {largest} neighbours, but train has {available} labelled samples; give smaller ones, "
            f"e.g. --k {max(1, available // 4)}"
        )
    return tuple(sorted(set(wanted)))


def _standardised(x: Mapping[str, embed.Features]) -> dict[str, embed.Features]:
    mean, std = x["train"].mean(axis=0), x["train"].std(axis=0)
    std[std == 0] = 1
    return {split: (rows - mean) / std for split, rows in x.items()}


def _inputs(checkpoint: Checkpoint, splits: Splits, options: Options) -> dict[str, Any]:
    """All that the results depend on."""
    described = {k: v for k, v in asdict(checkpoint.encoder).items() if k not in ("config", "step")}
    return {
        "format": FORMAT,
        "weights_sha256": checkpoint.weights_sha256,
        "encoder": described,
        "data": {name: data.fingerprint for name, data in splits.items().items()},
        "options": options.model_dump(mode="json"),
    }


def _finished(file: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    try:
        results: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return results if results.get("inputs") == inputs else None


def _make_folder(out: Path, state: PartialState) -> None:
    """Find out before the work whether its results can be kept."""
    if not state.is_main_process:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial = out / ".writable"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise from_os_error(error, f"writing results to {out}") from error


def _write(file: Path, text: str) -> None:
    try:
        with atomic(file) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise from_os_error(error, f"writing {file.name}") from error


def _json_safe(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {key: _json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_json_safe(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
