"""What a run needs beyond its configuration."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from data_pipeline.dataset.index import Dataset
from data_pipeline.sources import Sources
from pretrain.checkpoint.warm_start import WarmStart

if TYPE_CHECKING:
    from pretrain.supervised.task import Task


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """What a run needs beyond its configuration, found out from the data, the encoder and its checkpoints."""

    sources: Sources
    encoder_kwargs: dict[str, Any]
    """Arguments of `pretrain.models.encoder.create`."""
    embedding_width: int
    mean: tuple[float, ...]
    """Mean of the pixels in each channel."""
    std: tuple[float, ...]
    warm_start: WarmStart | None = None
    """The file that the first weights came from; None where they were random."""
    initial_weights: str | None = None
    """The file to read the first weights from; None if they are random or a checkpoint is continued."""
    task: Task | None = None
    """What a supervised run predicts."""
    held_out: Dataset | None = None
    """The data set of `held_out.path`."""
    readings_before: tuple[dict[str, Any], ...] = ()
    """How the run read its data before starts that changed it, see `pretrain.checkpoint.readings`."""
