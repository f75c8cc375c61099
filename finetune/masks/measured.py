"""Scores of networks that predict masks, and of the segmentation probe beside them, on the same images."""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipeline.dataset.index import Dataset
from eval_suite.attempts import attempt
from eval_suite.features.representation import pretrained
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.usefulness.estimate import Estimates
from eval_suite.usefulness.tokens.segmentation_probe import of_counts, segmentation_probe
from finetune.masks.examples import examples
from finetune.masks.predicted import counted, network
from finetune.masks.start import tokens, work
from finetune.measured import Measured
from finetune.processes import processes
from pretrain.config import Config
from pretrain.methods.config import SupervisedConfig
from pretrain.supervised.masks import choose, read_masks

RESAMPLES = 1000


def measure(
    args: argparse.Namespace,
    config: Config,
    checkpoint: Checkpoint,
    networks: Mapping[str, Checkpoint],
    sets: Mapping[str, Dataset],
    reported: str,
) -> Measured | None:
    """Return the scores of networks and, if it is asked for, of a probe on the encoder as it was.

    All processes call it; only the first one returns them.
    """
    objective, state = config.objective, processes()
    assert isinstance(objective, SupervisedConfig)
    masked = choose(read_masks(sets), sets, objective.targets)
    names, used = masked.names, {name: np.flatnonzero(of) for name, of in masked.known.items()}
    dataset, rows = sets[reported], used[reported]
    predictors = [network(each, name) for name, each in networks.items()]
    counts = counted(predictors, dataset, rows, len(names), state, args.workers)
    if not state.is_main_process:
        return None
    groups = None if dataset.groups is None else dataset.groups[rows]
    scores: dict[str, dict[str, Any]] = {}
    estimates: dict[str, Estimates] = {}
    for name, of in counts.items():
        scores[name], estimates[name] = of_counts(of, names, groups, RESAMPLES, args.seed)
    if "probe" in args.baselines:
        failed: dict[str, str] = {}

        def fit() -> tuple[dict[str, Any], Estimates]:
            loading: dict[str, Any] = {"device": state.device, "workers": args.workers}
            drawn: dict[str, Any] = {"resamples": RESAMPLES, "seed": args.seed, "device": state.device}
            with work(config.folder) as folder:
                splits = {
                    name: tokens(pretrained(checkpoint), sets[name], used[name], folder, **loading)
                    for name in dict.fromkeys(("train", "val", reported))
                }
                of = (splits[name] for name in ("train", "val", reported))
                return segmentation_probe(*of, names=names, **drawn)

        if (probe := attempt("segmentation_probe", fit, failed)) is None:
            left_out = [{"metric": name, "reason": reason} for name, reason in failed.items()]
            scores["probe"] = {"left_out": left_out}
        else:
            scores["probe"], estimates["probe"] = probe
    shown = examples(predictors[0], dataset, rows, counts[predictors[0].name], state.device)
    return Measured(scores, estimates, names, {name: len(of) for name, of in used.items()}, shown)
