"""The segmentation probe on the encoder as it is: the weights that the layer starts from, and a baseline."""

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.dataset.index import Dataset
from eval_suite.attempts import Unmeasurable
from eval_suite.features import mask_maps, token_maps
from eval_suite.features.representation import Representation, pretrained
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.usefulness.tokens.attentive_probe import Images
from eval_suite.usefulness.tokens.segmentation_probe import L2_GRID, Masked, fit
from finetune.head import has_start, save_layer
from finetune.processes import on_first, processes
from finetune.recipe import CACHE
from isotorus.errors import UserError
from isotorus.files import temporary_folder
from pretrain.config import Config
from pretrain.models.feature_sets import STAGES
from pretrain.preflight.inputs import RunInputs


def write_start(config: Config, checkpoint: Checkpoint, inputs: RunInputs) -> None:
    """Write the weights of the probe to the run's folder; all ranks call it.

    Nothing is written if the run has begun already, or begins with a random layer. Raises UserError on all
    ranks if the encoder gives no tokens, or if they or the masks cannot be read or kept.
    """
    on_first(lambda: None if has_start(config) else _write(config, checkpoint, inputs))


def _write(config: Config, checkpoint: Checkpoint, inputs: RunInputs) -> None:
    """Fit the probe and write its weights, on the first rank."""
    task, device, datasets = inputs.task, processes().device, inputs.sources.datasets
    assert task is not None
    of = pretrained(checkpoint.for_images_of(*datasets, task.val))
    loading: dict[str, Any] = {"device": device, "workers": config.data.workers}
    with work(config.folder) as folder:
        known = map(np.flatnonzero, np.split(task.known, inputs.sources.starts[1:]))
        try:
            pairs = [(data, rows) for data, rows in zip(datasets, known, strict=True) if len(rows)]
            parts = [tokens(of, *pair, folder, **loading) for pair in pairs]
            val = tokens(of, task.val, task.val_rows, folder, **loading)
            fitted = fit(_joined(parts), val, len(task.names), L2_GRID, config.seed, device)
        except Unmeasurable as error:
            raise UserError(
                f"the segmentation probe that the layer starts from cannot be fitted: {error}; mend this, or "
                "start from random weights with --head random"
            ) from None
    save_layer(config, *fitted.linear(len(task.names)))


def work(folder: Path) -> AbstractContextManager[Path]:
    """Make a folder inside the run's, for tokens and masks, which is removed at the end.

    What a killed process left there is removed first.
    """
    cache = folder / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    return temporary_folder(cache, "tokens-")


def tokens(
    of: Representation,
    dataset: Dataset,
    samples: NDArray[np.int64],
    folder: Path,
    *,
    device: torch.device,
    workers: int,
) -> Masked:
    """Write tokens and masks of samples, which all have a mask, to new files below a folder.

    Raises Unmeasurable for an encoder without tokens, tokens that are not finite in float16, a full disk and
    damaged images, and UserError for masks that cannot be read.
    """
    own = Path(tempfile.mkdtemp(dir=folder))
    y = mask_maps.extract(dataset, of.size, of.square, own / "masks.npy", samples).classes
    loading: dict[str, Any] = {"stages": STAGES, "batch_size": 64, "workers": workers}
    x, grid = token_maps.extract(of, dataset, samples, own / "tokens.npy", device, **loading)
    return Masked(Images(x, y), grid, None if dataset.groups is None else dataset.groups[samples])


def _joined(parts: list[Masked]) -> Masked:
    """Return several data sets as one."""
    if len(parts) == 1:
        return parts[0]
    x, y = (np.concatenate(of) for of in zip(*(part.images for part in parts), strict=True))
    return Masked(Images(x, y), parts[0].grid)
