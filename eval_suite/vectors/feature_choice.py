"""Which feature set of a checkpoint is embedded: one that is named, that an evaluation chose, or its map."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from eval_suite import results
from eval_suite.attempts import refused
from eval_suite.features import embed, token_maps
from eval_suite.features.representation import Representation
from eval_suite.inputs import seals
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.metrics import FEATURE_SETS, MAP
from eval_suite.vectors.about import Maps
from isotorus.errors import UserError
from pretrain.models.feature_sets import STAGES

USUAL = "embedding"
_ROWS = 4096
"""Images of a part of vectors."""
_BATCHES, _BYTES = 64, 2**27
"""A part of maps has a multiple of this number of images, and at most these bytes if that is possible."""


class Chosen(NamedTuple):
    """What is embedded of each image."""

    r: Representation
    """Gives this feature set alone."""
    name: str
    why: str
    """Why it is this one, in words."""
    width: int
    part_rows: int
    """Images of a part, unless the user gives another number."""
    maps: Maps | None = None


def vectors(checkpoint: Checkpoint, every: Representation, named: str | None) -> Chosen:
    """Return the feature set `named`, or else what an evaluation chose; `every` gives all sets.

    Raises UserError if the checkpoint has no such set.
    """
    widths = {name: x.shape[1] for name, x in embed.blank(every, torch.device("cpu")).items()}
    name, why = choose(checkpoint, named, widths)
    return Chosen(replace(every, build=lambda: every.model, sets=(name,)), name, why, widths[name], _ROWS)


def token_map(checkpoint: Checkpoint, every: Representation) -> Chosen:
    """Return the map of an encoder, which masks are predicted from; raises UserError if it gives none."""
    r = token_maps.representation(every, STAGES)
    with refused(
        lambda reason: f"{checkpoint.name} has no token maps ({reason}); write vectors, to .parquet"
    ):
        rows, columns, width = token_maps.shape_of(r, torch.device("cpu"))
    maps = Maps(grid=(rows, columns), patch=(r.size / rows, r.size / columns))
    size = rows * columns * width * np.dtype(maps.dtype).itemsize
    part_rows = max(1, _BYTES // (size * _BATCHES)) * _BATCHES
    return Chosen(r, MAP, "as the ending .zarr says", width, part_rows, maps)


def choose(checkpoint: Checkpoint, named: str | None, widths: Mapping[str, int]) -> tuple[str, str]:
    """Return the name of a feature set of the checkpoint, and why it is that one.

    `widths` are those of the sets that the checkpoint has. Without a name it is the set that the linear probe
    chose in this user's evaluation of the checkpoint, if it is in the folder of `isotorus eval`, else the
    embedding. Raises UserError if the checkpoint has no such set.
    """
    if named is not None and named not in widths:
        raise UserError(
            f"--features {named}: {checkpoint.name} has no such feature set; it has {', '.join(widths)}"
        )
    if named is not None:
        return named, "as --features says"
    found = _of_evaluation(checkpoint)
    if found in widths:
        return found, "which the linear probe of its evaluation chose; --features names another"
    return USUAL, "the encoder's output; --features names another"


def _of_evaluation(checkpoint: Checkpoint) -> str:
    """Return the feature set that an evaluation of this user chose; "" if there is none."""
    folder = (checkpoint.run or checkpoint.folder) / "eval" / checkpoint.results_name
    if not seals.holds(folder / results.SEAL, [folder / name for name in results.FILES]):
        return ""
    found = results.read(folder)
    chosen = results.dig(found, "representations/pretrained/probe/feature_set")
    same = results.dig(found, "checkpoint/weights_sha256") == checkpoint.weights_sha256
    return chosen if same and chosen in FEATURE_SETS else ""
