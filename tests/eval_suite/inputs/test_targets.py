"""Targets from tables: which sample gets which value, the kind of targets, and the refusals."""

import unicodedata
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipeline.dataset.index import Dataset
from data_pipeline.existing_tars.tar_index import Options, index
from data_pipeline.packing.pack import Options as PackOptions
from data_pipeline.packing.pack import pack as pack_files
from data_pipeline.targets.targets import Targets, aligned, load_targets, missed_classes, of_labels
from eval_suite.inputs.splits import open_splits, targets_of
from isotorus.errors import UserError
from tests.data_pipeline.pictures import png
from tests.data_pipeline.scientific_formats.dicoms import write_dicom
from tests.data_pipeline.tar_index import write
from tests.eval_suite.eval_samples import pack


@pytest.fixture(scope="module")
def dataset(splits: dict[str, Path]) -> Dataset:
    """A data set of 20 samples that were packed from 0.png … 19.png."""
    return Dataset(splits["val"])


@pytest.fixture
def table(tmp_path: Path):
    def write(header: str, rows: list[str], encoding: str = "utf-8") -> Path:
        file = tmp_path / "targets.csv"
        file.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
        return file

    return write


def number(dataset: Dataset) -> list[int]:
    return [int(dataset.key(i)) for i in range(len(dataset))]


@pytest.mark.parametrize("suffix", ["", ".png"])
def test_rows_find_their_samples_in_any_order_by_key_or_path(dataset, table, suffix: str):
    order = np.random.default_rng(0).permutation(30)  # ten of them in another split
    found = load_targets(dataset, table("id,age", [f"{i}{suffix},{i + 0.5}" for i in order]), "id", ["age"])
    assert found.kind == "regression"
    assert found.names == ["age"]
    assert found.known.all()
    assert found.values[:, 0].tolist() == [n + 0.5 for n in number(dataset)]


def test_a_row_of_a_file_is_that_of_its_pictures(table, tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    for name in ("heart.dcm", "series/IM.1.2"):
        write_dicom(tmp_path / "scans" / name, frames, NumberOfFrames=3)
    nibabel.save(nibabel.Nifti1Image(frames, np.eye(4)), tmp_path / "scans/sub-1.T1.nii.gz")
    pack_files(tmp_path / "scans", tmp_path / "set", PackOptions(workers=1))
    dataset = Dataset(tmp_path / "set")
    rows = ["heart.dcm,1.5", "series/IM.1.2,2.5", "sub-1.T1.nii.gz,3.5", "heart/f001,9.5"]
    found = load_targets(dataset, table("id,age", rows), "id", ["age"])
    values = {dataset.key(i): float(found.values[i, 0]) for i in range(len(dataset))}
    expected = {f"heart/f{i:03d}": 9.5 if i == 1 else 1.5 for i in range(3)}
    expected |= {f"series/IM_1_2/f{i:03d}": 2.5 for i in range(3)}
    expected |= {f"sub-1_T1/z{i:03d}": 3.5 for i in range(8)}
    assert found.known.all() and values == expected


def test_samples_without_row_or_value_are_counted(dataset, table):
    rows = [f"{i},{'' if i < 3 else 'nan' if i < 5 else 'cat' if i % 2 else 'dog'}" for i in range(15)]
    found = load_targets(dataset, table("id,animal", rows), "id", ["animal"])
    assert (found.kind, found.names) == ("multiclass", ["cat", "dog"])
    assert (found.without_row, found.without_value, int(found.known.sum())) == (5, 5, 10)
    for n, known, value in zip(number(dataset), found.known, found.values, strict=True):
        assert known == (5 <= n < 15)
        if known:
            assert found.names[value] == ("cat" if n % 2 else "dog")


@pytest.mark.parametrize(
    ("columns", "kind", "names"),
    [
        ({"a": ["10", "9", "x"]}, "multiclass", ["10", "9", "x"]),
        ({"a": ["2", "0", "1"]}, "multiclass", ["0", "1", "2"]),
        ({"a": ["1.0", "2.0", ""]}, "multiclass", ["1", "2"]),
        ({"a": ["True", "False", "True"]}, "multiclass", ["False", "True"]),
        ({"a": ["30", "41", "57"]}, "regression", ["a"]),
        ({"a": ["0", "-1", "1"]}, "multiclass", ["0", "1"]),
        ({"a": ["2.5", "NA", "?"]}, "regression", ["a"]),
        ({"a": ["0", "NULL", "1.0"]}, "multiclass", ["0", "1"]),
        ({"a": ["01", "1", "2"]}, "multiclass", ["01", "1", "2"]),
        ({"a": ['"[""x"", ""y""]"', '"[""y"",""x""]"', "x"]}, "multilabel", ["x", "y"]),
        ({"a": ["0.1", "1", "2"]}, "regression", ["a"]),
        ({"a": ["0", "1", "1"], "b": ["false", "TRUE", "1.0"]}, "multilabel", ["a", "b"]),
        ({"a": ["0", "1", "1"], "b": ["-1", "0", "1"]}, "regression", ["a", "b"]),
    ],
)
def test_kind_and_names_follow_from_the_values(dataset, table, columns, kind: str, names: list[str]):
    rows = [",".join([str(i), *cells]) for i, cells in enumerate(zip(*columns.values(), strict=True))]
    found = load_targets(dataset, table(",".join(["id", *columns]), rows), "id", list(columns))
    assert (found.kind, found.names) == (kind, names)


def test_a_kind_that_is_given_holds(dataset, table):
    file = table("id,grade", [f"{i},{i % 3}" for i in range(20)])
    assert load_targets(dataset, file, "id", ["grade"]).kind == "multiclass"
    graded = load_targets(dataset, file, "id", ["grade"], "regression")
    assert graded.values[:, 0].tolist() == [n % 3 for n in number(dataset)]


def test_parquet_with_types_and_nulls_reads_as_the_csv_does(dataset, table, tmp_path: Path):
    columns = {
        "id": pa.array([str(i) for i in range(20)]).dictionary_encode(),
        "flag": pa.array([None if i == 4 else i % 2 == 0 for i in range(20)]),
        "size": pa.array([float("nan") if i == 5 else i / 2 for i in range(20)]),
        "grade": pa.array([None if i == 6 else float(i % 2) for i in range(20)]),
    }
    file = tmp_path / "targets.parquet"
    pa.parquet.write_table(pa.table(columns), file)
    rows = [",".join("" if v is None else str(v) for v in r.values()) for r in pa.table(columns).to_pylist()]
    csv = table("id,flag,size,grade", rows)
    for chosen in (["flag"], ["size"], ["flag", "grade"], ["grade"]):
        one, two = (load_targets(dataset, f, "id", chosen) for f in (file, csv))
        assert (one.kind, one.without_value) == (two.kind, two.without_value)
        assert [name.lower() for name in one.names] == [name.lower() for name in two.names]
        assert np.array_equal(one.values[one.known], two.values[two.known])


@pytest.mark.parametrize(
    ("header", "rows", "columns", "kind", "message"),
    [
        ("id,age", ["0,1"], ["aeg"], None, "no column 'aeg', its columns are id, age; did you mean 'age'"),
        ("key,age", ["0,1"], ["age"], None, "no column 'id', its columns are key, age"),
        ("id,age,age", ["0,1,2"], ["age"], None, "two columns 'age'"),
        ("id,age", ["x,1", "y,2"], ["age"], None, r"none of the 2 keys in column 'id' \(the first: 'x'\)"),
        ("id,age", [], ["age"], None, "none of the 0 keys"),
        ("id,age", ["0,1", "1,2", "0.png,3"], ["age"], None, "line 2 and line 4 both name"),
        ("id,age", ["0,1", "1,old"], ["age"], "regression", "line 3: 'old' in column 'age'"),
        ("id,age", ["0,1", "1,inf"], ["age"], "regression", "expected a finite number"),
        ("id,a,b", ["0,1,0", "1,0,2"], ["a", "b"], "multilabel", "'2' in column 'b', expected 0 or 1"),
        ("id,a,b", ["0,1,0", "1,0,x"], ["a", "b"], None, "'x' in column 'b', expected a finite number"),
        ("id,a,b", ["0,1,0"], ["a", "b"], "multiclass", "2 columns a, b as multiclass"),
        ("id,age", ["0,1"], ["age"], "classes", "kind 'classes'; expected one of multiclass"),
        ("id,age", ["0,1", "1,2,3"], ["age"], None, "row 3, has 3 cells, the first row 2"),
        ("id,age", ["0,1"], [], None, "no target columns"),
    ],
)
def test_bad_tables_are_refused_in_one_line(dataset, table, header, rows, columns, kind, message: str):
    with pytest.raises(UserError, match=message) as refused:
        load_targets(dataset, table(header, rows), "id", columns, kind)
    assert "\n" not in str(refused.value)


def test_files_that_are_none_are_refused(dataset, table, tmp_path: Path):
    with pytest.raises(UserError, match="No such file"):
        load_targets(dataset, tmp_path / "absent.csv", "id", ["a"])
    with pytest.raises(UserError, match="not a CSV in UTF-8"):
        load_targets(dataset, table("id,a", ["0,é"], "latin-1"), "id", ["a"])
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match="is empty"):
        load_targets(dataset, tmp_path / "empty.csv", "id", ["a"])
    (tmp_path / "text.parquet").write_text("id,a")
    with pytest.raises(UserError, match="not a Parquet file"):
        load_targets(dataset, tmp_path / "text.parquet", "id", ["a"])


def test_labels_of_the_data_set_itself(splits):
    train = Dataset(splits["train"])
    found = of_labels(train)
    assert (found.kind, found.names, found.without_value) == ("multiclass", train.classes, 4)
    assert np.array_equal(found.known, train.labels >= 0)


def test_splits_are_brought_to_the_same_classes():
    known = np.array([True, True, False])
    train = Targets("multiclass", ["b", "d"], np.array([0, 1, -1]), known)
    val = Targets("multiclass", ["a", "d"], np.array([1, 0, -1]), known)
    both = aligned({"train": train, "val": val})
    assert both["train"].names == both["val"].names == ["b", "d", "a"]
    assert both["train"].values.tolist() == [0, 1, -1]
    assert both["val"].values.tolist() == [1, 2, -1]
    numbers = Targets("regression", ["age"], np.zeros((3, 1)), known)
    with pytest.raises(ValueError, match="train are multiclass, of val regression"):
        aligned({"train": train, "val": numbers})


def test_rows_that_say_the_same_again_count_once(dataset, table):
    found = load_targets(dataset, table("id,age", ["0,1.5", "0.png,1.50", "1,2.5"]), "id", ["age"])
    assert int(found.known.sum()) == 2


def test_what_means_no_value_can_be_chosen(dataset, table):
    file = table("id,age", ["0,1.5", "1,-9", "2,NA"])
    with pytest.raises(UserError, match="'NA' in column 'age'"):
        load_targets(dataset, file, "id", ["age"], "regression", missing=["-9.0"])
    found = load_targets(dataset, file, "id", ["age"], "regression", missing=["-9.0", "NA"])
    assert int(found.known.sum()) == 1 and found.without_value == 2


def test_lists_of_labels_are_labels_that_occur_together(dataset, tmp_path: Path):
    lists = [["b", "a"], ["a"], [], None, ["a", "b"]]
    pa.parquet.write_table(pa.table({"id": list("01234"), "a": lists}), tmp_path / "list.parquet")
    found = load_targets(dataset, tmp_path / "list.parquet", "id", ["a"])
    assert (found.kind, found.names) == ("multilabel", ["a", "b"])
    rows = {n: found.values[i].tolist() for i, n in enumerate(number(dataset)) if found.known[i]}
    assert rows == {0: [1, 1], 1: [1, 0], 4: [1, 1]}


def test_packed_labels_of_another_kind(tmp_path: Path):
    data = Dataset(pack(tmp_path / "joint", ["a|b", "b", "", "a"], seed=0))
    found = of_labels(data, "multilabel")
    assert found.names == ["a", "b"] and sorted(found.values[found.known].tolist()) == [
        [0, 1],
        [1, 0],
        [1, 1],
    ]
    ages = Dataset(pack(tmp_path / "ages", ["30", "41.0", ""], seed=0))
    found = of_labels(ages, "regression")
    assert sorted(found.values[found.known, 0].tolist()) == [30, 41]
    with pytest.raises(UserError, match="expected a finite number"):
        of_labels(data, "regression")


def test_classes_of_splits_are_joined_by_name(tmp_path: Path):
    """Val lacks a class of train, and test has one more: neither is refused, and the latter is named."""
    paths = [
        pack(tmp_path / name, labels, seed=0)
        for name, labels in (("train", ["a", "b", "c"]), ("val", ["b", "c"]), ("test", ["c", "d", "a"]))
    ]
    targets = targets_of(open_splits(*map(str, paths)), None, "key", [], None)
    assert all(of.names == ["a", "b", "c", "d"] for of in targets.values())
    for of, path in zip(targets.values(), paths, strict=True):
        data = Dataset(path)
        assert [of.names[i] for i in of.values] == [data.classes[i] for i in data.labels]
    assert missed_classes(targets, "test") == ["d"] and missed_classes(targets, "val") == []


@pytest.mark.parametrize("other", ["<5", "abc", "5,5", "n.a."])
def test_a_few_texts_among_numbers_are_asked_about(dataset, table, other: str):
    rows = [f'{i},"{other if i == 3 else i + 0.5}"' for i in range(20)]
    with pytest.raises(UserError, match="most values are numbers") as refusal:
        load_targets(dataset, table("id,size", rows), "id", ["size"])
    assert "line 5" in str(refusal.value)
    file = table("id,size", rows)
    assert load_targets(dataset, file, "id", ["size"], kind="multiclass").kind == "multiclass"
    if other != "5,5":
        read = load_targets(dataset, file, "id", ["size"], missing=(other,))
        assert read.kind == "regression" and read.without_value == 1


def test_decimal_commas_are_asked_about_and_names_of_classes_are_not(dataset, table):
    with pytest.raises(UserError, match="decimals need a point"):
        load_targets(dataset, table("id;size", [f"{i};{i},5" for i in range(20)]), "id", ["size"])
    for grades in (["1", "2", "3a", "3b"], ["0", "1", "2", "?x"], ["1,2", "a", "b", "c"]):
        rows = [f'{i},"{grades[i % 4]}"' for i in range(20)]
        assert load_targets(dataset, table("id,grade", rows), "id", ["grade"]).kind == "multiclass"


@pytest.mark.parametrize("spelling", ["./{}.png", " {}.png ", "{}", ".\\{}.png", ".//{}"])
def test_keys_are_found_in_the_spellings_that_pack_takes(dataset, table, spelling: str):
    rows = [f"{spelling.format(i)},{i}.5" for i in range(20)]
    found = load_targets(dataset, table("id,age", rows), "id", ["age"])
    assert found.known.all() and found.values[:, 0].tolist() == [n + 0.5 for n in number(dataset)]


@pytest.mark.parametrize(("stored", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_keys_of_tars_are_found_however_accents_are_composed(
    table, tmp_path: Path, stored: str, written: str
):
    tar, names = tmp_path / "x.tar", ["é/ü1", "é/ö2"]
    write(tar, {f"{unicodedata.normalize(stored, name)}.png": png(i) for i, name in enumerate(names)})
    index([str(tar)], str(tmp_path / "set"), Options())
    rows = [f"{unicodedata.normalize(written, name)}.png,{i}" for i, name in enumerate(names)]
    found = load_targets(Dataset(tmp_path / "set"), table("id,age", rows), "id", ["age"])
    assert found.known.all() and found.without_row == 0


@pytest.mark.parametrize("spelling", ["a/{}.png", "./a/{}.png", "a/{}", "./a/{}"])
def test_keys_of_a_tar_of_the_present_folder_are_found(table, tmp_path: Path, spelling: str):
    write(tmp_path / "x.tar", {f"./a/{i}.png": png(i) for i in range(2)})
    index([str(tmp_path / "x.tar")], str(tmp_path / "set"), Options())
    rows = [f"{spelling.format(i)},{i}.5" for i in range(2)]
    found = load_targets(Dataset(tmp_path / "set"), table("id,age", rows), "id", ["age"])
    assert found.values[:, 0].tolist() == [0.5, 1.5] and found.known.all()
