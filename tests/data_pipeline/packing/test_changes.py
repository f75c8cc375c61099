"""`pack` names the files that changed after they were packed, and never calls them packed already."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.__main__ import main
from data_pipeline.dataset import modified
from data_pipeline.dataset.index import Dataset
from data_pipeline.verifying.verify import verify
from isotorus.errors import exit_code
from tests.data_pipeline.pictures import picture, save_pictures

LATER = 10**18 * 2  # in 2033


def run(*arguments: object) -> int:
    return exit_code(lambda: main(["pack", *map(str, arguments), "--workers", "1"]))


def save(folder: Path, name: str, value: int, side: int = 8) -> None:
    """An uncompressed image, so that its size depends on its sides alone."""
    folder.mkdir(exist_ok=True)
    np.save(folder / name, np.full((side, side), value, np.uint8))


def touch(file: Path, time: int = LATER) -> None:
    os.utime(file, ns=(time, time))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for i in range(8):
        save(tmp_path / "scans", f"{i}.npy", 40 + i)
    return tmp_path / "scans"


@pytest.mark.parametrize("split", [[], ["--val-fraction", "0.3"]])
def test_changed_files_of_equal_size_are_named(source: Path, tmp_path: Path, capsys, split: list) -> None:
    dest = tmp_path / "set"
    assert run(source, dest, *split) == 0
    for i in (2, 3, 5, 7):
        save(source, f"{i}.npy", 200)
        touch(source / f"{i}.npy")
    for more in ([], ["--append"]):
        capsys.readouterr()
        assert run(source, dest, *split, *more) == 2
        said = capsys.readouterr().err
        assert "4 files changed (2.npy, 3.npy, 5.npy and 1 more) since they were packed" in said
        assert "--append" in said and said.count("\n") == 1


def test_changed_removed_and_new_files_are_named(source: Path, tmp_path: Path, capsys) -> None:
    run(source, tmp_path / "set")
    save(source, "1.npy", 41, side=9)
    save(source, "2.npy", 200)
    touch(source / "2.npy")
    (source / "3.npy").unlink()
    save(source, "new.npy", 1)
    capsys.readouterr()
    assert run(source, tmp_path / "set") == 2
    said = capsys.readouterr().err
    for phrase in (
        "2 files changed (1.npy, 2.npy)",
        "1 file is no longer there (3)",
        "1 file is new (new.npy)",
    ):
        assert phrase in said
    assert "--append replaces and removes nothing" in said


def test_what_was_only_touched_or_copied_is_unchanged_and_the_new_times_are_kept(
    source: Path, tmp_path: Path, capsys
) -> None:
    dest = tmp_path / "set"
    run(source, dest, "--val-fraction", "0.3")
    before = {file.name: file.read_bytes() for file in dest.glob("train/*") if file.name != modified.MODIFIED}
    for file in source.iterdir():
        touch(file)
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    for folder in (source, copy):
        capsys.readouterr()
        assert run(folder, dest, "--val-fraction", "0.3") == 0
        assert capsys.readouterr().out.startswith("already packed: 8 images")
    for name in ("train", "val"):
        times = modified.read(dest / name, Dataset(dest / name).description)
        assert (times == LATER).all()
    assert before == {f.name: f.read_bytes() for f in dest.glob("train/*") if f.name != modified.MODIFIED}
    assert verify(str(dest / "train"), 1) == []


@pytest.mark.parametrize("damage", ["missing", "damaged", "short", "another type"])
def test_without_a_record_of_times_the_bytes_are_compared(
    source: Path, tmp_path: Path, capsys, damage: str
) -> None:
    run(source, tmp_path / "set")
    record = tmp_path / "set" / modified.MODIFIED
    kept = np.load(record)
    if damage == "missing":
        record.unlink()
    elif damage == "damaged":
        record.write_bytes(record.read_bytes()[:50])
    else:
        np.save(record, kept[:2] if damage == "short" else kept.astype(float))
    assert run(source, tmp_path / "set") == 0
    assert (np.load(record) == kept).all()
    record.unlink()
    save(source, "4.npy", 9)
    capsys.readouterr()
    assert run(source, tmp_path / "set") == 2
    assert "1 file changed (4.npy)" in capsys.readouterr().err


def test_appending_keeps_the_times_in_the_order_of_the_index(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "set")
    for i in range(8, 12):
        save(source, f"{i}.npy", 40 + i)
        touch(source / f"{i}.npy", LATER + i)
    (source / "broken.png").write_bytes(b"no image")
    assert run(source, tmp_path / "set", "--append") == 0
    dataset = Dataset(tmp_path / "set")
    times = modified.read(tmp_path / "set", dataset.description)
    assert times.tolist() == [(source / f"{dataset.key(i)}.npy").stat().st_mtime_ns for i in range(12)]


def test_a_repaired_file_that_was_left_out_is_named(source: Path, tmp_path: Path, capsys) -> None:
    picture(1).save(source / "x.png")
    whole = (source / "x.png").read_bytes()
    (source / "x.png").write_bytes(b"?" * len(whole))
    assert run(source, tmp_path / "set", "--channels", "1") == 0
    assert run(source, tmp_path / "set", "--channels", "1") == 0
    assert "left out" not in capsys.readouterr().out
    (source / "x.png").write_bytes(whole)
    touch(source / "x.png")
    assert run(source, tmp_path / "set", "--channels", "1") == 0
    assert "1 file changed (x.png) after being left out" in capsys.readouterr().out
    assert run(source, tmp_path / "set", "--channels", "1", "--append") == 0
    assert len(Dataset(tmp_path / "set")) == 9


def test_a_set_of_the_first_pixel_rules_keeps_them_when_images_are_added(tmp_path: Path, capsys) -> None:
    images, dest = tmp_path / "images", tmp_path / "set"
    save_pictures(images, ["a.png"])
    turned = picture(1).getexif()
    turned[274] = 6
    picture(1).save(images / "b.jpg", exif=turned)
    run(images, dest)
    assert Dataset(dest).pixel_rules == 2
    assert sorted(Dataset(dest).rows["height"].tolist()) == [40, 48]
    description = json.loads((dest / "dataset.json").read_text())
    del description["generations"][0]["pixel_rules"]  # as in sets of earlier versions
    (dest / "dataset.json").write_text(json.dumps(description))
    picture(2, height=50).save(images / "c.jpg", exif=turned)
    capsys.readouterr()
    assert run(images, dest, "--append") == 0
    assert "pixel rules 1" in capsys.readouterr().out
    dataset = Dataset(dest)
    assert [generation.pixel_rules for generation in dataset.generations] == [1, 1]
    shapes = {dataset.key(i): dataset.pixels(i, 3, 8).shape[:2] for i in range(3)}
    assert shapes == {"a": (40, 48), "b": (40, 48), "c": (50, 48)}
    assert dataset.rows[2]["height"] == 50
