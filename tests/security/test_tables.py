"""Tables of images that hold what no path or label can be: one line, or the text that was meant."""

import datetime
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from isotorus.errors import exit_code
from tests.data_pipeline.pictures import save_pictures


def pack(folder: Path, table: Path, *options: str) -> int:
    if not (folder / "photos").exists():
        save_pictures(folder / "photos", ["1.png", "2.png"])
    command = [
        "pack",
        str(folder / "photos"),
        str(folder / "packed"),
        "--labels",
        str(table),
        "--workers",
        "1",
    ]
    return exit_code(lambda: main([*command, *options]))


def parquet(folder: Path, **columns: object) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "table.parquet")
    return folder / "table.parquet"


BAD = {
    "NUL in a path": "image,label\n1.png,a\n2\0.png,b\n",
    "giant cell": f"image,label\n1.png,a\n2.png,{'x' * 200_000}\n",
    "giant path": f"image,label\n1.png,a\n{'x' * 100_000},b\n",
    "giant number of columns": ",".join("abc" * 10_000),
    "escape sequences": "image,label\n1.png,a\n\x1b[2J.png,b\n",
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_csv_is_one_line(case: str, tmp_path: Path, capsys):
    (tmp_path / "table.csv").write_text(BAD[case])
    assert pack(tmp_path, tmp_path / "table.csv") == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and len(err) < 1500 and err.strip().isprintable()


def test_a_nested_list_in_a_csv_is_text(tmp_path: Path):
    (tmp_path / "table.csv").write_text(f"image,label\n1.png,a\n2.png,{'[' * 20_000}{']' * 20_000}\n")
    assert pack(tmp_path, tmp_path / "table.csv") == 0


@pytest.mark.parametrize("path", ["2\0.png", "x" * 100_000, "..", "/etc/passwd", "", None])
def test_a_bad_path_in_a_parquet_file_is_one_line(path: str | None, tmp_path: Path, capsys):
    assert pack(tmp_path, parquet(tmp_path, image=["1.png", path], label=["a", "b"])) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and len(err) < 1500


@pytest.mark.parametrize(
    "dates",
    [
        pyarrow.array([datetime.date(2026, 11, 30), datetime.date(1, 1, 1)]),
        pyarrow.array([1, 10**18 + 1], pyarrow.timestamp("ns")),
        pyarrow.array([1, 10**12], pyarrow.timestamp("s")),
        pyarrow.array([1, 2**31 - 1], pyarrow.date32()),
        pyarrow.array([1, 86399 * 10**9 + 1], pyarrow.time64("ns")),
        pyarrow.array([1, 2**60 + 1], pyarrow.duration("ns")),
    ],
)
def test_any_date_is_a_label_or_one_line(dates: pyarrow.Array, tmp_path: Path, capsys):
    code = pack(tmp_path, parquet(tmp_path, image=["1.png", "2.png"], label=dates))
    err = capsys.readouterr().err
    assert code in (0, 2) and len(err.splitlines()) == (1 if code else 0), err
    if code == 0:
        assert len(Dataset(tmp_path / "packed").classes) == 2


def test_any_date_in_another_column_is_kept_as_text(tmp_path: Path, capsys):
    dates = pyarrow.array([1, 10**18 + 1], pyarrow.timestamp("ns"))
    table = parquet(tmp_path, image=["1.png", "2.png"], label=["a", "b"], when=dates, nan=[float("nan"), 1.0])
    assert pack(tmp_path, table) == 0, capsys.readouterr().err
