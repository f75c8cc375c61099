"""Files of features made elsewhere: which are read, and which are refused."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.dataset.index import key_hash
from eval_suite.inputs import vectors
from eval_suite.inputs.vectors import of_vectors
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
        assert found.x.dtype == (np.float64 if found is c else np.float32)
    assert a.labels is None and a.rows("train").all()
    assert b.labels == list("xxyy")
    assert c.rows("val").tolist() == d.rows("val").tolist() == [False, False, True, False]


def test_numbers_of_eight_bytes_keep_their_digits(tmp_path: Path):
    far = X.astype(np.float64) / 1000 + 4.2e6
    np.save(tmp_path / "far.npy", far)
    pq.write_table(pa.table({f"f{i}": far[:, i] for i in range(3)}), tmp_path / "far.parquet")
    for name in ("far.npy", "far.parquet"):
        np.testing.assert_array_equal(vectors.read(str(tmp_path / name)).x, far)


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_columns_may_be_called_in_the_singular_or_plural(tmp_path: Path, kind: str):
    for label, split, group in (("label", "split", "group"), ("labels", "splits", "groups")):
        file = tmp_path / f"{label}.{kind}"
        columns = {
            label: [1, 0, 1, 0],
            split: ["Training", "train", "dev", "testing"],
            group: [7.0, 7.0, 8.0, 0.0],
        }
        if kind == "npz":
            np.savez(file, features=X, **{name: np.array(values) for name, values in columns.items()})
        else:
            pq.write_table(pa.table({"f0": X[:, 0], "f1": X[:, 1], "f2": X[:, 2], **columns}), file)
        found = vectors.read(str(file))
        assert found.labels == [1, 0, 1, 0] and found.x.shape == (4, 3)
        assert found.split.tolist() == ["train", "train", "val", "test"]
        assert found.groups is not None and found.groups.tolist() == [
            *[key_hash("7")] * 2,
            key_hash("8"),
            key_hash("0"),
        ]


@pytest.mark.parametrize("index", ["__index_level_0__", "Unnamed: 0", "index", "case"])
def test_the_index_of_a_pandas_table_is_no_feature(tmp_path: Path, index: str):
    table = pa.table({"f0": X[:, 0], "f1": X[:, 1], index: [3, 1, 0, 2]})
    if index == "case":
        about = {"index_columns": [index], "columns": [], "pandas_version": "2"}
        table = table.replace_schema_metadata({"pandas": json.dumps(about)})
    pq.write_table(table, tmp_path / "x.parquet")
    np.testing.assert_array_equal(vectors.read(str(tmp_path / "x.parquet")).x, X[:, :2])


def test_square_features_are_read_where_they_are_said_to_be_features(tmp_path: Path):
    square = np.abs(np.subtract.outer(X[:, 0], X[:, 0]))
    np.save(tmp_path / "x.npy", square)
    np.testing.assert_array_equal(vectors.read(str(tmp_path / "x.npy"), not_distances=True).x, square)


NUMBERS = [0, 1, 2, None]
LABELS = {
    "int": np.array([0, 1, 2, -1]),
    "float": np.array([0, 1, 2, np.nan]),
    "text": np.array(["0", "1.0", "2", "NA"]),
    "bytes": np.array([b"0", b"1", b"2", b""]),
    "nullable": pa.array(NUMBERS),
    "nullable float": pa.array(NUMBERS, pa.float64()),
    "dictionary": pa.array(["0", "1", "2", None]).dictionary_encode(),
}


@pytest.mark.parametrize("form", LABELS)
def test_labels_are_the_same_classes_in_every_form(tmp_path: Path, form: str):
    labels = LABELS[form]
    if isinstance(labels, np.ndarray):
        file = tmp_path / "x.npz"
        np.savez(file, features=X, labels=labels)
    else:
        file = tmp_path / "x.parquet"
        pq.write_table(pa.table({"features": X.tolist(), "label": labels}), file)
    found = of_vectors(vectors.read(str(file)), "train")
    assert (found.kind, found.names, found.values.tolist()) == ("multiclass", ["0", "1", "2"], [0, 1, 2, -1])
    assert found.known.tolist() == [True, True, True, False] and found.without_value == 1


def test_labels_of_32_bits_have_the_names_of_their_digits(tmp_path: Path):
    labels = np.array([0.1, 0.3, 1.0, np.nan], dtype=np.float32)
    np.savez(tmp_path / "x.npz", features=X, labels=labels)
    pq.write_table(pa.table({"features": X.tolist(), "label": labels}), tmp_path / "x.parquet")
    for name in ("x.npz", "x.parquet"):
        found = of_vectors(vectors.read(str(tmp_path / name)), "train", "multiclass")
        assert found.names == ["0.1", "0.3", "1"]


def test_the_kind_of_labels_can_be_given_or_follows_from_fractions(tmp_path: Path):
    np.savez(tmp_path / "x.npz", features=X, labels=np.array([20, 35, 61, -1]))
    found = of_vectors(vectors.read(str(tmp_path / "x.npz")), "train", "regression")
    assert found.kind == "regression" and found.values[:, 0].tolist() == [20, 35, 61, -1]
    assert of_vectors(vectors.read(str(tmp_path / "x.npz")), "train").names == ["20", "35", "61"]
    np.savez(tmp_path / "x.npz", features=X, labels=np.array([2.5, 3, np.nan, 1]))
    found = of_vectors(vectors.read(str(tmp_path / "x.npz")), "train")
    assert found.kind == "regression" and found.known.tolist() == [True, True, False, True]


def test_targets_for_a_file_of_features_are_refused(tmp_path: Path):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "t.csv").write_text("key,a\n0,1\n")
    outcome = run_command(tmp_path / "x.npy", "--targets", tmp_path / "t.csv", "--target-columns", "a")
    assert outcome.code == 2 and "put the labels into that file" in outcome.err


def test_intervals_of_a_file_with_groups_draw_whole_groups(tmp_path: Path, caplog):
    """The same rows with and without groups: results say which were drawn, and name a class without train."""
    random = np.random.default_rng(0)
    split = np.repeat(["train", "val", "test"], [200, 60, 60])
    labels = np.tile([0, 1], 160)
    labels[-3:] = 7
    x = random.normal(size=(320, 4)) + labels[:, None] * 0.7
    groups = np.arange(320) // 10
    np.savez(tmp_path / "with.npz", features=x, labels=labels, split=split, groups=groups)
    np.savez(tmp_path / "without.npz", features=x, labels=labels, split=split)
    found = {}
    for name in ("with", "without"):
        caplog.clear()
        outcome = run_command(tmp_path / f"{name}.npz", "--metrics", "probe", "--folds", "0", "--json")
        assert outcome.code == 0, outcome.err
        assert "train has no samples of 7, which count as missed in test" in caplog.text
        found[name] = json.loads(outcome.out)["representations"]["pretrained"]
    assert found["with"]["intervals"] == {"drawn": "groups", "groups": 6}
    assert found["without"]["intervals"] == {"drawn": "samples"}
    assert found["with"]["missed_classes"] == ["7"]
    probe, other = found["with"]["probe"], found["without"]["probe"]
    assert probe["balanced_accuracy"] == other["balanced_accuracy"] <= 2 / 3
    assert probe["per_class"][2]["recall"] == 0 and probe["per_class"][2]["support"] == 3
    assert probe["balanced_accuracy_interval"] != other["balanced_accuracy_interval"]


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
        ({"features": X, "split": np.array(["train", "deploy", "val", "test"])}, "split 'deploy' of row 2"),
        ({"features": X, "labels": np.arange(4), "label": np.arange(4)}, "both labels and label"),
        ({"features": np.abs(np.subtract.outer(X[:, 0], X[:, 0]))}, "--not-distances"),
        ({"vectors": X}, "none called features"),
        ({"features": X.astype(np.float64) * 1e39}, "as large as 1.1e"),
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


def test_a_torus_from_elsewhere_is_recognised(tmp_path: Path):
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
    (ratio,) = re.findall(r"Geometry of the embedding: flat torus T² with circles ([\d.]+) : 1\.", page)
    assert 1 <= float(ratio) < 1.2 and "Nearest neighbours" not in page


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


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, suffix: str):
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"features": X.tolist()}), whole)
    else:
        (np.save if suffix == "npy" else lambda file, x: np.savez(file, features=x))(whole, X)
    data = whole.read_bytes()
    for i, damaged in enumerate([b"", data[:10], data[: len(data) // 2], data[:-1], b"PK\3\4" + bytes(90)]):
        file = tmp_path / f"{i}.{suffix}"
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=f"cannot be read as .{suffix}|that its header says") as refusal:
            vectors.read(str(file))
        assert "\n" not in str(refusal.value)
    if suffix == "npz":
        flipped = bytearray(data)
        flipped[data.index(X.tobytes()) + 5] ^= 0xFF
        (tmp_path / "flipped.npz").write_bytes(flipped)
        with pytest.raises(UserError, match="cannot be read"):
            vectors.read(str(tmp_path / "flipped.npz"))


def test_lists_in_parquet_are_labels_that_occur_together(tmp_path: Path):
    for name, column in {
        "ragged": [["b", "a"], ["a"], [], None],
        "equal": [["b", "a"], ["a", "b"], ["a", "c"], ["c", "b"]],
    }.items():
        pq.write_table(pa.table({"features": X.tolist(), "label": column}), tmp_path / f"{name}.parquet")
        targets = of_vectors(vectors.read(str(tmp_path / f"{name}.parquet")), "train")
        assert targets.kind == "multilabel"
        assert [
            {targets.names[i] for i in np.flatnonzero(row)} if known else set()
            for row, known in zip(targets.values, targets.known, strict=True)
        ] == [set(labels or []) for labels in column]


@pytest.mark.parametrize("shape", [(), (3,), (4, 1), (4, 2)])
def test_labels_of_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]):
    np.savez(tmp_path / "a.npz", features=X, labels=np.zeros(shape, int))
    with pytest.raises(UserError, match="labels of shape"):
        vectors.read(str(tmp_path / "a.npz"))
    np.save(tmp_path / "c.npy", X.astype(complex))
    with pytest.raises(UserError, match="complex"):
        vectors.read(str(tmp_path / "c.npy"))


def test_columns_that_are_perhaps_no_features_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    columns = {"f0": X[:, 0], "f1": X[:, 1], "Label": [0, 1, 0, 1], " SPLIT": SPLIT}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = vectors.read(str(tmp_path / "a.parquet"))
    assert found.x.shape == (4, 2) and found.labels == [0, 1, 0, 1] and found.split.tolist() == SPLIT.tolist()
    assert not caplog.records
    pq.write_table(pa.table(columns | {"patient": [7, 7, 8, 8]}), tmp_path / "b.parquet")
    assert vectors.read(str(tmp_path / "b.parquet")).x.shape == (4, 3)
    assert "(patient)" in caplog.text
