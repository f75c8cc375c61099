"""Training data in a bucket: the same batches as from the disk, with few requests."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from s3_server import S3Server

from data_pipeline.augment import AugmentConfig
from data_pipeline.cache import CacheConfig
from data_pipeline.errors import UserError
from data_pipeline.index import Dataset
from data_pipeline.loader import Batch, Loader
from data_pipeline.sources import DataConfig
from data_pipeline.views import ViewsConfig


def take(config: DataConfig) -> list[Batch]:
    views = ViewsConfig(global_views=1, global_size=16, local_views=0)
    options = {"batch_size": config.batch_size, "workers": config.workers, "order": config.order}
    loader = Loader(config.open(), views=views, augment=AugmentConfig(), channels=3, seed=0, **options)
    return list(islice(loader, 8))


def test_batches_from_a_bucket_are_those_from_the_disk(
    packed: Dataset, s3: S3Server, cache: CacheConfig
) -> None:
    names = [file.name for file in Path(packed.path).iterdir()]
    for name in names:
        s3.put(f"bucket/packed/{name}", Path(packed.path, name).read_bytes())
    common = {"batch_size": 8, "workers": 2, "order": "windowed", "cache": cache}
    here = take(DataConfig(path=packed.path, **common))
    there = take(DataConfig(path="s3://bucket/packed", **common))
    for a, b in zip(here, there, strict=True):
        assert (a.indices == b.indices).all() and not b.replaced
        assert torch.equal(a.views[0], b.views[0]) and torch.equal(a.parameters[0], b.parameters[0])
    for name in names:
        if name.endswith(".tar"):  # each is smaller than a chunk, and read by two processes for two epochs
            assert s3.requests("GET", f"packed/{name}") == 1


def test_a_uniform_order_over_more_than_the_cache_holds_is_refused(
    packed: Dataset, s3: S3Server, cache: CacheConfig
) -> None:
    for name in ("index.npy", "shards.npy", "dataset.json"):
        data = Path(packed.path, name).read_bytes()
        if name == "dataset.json":
            total = f'"bytes": {packed.description.bytes}'.encode()
            assert total in data
            data = data.replace(total, b'"bytes": 70000000000')
        s3.put(f"bucket/large/{name}", data)
    with pytest.raises(UserError, match=r"reads 70 GB of remote shards .* use data.order=windowed"):
        DataConfig(path="s3://bucket/large", cache=cache).open()
    assert len(DataConfig(path="s3://bucket/large", cache=cache, order="windowed").open()) == len(packed)
