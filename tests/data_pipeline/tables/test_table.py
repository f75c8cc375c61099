"""Tables as spreadsheets, databases and scripts leave them: read, or refused in one line that says why."""

import unicodedata
from pathlib import Path

import pytest

from data_pipeline.packing.manifest import Columns, Row, read
from isotorus.errors import UserError


def rows(file: Path, content: str | bytes, encoding: str = "utf-8", **columns: str) -> list[Row]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return list(read(file, Columns(**columns)))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_separator_encoding_and_line_end_is_read(
    tmp_path: Path, separator: str, encoding: str, end: str
) -> None:
    lines = [["image", "note", "label"], ["ä.png", "1,5", "a b"], ["", "", ""], ["2.png", '"x""y"', " c "]]
    if separator == ",":
        lines[1][1] = '"1,5"'
    text = end.join(map(separator.join, lines)) + end
    found = rows(tmp_path / "t.csv", text, encoding)
    assert [(row.image, row.label) for row in found] == [("ä.png", "a b"), ("2.png", "c")]
    assert found[0].extra == '{"note": "1,5"}' and found[1].extra == '{"note": "x\\"y"}'


@pytest.mark.parametrize("separator", [";", ":", "\t"])
def test_the_first_line_of_a_spreadsheet_names_the_separator(tmp_path: Path, separator: str) -> None:
    text = f"sep={separator}\r\nimage{separator}label\r\n1.png{separator}a\r\n"
    (found,) = rows(tmp_path / "t.csv", text)
    assert (found.image, found.label) == ("1.png", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\n\nimage,label\n", "lists no images"),
        (b"image,label\n", "lists no images"),
        (b"image,label\n,\n", "lists no images"),
        (b"image,label,label\n1.png,a,b\n", "two columns 'label'"),
        (b"image;lable\n1.png;a\n", "no column 'label', its columns are image, lable .separated by ';'."),
        (b"image,label\n1.png,a\n2.png\n", "row 3, has 1 cells, the first row 2"),
        (b"image,label\n1.png,a,b\n", "row 2, has 3 cells"),
        (b"image;label\n1.png;a;b\n", "row 2, has 3 cells.*separated by ';'"),
        (b'image,label\n1.png,"a\n2.png,b\n', "quote"),
        (b"image,label\n1.png,a\0\n", "NUL bytes"),
        ("image,label\n1.png,a\n".encode("utf-16-le"), "NUL bytes.*UTF-16"),
        (b"\0" * 1000, "NUL bytes"),
        (b"image,label\n1.png,\xe9\n", "not a CSV in UTF-8"),
        (b"image,label\n1.png," + b"x" * 200_000, "field larger"),
        (b"PK\x03\x04rest", "spreadsheet"),
        (b"\x1f\x8brest", "compressed"),
        (b"PAR1rest", "Parquet"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        rows(tmp_path / "t.csv", text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_blanks_around_names_and_cells_and_columns_without_a_name(tmp_path: Path) -> None:
    found = rows(tmp_path / "t.csv", "image, label,,\n1.png, x,,\n2.png,y ,,\n")
    assert [(row.image, row.label, row.extra) for row in found] == [("1.png", "x", ""), ("2.png", "y", "")]


def test_a_row_that_comes_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same image with the same label counts once; with another label both lines are named."""
    text = "image,label,patient\n1.png,a,7\n./1.png,a,7.0\n2.png,b,8\n"
    assert len(rows(tmp_path / "t.csv", text, group="patient")) == 2
    assert "line 3 repeats line 2" in capsys.readouterr().err
    for other, what in (("1.png,b,7", "labels 'a' and 'b'"), ("1.png,a,9", "groups '7' and '9'")):
        with pytest.raises(UserError, match=f"line 2 and line 5 both name.*{what}"):
            rows(tmp_path / "t.csv", text + other + "\n", group="patient")
    composed, decomposed = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    with pytest.raises(UserError, match="line 2 and line 3"):
        rows(tmp_path / "t.csv", f"image,label\n{composed},a\n{decomposed},b\n")


def test_a_split_column_and_its_synonyms(tmp_path: Path) -> None:
    names = ["train", "Training", "val", "VALID", "validation", "dev", " test ", "Testing"]
    text = "image,label,set\n" + "".join(f"{i}.png,a,{name}\n" for i, name in enumerate(names))
    found = rows(tmp_path / "t.csv", text, split="set")
    assert [row.split for row in found] == ["train"] * 2 + ["val"] * 4 + ["test"] * 2
    for bad in ("tarin", "", "1", "NA"):
        with pytest.raises(UserError, match=r"line 10: '.*' in column 'set' is no set of a split"):
            rows(tmp_path / "t.csv", text + f"9.png,a,{bad}\n", split="set")


def test_blank_lines_before_the_header(tmp_path: Path) -> None:
    found = rows(tmp_path / "t.csv", "\n \nimage,label\n1.png,a\n")
    assert [(row.image, row.label) for row in found] == [("1.png", "a")]
    with pytest.raises(UserError, match="line 4 and line 5 both name"):
        rows(tmp_path / "t.csv", "\n\nimage,label\n1.png,a\n1.png,b\n")


@pytest.mark.parametrize("again", ["a\\1.png", " a/1.png", "./a//1.png"])
def test_a_path_that_comes_again_in_another_spelling(tmp_path: Path, capsys, again: str) -> None:
    found = rows(tmp_path / "t.csv", f"image,label\na/1.png,1\n{again},1.0\n")
    assert [row.image for row in found] == ["a/1.png"]
    assert "line 3 repeats line 2" in capsys.readouterr().err
    with pytest.raises(UserError, match="different labels"):
        rows(tmp_path / "t.csv", f"image,label\n{again},1\na/1.png,2\n")
