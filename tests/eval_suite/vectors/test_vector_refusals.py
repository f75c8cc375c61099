"""What `isotorus embed` and `search` refuse: one line that says what to do, and nothing is lost."""

from pathlib import Path

import numpy as np
import pytest

from tests.eval_suite.eval_samples import run_other, save_checkpoint, write_description
from tests.eval_suite.vectors.vector_samples import embed


def refused(message: str, *arguments: object) -> None:
    done = run_other(*arguments)
    assert done.code == 2 and message in done.err, (done.out, done.err)
    assert done.err.count("error: ") == 1 and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.csv"], "ends in .parquet, .npz or .zarr, not in .csv"),
        (["--out", "nowhere/x.parquet"], "make it with: mkdir -p"),
        (["--neighbours", 30], "has 30 images, so an image has at most 29 neighbours"),
        (["--neighbours", 0], "expected a whole number, 1 or more"),
        (["--features", "stages"], "has no such feature set; it has embedding"),
        (["--features", "embeding"], "did you mean embedding?"),
        (["--features", "embedding,last2"], "one set; name one"),
        (["--part-rows", 0], "expected a whole number, 1 or more"),
        (["--anomaly-against", "gone.parquet"], "No such file"),
    ],
)
def test_options(
    table_set: Path,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[object],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    refused(message, "embed", encoder, table_set, "--out", "x.parquet", *options)
    assert not list(tmp_path.iterdir())


def test_other_channels(table_set: Path, tmp_path: Path):
    folder = save_checkpoint(tmp_path / "five")
    described = {"channels": 5, "mean": [0.5] * 5, "std": [0.2] * 5, "step": 7}
    kwargs = {"img_size": 32, "patch_size": 8, "in_chans": 5, "num_classes": 0}
    write_description(folder, kwargs | {"embed_dim": 24}, **described)
    said = "images of 3 channels, but the encoder was trained on 5"
    refused(said, "embed", folder, table_set, "--out", tmp_path / "x.parquet")


def test_a_file_in_the_way_is_kept(table_set: Path, encoder: Path, tmp_path: Path):
    mine = tmp_path / "labels.parquet"
    mine.write_bytes(b"my labels")
    refused("a file is in the way, which is kept", "embed", encoder, table_set, "--out", mine)
    assert mine.read_bytes() == b"my labels"
    other = tmp_path / "vectors.parquet"
    embed(encoder, table_set, "--out", other)
    before = other.read_bytes()
    said = "has other vectors (embedding of vit_tiny_patch16_224, step 7"
    refused(said, "embed", encoder, table_set, "--out", other, "--features", "last2")
    moved = other.rename(tmp_path / "moved.parquet")
    refused("was moved or changed", "embed", encoder, table_set, "--out", moved)
    assert moved.read_bytes() == before


def test_anomaly_against_other_vectors(
    table_set: Path, encoder: Path, embedded: Path, splits: dict[str, Path], tmp_path: Path
):
    out = tmp_path / "out.parquet"
    other = tmp_path / "other.parquet"
    embed(encoder, table_set, "--features", "last2", "--out", other)
    for options, message in (
        (["--anomaly-against", other], "its feature set is last2, here it is embedding"),
        (["--anomaly-against", embedded, "--anomaly-k", 30], "30 rows, and distances to the 30-th neighbour"),
    ):
        refused(message, "embed", encoder, splits["val"], "--out", out, "--features", "embedding", *options)
    np.savez(tmp_path / "mine.npz", features=np.eye(9, 24))
    said = "does not say which encoder made its vectors"
    refused(said, "embed", encoder, splits["val"], "--out", out, "--anomaly-against", tmp_path / "mine.npz")
    changed = save_checkpoint(tmp_path / "changed")
    weights = bytearray((changed / "encoder.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "encoder.safetensors").write_bytes(weights)
    said = "its weights are others; embed both data sets with the same checkpoint"
    refused(said, "embed", changed, splits["val"], "--out", out, "--anomaly-against", embedded)
    assert not out.exists()


def test_damaged_files_of_vectors(embedded: Path, tmp_path: Path):
    for name, content in (
        ("half.parquet", embedded.read_bytes()[:5000]),
        ("none.parquet", b""),
        ("other.npz", embedded.read_bytes()),
    ):
        (tmp_path / name).write_bytes(content)
        refused("cannot be read", "search", tmp_path / name, "a/00_v1")
    np.savez(tmp_path / "odd.npz", features=np.eye(3), isotorus=np.array('{"format": 9}'))
    refused("describes itself otherwise", "search", tmp_path / "odd.npz", "a/00_v1")
