"""Copies of images and of rows of features are groups, in one split and across two."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from data_pipeline.dataset.index import Dataset
from data_pipeline.packing.pack import Options, pack
from eval_suite.inputs import copies
from eval_suite.usefulness.folds.division import together
from tests.data_pipeline.pictures import picture


def packed(folder: Path, images: list[Image.Image]) -> Dataset:
    source = folder.with_name(f"{folder.name}-images")
    source.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(source / f"{number}.png")
    pack(source, folder, Options())
    return Dataset(folder)


def test_exact_and_near_copies_are_groups_across_splits(tmp_path: Path):
    images = [picture(seed) for seed in range(8)]
    near = ImageEnhance.Brightness(images[2]).enhance(1.03)
    datasets = {
        "train": packed(tmp_path / "train", images),
        "val": packed(tmp_path / "val", [picture(20), images[5], near, picture(21)]),
    }
    known = {name: np.ones(len(of), bool) for name, of in datasets.items()}
    found = copies.of_images(datasets, known)
    unit = together(*[np.concatenate([codes["train"], codes["val"]]) for codes in found])
    train, val = ([of.key(i) for i in range(len(of))] for of in datasets.values())
    assert unit[train.index("5")] == unit[8 + val.index("1")]
    assert unit[train.index("2")] == unit[8 + val.index("2")]
    assert len(np.unique(unit)) == 10
    known["val"][val.index("2")] = False  # an image without a label is not looked at
    _, near_only = copies.of_images(datasets, known)
    assert near_only["val"][val.index("2")] == 0


def test_equal_rows_are_groups_unless_most_rows_are_equal():
    x = np.random.default_rng(0).normal(size=(12, 3))
    x[7], x[11] = x[2], x[2]
    (codes,) = copies.of_rows({"train": x[:8], "val": x[8:]})
    assert codes["train"][2] == codes["train"][7] == codes["val"][3] > 0
    assert np.count_nonzero(codes["train"]) + np.count_nonzero(codes["val"]) == 3
    (coarse,) = copies.of_rows({"train": np.zeros((5, 2))})
    assert not coarse["train"].any()
