"""Tables that list images: CSV and Parquet, groups by column and by name."""

import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import webdataset

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.packing.manifest import Columns, read
from tests.data_pipeline.pictures import save_pictures

Refused = Callable[..., str]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_pictures(tmp_path / "images", [f"{i}.png" for i in range(12)])
    return tmp_path / "images"


def parquet(file: Path, columns: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


def packed(images: Path, dest: Path, *options: object) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Class and extra columns of every key."""
    command = ["pack", images, dest, *options, "--workers", 1]
    assert main([str(argument) for argument in command]) == 0
    dataset = Dataset(dest)
    classes = {
        dataset.key(i): dataset.classes[label] if label >= 0 else None
        for i, label in enumerate(dataset.labels)
    }
    shards = [str(shard) for shard in sorted(dest.glob("*.tar"))]
    samples = webdataset.WebDataset(shards, shardshuffle=False)
    return classes, {sample["__key__"]: json.loads(sample.get("json", b"null")) for sample in samples}


def test_parquet_columns_keep_their_types(images: Path, tmp_path: Path) -> None:
    table = {
        "file": ["0.png", "1.png", "2.png"],
        "state": ["good", None, "bad"],
        "volts": [0.5, math.nan, math.inf],
        "cell": pyarrow.array([3, None, 2**60]),
        "checked": [True, False, None],
        "site": pyarrow.array(["Zürich", "B", "B"]).dictionary_encode(),
        "day": [datetime.date(2026, 2, 3)] * 3,
        "boxes": [[{"x": 1.5, "tag": "ä"}], [], [{"x": math.nan, "tag": None}]],
    }
    options = ("--labels", parquet(tmp_path / "t.parquet", table), "--image-column", "file")
    classes, extra = packed(images, tmp_path / "set", *options, "--label-column", "state")
    assert classes == {"0": "good", "1": None, "2": "bad"}
    day = {"day": "2026-02-03"}
    assert extra == {
        "0": {"volts": 0.5, "cell": 3, "checked": True, "site": "Zürich", **day}
        | {"boxes": [{"x": 1.5, "tag": "ä"}]},
        "1": {"volts": None, "cell": None, "checked": False, "site": "B", "boxes": [], **day},
        "2": {"volts": None, "cell": 2**60, "checked": None, "site": "B", **day}
        | {"boxes": [{"x": None, "tag": None}]},
    }


@pytest.mark.parametrize(
    "labels, expected",
    [
        (pyarrow.array([10, 9, None]), {"0": "10", "1": "9", "2": None}),
        (pyarrow.array([10.0, 9.0, math.nan]), {"0": "10", "1": "9", "2": None}),
        (pyarrow.array([0.5, 1.0, math.nan]), {"0": "0.5", "1": "1", "2": None}),
        (pyarrow.array([" ", "b", "a "]), {"0": None, "1": "b", "2": "a"}),
    ],
)
def test_labels_of_a_parquet_column(
    images: Path, tmp_path: Path, labels: pyarrow.Array, expected: dict[str, str | None]
) -> None:
    table = parquet(tmp_path / "t.PARQUET", {"image": ["0.png", "1.png", "2.png"], "label": labels})
    assert packed(images, tmp_path / "set", "--labels", table)[0] == expected


def test_whole_numbers_as_classes_come_in_the_order_of_their_values(images: Path, tmp_path: Path) -> None:
    table = parquet(tmp_path / "t.parquet", {"image": [f"{i}.png" for i in range(12)], "label": range(12)})
    packed(images, tmp_path / "set", "--labels", table)
    assert Dataset(tmp_path / "set").classes == [str(i) for i in range(12)]


def test_csv_and_parquet_give_the_same_data_set(images: Path, tmp_path: Path) -> None:
    rows = [(f"{i}.png", "ab"[i % 2], f"p{i // 4}", f'a "quoted",\nï {i}') for i in range(12)]
    names = ["image", "label", "patient", "note"]
    parquet(tmp_path / "t.parquet", dict(zip(names, zip(*rows, strict=True), strict=True)))
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    (tmp_path / "t.csv").write_text("\n".join(map(",".join, [names, *quoted])) + "\n\n")
    both = [
        packed(images, tmp_path / kind, "--labels", tmp_path / f"t.{kind}", "--group-column", "patient")
        for kind in ("csv", "parquet")
    ]
    assert both[0] == both[1] and len(both[0][1]) == 12
    assert Dataset(tmp_path / "csv").fingerprint == Dataset(tmp_path / "parquet").fingerprint


def test_all_rows_of_a_long_table_come_in_their_order(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(50_000)]
    table = parquet(tmp_path / "t.parquet", {"image": names, "label": range(50_000)})
    rows = list(read(table, Columns()))
    assert [(row.image, row.label) for row in rows] == [(f"{i}.png", str(i)) for i in range(50_000)]


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"image": ["0.png"], "lable": ["a"]}, "did you mean 'lable'"),
        ({"image": ["0.png", "gone.png"], "label": ["a", "b"]}, "1 of the 2 files"),
        ({"image": ["0.png", None], "label": ["a", "b"]}, "names '' in column 'image'"),
        ({"image": pyarrow.array([], pyarrow.string()), "label": []}, "lists no images"),
        ({"image": ["0.png"], "label": ["a"], "raw": [b"\xff\xd8"]}, "column 'raw' holds binary data"),
        ({"image": ["0.png"], "label": ["a"], "raw": [[{"b": b"\xff"}]]}, "column 'raw' holds binary data"),
        ({"image": ["0.png"], "label": ["a\nb"]}, "is not text that can be printed"),
    ],
)
def test_a_parquet_file_that_does_not_fit(
    refused: Refused, tmp_path: Path, columns: dict[str, Any], expected: str
) -> None:
    assert expected in refused("--labels", parquet(tmp_path / "t.parquet", columns))


def test_a_file_that_is_no_parquet(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("image,label\n0.png,a\n")
    assert "is not a Parquet file" in refused("--labels", tmp_path / "t.parquet")
    assert "No such file" in refused("--labels", tmp_path / "gone.parquet")
    whole = parquet(tmp_path / "w.parquet", {"image": ["0.png"] * 999, "label": ["a"] * 999}).read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[:4] + bytes(60) + whole[64:])
    assert "t.parquet" in refused("--labels", tmp_path / "t.parquet")


def test_two_columns_of_one_name(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,label,label\n0.png,a,b\n")
    assert "two columns 'label'" in refused("--labels", tmp_path / "t.csv")


def test_groups_named_in_the_file_names_stay_together(tmp_path: Path) -> None:
    names = [f"site{i % 2}/patient{i // 4:02d}-{i}.png" for i in range(80)]
    save_pictures(tmp_path / "images", names)
    options = ["--group-pattern", r"patient(\d+)", "--val-fraction", ".4", "--labels", "folder"]
    assert main(["pack", str(tmp_path / "images"), str(tmp_path / "sets"), *options]) == 0
    sets = [Dataset(tmp_path / "sets" / name) for name in ("train", "val")]
    groups = [{d.key(i).split("-")[0][-2:] for i in range(len(d))} for d in sets]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 20
    assert all(d.classes == ["site0", "site1"] for d in sets)


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--group-pattern", "(", "--val-fraction", ".5"], "no regular expression"),
        (["--group-pattern", "[0-9]", "--val-fraction", ".5"], "has no group"),
        (["--group-pattern", "(1[0-9])", "--val-fraction", ".5"], "in 10 of 12 paths (first: 0.png)"),
        (["--group-pattern", "(.)", "--labels", "t.csv", "--group-column", "x"], "give one of them"),
    ],
)
def test_group_patterns_that_cannot_be_meant(refused: Refused, options: list[str], expected: str) -> None:
    assert expected in refused(*options)
