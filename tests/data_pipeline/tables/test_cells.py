"""One cell, one label: the same value means the same in every kind of table."""

import csv
import json
import math
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.packing.manifest import Columns, read
from data_pipeline.tables import cells


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["1", "1.0", "+1", " 1 ", "1."], ["1"] * 5),
        (["01", "1", "1.0"], ["01", "1", "1.0"]),
        (["007", "012"], ["007", "012"]),
        (
            ["12345678901234567", "12345678901234568.0", "1e3", "0.5"],
            ["12345678901234567", "12345678901234568", "1000", "0.5"],
        ),
        (["1.0", "A1"], ["1.0", "A1"]),
        (["0.5", "0.50", "1.0", "5e-1"], ["0.5", "0.5", "1", "0.5"]),
        (["true", "False", "TRUE"], ["True", "False", "True"]),
        (["true", "maybe"], ["true", "maybe"]),
        ([1, 1.0, True and 1], ["1", "1", "1"]),
        ([np.int64(3), np.float32(3), np.str_("3"), b"3"], ["3"] * 4),
        ([True, np.bool_(False), None], ["True", "False", ""]),
        (["-1", "0", "1"], ["", "0", "1"]),
        ([-1.0, 0.0, math.nan], ["", "0", ""]),
        (["-2", "-1", "0"], ["-2", "-1", "0"]),
        (["-1", "0.5"], ["-1", "0.5"]),
        (["-1", "a"], ["-1", "a"]),
        ([["b", "a"], ("a", "b"), np.array(["b", "a", "b"]), "['b', 'a']", '["a", "b"]'], ["a|b"] * 5),
        ([[1.0, 2], ["2", "1"], [2], []], ["1|2", "1|2", "2", ""]),
        (["9" * 400, "1"], ["9" * 400, "1"]),
        (["none", "na"], ["none", "na"]),
        (["[a", "[]", "['a' 'b']"], ["[a", "", "['a' 'b']"]),
    ],
)
def test_the_column_decides_what_a_cell_is(column: list[Any], expected: list[str]) -> None:
    assert cells.labels(column) == expected


@pytest.mark.parametrize("word", ["", "  ", *cells.MISSING, None, math.nan])
def test_what_means_no_label_leaves_the_kind_of_the_column(word: Any) -> None:
    assert cells.labels(["1.0", word, "2"]) == ["1", "", "2"]
    assert cells.labels(["A", word]) == ["A", ""]
    assert cells.values(["12.0", word]) == ["12", ""]


def test_the_list_of_missing_values_can_be_changed() -> None:
    assert cells.labels(["1", "-9.0", "NA", "-1", ""], missing=["-9"]) == ["1", "", "NA", "-1", ""]
    assert cells.labels(["1", "-1", "-9"], missing=["-9"]) == ["1", "-1", ""]
    assert cells.values(["-1", "2"]) == ["-1", "2"]  # a group may be called so


def test_accents_are_one_letter_however_they_are_composed() -> None:
    name = "Größe é"
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    assert len(set(cells.labels(forms))) == len(set(cells.values(forms))) == 1


def test_old_names_are_found_by_their_new_spelling() -> None:
    assert cells.respelled(["1.0", "2.0"]) == {"1": "1.0", "2": "2.0", "1.0": "1.0", "2.0": "2.0"}
    assert cells.respelled(["1", "1.0"])["1"] == "1"
    assert cells.respelled(["1.0", "A"]) == {"1.0": "1.0", "A": "A"}


@pytest.mark.parametrize(
    "kind", ["whole", "gaps", "fraction", "single", "bool", "text", "zeros", "dictionary"]
)
def test_a_csv_and_a_parquet_of_one_column_give_the_same_labels(kind: str, tmp_path: Path) -> None:
    drawn = random.Random(kind)
    values: list[Any] = {
        "whole": [drawn.randrange(5) for _ in range(40)],
        "gaps": [drawn.choice([None, 1.0, 2.0, 3.0]) for _ in range(40)],
        "fraction": [drawn.choice([None, 0.5, 1.0, 1e-7, 1e22]) for _ in range(40)],
        "single": [drawn.choice([None, 0.1, 0.3, 1.0]) for _ in range(40)],
        "bool": [drawn.choice([True, False, None]) for _ in range(40)],
        "text": [drawn.choice(["a", "1", "NA", "b c", 'say "x", y']) for _ in range(40)],
        "zeros": [drawn.choice(["01", "1", "10", None]) for _ in range(40)],
        "dictionary": [drawn.choice(["x", "y", None]) for _ in range(40)],
    }[kind]
    names = [f"{i}.png" for i in range(40)]
    column = pyarrow.array(values, pyarrow.float32() if kind == "single" else None)
    if kind == "dictionary":
        column = column.dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"image": names, "label": column}), tmp_path / "t.parquet")
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "label"), *((n, "" if v is None else v) for n, v in zip(names, values, strict=True))]
        )
    both = [[row.label for row in read(tmp_path / f"t.{end}", Columns())] for end in ("csv", "parquet")]
    assert both[0] == both[1]
    assert len(set(both[0]) - {""}) == len({json.dumps(v) for v in values} - {"null", '"NA"'})


def test_groups_do_not_depend_on_the_other_groups() -> None:
    column = ["12", "12.0", 12.0, " 12", "A7", "012", None, "NA", "-1", ["b", "a"]]
    expected = ["12"] * 4 + ["A7", "012", "", "", "-1", "a|b"]
    assert cells.groups(column) == expected
    assert [cells.groups([cell])[0] for cell in column] == expected
