"""webdataset reads our sets, we read those that it writes, and its pipeline gives every sample as we do."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from data_pipeline import webdataset_pipeline
from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.packing.pack import Options, pack
from isotorus.errors import UserError
from tests.data_pipeline.pictures import png, save_pictures
from tests.data_pipeline.tar_index import Run

DOCS = Path(__file__).parents[3] / "docs/data.md"


def test_its_own_reader_reads_our_shards(packed: Dataset) -> None:
    urls = [f"{packed.path}/{packed.shard_name(i)}" for i in range(len(packed.shards))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in read] == [packed.key(i) for i in range(len(packed))]
    assert [sample["cls"] for sample in read] == packed.labels.tolist()
    for i, sample in enumerate(read):
        image = sample[packed.extension(i)]
        assert np.abs(image.astype(int) - packed.pixels(i, 3, 8)).max() <= 3  # other JPEG decoders round


def test_each_worker_gives_other_samples_and_all_give_each_once(packed: Dataset) -> None:
    assert len(packed.shards) > 2
    pipeline = webdataset_pipeline(packed.path, channels=3)
    loader = torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=2)
    found = {sample["__key__"]: sample for sample in loader}
    assert sorted(found) == sorted(packed.key(i) for i in range(len(packed)))
    assert len(list(loader)) == len(packed)
    for i in range(len(packed)):
        sample = found[packed.key(i)]
        np.testing.assert_array_equal(sample["image"], packed.pixels(i, 3, 8))
        assert sample["label"] == packed.labels[i]
        assert sample["class"] == packed.key(i).partition("/")[0]
        assert sample["metadata"] == {}


def test_the_seed_chooses_the_order(packed: Dataset) -> None:
    def keys(**options: int) -> list[str]:
        return [sample["__key__"] for sample in webdataset_pipeline(packed.path, **options)]

    assert keys(shuffle=50, seed=1) == keys(shuffle=50, seed=1) != keys(shuffle=50, seed=2)
    assert sorted(keys(shuffle=50)) == sorted(keys())


def test_numbers_and_columns_come_by_the_rules_of_the_set(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    values = np.arange(-600, 600, dtype=np.int16).reshape(30, 40)
    np.save(folder / "a.npy", values)
    (tmp_path / "t.csv").write_text("image,label,age\na.npy,ill,61\n")
    intensity = ["--intensity", "window:-160,240", "--labels", str(tmp_path / "t.csv")]
    assert main(["pack", str(folder), str(tmp_path / "set"), *intensity, "--workers", "1"]) == 0
    (sample,) = webdataset_pipeline(tmp_path / "set", depth=16)
    expected = np.rint(np.clip((values + 160.0) / 400, 0, 1) * 65535)
    np.testing.assert_allclose(sample["image"][..., 0], expected, atol=1)
    assert (sample["label"], sample["class"], sample["metadata"]) == (0, "ill", {"age": "61"})
    (sample,) = webdataset_pipeline(tmp_path / "set", pil=True)
    assert (sample["image"].mode, sample["image"].size) == ("L", (40, 30))
    with pytest.raises(UserError, match="PIL holds 8-bit"):
        webdataset_pipeline(tmp_path / "set", pil=True, depth=16)


def test_we_read_what_it_writes(tmp_path: Path, done: Run) -> None:
    (tmp_path / "tars").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "tars/part-%03d.tar"), maxcount=4, verbose=0) as writer:
        for i in range(9):
            sample = {"__key__": f"{'odd' if i % 2 else 'even'}/{i}", "png": png(i), "cls": i % 2}
            writer.write(sample | {"json": {"age": i}})
    assert done(tmp_path / "tars", tmp_path / "set").startswith("indexed: 9 images")
    for sample in webdataset_pipeline(tmp_path / "set"):
        name, _, number = sample["__key__"].partition("/")
        assert sample["label"] == int(number) % 2 == ["even", "odd"].index(name)
        assert sample["metadata"] == {"age": int(number)}


def test_tars_numbered_alike_keep_their_keys(tmp_path: Path, done: Run) -> None:
    for name in ("a", "b"):
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar")) as writer:
            writer.write({"__key__": "0", "png": png(ord(name)), "cls": 0})
    tars = [tmp_path / "a.tar", tmp_path / "b.tar"]
    done(*tars, tmp_path / "set", "--tar-names-in-keys")
    dataset = Dataset(tmp_path / "set")
    keys = [sample["__key__"] for sample in webdataset_pipeline(tmp_path / "set")]
    assert keys == [dataset.key(0), dataset.key(1)] and len(set(keys)) == 2


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pictures(tmp_path / "photos", [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(4)])
    pack(tmp_path / "photos", tmp_path / "shards", Options(labels="folder"))
    start = "```python\n(from data_pipeline import webdataset_pipeline.*?)```"
    (example,) = re.findall(start, DOCS.read_text(), re.DOTALL)
    assert len(example.splitlines()) == 6
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/data.md", "exec"), {})
