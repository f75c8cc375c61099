"""What a run refuses: one line on stderr, exit code 2, once for all ranks, and no work lost."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.packing.pack import Options, pack
from isotorus.errors import UserError
from pretrain.config import load_config
from pretrain.preflight.check import check
from tests.distributed.runs import losses, train


def refused(ranks: int, recipe: Path, *overrides: str) -> str:
    done = train(ranks, recipe, *overrides)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, done.stderr
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return said[0].removeprefix("error: ")


def refusal(recipe: Path, *overrides: str, ranks: int = 1) -> str:
    """Return the error that is raised before there are processes."""
    with pytest.raises(UserError) as error:
        check(load_config(str(recipe), list(overrides)), ranks)
    return str(error.value)


def test_more_ranks_than_images_in_the_batch(recipe: Path):
    said = refusal(recipe, "data.batch_size=1", ranks=2)
    assert said.startswith("data.batch_size=1 is less than an image for each of 2 ranks; use fewer ranks")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            "engine.kind=deepspeed engine.zero_stage=3 engine.compile=true",
            "engine: engine.compile=true with engine.zero_stage=3: ZeRO-3's hooks break compiled graphs; use",
        ),
        (
            "engine.kind=fsdp engine.zero_stage=1",
            "engine: engine.zero_stage=1 is an option of engine.kind=deepspeed, which fsdp does not have",
        ),
        ("engine.kind=fsdp engine.shard=3", "engine.shard=3 does not divide 2 ranks; use 1, 2"),
        (
            "engine.micro_batch=2 engine.accumulation=2",
            "engine: engine.micro_batch=2 and engine.accumulation=2: the first decides the second",
        ),
        ("engine.accumulation=9", "engine.accumulation=9 is more than the 4 images of a rank; use"),
        ("accept=[encoder]", "accept.0='encoder': input should be 'batch_size', 'data', 'objective' or"),
    ],
)
def test_impossible_settings(recipe: Path, overrides: str, said: str):
    assert refusal(recipe, *overrides.split(), ranks=2).startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "views.global_size=33",
            "views.global_size=33 is not a multiple of the encoder's patch of 8; use 32 or 40",
        ),
        ("views.local_size=4", "views.local_size=4 is not a multiple of the encoder's patch of 8; use 8"),
    ],
)
def test_sizes_that_patches_do_not_fill(recipe: Path, override: str, said: str):
    assert refusal(recipe, override).startswith(said)


def test_refused_before_training(recipe: Path):
    assert refusal(recipe, "data.path=nowhere").startswith("nowhere is not a packed data set")


def test_checkpoint_of_another_run(recipe: Path, tmp_path: Path):
    assert train(1, recipe, "steps=4", "checkpoint.every=2").returncode == 0
    run = tmp_path / "runs/tiny"
    before = losses(run)
    assert "is of another architecture" in refusal(recipe, "encoder.kwargs.depth=3")
    assert "resume=never" in refusal(recipe, "resume=never")
    for override, said, accept in (
        ("seed=1", "seed=0, not 1", "seed"),
        ("data.batch_size=12", "data.batch_size=8, not 12", "batch_size"),
        ("objective.weight=0.1", "objective.weight=0.05, not 0.1", "objective"),
        ("data.order=windowed", "data.order=uniform, not windowed", "data"),
        ("encoder.weights=x", "encoder.weights=None, not x", ""),
    ):
        go_on = f", or accept=[{accept}] to go on with that" if accept else ""
        assert refusal(recipe, override).endswith(
            f"trained with {said}; choose another name for the run{go_on}"
        )
    assert losses(run) == before

    # A damaged newest checkpoint is named, and removing it continues from the one before.
    (damaged,) = (run / "checkpoints/step_00000004").glob("*.distcp")
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    said = refused(1, recipe, "steps=5", "checkpoint.on_damage=refuse")
    assert "step_00000004 is damaged: __0_0.distcp has another checksum" in said
    assert said.endswith("remove that folder to continue from step_00000002")
    shutil.rmtree(run / "checkpoints/step_00000004")
    done = train(1, recipe, "steps=5")
    assert done.returncode == 0 and "continuing" in done.stderr
    assert list(losses(run)) == [1, 2, 3, 4, 5]


def test_intended_differences(recipe: Path, images: Path, shards: Path, tmp_path: Path):
    """A run continues with more images, also of a new class, larger batches and another weight."""
    assert train(1, recipe, "steps=2").returncode == 0
    more, grown = tmp_path / "more", tmp_path / "grown"
    shutil.copytree(images, more)
    shutil.copytree(images / "whole", more / "new")
    shutil.copytree(shards, grown)
    pack(more, grown, Options(labels="folder", append=True))
    changed = (f"data.path={grown}", "data.batch_size=12", "objective.weight=0.1")
    said = refusal(recipe, changed[0])
    assert "was trained on other data" in said and "accept=[data] to go on" in said
    assert said.endswith(f"data.path=null data.sources='[{{path: {grown}, generation: 1}}]'")

    done = train(1, recipe, *changed, "steps=4", "accept=[data,batch_size,objective]")
    assert done.returncode == 0 and "the online probe begins anew" in done.stderr, done.stderr
    assert list(losses(tmp_path / "runs/tiny")) == [1, 2, 3, 4]
    # The checkpoint is of the new kind now.
    check(load_config(str(recipe), list(changed)), world_size=1)


@pytest.mark.nightly
def test_a_run_that_diverges_says_so_once(recipe: Path, tmp_path: Path):
    said = refused(2, recipe, "optimizer.lr=1e30", "optimizer.warmup_steps=0", "checkpoint.every=1")
    assert said.startswith("3 updates in a row were refused, the last for NaN or infinity in the projections")
    assert f"{tmp_path}/runs/tiny/skipped.jsonl has their samples" in said and "lower optimizer.lr" in said


def test_too_many_damaged_images_are_said_once(recipe: Path, shards: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    for shard in copy.glob("*.tar"):
        data = bytearray(shard.read_bytes())
        data[600:2000] = os.urandom(1400)  # same size: only the checksums differ
        shard.write_bytes(data)
    said = refused(2, recipe, f"data.path={copy}")
    assert "damaged, more than data.max_corrupt=0.001 allows" in said and "verify" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 4 MB as the run's folder of checkpoints."""
    folder = tmp_path / "runs/tiny/checkpoints"
    folder.mkdir(parents=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"mounting a small disk is not permitted: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk_keeps_the_checkpoint_before(recipe: Path, small_disk: Path):
    run = small_disk.parent
    assert train(1, recipe, "steps=2").returncode == 0
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"\0" * (free - 100_000))
    # The run learns of it while it trains on.
    said = refused(2, recipe, "steps=100000")
    assert (
        max(losses(run)) < 1000 and "saving the checkpoint of step 4 failed, the one before is whole" in said
    )
    assert "space" in said
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "latest", "step_00000002"]
    filler.unlink()
    done = train(1, recipe, "steps=4")
    assert done.returncode == 0 and "continuing" in done.stderr
    description = json.loads((run / "checkpoints/latest/encoder.json").read_text())
    assert description["step"] == 4
