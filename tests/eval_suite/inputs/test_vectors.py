"""Files of features made elsewhere: which are read, and which are refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval_suite.inputs import vectors
from isotorus.errors import UserError
from tests.eval_suite.eval_samples import run_command

X = np.arange(12, dtype=np.float32).reshape(4, 3)
SPLIT = np.array(["train", "train", "val", "test"])


def test_each_kind_of_file_is_read(tmp_path: Path):
    np.save(tmp_path / "a.npy", X)
    np.savez(tmp_path / "b.npz", features=X.astype(np.float16), labels=np.array(list("xxyy")), split=SPLIT)
    columns = {"label": [0, 0, 1, 1], "split": SPLIT}
    pq.write_table(pa.table({"features": X.tolist(), **columns}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"f0": X[:, 0], "f1": X[:, 1], "f2": X[:, 2], **columns}), tmp_path / "d.parquet")
    a, b, c, d = (vectors.read(str(tmp_path / name)) for name in ("a.npy", "b.npz", "c.parquet", "d.parquet"))
    for found in (a, b, c, d):
        np.testing.assert_array_equal(found.x, X)
        assert found.x.dtype == np.float32
    assert a.labels is None and a.rows("train").all()
    assert b.labels is not None and b.labels.tolist() == list("xxyy")
    assert c.rows("val").tolist() == d.rows("val").tolist() == [False, False, True, False]


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"features": X[0]}, r"shape \(3,\)"),
        ({"features": X[:, :0]}, r"shape \(4, 0\)"),
        ({"features": np.array([["a", "b"]])}, "expected numbers"),
        ({"features": np.where(X == 5, np.nan, X)}, "1 of 4 rows have NaN"),
        ({"features": X, "labels": np.arange(3)}, r"labels of shape \(3,\)"),
        ({"features": X, "split": np.array(["train", "dev", "val", "test"])}, "split 'dev'"),
        ({"vectors": X}, "none called features"),
        ({"features": np.array([[Bomb()]], dtype=object)}, "allow_pickle"),
    ],
)
def test_what_is_refused(tmp_path: Path, monkeypatch, content: dict, message: str):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", **content)
    with pytest.raises(UserError, match=message):
        vectors.read("x.npz")
    assert not Path("exploded").exists()


def test_files_that_are_none(tmp_path: Path):
    (tmp_path / "x.npy").write_text("hello")
    (tmp_path / "x.parquet").write_text("hello")
    pq.write_table(pa.table({"features": [[1.0, 2.0], [3.0]]}), tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "words.parquet")
    for name, message in (
        ("x.npy", "cannot be read as .npy"),
        ("x.parquet", "cannot be read as .parquet"),
        ("ragged.parquet", "cannot be read as .parquet"),
        ("words.parquet", "neither a column features"),
        ("none.npy", "no such file"),
    ):
        with pytest.raises(UserError, match=f"(?i){message}"):
            vectors.read(str(tmp_path / name))


def test_a_torus_from_elsewhere_is_told(tmp_path: Path):
    random = np.random.default_rng(0)
    angles = random.uniform(0, 2 * np.pi, (900, 2))
    points = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) + 0.02 * random.normal(size=(900, 4))
    split = np.array(["train"] * 600 + ["val"] * 150 + ["test"] * 150)
    np.savez(tmp_path / "torus.npz", features=points, labels=(angles[:, 0] > np.pi), split=split)
    outcome = run_command(tmp_path / "torus.npz", "--landmarks", "120", "--json")
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    assert results["geometry"]["embedding"]["verdict"]["name"] == "flat torus T²"
    assert results["geometry"]["embedding"]["graph"]["torus_ratio"] == pytest.approx(1, abs=0.25)
    assert len(results["geometry"]["embedding"]["circular"]["angles"]) == 2
    assert results["representations"]["pretrained"]["probe"]["auroc"] > 0.99
    page = (tmp_path / "eval/torus/report.html").read_text()
    assert "Geometry of the embedding: flat torus T²." in page and "Nearest neighbours" not in page


def test_vectors_without_labels_have_a_geometry(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(300, 40)))
    outcome = run_command(tmp_path / "x.npy", "--metrics", "probe,rank,shape,graph", "--json")
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    assert results["left_out"] == [{"metric": "probe", "reason": "train has no labels"}]
    assert results["geometry"]["embedding"]["normality"]["shape"] == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize(
    ("x", "left_out"),
    [
        (np.ones((300, 6)), {"dimension", "shape", "graph", "homology"}),
        (np.random.default_rng(0).normal(size=(12, 6)), {"dimension", "graph", "homology"}),
    ],
    ids=["collapsed", "fewer samples than neighbours"],
)
def test_what_cannot_be_measured_is_left_out_with_a_reason(tmp_path: Path, x: np.ndarray, left_out: set[str]):
    np.save(tmp_path / "x.npy", x)
    outcome = run_command(tmp_path / "x.npy", "--metrics", "rank,shape,graph,homology", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["geometry"]["embedding"]
    assert set(found["left_out"]) == left_out and all(found["left_out"].values())
    assert "effective_rank" in found["rank"]
    assert "verdict" not in found
