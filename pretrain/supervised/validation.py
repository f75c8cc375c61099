"""The score on val of each checkpoint of a supervised run, and when the run ends early because of it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import r2_score, recall_score, roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_pipeline.dataset import masks
from data_pipeline.dataset.channel_names import Placement, placed
from data_pipeline.targets.mask_scores import Counts, count, mean_iou
from data_pipeline.transforms.augment import normalised
from data_pipeline.transforms.physical import Scales, Spacing, whole_square
from data_pipeline.transforms.views import center_mask, center_view
from isotorus.device import to_device
from isotorus.errors import UserError
from pretrain.distributed import rank, stack_of_ranks, world_size
from pretrain.engines import Engine
from pretrain.methods.config import SupervisedConfig
from pretrain.models.feature_sets import upsampled
from pretrain.supervised.masks import check_scored
from pretrain.supervised.task import Task

if TYPE_CHECKING:  # both modules depend on this room
    from pretrain.config import Config
    from pretrain.preflight.inputs import RunInputs

log = logging.getLogger(__name__)

SCORES = {
    "multiclass": "balanced_accuracy",
    "multilabel": "auroc",
    "regression": "r2",
    "segmentation": "miou",
}
"""The score that chooses the best checkpoint, by task; larger is better."""


class Seen(NamedTuple):
    """What is scored on val, of one sample or of a batch (b, …)."""

    view: Tensor
    """The centred view, as integers (C, S, S)."""
    mask: Tensor
    """Its mask, uint8 (S, S); (0,) where masks are not predicted."""


_KEPT = 2**28
"""Largest size in bytes of decoded images of val that stay in memory for the next checkpoint."""


class Validation:
    """Scores the networks on val. All ranks make the same calls, because FSDP and ZeRO gather."""

    def __init__(
        self, config: Config, inputs: RunInputs, engine: Engine, progress: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare to score; `progress` is called after each batch, as a large val takes long."""
        assert isinstance(config.objective, SupervisedConfig) and inputs.task is not None
        self.config, self.inputs, self.engine, self.progress = config, inputs, engine, progress
        self.objective, self.task = config.objective, inputs.task
        self.score = SCORES[self.objective.task]
        names = inputs.sources.channel_names
        self.placement = None if names is None else placed(self.task.val, names)
        """The places of val's channels among those of the encoder; None if these have no names."""
        self._check_masks()
        self.best, self.best_step, self.not_better = -np.inf, 0, 0
        """The best score, the step that it was first reached at, and how many scores came after it."""

    def _check_masks(self) -> None:
        """Raise UserError if masks are predicted, and the scored pixels have fewer than two classes."""
        if self.objective.segments:
            views = self.config.views
            square = whole_square(views)
            check_scored("val", self.task.val, self.task.val_rows, views.whole_side, square, self.task.names)

    @property
    def ended(self) -> bool:
        """Whether `patience` checkpoints in a row were not better than the best one."""
        patience = self.objective.patience
        return patience is not None and self.not_better >= patience

    def measure(self, step: int) -> dict[str, float]:
        """Score the networks after `step` steps, and return a part of the row of the log."""
        found = score(self.objective.task, self.task.val_y, self._predict())
        if found > self.best:
            self.best, self.best_step, self.not_better = found, step, 0
        else:
            self.not_better += 1
        if self.ended and rank() == 0:
            log.info(
                "step %d: ends early, because the last %d checkpoints were not better on val than step %d",
                step, self.not_better, self.best_step,
            )  # fmt: skip
        return {f"val_{self.score}": found} | ({"stopped_early": 1.0} if self.ended else {})

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        return {"best": self.best, "best_step": self.best_step, "not_better": self.not_better}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.best, self.best_step = float(state["best"]), int(state["best_step"])
        self.not_better = int(state["not_better"])

    def describe(self) -> dict[str, Any]:
        """Return the entry `validation` of encoder.json: the score, and the step of the best checkpoint."""
        return {"score": self.score, "best": self.best, "best_step": self.best_step}

    @torch.no_grad()
    def _predict(self) -> NDArray[np.float64]:
        """Return predictions (n, outputs) for the samples of val that have a target, on all ranks.

        For masks, they are the numbers of pixels (n, 3 · classes) of `mask_scores.Counts`.
        """
        networks, device = self.engine.networks, self.engine.device
        present = None if self.placement is None else self.placement.mask(device)
        predicted = []
        networks.eval()
        try:
            for pixels, truth in self._batches():
                images = to_device(pixels, device).float() / torch.iinfo(pixels.dtype).max
                images = normalised(images, self.inputs.mean, self.inputs.std, present)
                keys = torch.zeros(1, len(images), dtype=torch.int64, device=device)
                embeddings = self.engine.encode([images[None]], keys)
                outputs = self.engine.head(embeddings, 0, None).projections[0]
                predicted.append(counted(outputs, truth) if self.objective.segments else outputs)
                self.progress()
        finally:
            networks.train()
        of_ranks = stack_of_ranks(torch.stack(predicted))  # (ranks, batches, b, outputs)
        flat = of_ranks.transpose(0, 1).flatten(0, 2)[: len(self.task.val_rows)]
        return self.task.in_units(flat.cpu().numpy())

    def _batches(self) -> Iterator[Seen]:
        """Yield this rank's centred views of val and their masks; all ranks have as many."""
        channels, size = self.config.data.channel_count, self.config.views.whole_side
        of_pixel = channels * self.task.val.depth // 8 + self.objective.segments
        bytes_ = len(self.task.val_rows) * size**2 * of_pixel
        yield from self._kept if bytes_ <= _KEPT else self._read()

    @functools.cached_property
    def _kept(self) -> list[Seen]:
        return list(self._read())

    def _read(self) -> Iterator[Seen]:
        samples = self._mine()
        views = _CentredViews(self.task, samples, self.config, self.placement)
        workers = self.config.data.workers if len(samples) > 4 * self._together else 0
        arguments: dict[str, Any] = {"num_workers": workers, "generator": torch.Generator()}
        for batch in DataLoader(views, self._together, collate_fn=_collate, **arguments):
            if isinstance(batch, str):
                raise UserError(batch)
            yield batch

    @property
    def _together(self) -> int:
        """Images that are encoded at once."""
        return max(1, min(self.config.data.batch_size, len(self.task.val_rows)) // world_size())

    def _mine(self) -> NDArray[np.int64]:
        """Return this rank's samples; the first ones are repeated at the end, to fill the last batches."""
        rows, chunk = self.task.val_rows, self._together * world_size()
        padded = np.resize(rows, -(-len(rows) // chunk) * chunk)
        return padded.reshape(-1, world_size(), self._together)[:, rank()].reshape(-1)


class _CentredViews(Dataset[Seen | str]):
    """The centred square of each sample, as evaluations see it; of a damaged one, what is wrong."""

    def __init__(
        self, task: Task, samples: NDArray[np.int64], config: Config, placement: Placement | None
    ) -> None:
        self.val, self.samples, self.placement = task.val, samples, placement
        self.with_masks = task.kind == "segmentation"
        self.channels, self.size = config.data.channel_count, config.views.whole_side
        self.square = whole_square(config.views)
        self.scales = self.square and Scales(task.val, self.square.unit)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Seen | str:
        sample = int(self.samples[i])
        try:
            own = self.placement.own if self.placement else self.channels
            pixels = self.val.pixels(sample, own, self.val.depth)
            spacing = self.scales.of(sample) if self.scales else None
            view = center_view(pixels, self.size, self.square, spacing)
            mask = torch.from_numpy(self._mask(sample, spacing))
            return Seen(self.placement.spread(view) if self.placement else view, mask)
        except (UserError, ValueError) as error:
            return f"{self.val.name(sample)} of {self.val.path} cannot be read ({error}); pack val again"

    def _mask(self, sample: int, spacing: Spacing | None) -> NDArray[np.uint8]:
        """Return the mask of a view, (0,) where masks are not predicted."""
        if not self.with_masks:
            return np.zeros(0, np.uint8)
        mask = masks.read(self.val, sample)
        if mask is None:
            return np.full((self.size, self.size), masks.IGNORED, np.uint8)
        return center_mask(mask, self.size, self.square, spacing)


def _collate(items: list[Seen | str]) -> Seen | str:
    """Stack the views of a batch and their masks, or return the first message."""
    seen: list[Seen] = []
    for item in items:
        if isinstance(item, str):
            return item
        seen.append(item)
    return Seen(*(torch.stack(parts) for parts in zip(*seen, strict=True)))


def counted(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the numbers of pixels of `Counts`, flat (b, 3 · classes), for logits (b, h, w, classes).

    The logits are those of the cells of images; they are upsampled to the masks `truth` (b, S, S).
    """
    predicted = upsampled(logits, truth.shape[1:]).argmax(1).cpu().numpy()
    counts = count(truth.numpy(), predicted, logits.shape[-1])
    return torch.from_numpy(np.concatenate(counts, axis=1)).to(logits.device)


def score(task: str, y: NDArray[Any], predicted: NDArray[np.floating]) -> float:
    """Return the score `SCORES[task]` of predictions (n, outputs) for targets `y`, as in `Targets.values`.

    The mean over columns leaves out labels that all samples or none of them have.
    """
    predicted = np.nan_to_num(predicted)
    if task == "multiclass":
        return float(recall_score(y, predicted.argmax(1), labels=np.unique(y), average="macro"))
    if task == "segmentation":
        return float(mean_iou(Counts(*np.split(predicted.astype(np.int64), 3, axis=1)))[0])
    if task == "multilabel":
        both = [c for c in range(y.shape[1]) if 0 < y[:, c].mean() < 1]
        return float(np.mean([roc_auc_score(y[:, c], predicted[:, c]) for c in both]))
    return float(r2_score(y, predicted))
