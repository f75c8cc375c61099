"""Refused updates: which ones, what they leave unchanged, and how a run rolls back and skips their data.

The data are 240 patterns. Among them are black frames, as from a camera that failed: three batches in a row
and a single one. Two images are damaged. One process trains on them, and two ranks under each engine.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
import yaml
from PIL import Image

from data_pipeline.dataset.index import Dataset
from data_pipeline.loader import Batch
from data_pipeline.order import Order
from isotorus import jsonl
from isotorus.errors import UserError
from pretrain.assemble import build_engine, load_batches
from pretrain.checkpoint import folders
from pretrain.config import Config, load_config
from pretrain.engines.schedule import learning_rate
from pretrain.engines.step import StepResult, train_step
from pretrain.monitoring.config import GuardConfig
from pretrain.monitoring.guard import Guard
from pretrain.preflight.check import check
from pretrain.train import prepare, train

CPU = torch.device("cpu")
IMAGES, BATCH, STEPS, WINDOW = 240, 8, 20, 8
ROW, ALONE = [12, 13, 14], 17
"""Batches of black frames: as many in a row as `patience`, and a single one."""
DAMAGED = [10, 15]
"""Batches with a damaged image; the second is read twice."""
SAVED = 12
"""Step of the newest checkpoint when the row of refused updates is noticed, at step 16."""
RECIPE = {
    "steps": STEPS,
    "log_every": 2,
    "data": {"batch_size": BATCH, "workers": 0, "channels": 1},
    "views": {"global_size": 32, "local_views": 2, "local_size": 16},
    "encoder": {
        "name": "vit_tiny_patch16_224",
        "kwargs": {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
    },
    "objective": {"kind": "lejepa", "sigreg": {"num_slices": 64}, "projector": {"hidden": 32, "width": 8}},
    "optimizer": {"lr": 1e-3, "warmup_steps": 0},
    "engine": {"precision": "fp32"},
    "checkpoint": {"every": 4},
    "guard": {"window": WINDOW},
    "tracking": {"enabled": False},
}
ENGINES = {
    "ddp": {},
    "fsdp": {"kind": "fsdp"},
    "zero-2": {"kind": "deepspeed", "zero_stage": 2},
    "zero-3": {"kind": "deepspeed", "zero_stage": 3},
}

QUICK = ["ddp", "zero-3"]


def pack(folder: Path, black: set[str]) -> Path:
    random = np.random.default_rng(0)
    for i in range(IMAGES):
        name = f"{'ab'[i % 2]}/{i:03d}"
        waves = 60 * np.sin(np.arange(40) / (2 + i % 7) + 6 * random.random())
        pixels = np.clip(128 + waves + random.normal(0, 1.5, (40, 40)), 0, 255)
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((0 * pixels if name in black else pixels).astype(np.uint8)).save(path)
    packed = folder / "packed"
    command = [sys.executable, "-m", "data_pipeline", "pack", folder, packed, "--labels", "folder"]
    subprocess.run([*command, "--workers", "1"], check=True)
    return packed


@pytest.fixture(scope="module")
def order() -> list[list[int]]:
    """Return the samples of each batch."""
    order = Order([IMAGES], [1.0], 0, "uniform", batch_size=BATCH, bytes=[0])
    positions = np.arange(BATCH * (STEPS + len(ROW)), dtype=np.int64)
    return order.locate(positions)[2].reshape(-1, BATCH).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, order: list[list[int]]) -> Path:
    """Return the folder of recipe.yaml and all runs."""
    folder = tmp_path_factory.mktemp("guard")
    sound = Dataset(pack(folder / "sound", set()))
    packed = pack(folder / "data", {sound.key(i) for batch in (*ROW, ALONE) for i in order[batch]})
    dataset = Dataset(packed)
    for name, offset, size in dataset.ranges(np.array([order[batch][3] for batch in DAMAGED])):
        with (packed / name).open("r+b") as file:
            file.seek(offset + size // 2)
            file.write(b"\0" * 8)
    recipe = RECIPE | {"name": "one", "runs": str(folder / "runs")}
    recipe["data"] = RECIPE["data"] | {"path": str(packed)}  # type: ignore[operator]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def run(folder: Path, name: str, *overrides: str, ranks: int = 1) -> Config:
    config = load_config(str(folder / "recipe.yaml"), [f"name={name}", *overrides])
    assert train(config, check(config, ranks), CPU) == 0
    return config


@pytest.fixture(scope="module", autouse=True)
def one(folder: Path) -> Iterator[Config]:
    """Train one process, whose process group the other tests use too."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield run(folder, "one")
    dist.destroy_process_group()


def rank_main(rank: int, folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    for name in names:
        run(folder, name, *(f"engine.{key}={value}" for key, value in ENGINES[name].items()), ranks=2)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def engines(folder: Path, request: pytest.FixtureRequest) -> Path:
    """Train under the quick engines, or under all of them if nightly tests run."""
    here = [item for item in request.session.items if item.path == request.path]
    everything = any(item.get_closest_marker("nightly") for item in here)
    mp.spawn(rank_main, (folder, [*ENGINES] if everything else QUICK), nprocs=2)
    return folder


def said(folder: Path, run: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of a run's metrics.jsonl, without times, and of its skipped.jsonl."""
    timed = re.compile("time|.*second.*|data_wait|memory_gib")
    rows = jsonl.read(folder / "runs" / run / "metrics.jsonl")
    kept = [{key: value for key, value in row.items() if not timed.fullmatch(key)} for row in rows]
    return kept, jsonl.read(folder / "runs" / run / "skipped.jsonl")


def test_black_frames_are_refused_named_and_skipped(one: Config, folder: Path, order: list[list[int]]):
    rows, skipped = said(folder, "one")
    refused = [row for row in skipped if "samples" in row]
    assert [(row["batch"], row["step"]) for row in refused] == [(13, 13), (14, 14), (15, 15), (18, 15)]
    for row, batch in zip(refused, [*ROW, ALONE], strict=True):
        assert row["samples"] == order[batch]
        assert row["grad_norm"] > row["grad_norm_limit"] and "gradient norm of" in row["reason"]
    returns = [row for row in skipped if "samples" not in row]
    assert returns == [{"batch": 15, "taken_back_to": SAVED, "passed_over": len(ROW)}]

    assert [row["step"] for row in rows] == list(range(2, STEPS + 1, 2))
    counts = [(row["skipped_steps"], row["passed_over_steps"]) for row in rows]
    assert counts == [(0, 0)] * 6 + [(3, 3)] + [(4, 3)] * 3
    read = jsonl.read(one.folder / "corrupt.jsonl")
    # Each damaged image once, although batch 15 was read before the rollback and after it.
    assert [(row["step"], row["sample"]) for row in read] == [(b + 1, order[b][3]) for b in DAMAGED]
    assert rows[-1]["corrupt_samples"] == len(DAMAGED)


def test_what_was_refused_has_left_no_trace(one: Config):
    """The same run, computed here without the refused batches, gives the same losses and state."""
    inputs = check(one, 1)
    engine = build_engine(one, inputs, CPU)
    batches = [
        batch for batch, _ in zip(load_batches(one, inputs.sources, 0), range(STEPS + len(ROW)), strict=False)
    ]
    losses = {}
    for step in range(STEPS):
        batch = batches[step if step < SAVED else step + len(ROW)]
        if batch.step != ALONE:
            lr = learning_rate(step, STEPS, one.optimizer.lr, 0, one.optimizer.final_lr_ratio)
            result = train_step(engine, prepare(batch, one, inputs, CPU), step, lr)
            losses[step + 1] = result.parts["loss"].item()
    logged = {row["step"]: row["loss"] for row in jsonl.read(one.folder / "metrics.jsonl")}
    assert logged == {step: losses[step] for step in logged}

    by_hand = engine.state()
    saved = build_engine(one, inputs, CPU).state()
    dcp.load(saved, checkpoint_id=one.folder / "checkpoints/latest")
    torch.testing.assert_close(saved, by_hand, rtol=0, atol=0)
    assert any("running_mean" in name for name in saved["model"])


@pytest.mark.parametrize("newest", [16, SAVED])
def test_a_kill_after_that_changes_nothing(one: Config, folder: Path, newest: int):
    """The newest checkpoint was written after the rollback, or is the one that the run returned to."""
    name = f"killed at {newest}".replace(" ", "-")
    shutil.copytree(one.folder, folder / "runs" / name, symlinks=True)
    for saved in (folder / "runs" / name / "checkpoints").glob("step_*"):
        if saved > folders.folder(saved.parent, newest):
            shutil.rmtree(saved)
    run(folder, name)
    assert said(folder, name) == said(folder, "one")
    corrupt = [(folder / "runs" / each / "corrupt.jsonl").read_text() for each in ("one", name)]
    assert corrupt[0] == corrupt[1]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.nightly) for n in ENGINES if n not in QUICK)]
)
def test_all_ranks_refuse_the_same_under_every_engine(engines: Path, name: str):
    (rows, skipped), (truth, refused) = said(engines, name), said(engines, "one")
    compared = ("batch", "step", "samples", "taken_back_to", "passed_over")
    assert [[row.get(key) for key in compared] for row in skipped] == [
        [row.get(key) for key in compared] for row in refused
    ]
    for row, same in zip(rows, truth, strict=True):
        assert row["loss"] == pytest.approx(same["loss"], rel=1e-3)
        counted = ("step", "skipped_steps", "passed_over_steps", "corrupt_samples")
        assert [row[key] for key in counted] == [same[key] for key in counted]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=1e30"], "there is no checkpoint yet"),
        (
            ["optimizer.lr=1e30", "checkpoint.every=1"],
            "returning to the checkpoint of step 1 has not helped (2 times)",
        ),
    ],
)
def test_a_run_that_diverges_is_given_up(folder: Path, overrides: list[str], message: str):
    with pytest.raises(UserError, match="3 updates in a row were refused, the last for NaN") as error:
        run(folder, f"diverges-{len(overrides)}", *overrides)
    assert message in str(error.value) and "lower optimizer.lr" in str(error.value)


def test_the_reason_names_view_and_rank(one: Config, tmp_path: Path):
    guard = Guard(GuardConfig(), tmp_path, torch.nn.Identity(), CPU)
    nothing = np.zeros(2, dtype=np.int64)
    batch = Batch(4, np.array([7, 9]), nothing, torch.from_numpy(nothing), [], [], [])
    sound, broken = torch.zeros(3, 2, 4), torch.zeros(3, 2, 4)
    broken[1, 0, 2] = torch.inf
    for loss, norm, projections in ((1.0, 1.0, sound), (np.nan, np.nan, broken), (1.0, np.inf, sound)):
        parts = {"loss": torch.tensor(loss), "grad_norm": torch.tensor(norm)}
        guard.watch(batch, StepResult(parts, sound, projections))
    assert not guard.report() and guard.refused == 2
    first, second = jsonl.read(tmp_path / "skipped.jsonl")
    assert first["reason"] == "NaN or infinity in the projections of view 1 on rank 0"
    assert second["reason"] == "a gradient overflow"
    assert first["samples"] == [7, 9] and first["batch"] == 5
