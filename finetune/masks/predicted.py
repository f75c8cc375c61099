"""The masks that networks predict for the images of a data set, compared with the true ones."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from data_pipeline.dataset import masks
from data_pipeline.dataset.index import Dataset
from data_pipeline.targets.mask_scores import Counts, count
from data_pipeline.transforms.physical import Scales
from data_pipeline.transforms.views import center_mask
from eval_suite.features.embed import stream
from eval_suite.features.representation import Representation, pretrained
from eval_suite.inputs.checkpoints import Checkpoint
from isotorus.errors import UserError
from pretrain.models.feature_sets import MAP, give, upsampled

BATCH = 64
"""Images that are predicted at once."""


class MaskPredictor(nn.Module):
    """Maps images (N, C, H, W) to the classes of their pixels (N, H, W).

    The classes are called `embedding`, because `stream` expects a dict of features that has this name.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        """Put an encoder that returns its map in front of a linear layer."""
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return uint8 numbers of classes."""
        logits = self.head(self.encoder(images)).float()
        return {"embedding": upsampled(logits, images.shape[2:]).argmax(1).to(torch.uint8)}


def network(checkpoint: Checkpoint, name: str) -> Representation:
    """Return the network of a finished run, which predicts masks."""

    def build() -> MaskPredictor:
        encoder = checkpoint.pretrained()
        give(encoder, MAP)
        state = load_file(checkpoint.projector_file)
        classes, width = state["0.weight"].shape
        head = nn.Sequential(nn.Linear(width, classes))
        head.load_state_dict(state)
        return MaskPredictor(encoder, head)

    return replace(pretrained(checkpoint, ()), name=name, build=build)


def counted(
    networks: Sequence[Representation],
    dataset: Dataset,
    samples: NDArray[np.int64],
    classes: int,
    state: PartialState,
    workers: int,
) -> dict[str, Counts]:
    """Return how many pixels of the masks of samples each network predicts as what, by its name.

    All processes call it, and each predicts for its share of the samples. The first one returns the counts in
    the order of the samples, the others an empty dict. The networks are those of one encoder, so they take
    the same images. Raises UserError on all processes for images and masks that cannot be read.
    """
    with state.split_between_processes(torch.from_numpy(samples)) as share:
        mine: list[int] = share.tolist()
    failure, own = "", []
    try:
        own = list(_of_batches(networks, dataset, mine, classes, state.device, workers))
    except UserError as error:
        failure = str(error)
    gathered: list[tuple[str, list[list[Counts]]]] = gather_object([(failure, own)])
    if failures := [said for said, _ in gathered if said]:
        raise UserError(failures[0])
    if not state.is_main_process:
        return {}
    batches = [batch for _, of in gathered for batch in of]
    return {
        r.name: Counts(*map(np.concatenate, zip(*(batch[i] for batch in batches), strict=True)))
        for i, r in enumerate(networks)
    }


def _of_batches(
    networks: Sequence[Representation],
    dataset: Dataset,
    samples: list[int],
    classes: int,
    device: torch.device,
    workers: int,
) -> Iterator[list[Counts]]:
    """Yield the counts of each network for one batch of samples after the other."""
    for each in networks:
        each.model.to(device)
    batches = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
    for batch in stream(networks, dataset, batches, device, workers):
        if batch.damaged:
            raise UserError(next(iter(batch.damaged.values())))
        truth = true_masks(dataset, batch.samples, networks[0])
        yield [count(truth, of["embedding"].numpy(), classes) for of in batch.vectors]


def true_masks(dataset: Dataset, samples: Sequence[int], network: Representation) -> NDArray[np.uint8]:
    """Return the masks (n, H, W) of samples, cut and resized as the network sees their images.

    Raises UserError for a mask that cannot be read.
    """
    scales = network.square and Scales(dataset, network.square.unit)
    found = []
    for i in samples:
        mask = masks.read(dataset, i)
        assert mask is not None, "only samples with a mask are predicted"
        found.append(center_mask(mask, network.size, network.square, scales.of(i) if scales else None))
    return np.stack(found)
