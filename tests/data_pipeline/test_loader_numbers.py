"""The batches of a set of numbers show the brightness of its rule, and the augmentation is relative to it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.intensity import Intensity
from data_pipeline.loader import Batch, Loader
from data_pipeline.packing.pack import Options, pack
from data_pipeline.sources import Sources
from data_pipeline.transforms import augment
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig

WHOLE = ViewsConfig(global_views=1, global_size=16, global_scale=(1, 1), local_views=0, ratio=(1, 1))
OFF = AugmentConfig(
    horizontal_flip=0, jitter_probability=0, grey_probability=0, blur_probability=0, solarize_probability=0
)


def packed(folder: Path, arrays: np.ndarray, rule: str) -> Dataset:
    (folder / "images").mkdir()
    for i, array in enumerate(arrays):
        np.save(folder / f"images/{i}.npy", array)
    pack(folder / "images", folder / "set", Options(intensity=Intensity(rule=rule)))
    return Dataset(folder / "set")


def first(data: Dataset, config: AugmentConfig) -> Batch:
    sources = Sources([data], [1.0])
    return next(iter(Loader(sources, batch_size=6, views=WHOLE, augment=config, channels=1, seed=1)))


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint32])
def test_whole_views_are_the_images_by_the_rule(tmp_path: Path, dtype: type) -> None:
    arrays = np.random.default_rng(0).uniform(0, 2000, (6, 16, 16)).astype(dtype)
    data = packed(tmp_path, arrays, "window:300,1500")
    batch = first(data, OFF)
    assert batch.views[0].dtype == torch.uint16
    for view, index in zip(batch.views[0][0].numpy(), batch.indices, strict=True):
        b = np.clip((arrays[int(data.key(index))].astype(np.float64) - 300) / 1200, 0, 1)
        np.testing.assert_array_equal(view[0], np.rint(65_535 * b))


def test_the_bright_half_of_12_bits_is_solarized(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 4096, (6, 16, 16)).astype(np.uint16)
    data = packed(tmp_path, arrays, "window:0,4095")
    batch = first(data, OFF.model_copy(update={"solarize_probability": 1.0}))
    seen = augment.apply(batch.views[0][0], batch.parameters[0][0], [0.0], [1.0]).numpy()
    for view, index in zip(seen, batch.indices, strict=True):
        b = arrays[int(data.key(index))] / 4095
        np.testing.assert_allclose(view[0], np.where(b >= 0.5, 1 - b, b), atol=2e-5)
