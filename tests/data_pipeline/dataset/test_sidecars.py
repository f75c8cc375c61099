"""The columns beside the images, from the JSON files of packed sets and of tars that others made."""

import contextlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.__main__ import main as data_main
from data_pipeline.dataset import sidecars
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.sidecars import Sidecar


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 11), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def indexed(folder: Path, tars: dict[str, dict[str, bytes]], *options: str) -> Dataset:
    """Write tars with these members, and open the data set that `index` makes of them."""
    folder.mkdir()
    for name, members in tars.items():
        with tarfile.open(folder / name, "w") as tar:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert data_main(["index", str(folder), str(folder / "set"), "--workers", "1", *options]) == 0
    return Dataset(folder / "set")


@pytest.mark.parametrize("json_first", [True, False])
def test_json_before_or_after_its_image(tmp_path: Path, json_first: bool):
    """Every piece of the set has the same columns, wherever it begins and ends, across shards too."""
    tars: dict[str, dict[str, bytes]] = {"a.tar": {}, "b.tar": {}}
    expected = []
    for i in range(7):
        pair = {f"d/{i}.json": json.dumps({"number": i, "ä": [i]}).encode(), f"d/{i}.png": png(i)}
        if i == 3:
            del pair[f"d/{i}.json"]
        members = list(pair.items()) if json_first else list(pair.items())[::-1]
        tars["a.tar" if i < 4 else "b.tar"] |= dict(members)
        expected.append(Sidecar(f"d/{i}", f"d/{i}.png", {} if i == 3 else {"number": i, "ä": [i]}))
    dataset = indexed(tmp_path / "tars", tars)
    assert sidecars.read(dataset, 0, 7) == expected
    for start in range(7):
        for stop in range(start + 1, 8):
            assert sidecars.read(dataset, start, stop) == expected[start:stop]


def test_what_is_no_object_counts_as_no_columns(tmp_path: Path):
    members = {}
    for i, content in enumerate((b"{", b"[1]", b"\xff\xfe", b'{"a": ' + b"[" * 9999, b'{"a": 1}')):
        members |= {f"{i}.png": png(i), f"{i}.json": content, f"{i}.txt": b"not this"}
    dataset = indexed(tmp_path / "tars", {"x.tar": members})
    assert [found.columns for found in sidecars.read(dataset, 0, 5)] == [{}] * 4 + [{"a": 1}]


def test_tar_names_in_keys(tmp_path: Path):
    members = {"0.png": png(0), "0.json": b'{"who": "a"}'}
    others = {"0.png": png(1), "0.json": b'{"who": "b"}'}
    dataset = indexed(tmp_path / "tars", {"a.tar": members, "b.tar": others}, "--tar-names-in-keys")
    found = sidecars.read(dataset, 0, 2)
    assert {one.key.split("/")[-2]: one.columns["who"] for one in found} == {"a": "a", "b": "b"}


def test_columns_of_one_of_several_images(tmp_path: Path):
    """The columns of a.left.png are in a.json, or else in a.left.json; those of a.right.png are not its."""
    one = {"a.json": b'{"x": 1}', "a.left.png": png(0), "a.right.png": png(1), "a.right.json": b'{"x": 0}'}
    two = {"b.left.png": png(2), "b.right.png": png(3), "b.left.json": b'{"x": 2}'}
    dataset = indexed(tmp_path / "tars", {"x.tar": one | two}, "--image-extension", "left.png")
    found = sidecars.read(dataset, 0, 2)
    assert found == [Sidecar("a", "a.left.png", {"x": 1}), Sidecar("b", "b.left.png", {"x": 2})]
