"""Measure the probes that read patch tokens: write the tokens of a representation to disk, then score them.

The probes are fitted on train, with settings chosen on val, and reported on test, or on val where there is no
test, also where other methods have folds. Only one representation's tokens are on disk at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.dataset.index import Dataset
from data_pipeline.targets.targets import Targets
from data_pipeline.transforms.physical import Square
from eval_suite import progress
from eval_suite.attempts import Unmeasurable, attempt
from eval_suite.features import mask_maps, token_maps
from eval_suite.features.representation import Representation
from eval_suite.features.token_maps import Tokens
from eval_suite.metrics import METHODS
from eval_suite.results import json_safe
from eval_suite.usefulness.estimate import Estimates, differences, of_test
from eval_suite.usefulness.measure_usefulness import usable_targets
from eval_suite.usefulness.options import Options
from eval_suite.usefulness.tokens import attentive_probe, segmentation_probe
from eval_suite.usefulness.tokens.attentive_probe import Images
from eval_suite.usefulness.tokens.segmentation_probe import Masked
from isotorus.files import temporary_folder

STAGES_READ = {"attentive_probe": 2, "segmentation_probe": 3}
"""Number of last feature maps that are read from an encoder that works in stages. The last map may be a
single pixel; earlier maps show where in the image something is."""


class Measured(NamedTuple):
    """What was measured on tokens."""

    results: dict[str, dict[str, Any]]
    """Results by representation, then method."""
    estimates: dict[str, dict[str, Estimates]]
    """Estimates of the scores, by representation, then method."""
    left_out: list[dict[str, str]]


class _Asked(NamedTuple):
    """What is measured for every representation."""

    metric: str
    data: Mapping[str, Dataset]
    """Data sets of train, val and the reported split."""
    reported: str
    samples: Mapping[str, NDArray[np.int64]]
    """The samples of each split that have a target or a mask."""
    square: Square | None
    """The part of an image that the encoder sees, see `Representation.square`."""
    judge: Callable[[Mapping[str, Tokens]], tuple[dict[str, Any], Estimates]]
    """Measures a representation by its tokens of these samples."""


def add(
    measured: dict[str, Any],
    representations: Sequence[Representation],
    data: Mapping[str, Dataset],
    targets: Mapping[str, Targets],
    options: Options,
    folder: Path,
    device: torch.device,
    batch_size: int,
    workers: int,
) -> None:
    """Add to the results the probes that read patch tokens, with the differences between representations.

    Tokens are kept below `folder` while they are measured.
    """
    found = measure(
        representations,
        data,
        targets,
        options,
        folder,
        device,
        batch_size=batch_size,
        workers=workers,
    )
    for name, of in found.results.items():
        measured["representations"][name] |= of
    if "pretrained" in found.estimates:
        for name, of in differences(found.estimates).items():
            measured["differences"].setdefault(name, {}).update(of)
    measured["left_out"] += found.left_out


def measure(
    representations: Sequence[Representation],
    data: Mapping[str, Dataset],
    targets: Mapping[str, Targets],
    options: Options,
    folder: Path,
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
) -> Measured:
    """Measure those of `options.metrics` that read tokens; `data` and `targets` are by split.

    Tokens are in a folder below `folder` that is removed at the end; what a killed evaluation left there is
    removed at the beginning. A metric that cannot be measured is left out with a reason; if only one
    representation lacks it, the entry is called <name>/<metric>.
    """
    found = Measured({}, {}, [])
    wanted = [metric for metric in options.metrics if METHODS[metric].of_tokens]
    if not wanted:
        return found
    reported = "test" if "test" in data else "val"
    splits = {name: data[name] for name in dict.fromkeys(("train", "val", reported))}
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder, "tokens-") as work:
        prepare = {
            "attentive_probe": lambda: _attentive(splits, reported, targets, options, device),
            "segmentation_probe": lambda: _segmentation(
                splits, reported, representations[0], work, options, device
            ),
        }
        for metric in wanted:
            failed: dict[str, str] = {}
            asked = attempt(metric, prepare[metric], failed)
            found.left_out.extend({"metric": metric, "reason": why} for why in failed.values())
            if asked is None:
                continue
            for r in representations:
                place = metric if r.name == "pretrained" else f"{r.name}/{metric}"
                failed = {}
                judged = attempt(place, partial(_judged, r, asked, work, device, batch_size, workers), failed)
                found.left_out.extend({"metric": place, "reason": why} for why in failed.values())
                if judged is not None:
                    results = json_safe({**judged[0], "reported_on": reported})
                    found.results.setdefault(r.name, {})[metric] = results
                    found.estimates.setdefault(r.name, {})[metric] = judged[1]
    return found


def _judged(
    r: Representation, asked: _Asked, work: Path, device: torch.device, batch_size: int, workers: int
) -> tuple[dict[str, Any], Estimates]:
    """Write the tokens of a representation over those of the one before, and measure the probe on them."""
    if r.name == "pixels" and asked.metric == "attentive_probe":
        raise Unmeasurable("raw pixels have no patch tokens")
    if asked.metric == "segmentation_probe" and r.square != asked.square:
        raise Unmeasurable("its encoder sees another part of the images than the masks show")
    tokens = {}
    for name, dataset in asked.data.items():
        file = work / f"{name}.npy"
        file.unlink(missing_ok=True)
        tokens[name] = token_maps.extract(
            r,
            dataset,
            asked.samples[name],
            file,
            device,
            stages=STAGES_READ[asked.metric],
            batch_size=batch_size,
            workers=workers,
        )
    progress.doing(f"{METHODS[asked.metric].label} of {r.name}")
    return asked.judge(tokens)


def _attentive(
    data: Mapping[str, Dataset],
    reported: str,
    targets: Mapping[str, Targets],
    options: Options,
    device: torch.device,
) -> _Asked:
    """Prepare the attentive probe; raises Unmeasurable if a split has too few targets."""
    usable = usable_targets(targets, reported)
    samples = {name: np.flatnonzero(usable[name].known) for name in data}
    train, last = usable["train"], usable[reported]
    groups = None if last.groups is None else last.groups[last.known]
    protocol = attentive_probe.Protocol(seed=options.seed)
    protocol = protocol.model_copy(update={"l2": options.given_l2(protocol.l2)})

    def judge(tokens: Mapping[str, Tokens]) -> tuple[dict[str, Any], Estimates]:
        first, val, test = (
            Images(tokens[name].x, usable[name].values[usable[name].known])
            for name in ("train", "val", reported)
        )
        measured = attentive_probe.attentive_probe(
            first, val, test, train.kind, protocol=protocol, classes=len(train.names), device=device
        )
        drawn = {"resamples": options.resamples, "seed": options.seed}
        return of_test(measured, last.values[last.known], groups, train.kind, train.names, **drawn)

    return _Asked("attentive_probe", data, reported, samples, None, judge)


def _segmentation(
    data: Mapping[str, Dataset],
    reported: str,
    first: Representation,
    work: Path,
    options: Options,
    device: torch.device,
) -> _Asked:
    """Prepare the segmentation probe for masks as the first representation sees their images.

    Raises Unmeasurable if a split has none.
    """
    maps = {
        name: mask_maps.extract(of, first.size, first.square, work / f"masks-{name}.npy")
        for name, of in data.items()
    }
    for name, of in maps.items():
        if not len(of.samples):
            raise Unmeasurable(f"{name} has no masks; pack the images with --masks FOLDER")
    described = data["train"].description.masks

    def judge(tokens: Mapping[str, Tokens]) -> tuple[dict[str, Any], Estimates]:
        def masked(name: str) -> Masked:
            groups = data[name].groups
            its = None if groups is None else groups[maps[name].samples]
            return Masked(Images(tokens[name].x, maps[name].classes), tokens[name].grid, its)

        return segmentation_probe.segmentation_probe(
            masked("train"),
            masked("val"),
            masked(reported),
            names=described.rule.names if described else (),
            l2=options.given_l2(segmentation_probe.L2_GRID),
            resamples=options.resamples,
            seed=options.seed,
            device=device,
        )

    samples = {name: of.samples for name, of in maps.items()}
    return _Asked("segmentation_probe", data, reported, samples, first.square, judge)
