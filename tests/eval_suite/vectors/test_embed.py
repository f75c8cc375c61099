"""`isotorus embed` writes the right vectors with the right rows, and other programs read them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from data_pipeline.dataset.index import Dataset
from eval_suite.inputs import vectors
from tests.eval_suite.eval_samples import (
    CLASSES,
    KWARGS,
    pack,
    pack_folder,
    run_command,
    run_other,
    save_checkpoint,
)
from tests.eval_suite.vectors.vector_samples import IMAGES, embed


def test_each_row_has_the_vector_that_timm_gives(embedded: Path, encoder: Path, table_set: Path):
    """The images are as high as the encoder's, so the centre square is not scaled."""
    frame = pd.read_parquet(embedded)
    x = np.stack(frame["features"])
    assert x.shape == (IMAGES, 24) and x.dtype == np.float32
    source = table_set.with_name("set-images")
    images = [np.asarray(Image.open(source / name.replace("_v1", ".v1"))) for name in frame["image"]]
    pixels = torch.from_numpy(np.stack(images)[:, :, 4:36]).permute(0, 3, 1, 2) / 255
    model = timm.create_model("vit_tiny_patch16_224", **KWARGS).eval()
    model.load_state_dict(load_file(encoder / "encoder.safetensors"))
    with torch.inference_mode():
        expected = model((pixels - 0.5) / 0.2).numpy()
    assert np.abs(x - expected).max() < 1e-4 < np.abs(x - expected[::-1]).max()


def test_columns(embedded: Path, table_set: Path):
    frame = pd.read_parquet(embedded)
    numbers = [int(key[2:4]) for key in frame["key"]]
    assert sorted(numbers) == list(range(IMAGES)) and list(frame["sample"]) == list(range(IMAGES))
    assert [Dataset(table_set).key(i) for i in range(IMAGES)] == list(frame["key"])
    assert list(frame["image"]) == [f"a/{i:02d}_v1.png" for i in numbers]
    names = [("good", "bad", None)[i % 3] for i in numbers]
    assert [None if pd.isna(x) else x for x in frame["label"]] == names
    patients = [None if i == 4 else str(i // 5) for i in numbers]
    assert [None if pd.isna(x) else x for x in frame["group"]] == patients
    assert list(frame["age"]) == [30 + i for i in numbers] and frame["age"].dtype == np.int64
    assert frame["dose"].isna().tolist() == [i == 2 for i in numbers] and frame["dose"].dtype == np.float64
    assert list(frame["sound"]) == [i % 2 == 0 for i in numbers] and frame["sound"].dtype == bool
    assert [json.loads(x) for x in frame["tags"]] == [["x", f"y{i}"] for i in numbers]
    # "split" would mean train, val or test where features are read.
    assert list(frame["json_split"]) == ["held out" if i % 2 else "used" for i in numbers]


def test_the_file_says_where_it_comes_from(embedded: Path, encoder: Path, table_set: Path):
    stored = pq.ParquetFile(embedded)
    about = json.loads(stored.schema_arrow.metadata[b"isotorus"])
    assert about["checkpoint"] == str(encoder / "encoder.safetensors") and about["step"] == 7
    assert about["shards"] == str(table_set) and about["set_fingerprint"] == Dataset(table_set).fingerprint
    assert (about["feature_set"], about["width"], about["image_size"]) == ("embedding", 24, 32)
    assert about["rows"] == IMAGES and about["left_out"] == 0 and about["version"]
    assert stored.schema_arrow.field("features").type == pa.list_(pa.float32(), 24)
    assert [stored.metadata.row_group(i).num_rows for i in range(5)] == [7, 7, 7, 7, 2]
    assert not list(embedded.parent.glob("*.parts"))


def test_neighbours_are_those_of_brute_force(embedded: Path):
    frame = pd.read_parquet(embedded)
    x = np.stack(frame["features"]).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosines = x @ x.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1)[:, :4]
    assert np.array_equal(np.stack(frame["neighbour_keys"]), frame["key"].to_numpy()[order])
    found = np.stack(frame["neighbour_similarities"])
    assert np.allclose(found, np.take_along_axis(cosines, order, axis=1), atol=1e-5)


def test_columns_are_added_without_embedding_again(
    embedded: Path, encoder: Path, table_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "set.parquet"
    options = (encoder, table_set, "--out", out, "--part-rows", 7, "--batch-size", 3)
    embed(*options)
    plain = pq.read_table(out)

    def refuse(*_: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr("eval_suite.features.embed.stream", refuse)
    said = embed(*options, "--neighbours", 4).out
    assert "further columns are added" in said
    assert pq.read_table(out).equals(pq.read_table(embedded)) and plain.num_columns == 12
    before = out.stat()
    assert "was there already" in embed(*options).out and out.stat().st_mtime_ns == before.st_mtime_ns


def test_npz_holds_the_same(embedded: Path, encoder: Path, table_set: Path, tmp_path: Path):
    out = tmp_path / "set.npz"
    embed(encoder, table_set, "--out", out, "--part-rows", 7, "--batch-size", 3, "--neighbours", 4)
    frame = pd.read_parquet(embedded)
    with np.load(out, allow_pickle=False) as stored:
        assert np.array_equal(stored["features"], np.stack(frame["features"]))
        assert stored["key"].tolist() == list(frame["key"]) and stored["age"].tolist() == list(frame["age"])
        assert stored["label"].tolist() == ["" if pd.isna(x) else x for x in frame["label"]]
        assert np.array_equal(stored["neighbour_keys"], np.stack(frame["neighbour_keys"]))
        assert np.isnan(stored["dose"]).sum() == 1 and json.loads(str(stored["isotorus"]))["rows"] == IMAGES


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_the_evaluation_reads_it(encoder: Path, table_set: Path, tmp_path: Path, suffix: str):
    out = tmp_path / f"set{suffix}"
    embed(encoder, table_set, "--out", out)
    read = vectors.read(str(out))
    assert read.x.shape == (IMAGES, 24) and read.keys is not None and read.keys[0].startswith("a/")
    assert read.labels is not None and {x or None for x in read.labels} == {"good", "bad", None}
    assert read.groups is not None and len(set(read.groups.tolist())) == 7 and (read.groups == 0).sum() == 1
    done = run_command(out, "--metrics", "rank,knn", "--out", tmp_path / "out", "--folds", 3, "--k", 3)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["data"]["train"]["labelled"] == 20 and results["folds"]["groups"]


def test_groups_without_names_are_hashes(encoder: Path, table_set: Path, tmp_path: Path):
    """Groups by --group-pattern are in no table, so the shards have only their hashes."""
    source = table_set.with_name("set-images")
    data = pack_folder(source, tmp_path / "data", "--group-pattern", r"/(\d)")
    embed(encoder, data, "--out", tmp_path / "x.parquet")
    frame = pd.read_parquet(tmp_path / "x.parquet")
    tens = frame["key"].str[2]
    assert frame.groupby("group")["key"].count().tolist() == [10, 10, 10]
    assert (frame.groupby("group")["key"].apply(lambda keys: keys.str[2].nunique()) == 1).all()
    assert frame["group"].str.fullmatch("[0-9a-f]{16}").all() and tens.nunique() == 3


def test_a_set_without_labels_groups_and_columns(encoder: Path, tmp_path: Path, data_without: Path):
    embed(encoder, data_without, "--out", tmp_path / "x.parquet")
    assert pq.read_schema(tmp_path / "x.parquet").names == ["key", "image", "sample", "features"]
    done = run_command(tmp_path / "x.parquet", "--metrics", "rank", "--out", tmp_path / "out")
    assert done.code == 0, done.err


@pytest.fixture
def data_without(tmp_path: Path) -> Path:
    return pack(tmp_path / "plain", [""] * 8, seed=3)


def test_the_cache_of_an_evaluation_is_used(
    splits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The vectors are those of the evaluation, and the set that its probe chose is the default."""
    run = save_checkpoint(tmp_path / "run/checkpoints/step_00000007").parents[1]
    data = ["--train", splits["train"], "--val", splits["val"], "--folds", 0]
    few = ["--metrics", "probe", "--baselines", "", "--features", "last2"]
    done = run_command(run, *data, *few)
    assert done.code == 0, done.err
    chosen = json.loads((run / "eval/7/results.json").read_text())["representations"]["pretrained"]["probe"]
    fresh = tmp_path / "fresh.parquet"
    embed(run, splits["train"], "--features", chosen["feature_set"], "--out", fresh, "--cache", tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr("eval_suite.features.embed.stream", refuse)
    from_cache = tmp_path / "cached.parquet"
    # The evaluation kept two sets together, so its features have another name in the cache.
    said = embed(run, splits["train"], "--out", from_cache).err
    assert chosen["feature_set"] in said and "cache of an evaluation" in said
    assert np.allclose(
        np.stack(pd.read_parquet(from_cache)["features"]),
        np.stack(pd.read_parquet(fresh)["features"]),
        atol=1e-6,
    )


def test_damaged_images_are_left_out_and_named(encoder: Path, tmp_path: Path):
    data = pack(tmp_path / "data", [*CLASSES] * 5, seed=4)
    embed(encoder, data, "--out", tmp_path / "whole.parquet")
    shard = data / "shard-000000.tar"
    dataset = Dataset(data)
    content = bytearray(shard.read_bytes())
    for sample in (0, 9):
        content[int(dataset.rows["offset"][sample]) + 200] ^= 255
    shard.write_bytes(content)
    done = embed(encoder, data, "--out", tmp_path / "rest.parquet", "--part-rows", 4, "--batch-size", 2)
    assert "note: 2 of 10 images are left out" in done.err and f"({dataset.key(9)})" in done.err
    whole, rest = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("whole", "rest"))
    assert list(rest["sample"]) == list(range(1, 9)) and list(rest["key"]) == list(whole["key"][1:9])
    assert np.allclose(np.stack(rest["features"]), np.stack(whole["features"][1:9]), atol=1e-5)
    for sample in range(10):
        content[int(dataset.rows["offset"][sample]) + 200] ^= 255 * (sample not in (0, 9))
    shard.write_bytes(content)
    done = run_other("embed", encoder, data, "--out", tmp_path / "none.parquet", "--workers", 0)
    assert done.code == 2 and "none of the 10 images" in done.err
