"""Tables and files of features from elsewhere: whatever is in them, they are read or refused in one line."""

import datetime
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.tables import cells, table
from data_pipeline.targets.target_values import Kind, encode
from eval_suite.inputs import vectors
from isotorus.errors import UserError


def npy(file: Path, header: str, data: bytes = b"\0" * 100) -> Path:
    text = header.encode()
    padded = text + b" " * (63 - (10 + len(text)) % 64) + b"\n"
    file.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(padded)) + padded + data)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(UserError) as error:
        vectors.read(str(file))
    assert len(str(error.value)) < 600
    return str(error.value)


@pytest.mark.parametrize("rows", [10**12, 10**40, -1, "x", "(1,)"])
def test_an_array_that_is_shorter_than_it_says(tmp_path: Path, rows: object):
    file = npy(tmp_path / "a.npy", f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 5), }}")
    assert "a.npy" in refusal(file)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    np.savez_compressed(tmp_path / "bomb.npz", features=np.zeros((10**6, 16), np.float32))
    pq.write_table(pa.table({"a": pa.nulls(10**7, pa.float32())}), tmp_path / "bomb.parquet")
    assert all((tmp_path / f"bomb.{kind}").stat().st_size < 10**6 for kind in ("npz", "parquet"))
    free = type("Free", (), {"available": 2**25})
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    for kind in ("npz", "parquet"):
        assert "of memory are free" in refusal(tmp_path / f"bomb.{kind}")


def test_files_that_are_none(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    (tmp_path / "circle.npz").symlink_to("circle.npz")
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "empty.npy").touch()
    for kind in ("npy", "npz", "parquet"):
        (tmp_path / f"garbage.{kind}").write_bytes(b"PK\x03\x04 and so on")
    for file in tmp_path.iterdir():
        assert file.name in refusal(file)
    assert "gone.npy" in refusal(tmp_path / "gone.npy")


def test_flipped_bits(tmp_path: Path):
    whole = {"features": np.random.default_rng(0).normal(size=(40, 5)), "labels": np.array(["a", "b"] * 20)}
    np.savez_compressed(tmp_path / "a.npz", **whole)
    content = (tmp_path / "a.npz").read_bytes()
    for place in range(0, len(content), 7):
        flipped = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
        (tmp_path / "a.npz").write_bytes(flipped)
        try:
            assert vectors.read(str(tmp_path / "a.npz")).x.shape == (40, 5)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("column", ["labels", "groups", "keys", "split"])
@pytest.mark.parametrize("value", ["\ud800", "[" * 10**4, "9" * 5000, "1e999", "\0"])
def test_odd_columns_beside_features(tmp_path: Path, column: str, value: str):
    np.savez(tmp_path / "a.npz", features=np.ones((4, 2)), **{column: np.array([value] * 4)})
    try:
        vectors.read(str(tmp_path / "a.npz"))
    except UserError as error:
        assert "a.npz" in str(error)


@pytest.mark.parametrize("kind", [None, "multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("value", ["9" * 5000, "-" + "9" * 400, "[" + "9" * 5000 + "]", "1e999", "0x1", "٣"])
def test_odd_labels(value: str, kind: Kind | None):
    try:
        assert encode("a.npz", {"label": [value, "2" * 5000]}, ["row 1", "row 2"], kind).values.shape[0] == 2
    except UserError as error:
        assert "a.npz" in str(error) and len(str(error)) < 500


def test_a_zip_that_is_no_npz(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("../features.npy", b"x")
    assert (
        "none called features" in refusal(tmp_path / "a.npz")
        and not (tmp_path.parent / "features.npy").exists()
    )


@pytest.mark.parametrize(
    "content",
    [b"key,a\n\0,1\n", b"key,a\nx," + b"9" * 200_000 + b"\n", b"key,a\nx,1\n\xff,2\n", b'key,a\n"x,1\n'],
    ids=["NUL", "giant cell", "not UTF-8", "open quote"],
)
def test_odd_csv(tmp_path: Path, content: bytes):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.csv"):
        list(table.read(tmp_path / "a.csv", {"key": "--key-column"}))


def test_dates_that_python_does_not_have(tmp_path: Path):
    columns = {
        "nanoseconds": pa.array([1, 2**62], pa.timestamp("ns")),
        "late": pa.array([0, 10**7], pa.date32()),
        "far": pa.array([0, 2**50], pa.timestamp("s")),
        "sound": pa.array([datetime.date(2020, 1, 2)] * 2),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    try:
        rows = [row for _, row in table.read(tmp_path / "a.parquet", {})]
        assert len(rows) == 2 and cells.as_text(rows[0]["sound"]) == "2020-01-02"
    except UserError as error:
        assert "a.parquet" in str(error)


def test_tables_that_are_no_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.parquet").symlink_to("/dev/zero")
    for file in tmp_path.iterdir():
        with pytest.raises(UserError):
            list(table.read(file, {}))


def test_a_cell_of_many_brackets_is_a_text():
    deep = "[" * 10**5 + "]" * 10**5
    assert cells.labels([deep, "a"]) == [deep, "a"]
