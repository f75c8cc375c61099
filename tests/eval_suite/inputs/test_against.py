"""What --against names is a row with paired differences, or is refused in one line before anything runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from timm.models import save_for_hf

from data_pipeline.dataset.index import Dataset
from eval_suite.inputs import against, vectors
from eval_suite.inputs.splits import Splits, open_splits
from isotorus.errors import UserError
from tests.eval_suite.eval_samples import save_checkpoint

QUICK = ["--metrics", "knn,rank", "--k", "3", "--baselines", "", "--json"]


@pytest.fixture
def opened(splits: dict[str, Path]) -> Splits:
    return open_splits(*(str(splits[name]) for name in ("train", "val", "test")))


def timm_folder(folder: Path, name: str = "test_resnet", **kwargs: object) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **kwargs)
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def keys(data: Dataset) -> list[str]:
    return [data.key(i) for i in range(len(data))]


def test_encoders_and_files_are_rows_with_paired_differences(
    checkpoint: Path, tmp_path: Path, data, command: Callable, opened: Splits, monkeypatch: pytest.MonkeyPatch
):
    # An encoder of other size and channels, one of the same name, and a file whose rows are mixed up.
    small = timm_folder(tmp_path / "models" / "small", in_chans=1)
    config = json.loads((small / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [1, 48, 48], "mean": [0.4], "std": [0.3]}
    (small / "config.json").write_text(json.dumps(config))
    same = save_checkpoint(tmp_path / "again" / "small")
    order = np.random.default_rng(0).permutation(84)
    every = np.array([key for split in opened.items().values() for key in keys(split)])
    labels = np.concatenate([split.labels for split in opened.items().values()])
    parts = np.repeat(["train", "val", "test"], [44, 20, 20])
    x = np.stack([labels == 1, labels == 0, np.arange(84) % 7 / 50], axis=1).astype(np.float32)
    np.savez(tmp_path / "oracle.npz", features=x[order], key=every[order], split=parts[order])
    # Models of the folder join; a damaged one costs itself alone.
    joined = tmp_path / "joined"
    timm_folder(joined / "standing", "test_convnext")
    shutil.copytree(joined / "standing", joined / "cut")
    (joined / "cut" / "model.safetensors").write_bytes(b"{}")
    (joined / "notes").mkdir()
    monkeypatch.setenv(against.FOLDER, str(joined))

    outcome = command(
        checkpoint, *data, *QUICK, "--against", small, same, "--against", tmp_path / "oracle.npz"
    )
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    rows = results["representations"]
    assert sorted(rows) == ["oracle", "pretrained", "small", "small_2", "standing"]
    assert list(results["differences"]) == [name for name in rows if name != "pretrained"]
    assert rows["oracle"]["knn"]["balanced_accuracy"] == 1
    # The same encoder once more is exactly as good.
    difference = results["differences"]["small_2"]["knn"]["balanced_accuracy"]
    assert difference == {"value": 0, "interval": [0, 0]}
    assert rows["small"]["width"] == 96 and rows["standing"]["width"] == 64
    (left_out,) = results["left_out"]
    assert left_out["metric"] == "ISOTORUS_BASELINES/cut" and "not a whole safetensors" in left_out["reason"]
    # What is compared is part of what the results depend on.
    assert sorted(results["inputs"]["against"]) == ["oracle", "small", "small_2", "standing"]
    assert "standing" in (checkpoint / "eval/7/report.html").read_text()


def test_an_encoder_that_cannot_be_used_is_refused_before_work(
    checkpoint: Path, tmp_path: Path, data, command: Callable
):
    bare = timm_folder(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    other = timm_folder(tmp_path / "other", in_chans=5)
    changed = json.loads((other / "config.json").read_text())
    changed["pretrained_cfg"] |= {"input_size": [5, 160, 160], "mean": [0.5] * 5, "std": [0.5] * 5}
    (other / "config.json").write_text(json.dumps(changed))
    fixed = save_checkpoint(tmp_path / "fixed", image_size=40)
    for given, said in (
        (bare, "model.safetensors"),
        (other, "3 channels, but the encoder was trained on 5"),
        (fixed, "use an encoder that takes any size"),
        (tmp_path / "missing", "no such run or checkpoint"),
    ):
        outcome = command(checkpoint, *data, *QUICK, "--against", given)
        assert outcome.code == 2, given
        (line,) = outcome.err.splitlines()
        assert said in line
        assert not (checkpoint / "eval").exists()


def test_a_folder_without_models_is_named(opened: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(against.FOLDER, str(tmp_path / "gone"))
    found = against.named([], opened, lambda _: None)
    assert list(found.left_out) == [against.FOLDER] and "gone" in found.left_out[against.FOLDER]


def test_rows_without_keys_are_in_the_order_of_the_splits(opened: Splits, tmp_path: Path):
    x = np.arange(84 * 2, dtype=np.float32).reshape(84, 2)
    np.save(tmp_path / "plain.npy", x)
    found = against.rows_of(vectors.read(str(tmp_path / "plain.npy")), opened)
    assert {split: rows[0, 0] for split, rows in found.items()} == {"train": 0, "val": 88, "test": 128}
    parts = np.repeat(["test", "train", "val"], [20, 44, 20])
    np.savez(tmp_path / "divided.npz", features=x, split=parts)
    found = against.rows_of(vectors.read(str(tmp_path / "divided.npz")), opened)
    assert {split: rows[0, 0] for split, rows in found.items()} == {"train": 40, "val": 128, "test": 0}
    np.save(tmp_path / "short.npy", x[1:])
    with pytest.raises(
        UserError, match=r"83 rows without keys, .* train 44, val 20, test 20; add a column key"
    ):
        against.rows_of(vectors.read(str(tmp_path / "short.npy")), opened)


def test_images_need_exactly_one_row(opened: Splits, tmp_path: Path):
    every = [key for split in opened.items().values() for key in keys(split)]
    # Keys of the three data sets are equal here, so the column split tells them apart.
    assert len(set(every)) < len(every)
    parts = [split for split, data in opened.items().items() for _ in range(len(data))]
    x = np.arange(84, dtype=np.float32)[:, None]

    def read(rows: np.ndarray) -> vectors.Vectors:
        columns = {"key": [every[i] for i in rows], "split": [parts[i] for i in rows]}
        pq.write_table(pa.table({"features": x[rows].tolist(), **columns}), tmp_path / "x.parquet")
        return vectors.read(str(tmp_path / "x.parquet"))

    rows = np.random.default_rng(1).permutation(84)
    found = against.rows_of(read(rows), opened)
    np.testing.assert_array_equal(np.concatenate([found[s] for s in ("train", "val", "test")]), x)
    with pytest.raises(UserError, match=r"1 of 20 images of .*val.* have no row \(the first: .*\); give one"):
        against.rows_of(read(rows[rows != 50]), opened)
    with pytest.raises(UserError, match=r"1 of 44 images of .*train.* have several rows"):
        against.rows_of(read(np.append(rows, 3)), opened)


def test_files_of_features_are_compared_with_each_other(tmp_path: Path, command: Callable):
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    split = np.repeat(["train", "val", "test"], 20)
    plain = random.normal(size=(60, 3)).astype(np.float32)
    np.savez(tmp_path / "plain.npz", features=plain, labels=labels, split=split, key=np.arange(60))
    order = random.permutation(60)
    clear = plain + 9 * labels[:, None]
    np.savez(tmp_path / "clear.npz", features=clear[order], key=order)
    options = ["--metrics", "probe", "--json", "--out", tmp_path / "out", "--against"]
    outcome = command(tmp_path / "plain.npz", *options, tmp_path / "clear.npz")
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    assert results["representations"]["clear"]["probe"]["auroc"] == 1
    assert results["differences"]["clear"]["probe"]["auroc"]["value"] < 0
    np.save(tmp_path / "other.npy", plain[1:])
    for given, said in (("other.npy", "59 rows are not those of"), ("out", "needs images")):
        refused = command(tmp_path / "plain.npz", *options, tmp_path / given)
        assert refused.code == 2 and said in refused.err and len(refused.err.splitlines()) == 1
