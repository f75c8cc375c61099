"""Several random views of one image, as training makes them: for measures of what augmentation changes."""

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.augment import AugmentConfig, apply
from data_pipeline.index import Dataset
from data_pipeline.loader import Loader
from data_pipeline.sources import Sources
from data_pipeline.views import ViewsConfig
from eval_suite.checkpoints import EncoderDescription
from eval_suite.embed import Representation

BATCH = 16


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
    """Embeddings (objects, views, d) of random global views, cut and augmented as in training, from `seed`.

    Fewer objects where the data set has fewer images. Raises UserError where images cannot be read.
    """
    objects = min(objects, len(dataset))
    given = described.config.get("views", {})
    cut = ViewsConfig(
        global_views=views,
        local_views=0,
        global_size=representation.size,
        **{key: given[key] for key in ("global_scale", "ratio") if key in given},
    )
    loader = Loader(
        Sources([dataset], [1.0]),
        batch_size=BATCH,
        views=cut,
        augment=AugmentConfig(**described.config.get("augment", {})),
        channels=representation.channels,
        seed=seed,
    )
    representation.model.to(device)
    rows = []
    for _, batch in zip(range(-(-objects // BATCH)), loader, strict=False):
        crops, parameters = batch.to(device).views[0], batch.parameters[0]
        images = apply(crops.flatten(0, 1), parameters.flatten(0, 1), representation.mean, representation.std)
        found = representation.embed_normalised(images)["embedding"]
        rows.append(found.unflatten(0, crops.shape[:2]).transpose(0, 1).cpu())
    return torch.cat(rows)[:objects].numpy()
