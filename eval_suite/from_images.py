"""What an evaluation adds that needs the images and not only vectors: augmented views, and patch tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.dataset.index import Dataset
from data_pipeline.targets.targets import Targets
from eval_suite import geometry, progress, usefulness
from eval_suite.attempts import attempt
from eval_suite.features import augmented
from eval_suite.features.representation import Representation
from eval_suite.options import Options
from eval_suite.usefulness.tokens import measure_tokens
from pretrain.models.description import EncoderDescription

AUGMENTED = ("pretrained", "untrained")
"""Representations whose augmented views are compared."""


def add_views(
    measured: dict[str, Any],
    representations: Sequence[Representation],
    described: EncoderDescription,
    train: Dataset,
    options: Options,
    device: torch.device,
) -> None:
    """Add to the results what augmentation, as in the encoder's training, changes in the embeddings."""
    if "views" not in options.geometry.metrics:
        return
    drawn: dict[str, Any] = {"seed": options.geometry.seed, "device": device}
    drawn |= {"objects": options.objects, "views": options.views}
    for r in representations:
        if r.name not in AUGMENTED:
            continue
        progress.doing(f"augmented views, {r.name}")

        def compute(r: Representation = r) -> dict[str, float]:
            return geometry.of_views(augmented.embed_views(r, described, train, **drawn))

        failed: dict[str, str] = {}
        if (found := attempt("views", compute, failed)) is not None:
            measured["representations"][r.name]["views"] = found
        place = "views" if r.name == "pretrained" else f"{r.name}/views"
        measured["left_out"] += [{"metric": place, "reason": why} for why in failed.values()]


def add_tokens(
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
    found = measure_tokens.measure(
        representations,
        data,
        targets,
        options.useful,
        folder,
        device,
        batch_size=batch_size,
        workers=workers,
    )
    for name, of in found.results.items():
        measured["representations"][name] |= of
    if "pretrained" in found.estimates:
        for name, of in usefulness.differences(found.estimates).items():
            measured["differences"].setdefault(name, {}).update(of)
    measured["left_out"] += found.left_out
