"""Scores of the fine-tuned network on held-out images, beside a linear probe and training from scratch.

All are scored on the same images and the same bootstrap test sets, so that differences have intervals of
their own.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.index import Dataset
from data_pipeline.targets.targets import Targets
from eval_suite import usefulness
from eval_suite.features.embed import extract
from eval_suite.features.representation import pretrained
from eval_suite.inputs import find
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.metrics import headlines
from eval_suite.results import json_safe
from eval_suite.usefulness.estimate import Estimates, differences, of_test
from eval_suite.usefulness.selection import JUDGES
from finetune.head import predictions
from finetune.masks.measured import measure as of_masks
from finetune.measured import Measured
from finetune.processes import processes
from finetune.recipe import CACHE
from isotorus import jsonl
from pretrain.config import Config
from pretrain.methods.config import SupervisedConfig
from pretrain.monitoring.progress_of import standing
from pretrain.supervised.task import read_targets, some

FORMAT = 1
TUNED = "finetuned"


def compare(
    args: argparse.Namespace, checkpoint: Checkpoint, configs: Sequence[Config]
) -> dict[str, Any] | None:
    """Return the results, ready for JSON, on the first process; None on the others. All ranks call it."""
    tuned = configs[0]
    objective = tuned.objective
    assert isinstance(objective, SupervisedConfig)
    sets = {"train": Dataset(args.shards), "val": Dataset(args.val)}
    sets |= {"test": Dataset(args.test)} if args.test else {}
    reported = "test" if args.test else "val"
    checkpoint = checkpoint.for_images_of(*sets.values())
    trained = [_network(config).for_images_of(*sets.values()) for config in configs]
    networks = dict(zip((TUNED, "scratch"), trained, strict=False))
    measure = of_masks if objective.segments else _of_labels
    measured = measure(args, tuned, checkpoint, networks, sets, reported)
    if measured is None:
        return None
    scored = measured.scores
    for name, config in zip(networks, configs, strict=True):
        scored[name] |= _training(config) | {"blend": _share(config)}
    estimates = {
        "pretrained" if name == TUNED else name: {"score": of} for name, of in measured.estimates.items()
    }
    results = {
        "format": FORMAT,
        "name": tuned.name,
        "checkpoint": {
            "given": args.name,
            "name": checkpoint.name,
            "step": checkpoint.step,
            "encoder": checkpoint.encoder.name,
            "weights_sha256": checkpoint.weights_sha256,
        },
        "data": {
            name: {
                "path": str(dataset.path),
                "fingerprint": dataset.fingerprint,
                "samples": len(dataset),
                "labelled": measured.labelled[name],
            }
            for name, dataset in sets.items()
        },
        "task": objective.task,
        "names": measured.names,
        "reported_on": reported,
        "score": headlines(objective.task)[0],
        "scores": scored,
        "differences": {name: of["score"] for name, of in differences(estimates).items()},
        "recipe": tuned.model_dump(mode="json"),
        "examples": measured.examples,
    }
    safe: dict[str, Any] = json_safe(results)
    return safe


def _of_labels(
    args: argparse.Namespace,
    config: Config,
    checkpoint: Checkpoint,
    networks: Mapping[str, Checkpoint],
    sets: Mapping[str, Dataset],
    reported: str,
) -> Measured | None:
    """Return the scores of networks and, if it is asked for, of a linear probe on the encoder as it was.

    All processes call it; only the first one returns them.
    """
    objective, state = config.objective, processes()
    assert isinstance(objective, SupervisedConfig) and objective.task != "segmentation"
    features: dict[str, dict[str, dict[str, NDArray[np.floating]]]] = {}
    for split, dataset in sets.items():
        wanted = [replace(pretrained(each, ("projector",)), name=name) for name, each in networks.items()]
        wanted = wanted if split == reported else []
        wanted += [pretrained(checkpoint)] if "probe" in args.baselines else []
        loading: dict[str, Any] = {"batch_size": 64, "workers": args.workers}
        found = extract(wanted, dataset, config.folder / CACHE, state, **loading) if wanted else {}
        for name, by_set in found.items():
            for feature_set, x in by_set.items():
                features.setdefault(name, {}).setdefault(feature_set, {})[split] = x
    if not state.is_main_process:
        return None
    targets = read_targets(objective.targets, objective.task, dict(sets))
    targets["train"] = some(targets["train"], objective.targets)
    drawn = {"resamples": 1000, "seed": args.seed}
    scored: dict[str, dict[str, Any]] = {}
    estimates: dict[str, Estimates] = {}
    for name, network in networks.items():
        outputs = features[name]["projector"][reported]
        scored[name], estimates[name] = _of_network(network, outputs, targets[reported], drawn)
    if "probe" in args.baselines:
        only = usefulness.Options(metrics=("probe",), folds=0, seed=args.seed)
        judged, by_method = usefulness.measure_paired(
            features["pretrained"], targets, only, device=state.device, name="pretrained"
        )
        scored["probe"] = judged.get("probe", {"left_out": judged["left_out"]})
        if "probe" in by_method:
            estimates["probe"] = by_method["probe"]
    labelled = {name: int(targets[name].known.sum()) for name in sets}
    return Measured(scored, estimates, targets["train"].names, labelled)


def _network(config: Config) -> Checkpoint:
    """Return the best checkpoint of a run, which lies in its folder."""
    (found,) = find.find([str(config.folder)])
    return found


def _share(config: Config) -> float | None:
    """Return the share of the fine-tuned weights in the blend; None if the network is not a blend."""
    found = json.loads((config.folder / "encoder.json").read_text()).get("blend")
    return None if found is None else float(found["share"])


def _of_network(
    network: Checkpoint, outputs: NDArray[np.floating], targets: Targets, drawn: dict[str, int]
) -> tuple[dict[str, Any], Estimates]:
    """Return the scores of a network's outputs (n, columns), with intervals, and their estimates."""
    described = network.encoder.supervised
    assert described is not None
    known = targets.known
    predicted = predictions(described, outputs[known])
    y, groups = targets.values[known], targets.groups
    measured: dict[str, Any] = {
        f"test_{score}": value for score, value in JUDGES[described.task].summary(y, predicted).items()
    }
    measured["test_scores"] = predicted
    of_groups = None if groups is None else groups[known]
    return of_test(measured, y, of_groups, described.task, targets.names, **drawn)


def _training(config: Config) -> dict[str, Any]:
    """Return how a run went: its steps, the best one, and the curve of the score on val."""
    rows = jsonl.read(config.folder / "metrics.jsonl", "step")
    assert isinstance(config.objective, SupervisedConfig)
    key = f"val_{headlines(config.objective.task)[0]}"
    curve = [[row["step"], row[key]] for row in rows if key in row]
    best = max(curve, key=lambda point: point[1])
    return {
        "steps": standing(config.folder).step,
        "best_step": best[0],
        "best_on_val": best[1],
        "val_curve": curve,
    }
