import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Corrupt, Dataset
from data_pipeline.packing.pack import Options, pack
from data_pipeline.verifying.verify import verify
from isotorus.errors import UserError, exit_code
from tests.data_pipeline.pictures import png, save_pictures
from tests.data_pipeline.s3_server import S3Server


@pytest.fixture
def copy(packed: Dataset, tmp_path: Path) -> Path:
    shutil.copytree(packed.path, tmp_path / "set")
    return tmp_path / "set"


def damage(folder: object) -> str:
    """Return what `verify` finds, which must be one line."""
    (line,) = verify(str(folder), workers=1)
    assert "\n" not in line
    return line


def place(folder: Path, sample: int) -> tuple[Path, int]:
    """The shard of a sample and where its image begins there."""
    dataset = Dataset(folder)
    row = dataset.rows[sample]
    return folder / dataset.shard_name(int(row["shard"])), int(row["offset"])


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def flip(file: Path, offset: int) -> None:
    overwrite(file, offset, bytes([file.read_bytes()[offset] ^ 1]))


def change(file: Path, edit: Callable[[NDArray[np.void]], Any]) -> None:
    """Edit a table of a data set."""
    table = np.load(file)
    edit(table)
    np.save(file, table)


def write_tar(tar: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(tar, "w") as out:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))


def test_a_whole_data_set(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copy)]) == 0
    assert "whole" in capsys.readouterr().out


def test_a_flipped_bit_anywhere(copy: Path) -> None:
    """The bits are in every field of a header, in an image, a label, padding, and after the end marker."""
    shard, offset = place(copy, 1)
    data = shard.read_bytes()
    key = Dataset(copy).key(1)
    in_header = [offset - 512 + at for at in (2, 105, 110, 130, 140, 150, 156, 260, 300, 340, 400, 511)]
    label = data.index(b".cls", offset) // 512 * 512 + 512
    others = [int(at) for at in np.random.default_rng(0).integers(len(data), size=12)]
    for at in [*in_header, offset, offset + 100, label, label + 3, len(data) - 1, *others]:
        flip(shard, at)
        assert damage(copy).startswith(f"{shard} is not what was published: ")
        flip(shard, at)
    assert verify(str(copy), workers=1) == []

    flip(shard, offset + 100)
    assert damage(copy).endswith(f"1 of 4 images have another checksum: {key}")
    with pytest.raises(Corrupt, match="changed since the index was made"):
        Dataset(copy).read(1)
    flip(shard, offset + 100)
    flip(shard, label)
    assert damage(copy).endswith(f"1 of 4 images have another label: {key}")
    flip(shard, label)
    flip(shard, offset - 512)
    assert f"no readable header at byte {offset - 512} " in damage(copy)
    assert f"after the sample {Dataset(copy).key(0)}" in damage(copy)
    assert "images" not in damage(copy)  # the images are whole


def test_a_truncated_shard(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard, offset = place(copy, 2)
    keys = [Dataset(copy).key(i) for i in range(5)]
    size = shard.stat().st_size
    with shard.open("r+b") as stream:
        stream.truncate(offset + 10)
    line = damage(copy)
    assert f"{shard} is" in line and f"has {offset + 10} bytes instead of {size}" in line
    lost = [key for i, key in enumerate(keys) if i >= 2 and place_of(copy, i) == shard.name]
    assert f"{len(lost)} of 4 images are lost or damaged: {lost[0]}, row 3" in line
    assert main(["verify", str(copy), "--workers", "2"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("damage: ") and "1 damage found; bring back" in out
    with pytest.raises(UserError, match="verify"):
        Dataset(copy)


def place_of(folder: Path, sample: int) -> str:
    """Return the name of a sample's shard, from the tables alone."""
    shard = np.load(folder / "index.npy")["shard"][sample]
    return np.load(folder / "shards.npy")["name"][shard].decode()


def test_shards_missing_replaced_and_added(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = copy / "shard-000000.tar", copy / "shard-000001.tar"
    shutil.copy(first, copy / "shard-000099.tar")
    assert main(["verify", str(copy)]) == 0
    assert "shard-000099.tar" in capsys.readouterr().out
    (copy / "shard-000099.tar").unlink()
    shutil.copy(second, first)
    assert f"{first} is not what was published" in damage(copy)
    first.unlink()
    assert damage(copy) == f"{first} is missing"
    with pytest.raises(UserError, match="No such file"):
        Dataset(copy)


@pytest.mark.parametrize(
    "column, value, reason",
    [
        ("offset", 512, "are not where the index says: row 2"),
        ("size", 1, "are not where the index says: row 2"),
        ("label", 1, "have another label: {key}"),
        ("checksum", 1, "have another checksum: {key}"),
        ("key", 1, "have another key: {key}"),
        ("kind", 1, "have another extension: {key}"),
        ("shard", 1, "rows point to another shard"),
        ("width", 1, "fingerprint of generation 1 do not fit index.npy"),
    ],
)
def test_a_value_of_the_index_that_does_not_fit(copy: Path, column: str, value: int, reason: str) -> None:
    key = Dataset(copy).key(2)

    def edit(rows: NDArray[np.void]) -> None:
        rows[column][2] = rows[column][2] + value if column not in ("label", "kind") else 1 - rows[column][2]

    change(copy / "index.npy", edit)
    lines = verify(str(copy), workers=1)
    assert any(reason.format(key=key) in line for line in lines)
    assert all("fingerprint" in line or f"{copy}: the tables do not fit " in line for line in lines)
    assert any("fingerprint" in line for line in lines)


def test_an_index_of_rows_swapped_missing_or_unreadable(copy: Path) -> None:
    change(copy / "index.npy", lambda rows: rows.__setitem__([1, 2], rows[[2, 1]]))
    assert any("out of order" in line for line in verify(str(copy), workers=1))
    np.save(copy / "index.npy", np.load(copy / "index.npy")[:-1])
    assert "does not fit the dataset.json" in damage(copy)
    np.save(copy / "index.npy", np.zeros((23, 4)))
    assert "does not fit the dataset.json" in damage(copy)
    (copy / "index.npy").write_bytes(b"rubbish")
    assert "damaged" in damage(copy)
    shard, offset = place_without_index(copy)
    flip(shard, offset)
    assert len(verify(str(copy), workers=1)) == 2
    (copy / "index.npy").unlink()
    assert any("index.npy" in line for line in verify(str(copy), workers=1))


def place_without_index(folder: Path) -> tuple[Path, int]:
    shard = folder / "shard-000001.tar"
    return shard, shard.stat().st_size // 2


@pytest.mark.parametrize(
    "column, value, reason",
    [
        ("bytes", 512, "other shards, samples or bytes"),
        ("samples", 1, "other shards, samples or bytes"),
        ("first", 1, "do not begin where"),
        ("sha256", b"0" * 64, "something beside images and labels changed"),
        ("name", b"shard-000000.tar", "names a shard twice"),
        ("name", b"../../etc/hostname", "missing"),
        ("name", b"x\0y", "can be none"),
    ],
)
def test_a_table_of_shards_that_does_not_fit(copy: Path, column: str, value: Any, reason: str) -> None:
    def edit(shards: NDArray[np.void]) -> None:
        old = shards[column][1]
        shards[column][1] = value if isinstance(value, bytes) else old + value

    table = np.load(copy / "shards.npy")
    np.save(copy / "shards.npy", table.astype([("name", "S40"), *table.dtype.descr[1:]]))
    change(copy / "shards.npy", edit)
    assert any(reason in line for line in verify(str(copy), workers=1))
    (copy / "shards.npy").write_bytes(b"rubbish")
    assert "damaged" in damage(copy)


def test_sizes_of_shards_that_add_up_but_are_wrong(copy: Path) -> None:
    def edit(shards: NDArray[np.void]) -> None:
        shards["bytes"][0] += 1
        shards["bytes"][1] -= 1

    change(copy / "shards.npy", edit)
    lines = verify(str(copy), workers=1)
    assert len(lines) == 2 and all("bytes instead of" in line for line in lines)


@pytest.mark.parametrize(
    "field, value",
    [
        ("count", 22),
        ("count", -1),
        ("shards", 1),
        ("bytes", 1),
        ("classes", ["dog", "cat"]),
        ("classes", ["cat"]),
        ("class_counts", [8, 15]),
        ("channels", 1),
        ("depth", 16),
        ("extensions", ["png", "jpg"]),
        ("extension_counts", [11, 12]),
        ("mean", [0.5, 0.5, 0.5]),
        ("std", [0.5, 0.5, 0.5]),
        ("moments", {"pixels": 0, "totals": [0, 0, 0], "squares": [0, 0, 0]}),
        ("width", {"min": 48, "median": 48, "max": 49}),
        ("fingerprint", "0123456789abcdef"),
    ],
)
def test_a_description_that_does_not_fit(copy: Path, field: str, value: Any) -> None:
    file = copy / "dataset.json"
    content = json.loads(file.read_text())
    assert content["generations"][0][field] != value
    content["generations"][0][field] = value
    file.write_text(json.dumps(content))
    assert any("dataset.json" in line for line in verify(str(copy), workers=1))


def test_a_description_that_cannot_be_read_and_none(copy: Path) -> None:
    (copy / "dataset.json").write_bytes((copy / "dataset.json").read_bytes()[:-20])
    assert "damaged" in damage(copy)
    assert exit_code(lambda: main(["verify", str(copy)])) == 1
    (copy / "dataset.json").unlink()
    assert exit_code(lambda: main(["verify", str(copy)])) == 2
    assert exit_code(lambda: main(["verify", str(copy / "nowhere")])) == 2


def test_every_generation_is_looked_at(tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / f"{i}.tar", {f"{i}.png": png(i), f"{i}.cls": b"dog" if i else b"cat"})
        append = ["--append"] if i else []
        assert main(["index", str(tmp_path), str(tmp_path), *append]) == 0
    assert verify(str(tmp_path), workers=1) == []
    flip(tmp_path / "0.tar", 600)
    assert "0.tar is not what was published" in damage(tmp_path)
    flip(tmp_path / "0.tar", 600)
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["generations"][1]["class_counts"] = [0, 2]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert "class_counts of generation 2 do not fit" in damage(tmp_path)


def test_tars_of_others_are_checked_by_their_own_rule_of_labels(tmp_path: Path) -> None:
    files = {
        f"{i}.{kind}": data
        for i in range(4)
        for kind, data in {
            "left.png": png(i),
            "right.png": png(9),
            "json": json.dumps({"kind": "ab"[i % 2]}).encode(),
            "cls": b"7",
        }.items()
    } | {"5.left.png": b"unreadable", "6.txt": b"no image"}
    write_tar(tmp_path / "x.tar", files)
    options = ["--label-key", "kind", "--image-extension", "left.png"]
    assert main(["index", str(tmp_path / "x.tar"), str(tmp_path / "set"), *options]) == 0
    assert verify(str(tmp_path / "set"), workers=1) == []
    data = (tmp_path / "x.tar").read_bytes()
    overwrite(tmp_path / "x.tar", data.index(b'"b"'), b'"a"')
    assert damage(tmp_path / "set").endswith("1 of 4 images have another label: 1")
    overwrite(tmp_path / "x.tar", data.index(b'"b"'), b'"c"')
    assert damage(tmp_path / "set").endswith("1 of 4 images have another label: 1")


def test_a_set_with_a_split_is_verified_as_a_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(tmp_path / "images", [f"{i}.png" for i in range(20)])
    pack(tmp_path / "images", tmp_path / "sets", Options(val_fraction=0.5))
    assert main(["verify", str(tmp_path / "sets")]) == 0
    flip(tmp_path / "sets/val/shard-000000.tar", 600)
    assert main(["verify", str(tmp_path / "sets")]) == 1
    assert "val/shard-000000.tar" in capsys.readouterr().out


def test_tars_and_sets_in_a_bucket(
    s3: S3Server, packed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file in Path(packed.path).iterdir():
        s3.put(f"bucket/packed/{file.name}", file.read_bytes())
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    options = ["--classes", str(tmp_path / "classes.txt"), "--workers", "2"]
    assert main(["index", "s3://bucket/packed", str(tmp_path / "set"), *options]) == 0
    assert Dataset(tmp_path / "set").fingerprint == packed.fingerprint
    assert Dataset(tmp_path / "set").read(3) == packed.read(3)
    for whole in (tmp_path / "set", "s3://bucket/packed"):
        assert verify(str(whole), workers=2) == []
    name, offset = packed.shard_name(1), int(packed.rows["offset"][8])
    data = bytearray((Path(packed.path) / name).read_bytes())
    data[offset] ^= 1
    s3.put(f"bucket/packed/{name}", bytes(data))
    line = damage("s3://bucket/packed")
    assert f"s3://bucket/packed/{name} is not what was published" in line
    s3.client.delete_object(Bucket="bucket", Key=f"packed/{name}")
    assert f"s3://bucket/packed/{name} is not there" in damage("s3://bucket/packed")
    assert exit_code(lambda: main(["verify", "s3://bucket/nowhere"])) == 2


def test_info_for_people_and_for_scripts(packed: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", packed.path]) == 0
    text = capsys.readouterr().out
    assert "cat 15, dog 8" in text and packed.fingerprint in text
    assert main(["info", packed.path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["count"] == 23 and facts["classes"] == ["cat", "dog"] and facts["channels"] == 3
    assert facts["bytes"] == sum(file.stat().st_size for file in Path(packed.path).glob("*.tar"))
