"""A few damaged images do not end a run: they are replaced, named in a file and in MLflow."""

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np

from data_pipeline.dataset.index import Dataset
from data_pipeline.order.order import sample_index
from tests.distributed.runs import losses, rows, train


def test_damaged_images_are_replaced_and_named(recipe: Path, shards: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    dataset = Dataset(copy)
    victims = [5, 40]
    for name, offset, size in dataset.ranges(np.array(victims)):
        with (copy / name).open("r+b") as file:
            file.seek(offset + size // 2)
            file.write(b"\0" * 8)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    options = [f"data.path={copy}", "tracking.enabled=true", f"tracking.uri={store}"]

    # A run on one rank, stopped, goes on with two: its rows stay, and the others are those of any run.
    assert train(1, recipe, options[0], "steps=6").returncode == 0
    before = (tmp_path / "runs/tiny/corrupt.jsonl").read_text()
    done = train(2, recipe, *options)
    assert done.returncode == 0, done.stderr
    assert "damaged images replaced" in done.stderr
    run = tmp_path / "runs/tiny"
    after = (run / "corrupt.jsonl").read_text()
    named = [json.loads(line) for line in after.splitlines()]
    assert before and after.startswith(before)
    order = sample_index(np.arange(12 * 8), len(dataset), seed=0)  # an epoch and a half
    due = [(i // 8 + 1, int(sample)) for i, sample in enumerate(order) if sample in victims]
    assert sorted((row["step"], row["sample"]) for row in named) == due and len(due) == 4
    assert rows(run)[-1]["corrupt_samples"] == len(named)
    keys = [dataset.key(victim) for victim in victims]
    assert all(any(key in row["name"] for row in named) for key in keys)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        ((tag,),) = database.execute("select value from tags where key = 'corrupt_samples'").fetchall()
    assert all(key in tag for key in keys)
    assert max(losses(run)) == 12
