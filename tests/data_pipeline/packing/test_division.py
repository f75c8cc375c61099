"""Splits by a column and by class, groups that stay whole, and what `pack` says about them."""

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.__main__ import main
from data_pipeline.dataset.description import Split
from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.packing.division import divide
from data_pipeline.packing.listing import Item
from data_pipeline.storage.disk_list import DiskList
from isotorus.errors import UserError, exit_code
from tests.data_pipeline.pictures import save_pictures


def pack(*arguments: object) -> None:
    assert main(["pack", *map(str, arguments), "--workers", "1"]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert exit_code(lambda: main(["pack", *map(str, arguments), "--workers", "1"])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def table(file: Path, header: str, rows: list[str]) -> Path:
    file.write_text("\n".join([header, *rows, ""]))
    return file


def split(**fractions: float) -> Split:
    shares = {"val_fraction": 0.0, "test_fraction": 0.0} | fractions
    return Split(**shares, grouped=True, stratified=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_pictures(tmp_path / "images", [f"{i}.png" for i in range(24)])
    return tmp_path / "images"


EARLIER = {
    "train": [
        1,
        2,
        3,
        4,
        5,
        6,
        8,
        9,
        10,
        11,
        12,
        14,
        15,
        16,
        17,
        18,
        21,
        22,
        23,
        24,
        26,
        27,
        28,
        29,
        30,
        31,
        32,
        33,
        35,
        36,
        37,
        38,
        39,
        40,
        41,
        42,
        43,
        48,
        49,
        50,
        52,
        55,
        56,
        58,
    ],
    "val": [0, 13, 19, 25, 34, 44, 46, 51, 53, 57, 59],
    "test": [7, 20, 45, 47, 54],
}


def test_each_class_is_divided_in_the_same_shares() -> None:
    items = [
        Item(f"{label}/{i}.png", 1, label=label)
        for label, n in (("a", 1000), ("b", 10), ("c", 3), ("d", 1))
        for i in range(n)
    ]
    sets = divide(DiskList(items), split(val_fraction=0.1, test_fraction=0.2))
    counts = {name: Counter(item.label for item in members) for name, members in sets.items()}
    assert [counts[name]["a"] for name in ("train", "val", "test")] == pytest.approx([700, 100, 200], abs=1)
    assert all(counts[name]["b"] >= 1 and counts[name]["c"] == 1 for name in counts)
    assert counts["train"]["d"] == 1
    again = divide(DiskList(items[::-1]), split(val_fraction=0.1, test_fraction=0.2))
    assert {n: {i.path for i in m} for n, m in again.items()} == {
        n: {i.path for i in m} for n, m in sets.items()
    }


def test_stratified_groups_stay_whole_and_classes_stay_balanced() -> None:
    drawn = np.random.default_rng(0)
    items = []
    for group in range(300):
        label = "rare" if group % 10 == 0 else "common"
        items += [
            Item(f"{group}-{i}.png", 1, label=label, group=f"p{group}") for i in range(drawn.integers(1, 9))
        ]
    sets = divide(DiskList(items), split(val_fraction=0.2))
    sides = [{item.group for item in members} for members in sets.values()]
    assert not sides[0] & sides[1]
    for label in ("rare", "common"):
        total = sum(item.label == label for item in items)
        assert sum(item.label == label for item in sets["val"]) == pytest.approx(0.2 * total, abs=8)


def test_the_default_split_is_that_of_earlier_versions() -> None:
    """No version may divide otherwise, because appended images go to the set that has their group."""
    items = [Item(f"{i}.png", 1, group=f"p{i // 3}" if i % 2 else "") for i in range(60)]
    sets = divide(DiskList(items), Split(val_fraction=0.2, test_fraction=0.1, grouped=True))
    assert {name: [int(item.path[:-4]) for item in members] for name, members in sets.items()} == EARLIER


def test_a_split_column_is_followed(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{i}.png,{'ab'[i % 2]},{('train', 'Valid', 'test')[i % 3]},{i % 6}" for i in range(20)]
    file = table(tmp_path / "t.csv", "image,label,set,patient", rows)
    pack(images, tmp_path / "sets", "--labels", file, "--split-column", "set", "--group-column", "patient")
    said = capsys.readouterr().out
    for side, name in enumerate(("train", "val", "test")):
        dataset = Dataset(tmp_path / "sets" / name)
        keys = [int(dataset.key(i)) for i in range(len(dataset))]
        assert {key % 3 for key in keys} == {side}
        assert dataset.groups is not None and dataset.description.groups == 2
        assert dataset.groups.tolist() == [key_hash(str(key % 6)) for key in keys]
        assert f"{name}: 2 classes: a (" in said
    assert "few samples" in said
    more = table(tmp_path / "more.csv", "image,label,set,patient", ["20.png,a,dev,1", "21.png,c,train,9"])
    options = ["--labels", more, "--split-column", "set", "--group-column", "patient", "--append"]
    pack(images, tmp_path / "sets", *options)
    sets = [Dataset(tmp_path / "sets" / name) for name in ("train", "val", "test")]
    assert [len(dataset) for dataset in sets] == [8, 8, 6]
    assert all(dataset.classes == ["a", "b", "c"] for dataset in sets)
    assert sets[0].groups is not None and sets[0].groups[-1] == key_hash("9")
    assert "--split-column" in refused(capsys, images, tmp_path / "sets", "--labels", more, "--append")
    torn = table(tmp_path / "torn.csv", "image,label,set,patient", ["0.png,a,train,1", "1.png,a,test,1.0"])
    options = ["--labels", torn, "--split-column", "set", "--group-column", "patient"]
    assert "the group '1' is in" in refused(capsys, images, tmp_path / "torn", *options)
    assert "leave out the fractions" in refused(
        capsys, images, tmp_path / "x", "--labels", torn, "--split-column", "set", "--val-fraction", ".2"
    )


def test_images_added_to_a_stratified_split_follow_their_group(images: Path, tmp_path: Path) -> None:
    rows = [f"{i}.png,{'ab'[i % 2]},{i // 2}.0" for i in range(24)]
    options = ["--group-column", "patient", "--stratify", "--val-fraction", ".3"]
    half = table(tmp_path / "half.csv", "image,label,patient", rows[::2])
    pack(images, tmp_path / "sets", "--labels", half, *options)
    whole = table(tmp_path / "whole.csv", "image,label,patient", [row.replace(".0", "") for row in rows])
    pack(images, tmp_path / "sets", "--labels", whole, "--group-column", "patient", "--append")
    sets = [Dataset(tmp_path / "sets" / name) for name in ("train", "val")]
    patients = [{int(d.key(i)) // 2 for i in range(len(d))} for d in sets]
    assert sum(map(len, sets)) == 24 and not patients[0] & patients[1]


def test_one_patient_in_two_spellings_is_on_one_side(images: Path, tmp_path: Path) -> None:
    rows = [f"{i}.png,{i % 2}{'.0' if i < 12 else ''},{i % 12}{'.0' if i < 12 else ''}" for i in range(24)]
    file = table(tmp_path / "t.csv", "image,label,patient", rows)
    pack(images, tmp_path / "sets", "--labels", file, "--group-column", "patient", "--val-fraction", ".4")
    sets = [Dataset(tmp_path / "sets" / name) for name in ("train", "val")]
    patients = [{int(d.key(i)) % 12 for i in range(len(d))} for d in sets]
    assert not patients[0] & patients[1] and all(d.classes == ["0", "1"] for d in sets)


def test_images_without_a_group_are_counted(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table(tmp_path / "t.csv", "image,label,patient", ["0.png,a,1", "1.png,NA,1", "2.png,?,NA"])
    pack(images, tmp_path / "set", "--labels", file, "--group-column", "patient")
    said = capsys.readouterr().out
    assert "1 classes: a (1); 2 without a label; 1 groups, and 1 images without one" in said
    groups = Dataset(tmp_path / "set").groups
    assert groups is not None and sorted(groups.tolist()) == sorted([0, *[key_hash("1")] * 2])


def test_sets_without_groups_have_none(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "set")
    assert Dataset(tmp_path / "set").groups is None and not (tmp_path / "set/groups.npy").exists()


@pytest.mark.parametrize(
    "names", [("train", "val"), ("Training", "validation", "test"), ("train",), ("TEST", "Train", "x")]
)
def test_folders_of_a_split_are_not_taken_for_classes(
    names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(
        tmp_path / "root", [f"{name}/{label}/{i}.png" for name in names for label in "ab" for i in "01"]
    )
    line = refused(capsys, tmp_path / "root", tmp_path / "set", "--labels", "folder")
    assert f"isotorus pack {tmp_path / 'root' / names[0]} DEST/" in line
    pack(tmp_path / "root" / names[0], tmp_path / "set", "--labels", "folder")
    assert Dataset(tmp_path / "set").classes == ["a", "b"]


def test_one_class_that_is_called_train_is_a_class(tmp_path: Path) -> None:
    save_pictures(tmp_path / "root", ["train/0.png", "bus/1.png"])
    pack(tmp_path / "root", tmp_path / "set", "--labels", "folder")
    assert Dataset(tmp_path / "set").classes == ["bus", "train"]


def test_accents_match_between_table_and_folder_and_in_classes(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    save_pictures(tmp_path / "images", [f"{composed}/{decomposed}1.png", f"{decomposed}{decomposed}/2.png"])
    rows = [f"{composed}/{composed}1.png,{decomposed}", f"{composed}{composed}\\2.png ,{composed}"]
    pack(tmp_path / "images", tmp_path / "set", "--labels", table(tmp_path / "t.csv", "image,label", rows))
    assert Dataset(tmp_path / "set").classes == [composed] and len(Dataset(tmp_path / "set")) == 2
    save_pictures(tmp_path / "folder", [f"{composed}/1.png", f"{decomposed}/2.png"])
    pack(tmp_path / "folder", tmp_path / "by-folder", "--labels", "folder")
    assert Dataset(tmp_path / "by-folder").classes == [composed]


def test_stratify_without_classes_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give --labels" in refused(capsys, images, tmp_path / "set", "--stratify", "--val-fraction", ".2")
    with pytest.raises(UserError):
        main(["pack", str(images), str(tmp_path / "set"), "--missing", "x"])


@pytest.mark.parametrize(
    ("names", "sets"),
    [
        (["TRAIN/cat/1.png", "Val/cat/2.png"], "TRAIN, Val"),
        (["imagenet/train/cat/1.png", "imagenet/val/cat/2.png"], "train, val"),
        (["a/b/Training/1.png", "a/b/dev/2.png", "a/b/test/3.png"], "Training, dev, test"),
        (["cat/test/1.png", "cat/2.png"], ""),
        (["cat/test/1.png"], ""),
        (["train/1.png", "bus/2.png"], ""),
    ],
)
def test_folders_of_sets_are_no_classes(tmp_path: Path, capsys, names: list[str], sets: str) -> None:
    save_pictures(tmp_path / "root", names)
    command = tmp_path / "root", tmp_path / "set", "--labels", "folder"
    if sets:
        assert f"holds the sets of a split ({sets})" in refused(capsys, *command)
    else:
        pack(*command)
        assert Dataset(tmp_path / "set").classes == sorted({name.partition("/")[0] for name in names})


def test_sets_within_folders_of_classes_are_named(tmp_path: Path, capsys) -> None:
    save_pictures(tmp_path / "root", ["cat/train/1.png", "cat/test/2.png", "dog/train/3.png"])
    pack(tmp_path / "root", tmp_path / "set", "--labels", "folder")
    assert "hold sets of a split (test, train), which are packed together" in capsys.readouterr().err
    assert Dataset(tmp_path / "set").classes == ["cat", "dog"]
    save_pictures(tmp_path / "root", ["dog/4.png"])
    pack(tmp_path / "root", tmp_path / "other", "--labels", "folder")
    assert "sets of a split" not in capsys.readouterr().err
