"""`isotorus embed --out x.zarr` writes the right maps with the right columns."""

import json
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import timm
import torch
import zarr
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from data_pipeline.dataset.index import Dataset
from eval_suite.vectors import zarr_store
from eval_suite.vectors.about import About, Maps
from tests.eval_suite.eval_samples import CLASSES, KWARGS, pack, run_other, save_checkpoint, write_description
from tests.eval_suite.vectors.test_interrupted import ROOT, process, wait_for_parts
from tests.eval_suite.vectors.vector_samples import IMAGES, embed

SMALL = ("--part-rows", 7, "--batch-size", 3)


@pytest.fixture(scope="module")
def stored(table_set: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The maps of the data set, in parts of 7 images."""
    out = tmp_path_factory.mktemp("maps") / "set.zarr"
    said = embed(encoder, table_set, "--out", out, *SMALL).out
    assert f"{IMAGES} maps of 4 × 4 tokens of 24 numbers" in said
    return out


def pixels(table_set: Path, names: list[str]) -> torch.Tensor:
    """Return the images of the data set as the encoder sees them: their height is its image size."""
    source = table_set.with_name("set-images")
    images = [np.asarray(Image.open(source / name.replace("_v1", ".v1"))) for name in names]
    return (torch.from_numpy(np.stack(images)[:, :, 4:36]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.2


def content(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def test_each_map_is_the_patch_tokens_that_timm_gives(stored: Path, encoder: Path, table_set: Path):
    group = zarr.open(stored, mode="r")
    assert group["tokens"].shape == (IMAGES, 4, 4, 24) and group["tokens"].dtype == np.float16
    model = timm.create_model("vit_tiny_patch16_224", **KWARGS).eval()
    model.load_state_dict(load_file(encoder / "encoder.safetensors"))
    with torch.inference_mode():
        seen = pixels(table_set, list(group["image"][:]))
        expected = model.forward_features(seen)[:, 1:].unflatten(1, (4, 4)).numpy()
    found = group["tokens"][:].astype(np.float32)
    assert np.abs(found - expected).max() < 4e-3 < np.abs(found - expected.swapaxes(1, 2)).max()


def test_columns_are_those_of_the_parquet(stored: Path, embedded: Path):
    frame = pd.read_parquet(embedded).drop(columns=["features", "neighbour_keys", "neighbour_similarities"])
    group = zarr.open(stored, mode="r")
    assert set(group.array_keys()) == {*frame, "tokens"}
    for name in frame:
        values, expected = group[name][:], frame[name]
        if expected.dtype.kind in "biuf":
            assert values.dtype == expected.dtype
            np.testing.assert_array_equal(values, expected)
        else:
            assert values.tolist() == ["" if pd.isna(x) else x for x in expected]
    assert np.isnan(group["dose"][:]).sum() == 1 and "" in group["label"][:].tolist()


def test_the_store_says_where_it_comes_from(stored: Path, encoder: Path, table_set: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_consolidated(stored, mode="r")
    about = group.attrs["isotorus"]
    assert about["checkpoint"] == str(encoder / "encoder.safetensors") and about["step"] == 7
    assert about["set_fingerprint"] == Dataset(table_set).fingerprint and about["feature_set"] == "map"
    assert about["maps"] == {"grid": [4, 4], "patch": [8.0, 8.0], "dtype": "float16"}
    assert (about["rows"], about["width"], about["image_size"]) == (IMAGES, 24, 32)
    assert about["intensity"]["rule"] == "none" and about["pixel_rules"] and about["channels"] == 3
    names = group["tokens"].metadata.dimension_names
    assert names == ("key", "token_row", "token_column", "token_width")
    assert {path.name for path in stored.parent.iterdir()} <= {"set.zarr", ".set.zarr.seal"}


def test_small_chunks_and_shards_hold_the_same(
    stored: Path, encoder: Path, table_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Blocks of 6 maps and of 8 rows cut across the parts of 7."""
    one = 4 * 4 * 24 * 2
    monkeypatch.setattr(zarr_store, "_CHUNK", 3 * one + 1)
    monkeypatch.setattr(zarr_store, "_SHARD", 6 * one)
    monkeypatch.setattr(zarr_store, "_COLUMN", 8)
    out = tmp_path / "set.zarr"
    embed(encoder, table_set, "--out", out, *SMALL)
    small, whole = zarr.open(out, mode="r"), zarr.open(stored, mode="r")
    assert (small["tokens"].chunks[0], small["tokens"].shards[0]) == (3, 6)
    assert len(list((out / "tokens/c").iterdir())) == 5 and len(list((out / "key/c").iterdir())) == 4
    for name, array in whole.arrays():
        np.testing.assert_array_equal(small[name][:], array[:])
    (out / "tokens/c/2/0/0/0").unlink()
    assert np.isnan(small["tokens"][12:18]).all()  # what the message below is for


@pytest.mark.parametrize("harmed", ["tokens/c/0", "tokens/zarr.json", "key"])
def test_a_store_that_lacks_files_is_not_taken_for_a_whole_one(
    stored: Path, encoder: Path, table_set: Path, harmed: str
):
    file = stored / harmed
    kept = file.rename(stored.with_name("kept"))
    try:
        done = run_other("embed", encoder, table_set, "--out", stored, *SMALL)
    finally:
        kept.rename(file)
    assert done.code == 2 and "some of its files are gone or cut off" in done.err
    assert "was there already" in embed(encoder, table_set, "--out", stored, *SMALL).out


def test_maps_of_a_convnet(table_set: Path, tmp_path: Path):
    """They are those of the last three stages, at the size of the largest."""
    kwargs = {
        "in_chans": 3,
        "num_classes": 0,
        "dims": [8, 8, 16, 24],
        "depths": [1, 1, 1, 1],
        "patch_size": 2,
    }
    torch.manual_seed(3)
    model = timm.create_model("convnext_atto", **kwargs).eval()
    folder = save_checkpoint(tmp_path / "conv")
    save_file(model.state_dict(), folder / "encoder.safetensors")
    described = json.loads((folder / "encoder.json").read_text())
    described |= {"name": "convnext_atto", "kwargs": kwargs, "embedding_width": 24}
    (folder / "encoder.json").write_text(json.dumps(described))
    embed(folder, table_set, "--out", tmp_path / "x.zarr")
    group = zarr.open(tmp_path / "x.zarr", mode="r")
    with torch.inference_mode():
        maps = model.forward_intermediates(
            pixels(table_set, list(group["image"][:])), indices=[1, 2, 3], norm=True, intermediates_only=True
        )
    expected = torch.cat([F.interpolate(x, size=(4, 4), mode="bilinear") for x in maps], 1).movedim(1, 3)
    assert group["tokens"].shape == (IMAGES, 4, 4, 48)
    assert np.allclose(group["tokens"][:], expected.numpy(), atol=1e-2, rtol=2e-3)
    assert group.attrs["isotorus"]["maps"]["patch"] == [8.0, 8.0]


def test_a_full_disk_keeps_the_parts_and_no_half_store(encoder: Path, tmp_path: Path):
    """A limit of the file size lets the parts pass, and not the shard."""
    data, out = pack(tmp_path / "data", [*CLASSES] * 20, seed=5), tmp_path / "out.zarr"
    given = ("embed", encoder, data, "--out", out, "--part-rows", 8, "--batch-size", 8, "--workers", 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        done = run_other(*given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 2 and f"writing {out} (finished parts are kept): File too large" in done.err
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    assert "Continued: 5 of 5 parts are there already." in run_other(*given).err
    assert zarr.open(out, mode="r")["tokens"].shape == (40, 4, 4, 24) and not list(tmp_path.glob("*.parts"))
    time = (out / "zarr.json").stat().st_mtime_ns
    assert "was there already" in run_other(*given).out and (out / "zarr.json").stat().st_mtime_ns == time


@pytest.mark.nightly
def test_after_a_kill_and_in_two_processes_the_bytes_are_the_same(encoder: Path, tmp_path: Path):
    data = pack(tmp_path / "data", [*CLASSES] * 100, seed=5)
    options = (encoder, data, "--part-rows", 2, "--batch-size", 2, "--workers", 0)
    embed(*options, "--out", tmp_path / "alone.zarr")
    running = process(*options, "--out", tmp_path / "killed.zarr")
    wait_for_parts(running, tmp_path, 5)
    running.kill()
    running.communicate()
    left = tmp_path / ".killed.zarr.abc"  # as a kill while the store is written leaves it
    (left / "files/store").mkdir(parents=True)
    (left / "in-use.lock").touch()
    assert "Continued: " in embed(*options, "--out", tmp_path / "killed.zarr").err
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "eval_suite", "embed", *options, "--out", tmp_path / "together.zarr"]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, timeout=200)
    expected = content(tmp_path / "alone.zarr")
    assert content(tmp_path / "killed.zarr") == expected == content(tmp_path / "together.zarr")
    assert not list(tmp_path.glob("*.parts")) and not left.exists()


def test_any_name_of_a_column_becomes_an_array(tmp_path: Path):
    """Names of columns are free text; those of arrays are names of folders."""
    odd = ["a/b", "a_b", "..", "", "zarr.json", "__x", "Tokens", "x" * 300, "größe (µm)"]

    def tables(*, features: bool = True) -> Any:
        for rows in ([0, 1], [2]):
            columns = {name: pa.array(rows) for name in odd}
            flat = pa.array(np.repeat(rows, 4).astype(np.float16))
            table = pa.table(columns)
            lists = pa.FixedSizeListArray.from_arrays(flat, 4)
            yield table.append_column("features", lists) if features else table

    maps = Maps(grid=(2, 1), patch=(1, 1))
    about = About.model_construct(rows=3, width=2, maps=maps)
    zarr_store.write(tmp_path / "x.zarr", tables, about)
    group = zarr.open(tmp_path / "x.zarr", mode="r")
    assert sorted(array.attrs["column"] for name, array in group.arrays() if name != "tokens") == sorted(odd)
    for _, array in group.arrays():
        assert array[:].reshape(3, -1)[:, 0].tolist() == [0, 1, 2]


def test_another_folder_or_store_in_the_way_is_kept(
    stored: Path, encoder: Path, table_set: Path, tmp_path: Path
):
    mine = tmp_path / "mine.zarr"
    zarr.create_group(mine, attributes={"of": "mine"})
    empty = tmp_path / "folder.zarr"
    (empty / "deep").mkdir(parents=True)
    (tmp_path / "file.zarr").touch()
    (tmp_path / "link.zarr").symlink_to("nowhere")
    for name in ("file.zarr", "link.zarr"):
        done = run_other("embed", encoder, table_set, "--out", tmp_path / name)
        assert done.code == 2 and "a store is a folder, and this is none" in done.err
    for out in (mine, empty):
        before = content(out)
        done = run_other("embed", encoder, table_set, "--out", out, "--workers", 0)
        assert done.code == 2 and "a folder is in the way, which is kept" in done.err
        assert content(out) == before and out.is_dir()
    done = run_other("embed", encoder, table_set, "--out", stored, "--part-rows", 9, "--workers", 0)
    assert done.code == 2 and "but was made with another --part-rows" in done.err
    done = run_other("embed", encoder, pack(tmp_path / "set", [*CLASSES], seed=1), "--out", stored, *SMALL)
    assert done.code == 2 and "has other vectors (map of vit_tiny_patch16_224" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.zarr", "--neighbours", 3], "--neighbours is for vectors of whole images"),
        (["--out", "x.zarr", "--anomaly-against", "y.parquet"], "--anomaly-against is for vectors of whole"),
        (["--out", "x.zarr", "--cache", "c"], "--cache is for vectors of whole images"),
        (["--out", "x.zarr", "--features", "embedding"], "leave out --features, or write --out x.parquet"),
        (["--out", "x.parquet", "--features", "map"], "write a Zarr store, --out x.zarr"),
        (["--out", "x.parquet", "--anomaly-against", "y.zarr"], "is for token maps, but this command"),
    ],
)
def test_options(
    table_set: Path, encoder: Path, tmp_path: Path, monkeypatch, options: list[object], message: str
):
    monkeypatch.chdir(tmp_path)
    done = run_other("embed", encoder, table_set, *options)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_encoder_without_maps(table_set: Path, tmp_path: Path):
    folder = save_checkpoint(tmp_path / "flat")
    kwargs = KWARGS | {"depth": 0}
    save_file(
        timm.create_model("vit_tiny_patch16_224", **kwargs).state_dict(), folder / "encoder.safetensors"
    )
    write_description(folder, kwargs, step=7)
    done = run_other("embed", folder, table_set, "--out", tmp_path / "x.zarr", "--workers", 0)
    assert done.code == 2 and "has no token maps" in done.err and done.err.count("\n") == 1


def test_tokens_beyond_the_range_of_float16_are_left_out(table_set: Path, encoder: Path, tmp_path: Path):
    folder = save_checkpoint(tmp_path / "large")
    weights = load_file(folder / "encoder.safetensors")
    save_file(weights | {"norm.weight": weights["norm.weight"] * 1e6}, folder / "encoder.safetensors")
    done = run_other("embed", folder, table_set, "--out", tmp_path / "x.zarr", "--workers", 0)
    assert done.code == 2 and "none of the 30 images" in done.err and "not finite in float16" in done.err
    embed(folder, table_set, "--out", tmp_path / "x.parquet")


def test_what_needs_vectors_refuses_maps(stored: Path):
    for command in (("search", stored, "a/00_v1"), (stored, "--metrics", "rank")):
        done = run_other(*command)
        assert done.code == 2 and "is for token maps" in done.err and done.err.count("\n") == 1


def test_without_zarr_a_line_names_what_to_install(table_set: Path, encoder: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    done = run_other("embed", encoder, table_set, "--out", "x.zarr")
    assert done.code == 2 and "pip install 'isotorus[zarr]'" in done.err
