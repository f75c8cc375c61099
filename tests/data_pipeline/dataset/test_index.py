"""All that is packed can be read again, through the index and by readers that do not know the index."""

import io
import pickle
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.dataset.description import subsets
from data_pipeline.dataset.index import Corrupt, Dataset
from data_pipeline.packing.manifest import Columns
from data_pipeline.packing.pack import Options, pack
from isotorus.errors import UserError
from tests.data_pipeline.pictures import save_pictures

NAME = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="/"), min_size=1, max_size=60
).filter(lambda name: name.strip(". ") and len(name.encode()) < 240 and not re.match("__.*__$", name))
PLACE = st.builds("/".join, st.lists(NAME, min_size=1, max_size=3))


@st.composite
def collections(draw: st.DrawFn) -> dict[str, tuple[bytes, str, str]]:
    """Files by path: bytes of an image, label, group."""
    places = draw(st.lists(PLACE, min_size=1, max_size=12, unique_by=lambda place: place.replace(".", "_")))
    folders = {parent for place in places for parent in map(str, Path(place).parents)}
    files = {}
    for seed, place in enumerate(places):
        kind = draw(st.sampled_from(["png", "BMP", "jpeg", "tif"]))
        if f"{place}.{kind}" in folders:
            continue
        buffer = io.BytesIO()
        side = draw(st.integers(1, 9))
        Image.new(draw(st.sampled_from(["L", "RGB"])), (side, 3), seed).save(
            buffer, kind.lower().replace("tif", "tiff")
        )
        label = draw(st.sampled_from(["", "café", "b", "10", "9"]))
        files[f"{place}.{kind}"] = (buffer.getvalue(), label, draw(st.sampled_from(["", "g1", "g2", "g3"])))
    return files


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(files=collections(), shard_size=st.sampled_from([1, 9_000, 10**9]), divided=st.booleans())
def test_every_image_comes_back_once_whoever_reads(
    files: dict[str, tuple[bytes, str, str]], shard_size: int, divided: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, dest, table = Path(folder, "images"), Path(folder, "set"), Path(folder, "table.parquet")
        for path, (data, _, _) in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(data)
        rows = [{"image": path, "label": label, "g": group} for path, (_, label, group) in files.items()]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
        columns = Columns(group="g" if divided else None)
        shares = {"val_fraction": 0.3, "test_fraction": 0.3} if divided else {}
        try:
            pack(source, dest, Options(labels=table, columns=columns, shard_size=shard_size, **shares))
        except UserError as error:
            assert divided and "set would be empty" in str(error)
            return

        sets = [Dataset(path) for path in subsets(str(dest)) or [dest]]
        expected = {path.rpartition(".")[0].replace(".", "_"): file for path, file in files.items()}
        found = [(dataset, i) for dataset in sets for i in range(len(dataset))]
        assert sorted(dataset.key(i) for dataset, i in found) == sorted(expected)
        labels = {label for _, label, _ in files.values()} - {""}
        by_value = all(label.isdecimal() for label in labels)
        assert all(d.classes == sorted(labels, key=int if by_value else None) for d in sets)
        for dataset, i in found:
            data, label, _ = expected[dataset.key(i)]
            assert dataset.read(i) == data
            assert (dataset.classes[dataset.labels[i]] if dataset.labels[i] >= 0 else "") == label
            assert Image.open(io.BytesIO(data)).size == (dataset.rows["width"][i], dataset.rows["height"][i])
            ((shard, offset, size),) = dataset.ranges(np.array([i]))
            assert Path(dataset.path, shard).read_bytes()[offset : offset + size] == data
        places = {(expected[dataset.key(i)][2], dataset.path) for dataset, i in found}
        assert not divided or all(n == 1 for group, n in Counter(g for g, _ in places).items() if group)
        for dataset in sets:
            _read_by_others(dataset)


def _read_by_others(dataset: Dataset) -> None:
    shards = [Path(dataset.path, dataset.shard_name(i)) for i in range(len(dataset.shards))]
    images = {f"{dataset.key(i)}.{dataset.extension(i)}": dataset.read(i) for i in range(len(dataset))}
    labels = {f"{dataset.key(i)}.cls": b"%d" % label for i, label in enumerate(dataset.labels) if label >= 0}
    extracted, listed = {}, {}
    for shard in shards:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["tar", "-xf", shard, "-C", folder], check=True, env={"LC_ALL": "C.UTF-8"})
            extracted |= {
                str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()
            }
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                listed[member.name] = content.read()
    assert {name: data for name, data in listed.items() if not name.endswith(".json")} == images | labels
    assert extracted == listed
    samples = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [dataset.key(i) for i in range(len(dataset))]
    for i, sample in enumerate(samples):
        assert sample[dataset.extension(i)] == dataset.read(i)


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    (folder / "images").mkdir()
    for i in range(130):
        Image.new("L", (1, 1), i).save(folder / f"images/{i}.png")
    pack(folder / "images", folder / "set", Options(shard_size=1, workers=2))
    return folder / "set"


def test_opening_looks_at_some_shards_and_reading_finds_the_others(many_shards: Path) -> None:
    lost = [shard for shard in sorted(many_shards.glob("*.tar")) if _opens_without(shard)]
    assert len(lost) == 130 - 64
    hidden = lost[0].rename(lost[0].with_suffix(".away"))
    try:
        dataset = Dataset(many_shards)
        i = int(np.flatnonzero(dataset.rows["shard"] == int(lost[0].stem[-6:]))[0])
        with pytest.raises(UserError, match=f"{lost[0].name}.*missing"):
            dataset.read(i)
        assert dataset.read(0) and dataset.read(129)
    finally:
        hidden.rename(lost[0])


def _opens_without(shard: Path) -> bool:
    away = shard.rename(shard.with_suffix(".away"))
    try:
        Dataset(shard.parent)
    except UserError:
        return False
    finally:
        away.rename(shard)
    return True


def test_changed_bytes_are_corrupt_and_leave_the_others_readable(many_shards: Path) -> None:
    dataset = Dataset(many_shards)
    ((shard, offset, _),) = dataset.ranges(np.array([7]))
    with (many_shards / shard).open("r+b") as file:
        file.seek(offset + 20)
        byte = file.read(1)
        file.seek(offset + 20)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Corrupt, match=f"{shard} changed .* verify"):
        dataset.read(7)
    assert dataset.read(6) and dataset.read(8)
    with (many_shards / shard).open("r+b") as file:
        file.seek(offset + 20)
        file.write(byte)
    assert dataset.read(7)


def test_a_pickled_data_set_is_small_and_stays_in_its_generation(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", [f"{i}.png" for i in range(60)])
    pack(tmp_path / "images", tmp_path / "set", Options())
    dataset = Dataset(tmp_path / "set")
    keys = [dataset.key(i) for i in range(60)]
    blob = pickle.dumps(dataset)
    assert len(blob) < dataset.rows.nbytes
    save_pictures(tmp_path / "images", [f"{i}.png" for i in range(90)])
    pack(tmp_path / "images", tmp_path / "set", Options(append=True))
    copy = pickle.loads(blob)
    assert len(copy) == 60 and copy.fingerprint == dataset.fingerprint
    assert [copy.key(i) for i in range(60)] == keys


def test_another_version_of_the_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"format": 1, "count": 3}')
    with pytest.raises(UserError, match=r"format 2 .*pack the images again"):
        Dataset(tmp_path)
