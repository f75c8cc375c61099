"""Images of a set with the outlines of their true masks and of those that a network predicts."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import find_boundaries
from torch import Tensor

from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.masks import IGNORED
from data_pipeline.targets.mask_scores import Counts
from eval_suite.features.embed import read_views, stream
from eval_suite.features.representation import Representation
from eval_suite.report.pictures import data_uri, visible
from finetune.masks.predicted import true_masks

SHOWN = 6
"""Number of images that are shown."""
SIDE = 240
"""Smallest side of a picture in pixels; smaller images are enlarged."""
TRUE, PREDICTED = (0, 130, 255), (255, 120, 0)
"""Colours of the outlines: blue and orange, which people with red-green blindness tell apart too."""


def examples(
    network: Representation,
    dataset: Dataset,
    samples: NDArray[np.int64],
    counts: Counts,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Return pictures of samples from the worst to the best mIoU, evenly spaced in the order of their mIoU.

    `counts` are those of the network on the samples. Each picture is a dict of the sample's `key`, its `miou`
    over the classes that the image has, and `picture`, a data URI. Raises UserError for images that cannot be
    read.
    """
    scores = miou_of_each(counts)
    order = np.argsort(scores, kind="stable")[: np.isfinite(scores).sum()]
    places = np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int))
    chosen = order[places]
    network.model.to(device)
    found = []
    rows = [int(samples[i]) for i in chosen]
    for batch in stream([network], dataset, [rows] if rows else [], device, 0):
        truth = true_masks(dataset, batch.samples, network)
        for place, i in enumerate(batch.samples):
            (pixels,) = read_views(dataset, i, network.channels, [network.size], network.square)
            predicted = batch.vectors[0]["embedding"][place].numpy()
            found.append(
                {
                    "key": dataset.key(i),
                    "miou": float(scores[chosen[place]]),
                    "picture": picture(pixels, truth[place], predicted),
                }
            )
    return found


def miou_of_each(counts: Counts) -> NDArray[np.float64]:
    """Return the mIoU of each image over the classes that it has; nan for an image without a known pixel."""
    union = counts.true + counts.predicted - counts.right
    own = counts.true > 0
    of_classes = np.where(own, counts.right / np.maximum(union, 1), 0).sum(axis=1)
    number = own.sum(axis=1)
    return np.where(number > 0, of_classes / np.maximum(number, 1), np.nan)


def picture(pixels: Tensor, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> str:
    """Draw the outlines of two masks (H, W) on their image (C, H, W); return a PNG as a data URI.

    Pixels that nobody labelled are shown darker.
    """
    scale = -(-SIDE // truth.shape[0])
    shown = _enlarged(np.asarray(visible(pixels).convert("RGB")), scale)
    shown[_enlarged(truth == IGNORED, scale)] //= 2
    for mask, colour in ((truth, TRUE), (predicted, PREDICTED)):
        shown[find_boundaries(_enlarged(mask, scale), mode="thick")] = colour
    return data_uri(Image.fromarray(shown), "PNG")


def _enlarged(values: NDArray[Any], scale: int) -> NDArray[Any]:
    """Repeat each pixel of an image (H, W, …) `scale` times in both directions."""
    return values.repeat(scale, axis=0).repeat(scale, axis=1)
