"""Damaged checkpoints at the start of an unattended run. See tests/distributed/test_refusals.py too."""

from pathlib import Path

import pytest

from tests.distributed.runs import killing, losses, train
from tests.faults.conftest import STEPS

AT_THE_END = "event == 'open' and '/.partial_00000012/' in paths[0]"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_run_goes_on_from_the_newest_whole_checkpoint(
    whole: dict[int, float], recipe: Path, tmp_path: Path
):
    folder = tmp_path / "runs/tiny"
    checkpoints = folder / "checkpoints"
    stopped = train(2, recipe, *STEPS, "checkpoint.every=2", environment=killing(tmp_path, 1, AT_THE_END))
    assert stopped.returncode == 128 + 9, stopped.stderr
    kept = {path.name: path.read_bytes() for path in (checkpoints / "step_00000006").iterdir()}

    assert (checkpoints / ".partial_00000012").exists()
    (checkpoints / "step_00000010/COMPLETE").unlink()
    (checkpoints / "step_00000008/encoder.json").unlink()
    (part,) = (checkpoints / "step_00000006").glob("__1_*")
    flip(part)
    kept[part.name] = part.read_bytes()
    (checkpoints / "step_00000004/.metadata").unlink()

    done = train(2, recipe, *STEPS, "checkpoint.every=2")
    assert done.returncode == 0 and f"continuing {folder} from step_00000002" in done.stderr, done.stderr
    assert "step_00000006 is damaged: __1_0.distcp has another checksum" in done.stderr
    assert "; continuing from step_00000004" in done.stderr
    assert losses(folder) == whole
    # Nothing is lost.
    aside = checkpoints / "damaged_step_00000006"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == kept
    assert names(checkpoints) == [
        *(f"damaged_step_{step:08d}" for step in (4, 6, 8)),
        "latest",
        *(f"step_{step:08d}" for step in (2, 4, 6, 8, 10, 12)),
    ]


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_no_whole_checkpoint_is_for_a_person_to_see(recipe: Path, tmp_path: Path):
    checkpoints = tmp_path / "runs/tiny/checkpoints"
    assert train(1, recipe, "steps=8").returncode == 0
    for file in checkpoints.glob("step_*/__0_0.distcp"):
        flip(file)
    done = train(2, recipe)
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "step_00000004 is damaged: __0_0.distcp has another checksum" in said
    assert said.endswith("remove that folder to begin again, as there is no earlier one")
    assert names(checkpoints) == ["damaged_step_00000008", "latest", "step_00000004"]
