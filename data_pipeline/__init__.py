"""Turn images into shards and shards into batches: packing, sample order, crops, augmentation."""

import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import webdataset


def webdataset_pipeline(
    path: str | os.PathLike[str],
    *,
    channels: int | None = None,
    depth: Literal[8, 16] | None = 8,
    pil: bool = False,
    shuffle: int = 0,
    seed: int = 0,
    generation: int | None = None,
) -> "webdataset.WebDataset":
    """Return a `webdataset.WebDataset` of a data set, for tools that read one.

    Each sample is a dict: `__key__`, `image` (H, W, C) as `Dataset.pixels` gives it for `channels` and
    `depth`, or as a PIL image with `pil`, `label` (class index, -1 for none), `class` (its name, "" for none)
    and `metadata`, the JSON beside the image. webdataset divides the shards among nodes and workers of a
    DataLoader. With `shuffle`, it shuffles the shards, and the samples in a buffer of that many, by `seed`;
    give another seed for each epoch. Raises `UserError` as `Dataset` does, and while iterating
    `dataset.index.Corrupt` and ValueError for images that are damaged.
    """
    # Imported here, so that commands start without waiting for these libraries.
    import webdataset

    from data_pipeline.dataset.for_webdataset import Decoder, shard_paths
    from data_pipeline.dataset.index import Dataset

    dataset = Dataset(path, generation=generation)
    pipeline = webdataset.WebDataset(
        shard_paths(dataset),
        shardshuffle=len(dataset.shards) if shuffle else False,
        detshuffle=True,
        seed=seed,
        nodesplitter=webdataset.split_by_node,
        empty_check=False,  # with more workers than shards, a worker without one is no error
    )
    if shuffle:
        pipeline = pipeline.compose(webdataset.detshuffle(shuffle, initial=shuffle, seed=seed))
    return pipeline.compose(Decoder(dataset, channels, depth, pil))
