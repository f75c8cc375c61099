"""Sets that an earlier version packed have the same samples in the same order, with the same pixels.

That version applied the orientation tags of 8-bit TIFFs and no others; its sets keep the pixels they had.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.decode import decode
from data_pipeline.loader import Loader
from data_pipeline.sources import Sources
from data_pipeline.transforms import augment
from data_pipeline.transforms.columns import PARAMETERS
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from tests.formats.contains import assert_contains

HERE = Path(__file__).parent
WRITTEN = json.loads((HERE / "written.json").read_text())
FIRST_GENERATION = "sets/grown, generation 1"
SETS = sorted(WRITTEN["sets"])
CROPPED_BY_THE_STORED_SIZE = ("sets/scans/test", 1)
"""Set and index of an 8-bit TIFF whose tag turned the pixels, while crops were drawn for the stored size."""


def open_set(name: str) -> Dataset:
    path, _, generation = name.partition(", generation ")
    return Dataset(HERE / path, generation=int(generation) if generation else None)


def digest(*arrays: NDArray[Any]) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(f"{array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def run(*arguments: object) -> str:
    """Run a command of `isotorus` on data, which must succeed; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([str(argument) for argument in arguments]) == 0
    return printed.getvalue()


def test_every_kind_of_set_is_here():
    extensions = {extension for name in SETS for extension in WRITTEN["sets"][name]["extensions"]}
    assert extensions == {"jpg", "png", "webp", "tif", "npy"}
    assert {open_set(name).channels for name in SETS} == {1, 3, 5}
    assert {open_set(name).depth for name in SETS} == {8, 16}


@pytest.mark.parametrize("name", sorted({*SETS} - {FIRST_GENERATION}))
def test_info_says_what_it_said(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(HERE)
    shown = json.loads(run("info", name, "--json"))
    assert_contains(shown, WRITTEN["sets"][name]["info"])


@pytest.mark.parametrize("name", SETS)
def test_samples_and_pixels_are_those_that_were_packed(name: str):
    data, written = open_set(name), WRITTEN["sets"][name]
    samples = range(len(data))
    assert [data.key(i) for i in samples] == written["keys"]
    assert [data.extension(i) for i in samples] == written["extensions"]
    assert data.labels.tolist() == written["labels"]
    assert [digest(data.pixels(i, None, None)) for i in samples] == written["pixels"]


@pytest.mark.parametrize("kind", ["uniform", "windowed"])
@pytest.mark.parametrize("name", SETS)
def test_the_order_of_samples_is_the_same(name: str, kind: str):
    order = Sources([open_set(name)], [1.0]).order(kind, 6, 7)
    assert order.locate(np.arange(50))[2].tolist() == WRITTEN["sets"][name]["order"][kind]


@pytest.mark.parametrize("kind", ["uniform", "windowed"])
def test_the_order_of_a_mixture_is_the_same(kind: str):
    mixed = Sources([open_set("sets/cells/train"), open_set("sets/grown")], [3.0, 1.0])
    located = mixed.order(kind, 6, 7).locate(np.arange(50))
    assert [column.tolist() for column in located] == WRITTEN["mixed"][kind]


@pytest.mark.parametrize("name", SETS)
def test_the_first_augmented_batch_is_the_same(name: str):
    data, written = open_set(name), WRITTEN["sets"][name]["batch"]
    views = ViewsConfig(global_views=2, global_size=16, local_views=2, local_size=8)
    options = {"batch_size": 6, "views": views, "augment": AugmentConfig(), "channels": data.channels}
    batch = next(iter(Loader(Sources([data], [1.0]), seed=7, **options)))
    assert batch.indices.tolist() == written["indices"] and not batch.replaced
    slots = [i for i, sample in enumerate(batch.indices) if (name, sample) != CROPPED_BY_THE_STORED_SIZE]
    for i in slots:
        columns = slice(PARAMETERS.index("turn"))  # it is new, and 0 for every view
        drawn = [parameters[:, i, columns].numpy() for parameters in batch.parameters]
        assert digest(*drawn) == written["parameters"][i]
        if data.depth == 8:  # crops of 16 bits are resized in float32, which CPUs round differently
            assert digest(*(crops[:, i].numpy() for crops in batch.views)) == written["crops"][i]
    for crops, drawn, expected in zip(batch.views, batch.parameters, written["augmented"], strict=True):
        images = augment.apply(crops.flatten(0, 1), drawn.flatten(0, 1), *data.statistics(data.channels))
        images = images.unflatten(0, crops.shape[:2]).double()
        for i in slots:
            assert [images[:, i].mean().item(), images[:, i].std().item()] == pytest.approx(
                expected[i], abs=1e-5
            )


@pytest.mark.parametrize("name", ["cells", "scans", "bands", "plain", "grown", "tars"])
def test_a_set_is_verified_as_whole(name: str):
    assert run("verify", HERE / "sets" / name, "--workers", 1).endswith("whole\n")


def test_images_are_added_to_a_set(tmp_path: Path):
    shutil.copytree(HERE / "sets/cells", tmp_path / "cells")
    image = decode(open_set("sets/plain").read(0))
    (tmp_path / "more/odd").mkdir(parents=True)
    np.save(tmp_path / "more/odd/new.npy", image)
    shutil.copytree(HERE / "killed/images/a", tmp_path / "more/whole")
    run("pack", tmp_path / "more", tmp_path / "cells", "--labels", "folder", "--append", "--workers", 1)
    added = 0
    for part in ("train", "val"):
        data, written = Dataset(tmp_path / "cells" / part), WRITTEN["sets"][f"sets/cells/{part}"]
        before = len(written["keys"])
        assert data.classes == ["cracked", "whole", "odd"]
        assert [data.key(i) for i in range(before)] == written["keys"]
        assert [digest(data.pixels(i, None, None)) for i in range(before)] == written["pixels"]
        assert data.labels[:before].tolist() == written["labels"]
        added += len(data) - before
    assert added == 4


def test_a_packing_that_was_killed_continues_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(HERE / "killed", tmp_path / "killed")
    monkeypatch.chdir(tmp_path / "killed")
    for image in Path("images").rglob("*.jpg"):
        os.utime(image, (10**9, 10**9))
    finished = Path("set/.packing/shard-000000.tar")
    inode = finished.stat().st_ino
    run("pack", "images", "set", "--labels", "folder", "--shard-size", "6KB", "--workers", 1)
    assert Path("set/shard-000000.tar").stat().st_ino == inode, "a finished shard was written again"
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in Path("set").iterdir()}
    written = json.loads(Path("whole.json").read_text())
    assert {name: sums[name] for name in written if name.startswith("shard-")} == {
        name: value for name, value in written.items() if name.startswith("shard-")
    }
    assert not Path("set/.packing").exists()
    assert "already packed" in run("pack", "images", "set", "--labels", "folder", "--shard-size", "6KB")
