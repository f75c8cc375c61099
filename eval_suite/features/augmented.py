"""Random views of images as training makes them, to measure what augmentation changes in the embedding."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.dataset.index import Dataset
from data_pipeline.loader import Loader
from data_pipeline.sources import Sources
from data_pipeline.transforms.augment import apply
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from eval_suite.features.representation import Representation
from isotorus.errors import UserError
from pretrain.models.description import EncoderDescription

BATCH = 16
"""Images whose views are embedded at the same time."""
_CROPS = ("global_scale", "ratio", "scale_by", "unit", "physical_size", "unscaled")
"""Fields of `ViewsConfig` that say which part of an image a global view shows."""
LARGEST = 2**14
"""Largest side of a view, in pixels."""


def view_batches(
    described: EncoderDescription,
    dataset: Dataset,
    *,
    views: int,
    seed: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield endless batches (views, BATCH, C, size, size) of random global views.

    They are cropped, augmented and normalised as the checkpoint's configuration says, and depend only on
    `seed`. Raises UserError for images that cannot be read, and for a
    configuration with impossible values.
    """
    try:
        given = described.config.get("views", {})
        cut = ViewsConfig(
            global_views=views,
            local_views=0,
            global_size=min(given.get("global_size", described.image_size), LARGEST),
            **{key: given[key] for key in _CROPS if key in given},
        )
        augment = AugmentConfig(**described.config.get("augment", {}))
    except (ValueError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint's configuration has impossible views or augment ({said})") from None
    names = described.channel_names if described.channel_names == dataset.channel_names else None
    loader = Loader(
        Sources([dataset], [1.0], channel_names=names),
        batch_size=BATCH,
        views=cut,
        augment=augment,
        channels=described.channels,
        seed=seed,
    )
    mean, std = tuple(described.mean), tuple(described.std)
    for batch in loader:
        crops, parameters = batch.to(device).views[0], batch.parameters[0]
        images = apply(crops.flatten(0, 1), parameters.flatten(0, 1), mean, std, batch.present)
        yield images.unflatten(0, crops.shape[:2])


@torch.inference_mode()
def embed_views(
    representation: Representation,
    described: EncoderDescription,
    dataset: Dataset,
    *,
    objects: int,
    views: int,
    seed: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return embeddings (objects, views, d) of random global views, cropped and augmented as in training.

    The first dimension is images; there are fewer of them if the data set is smaller. The views depend only
    on `seed`. Raises UserError for images that cannot be read.
    """
    objects = min(objects, len(dataset))
    batches = view_batches(described, dataset, views=views, seed=seed, device=device)
    representation.model.to(device)
    rows = []
    for _, images in zip(range(-(-objects // BATCH)), batches, strict=False):
        x = representation.embed_normalised(images.flatten(0, 1))["embedding"]
        rows.append(x.unflatten(0, images.shape[:2]).transpose(0, 1).cpu())
    return torch.cat(rows)[:objects].numpy()
