"""Runs killed with SIGKILL continue as if nothing had happened, on as many ranks as there are."""

import json
import shutil
from pathlib import Path

import pytest

from tests.distributed.runs import killing, losses, train
from tests.recipe import write_recipe

STEPS = 16
LONGER = (f"steps={STEPS}", "engine.deterministic=true")


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    path = write_recipe(shards, folder)
    done = train(2, path, *LONGER)
    assert done.returncode == 0, done.stderr
    return folder / "runs/tiny"


def newest(folder: Path) -> int:
    found = (folder / "checkpoints").glob("step_*/COMPLETE")
    return int(max(path.parent.name for path in found).removeprefix("step_"))


def in_save(step: int) -> str:
    """Return when rank 1 begins to write its part of a checkpoint, as an expression for `killing`."""
    return f"event == 'open' and '/.partial_{step:08d}/__1_' in paths[0]"


def before_latest(step: int) -> str:
    """Return when a checkpoint has its name and `latest` is about to point to it, for `killing`."""
    return f"paths[0].endswith('/.latest') and os.readlink(paths[0]) == 'step_{step:08d}'"


@pytest.mark.nightly
def test_a_run_killed_twice_in_a_save_is_the_whole_run_bit_for_bit(whole: Path, recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    checkpoints = folder / "checkpoints"
    first = 4
    done = train(2, recipe, *LONGER, environment=killing(tmp_path, 1, in_save(first + 4)))
    assert done.returncode == 128 + 9, done.stderr
    assert (checkpoints / f".partial_{first + 4:08d}").exists() and newest(folder) == first

    done = train(2, recipe, *LONGER, environment=killing(tmp_path, 0, before_latest(first + 4)))
    assert done.returncode == 128 + 9 and f"continuing {folder} from step_{first:08d}" in done.stderr
    assert (checkpoints / "latest").resolve().name == f"step_{first:08d}" and newest(folder) == first + 4

    # What looks like the newest, but was not finished.
    half = checkpoints / f"step_{STEPS - 1:08d}"
    shutil.copytree(checkpoints / f"step_{first:08d}", half)
    (half / "COMPLETE").unlink()
    done = train(2, recipe, *LONGER)
    assert done.returncode == 0 and f"continuing {folder} from step_{first + 4:08d}" in done.stderr, (
        done.stderr
    )

    assert losses(folder) == losses(whole) and list(losses(folder)) == list(range(1, STEPS + 1))
    assert (checkpoints / "latest").resolve().name == f"step_{STEPS:08d}"
    assert not list(checkpoints.glob(".*"))
    ends = [json.loads((each / "checkpoints/latest/COMPLETE").read_text()) for each in (folder, whole)]
    for name in ("__0_0.distcp", "__1_0.distcp", "encoder.safetensors"):
        assert ends[0][name] == ends[1][name]


@pytest.mark.nightly
def test_a_killed_run_continues_under_other_engines(whole: Path, recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    for engine, step in (("fsdp", 8), ("deepspeed", 12)):
        killer = killing(tmp_path, 1, in_save(step))
        done = train(2, recipe, f"steps={STEPS}", f"engine.kind={engine}", environment=killer)
        assert done.returncode == 128 + 9 and newest(folder) == step - 4, done.stderr
    done = train(1, recipe, f"steps={STEPS}")
    assert done.returncode == 0 and f"continuing {folder} from step_00000008" in done.stderr, done.stderr
    resumed = losses(folder)
    assert list(resumed) == list(range(1, STEPS + 1))
    # Rounding, of 1e-6 at first, grows from step to step: two steps after the second resume it is 8e-6.
    assert list(resumed.values()) == pytest.approx(list(losses(whole).values()), rel=5e-5)


def test_finished_run_is_not_repeated(recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    assert train(1, recipe).returncode == 0
    before = (folder / "metrics.jsonl").read_bytes()
    again = train(1, recipe)
    assert again.returncode == 0 and "is finished: 12 of 12 steps" in again.stderr
    assert (folder / "metrics.jsonl").read_bytes() == before
    longer = train(1, recipe, "steps=13")
    assert longer.returncode == 0
    assert list(losses(folder)) == list(range(1, 14))
