"""What a run refuses: one line on stderr, exit code 2, once however many ranks, and no work lost."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.runs import losses, train


def refused(ranks: int, recipe: Path, *overrides: str) -> str:
    done = train(ranks, recipe, *overrides)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, done.stderr
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return said[0].removeprefix("error: ")


def test_batch_that_does_not_divide_over_ranks(recipe: Path):
    said = refused(2, recipe, "data.batch_size=9")
    assert said == "data.batch_size=9 does not divide over 2 ranks; use 8 or 10"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "views.global_size=33",
            "views.global_size=33 is not a multiple of the encoder's patch of 8; use 32 or 40",
        ),
        ("views.local_size=4", "views.local_size=4 is not a multiple of the encoder's patch of 8; use 8"),
        ("engine.accumulation=9", "engine.accumulation=9 is more than the 8 images of a rank"),
        ("data.path=nowhere", "nowhere is not a packed data set"),
    ],
)
def test_refused_before_training(recipe: Path, override: str, said: str):
    assert refused(1, recipe, override).startswith(said)


def test_checkpoint_of_another_run(recipe: Path, tmp_path: Path):
    assert train(1, recipe, "steps=2").returncode == 0
    run = tmp_path / "runs/tiny"
    before = losses(run)
    assert "is of another architecture" in refused(1, recipe, "encoder.kwargs.depth=3")
    assert "was trained with seed=0, not 1" in refused(1, recipe, "seed=1")
    assert "resume=never" in refused(1, recipe, "resume=never")
    assert losses(run) == before

    # A damaged newest checkpoint is named, and removing it continues from the one before.
    assert train(1, recipe, "steps=4").returncode == 0
    (damaged,) = (run / "checkpoints/step_00000004").glob("*.distcp")
    damaged.write_bytes(damaged.read_bytes()[:100])
    said = refused(1, recipe, "steps=5")
    assert "step_00000004 cannot be read" in said and "remove that folder" in said
    shutil.rmtree(run / "checkpoints/step_00000004")
    done = train(1, recipe, "steps=5")
    assert done.returncode == 0 and "continuing" in done.stderr
    assert list(losses(run)) == [1, 2, 3, 4, 5]


def test_too_many_damaged_images_are_said_once(recipe: Path, shards: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    for shard in copy.glob("*.tar"):
        data = bytearray(shard.read_bytes())
        data[600:2000] = os.urandom(1400)  # same size: only the checksums tell
        shard.write_bytes(data)
    said = refused(2, recipe, f"data.path={copy}")
    assert "damaged, more than data.max_corrupt=0.001 allows" in said and "verify" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"mounting a small disk is not permitted: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk_keeps_the_checkpoint_before(recipe: Path, small_disk: Path):
    run = small_disk / "tiny"
    here = f"runs={small_disk}"
    assert train(1, recipe, here, "steps=2").returncode == 0
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"\0" * (free - 100_000))
    said = refused(1, recipe, here, "steps=4")
    assert "saving the checkpoint of step 4 failed, the one before is whole" in said
    assert "space" in said
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["latest", "step_00000002"]
    filler.unlink()
    done = train(1, recipe, here, "steps=4")
    assert done.returncode == 0 and "continuing" in done.stderr
    description = json.loads((run / "checkpoints/latest/encoder.json").read_text())
    assert description["step"] == 4
