"""The anomaly score: distances by brute force, and percentiles that are uniform for images of one kind."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from eval_suite.vectors import anomaly, vectors_file
from eval_suite.vectors.about import About
from eval_suite.vectors.vectors_file import VectorsFile
from isotorus.errors import UserError
from tests.eval_suite.vectors.vector_samples import embed, pack_table

WIDTH = 8


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def reference(path: Path, x: np.ndarray) -> VectorsFile:
    """Write a file of vectors of a data set "there"."""
    flat = pa.array(x.astype(np.float32).reshape(-1))
    table = pa.table(
        {
            "key": [f"k{i}" for i in range(len(x))],
            "sample": np.arange(len(x)),
            "features": pa.FixedSizeListArray.from_arrays(flat, WIDTH),
        }
    )
    about = About(
        version="0",
        checkpoint="/x",
        weights_sha256="w",
        encoder="e",
        step=1,
        shards="/s",
        set_fingerprint="there",
        feature_set="embedding",
        width=WIDTH,
        image_size=32,
        channels=3,
        depth=8,
        pixel_rules=2,
        made_by={},
        identity="i",
        rows=len(x),
    )

    def tables(*, features: bool = True) -> Iterator[pa.Table]:
        yield table if features else table.drop_columns(["features"])

    vectors_file.write(path, tables, about)
    return vectors_file.open_file(path)


def scored(x: np.ndarray, file: VectorsFile, k: int = 5, where: str = "elsewhere") -> anomaly.Scores:
    return anomaly.scores(unit(x), np.arange(len(x)), where, file, k)


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_percentiles_are_uniform_for_images_of_one_kind(tmp_path: Path, suffix: str):
    random = np.random.default_rng(0)
    file = reference(tmp_path / f"train.{suffix}", random.normal(size=(1000, WIDTH)))
    same = scored(random.normal(size=(1000, WIDTH)), file)
    shares = np.sort(same.percentile) / 100
    # The largest gap to the uniform distribution; 1.63 √(2 / n) is passed in 1 % of draws (Smirnov).
    assert np.abs(shares - np.arange(1000) / 1000).max() < 1.63 * np.sqrt(2 / 1000)
    far = random.normal(size=(50, WIDTH)) * 0.02 + np.eye(WIDTH)[0]  # where few vectors of the reference are
    clustered = reference(tmp_path / f"there.{suffix}", random.normal(size=(500, WIDTH)) * 0.1 - 1)
    assert scored(far, clustered).percentile.min() == 100


def test_distances_are_those_of_brute_force(tmp_path: Path):
    random = np.random.default_rng(1)
    x, y = random.normal(size=(60, WIDTH)), random.normal(size=(20, WIDTH))
    file = reference(tmp_path / "train.parquet", x)
    cosines = np.sort(unit(y) @ unit(x).T, axis=1)[:, ::-1]
    for k in (1, 5):
        assert np.allclose(scored(y, file, k).distance, 1 - cosines[:, k - 1], atol=1e-6)


def test_an_image_is_no_neighbour_of_itself(tmp_path: Path):
    """The images of the reference itself have its own distances, so their percentiles are their ranks."""
    x = np.random.default_rng(2).normal(size=(40, WIDTH))
    x[1] = x[0]  # copies, which are neighbours of each other
    file = reference(tmp_path / "train.parquet", x)
    own = scored(x, file, 1, where="there")
    cosines = unit(x) @ unit(x).T
    np.fill_diagonal(cosines, -1)
    distances = 1 - cosines.max(axis=1)
    assert np.allclose(own.distance, distances, atol=1e-6) and own.distance[0] < 1e-6
    ranks = np.array([(distances < value - 1e-6).sum() for value in distances])
    # Two that are nearest to each other have one distance, up to rounding.
    assert np.abs(own.percentile - 2.5 * ranks).max() < 5.1 and own.percentile.max() >= 95
    assert scored(x, file, 1).distance.max() < 1e-6  # of another data set, they are near themselves


def test_vectors_that_point_one_way_are_refused(tmp_path: Path):
    x = 1e6 + np.random.default_rng(3).normal(size=(40, WIDTH))
    file = reference(tmp_path / "train.parquet", x)
    with pytest.raises(UserError, match="away from the origin"):
        scored(x, file)


def test_the_command_adds_the_columns(embedded: Path, encoder: Path, table_set: Path, tmp_path: Path):
    other = pack_table(tmp_path / "other", images=12, seed=9)
    done = embed(
        encoder, other, "--out", tmp_path / "o.parquet", "--anomaly-against", embedded, "--anomaly-k", 3
    )
    frame = pd.read_parquet(tmp_path / "o.parquet")
    train = unit(np.stack(pd.read_parquet(embedded)["features"]))
    cosines = np.sort(unit(np.stack(frame["features"])) @ train.T, axis=1)[:, ::-1]
    assert np.allclose(frame["anomaly"], 1 - cosines[:, 2], atol=1e-6)
    own = train @ train.T
    np.fill_diagonal(own, -1)
    distances = 1 - np.sort(own, axis=1)[:, ::-1][:, 2]
    expected = [100 * (distances < value).mean() for value in frame["anomaly"]]
    assert np.allclose(frame["anomaly_percentile"], expected, atol=4)  # ties by rounding
    about = vectors_file.open_file(tmp_path / "o.parquet").about
    assert about.anomaly is not None and (about.anomaly.k, about.anomaly.rows) == (3, 30), done.out
