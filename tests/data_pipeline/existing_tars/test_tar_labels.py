"""Labels of tars that others made: from .cls members, a file of class names, a field of the JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.verifying.verify import verify
from tests.data_pipeline.pictures import png
from tests.data_pipeline.tar_index import Run, labels, write


@pytest.mark.parametrize(
    "texts, expected, classes",
    [
        (["1", " 3\n", "-1", ""], ["1", "3", None, None], ["0", "1", "2", "3"]),
        (["dog", "cat\n", "", "dog"], ["dog", "cat", None, "dog"], ["cat", "dog"]),
    ],
)
def test_labels_are_numbers_or_names(
    texts: list[str], expected: list[str | None], classes: list[str], tmp_path: Path, done: Run
) -> None:
    files = {
        f"{i}.{kind}": png(i) if kind == "png" else text
        for i, text in enumerate(texts)
        for kind in ("cls", "png")
    }
    write(tmp_path / "x.tar", files)
    done(tmp_path / "x.tar", tmp_path / "set")
    dataset = Dataset(tmp_path / "set")
    assert list(labels(dataset).values()) == expected and dataset.classes == classes


def test_class_names_from_a_file(tmp_path: Path, done: Run, refused: Run) -> None:
    write(tmp_path / "x.tar", {"a.png": png(0), "a.cls": "2", "b.png": png(1), "b.cls": "crack"})
    file = tmp_path / "names.txt"
    file.write_text("\ufeffwhole\ncrack \ndark\n\n")
    done(tmp_path / "x.tar", tmp_path / "set", "--classes", file)
    dataset = Dataset(tmp_path / "set")
    assert dataset.classes == ["whole", "crack", "dark"] and labels(dataset) == {"a": "dark", "b": "crack"}
    for text, reason in {
        "whole\ncrack\n": "labels up to 2, but there are 2 class names",
        "whole\ncracks\ndark": "'crack', which is none of the 3 class names; did you mean 'cracks'",
        "whole\nwhole\n": "there twice",
        "a\n\nb\n": "none of them empty",
        "": "one a line",
    }.items():
        file.write_text(text)
        assert reason in refused(tmp_path / "x.tar", tmp_path / "other", "--classes", file)
    file.write_bytes(b"\xff\xfe")
    assert "UTF-8" in refused(tmp_path / "x.tar", tmp_path / "other", "--classes", file)
    assert "No such file" in refused(
        tmp_path / "x.tar", tmp_path / "other", "--classes", tmp_path / "nowhere"
    )
    assert not (tmp_path / "other").exists()


def test_labels_from_a_field_of_the_json(tmp_path: Path, done: Run, refused: Run) -> None:
    records = [{"state": "good", "id": 1}, {"state": None}, {"id": 3}, {"state": 7}]
    files: dict[str, bytes | str] = {}
    for i, record in enumerate(records):
        files |= {f"{i}.png": png(i), f"{i}.json": json.dumps(record), f"{i}.cls": "99"}
    assert "some are names" in refused(
        write(tmp_path / "x.tar", files), tmp_path / "set", "--label-key", "state"
    )
    files["3.json"] = '{"state": "bad"}'
    write(tmp_path / "x.tar", files)
    done(tmp_path / "x.tar", tmp_path / "set", "--label-key", "state")
    assert labels(Dataset(tmp_path / "set")) == {"0": "good", "1": None, "2": None, "3": "bad"}
    line = refused(tmp_path / "x.tar", tmp_path / "other", "--label-key", "stat")
    assert "fields are state, id" in line and "did you mean 'state'" in line
    for content in ("{", "[1]", '{"state": [[1]]}', '{"state": {}}', "[" * 100_000, '{"state": "\\ud800"}'):
        write(tmp_path / "x.tar", {"a.png": png(0), "a.json": content})
        assert "a.json" in refused(tmp_path / "x.tar", tmp_path / "other", "--label-key", "state")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"\xff\xfe", "not text in UTF-8"),
        (b"x" * 2000, "2000 characters"),
        (b"-7", "class -7"),
        (b"123456789012345", "class 123456789012345"),
        (b"9" * 10_000, "characters"),
        (b"cat\0\0", "cannot be printed"),
        (bytes(2**21), "2097152 bytes"),
    ],
)
def test_labels_that_are_none(content: bytes, reason: str, tmp_path: Path, refused: Run) -> None:
    write(tmp_path / "x.tar", {"a.png": png(0), "a.cls": content})
    line = refused(tmp_path / "x.tar", tmp_path / "set")
    assert reason in line and "x.tar gives no label: a.cls" in line
    assert not (tmp_path / "set").exists()


def test_a_label_means_the_same_in_every_form(tmp_path: Path, done: Run) -> None:
    """A whole number is the same class as text, as float and in a list; words for "no label" give none."""
    records = [1, 1.0, "1", "1.0", [1], -1, -1.0, None, float("nan"), "NA", "?", "", []]
    files: dict[str, bytes | str] = {}
    for i, record in enumerate(records):
        files |= {f"{i:02}.png": png(i), f"{i:02}.json": json.dumps({"state": record})}
        if isinstance(record, str | int | float):
            files[f"{i:02}.cls"] = str(record)
    write(tmp_path / "x.tar", files)
    for options in ([], ["--label-key", "state"]):
        dest = tmp_path / f"set{len(options)}"
        said = done(tmp_path / "x.tar", dest, *options)
        found = list(labels(Dataset(dest)).values())
        assert found == ["1", "1", "1", "1", "1" if options else None, *[None] * 8]
        assert f"{13 - 4 - bool(options)} without a label" in said and "1 (" in said


def test_lists_are_several_labels_in_any_order(tmp_path: Path, done: Run) -> None:
    files: dict[str, bytes | str] = {}
    for i, state in enumerate([["b", "a"], ["a", "b"], ["b", "a", "NA", "a"], ["a"], "a"]):
        files |= {f"{i}.png": png(i), f"{i}.json": json.dumps({"state": state})}
    done(write(tmp_path / "x.tar", files), tmp_path / "set", "--label-key", "state")
    assert list(labels(Dataset(tmp_path / "set")).values()) == ["a|b", "a|b", "a|b", "a", "a"]


def test_what_means_no_label_can_be_chosen(tmp_path: Path, done: Run) -> None:
    files: dict[str, bytes | str] = {}
    for i, text in enumerate(["NA", "unsure", "good"]):
        files |= {f"{i}.png": png(i), f"{i}.cls": text}
    done(write(tmp_path / "x.tar", files), tmp_path / "set", "--missing", "unsure, other")
    assert list(labels(Dataset(tmp_path / "set")).values()) == ["NA", None, "good"]


def test_groups_of_packed_shards_come_back_from_their_json(tmp_path: Path, done: Run, refused: Run) -> None:
    files: dict[str, bytes | str] = {}
    for i, record in enumerate([{"p": 12}, {"p": "12.0"}, {"p": None}, {"p": "B"}, {}]):
        files |= {f"{i}.png": png(i), f"{i}.json": json.dumps(record), f"{i}.cls": "0"}
    write(tmp_path / "x.tar", files)
    said = done(tmp_path / "x.tar", tmp_path / "set", "--group-key", "p")
    assert "2 groups, and 2 images without one, each by itself" in said
    dataset = Dataset(tmp_path / "set")
    assert dataset.groups is not None
    assert dataset.groups.tolist() == [*[key_hash("12")] * 2, 0, key_hash("B"), 0]
    assert verify(str(tmp_path / "set"), 1) == []
    assert "--group-key" in refused(tmp_path / "x.tar", tmp_path / "other", "--group-key", "q")
    np.save(tmp_path / "set/groups.npy", np.zeros(5, np.uint64))
    assert "another number of groups" in verify(str(tmp_path / "set"), 1)[0]
    (tmp_path / "set/groups.npy").unlink()
    assert "groups.npy" in verify(str(tmp_path / "set"), 1)[0]


def test_one_json_gives_the_label_and_the_group(tmp_path: Path, done: Run) -> None:
    files: dict[str, bytes | str] = {}
    for i, record in enumerate([{"l": "a", "p": 7}, {"l": "b", "p": "7.0"}, {"l": None, "p": "unsure"}]):
        files |= {f"{i}.png": png(i), f"{i}.json": json.dumps(record)}
    write(tmp_path / "x.tar", files)
    command = (tmp_path / "set", "--label-key", "l", "--group-key", "p", "--missing", "unsure")
    assert "1 groups, and 1 images without one" in done(tmp_path / "x.tar", *command)
    dataset = Dataset(tmp_path / "set")
    assert labels(dataset) == {"0": "a", "1": "b", "2": None}
    assert dataset.groups is not None and dataset.groups.tolist() == [key_hash("7")] * 2 + [0]


def test_labels_and_groups_of_images_with_dots_in_their_names(tmp_path: Path, done: Run) -> None:
    files: dict[str, bytes | str] = {"plain.left.png": png(8), "plain.cls": "a", "plain.left.cls": "b"}
    for i, name in enumerate(["v1.0_x", "v2.5_y.z"]):
        files |= {f"{name}.png": png(i), f"{name}.cls": "ab"[i], f"{name}.json": json.dumps({"p": i})}
    write(tmp_path / "x.tar", files)
    done(tmp_path / "x.tar", tmp_path / "set", "--group-key", "p")
    dataset = Dataset(tmp_path / "set")
    assert labels(dataset) == {"plain": "a", "v1": "a", "v2": "b"}
    assert dataset.groups is not None and dataset.groups.tolist() == [0, key_hash("0"), key_hash("1")]
    assert verify(str(tmp_path / "set"), 1) == []


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["TRUE", "true", "False"], ["True", "True", "False"]),
        (["0.5", ".5", "0.50"], ["0.5"] * 3),
        (["true", "maybe"], ["true", "maybe"]),
        (['["b", "a"]', "['a', 'b']"], ["a|b"] * 2),
    ],
)
def test_names_of_classes_are_spelled_as_in_tables(
    texts: list[str], expected: list[str], tmp_path: Path, done: Run
) -> None:
    for i, text in enumerate(texts):  # one tar for each text; the labels of a run of `index` are one column
        write(tmp_path / f"tars/{i}.tar", {f"{i}.png": png(i), f"{i}.cls": text})
    done(tmp_path / "tars", tmp_path / "set")
    assert list(labels(Dataset(tmp_path / "set")).values()) == expected
    assert verify(str(tmp_path / "set"), 1) == []


def test_what_means_no_label_is_remembered(tmp_path: Path, done: Run, refused: Run) -> None:
    for i, text in enumerate(["NA", "unsure", "good", "unsure"]):
        write(tmp_path / f"{i // 3}/{i}.tar", {f"{i}.png": png(i), f"{i}.cls": text, f"{i}.json": '{"p": 1}'})
    done(tmp_path / "0", tmp_path / "set", "--missing", "unsure", "--group-key", "p")
    assert verify(str(tmp_path / "set"), 1) == []
    assert "--group-key" in refused(tmp_path / "1", tmp_path / "set", "--append")
    done(tmp_path / "1", tmp_path / "set", "--append", "--group-key", "p")
    assert list(labels(Dataset(tmp_path / "set")).values()) == ["NA", None, "good", None]
    assert verify(str(tmp_path / "set"), 1) == []


def test_labels_from_files_of_another_ending(tmp_path: Path, done: Run, refused: Run) -> None:
    files: dict[str, bytes | str] = {}
    for i, text in enumerate(["cat", " dog\n", "NA", "cat"]):
        files |= {f"{i}.png": png(i), f"{i}.TXT": text, f"{i}.caption.txt": f"a picture of {i}"}
    tar = write(tmp_path / "x.tar", files)
    said = done(tar, tmp_path / "none")
    assert "no labels (4 images)" in said and "the text of the 8 .txt with --label-extension txt" in said
    dest = tmp_path / "set"
    assert "other files" not in done(tar, dest, "--label-extension", ".txt")
    assert list(labels(Dataset(dest)).values()) == ["cat", "dog", None, "cat"] and verify(str(dest), 1) == []
    captions = tmp_path / "captions"
    done(tar, captions, "--label-extension", "caption.txt")
    assert Dataset(captions).classes == [f"a picture of {i}" for i in range(4)]
    assert verify(str(captions), 1) == []
    write(tmp_path / "y.tar", {"a.png": png(9), "a.txt": "cow"})
    done(tmp_path / "y.tar", tar, dest, "--append")
    assert labels(Dataset(dest))["a"] == "cow" and verify(str(dest), 1) == []
    assert "other files end in .txt;" in refused(tar, tmp_path / "other", "--label-extension", "text")
    assert "is of an image" in refused(tar, tmp_path / "other", "--label-extension", "png")
    assert "--label-key" in refused(tar, tmp_path / "other", "--label-extension", "json")


def test_files_that_may_hold_labels_are_named(tmp_path: Path, done: Run) -> None:
    tar = write(tmp_path / "x.tar", {"a.png": png(0), "a.json": '{"state": "good", "id": 1}'})
    line = "a field of the 1 .json (state, id) with --label-key FIELD"
    assert line in done(tar, tmp_path / "set")
    assert "other files" not in done(tar, tmp_path / "labelled", "--label-key", "state")
    tar = write(tmp_path / "meta.tar", {"a.png": png(0), "a.meta.json": '{"state": "good"}'})
    done(tar, tmp_path / "meta", "--label-key", "state", "--label-extension", "meta.json")
    assert Dataset(tmp_path / "meta").classes == ["good"]


@pytest.mark.parametrize("options", [[], ["--label-key", "grade"]], ids=["cls", "json"])
def test_whole_numbers_beside_fractions_are_names(options: list[str], tmp_path: Path, done: Run) -> None:
    for tar, grades in {"x": [0, 0.5, 1], "y": [1.0, 0.5, 2]}.items():
        files: dict[str, bytes | str] = {}
        for i, grade in enumerate(grades):
            key = f"{tar}{i}"
            files |= {f"{key}.png": png(i), f"{key}.cls": str(grade), f"{key}.json": f'{{"grade": {grade}}}'}
        write(tmp_path / f"{tar}.tar", files)
    first = done(tmp_path / "x.tar", tmp_path / "set", *options)
    assert "3 classes: 0 (1), 0.5 (1), 1 (1)" in first
    done(tmp_path / "x.tar", tmp_path / "y.tar", tmp_path / "set", "--append", *options)
    assert list(labels(Dataset(tmp_path / "set")).values()) == ["0", "0.5", "1", "1", "0.5", "2"]
    assert verify(str(tmp_path / "set"), 1) == []
