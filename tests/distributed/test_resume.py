"""Runs killed with SIGKILL continue as if nothing had happened, on as many ranks as there are."""

from pathlib import Path

import pytest

from tests.distributed.runs import losses, train, train_and_kill


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    """Losses of the uninterrupted run, filled by the first test that needs them."""
    return {}


@pytest.mark.parametrize("ranks_after", [2, 1])
@pytest.mark.parametrize("kill_at", [6])
def test_killed_run_continues_exactly(
    whole: dict[str, dict[int, float]], recipe: Path, tmp_path: Path, kill_at: int, ranks_after: int
):
    if not whole:
        done = train(2, recipe, "name=whole")
        assert done.returncode == 0, done.stderr
        whole["losses"] = losses(tmp_path / "runs/whole")
        assert list(whole["losses"]) == list(range(1, 13))

    train_and_kill(2, recipe, tmp_path / "runs/tiny", kill_at)
    checkpoints = tmp_path / "runs/tiny/checkpoints"
    (checkpoints / ".partial_00000008").mkdir(exist_ok=True)  # as a kill inside a save leaves it
    done = train(ranks_after, recipe)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stderr

    resumed = losses(tmp_path / "runs/tiny")
    assert list(resumed) == list(range(1, 13))
    if ranks_after == 2:
        assert resumed == whole["losses"]
    else:
        assert list(resumed.values()) == pytest.approx(list(whole["losses"].values()), rel=1e-4)
    assert (checkpoints / "latest").resolve().name == "step_00000012"
    assert not list(checkpoints.glob(".partial*"))


@pytest.mark.parametrize("before, after", [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_a_killed_run_continues_on_another_engine(recipe: Path, tmp_path: Path, before: str, after: str):
    assert train(2, recipe, "name=whole", f"engine.kind={before}").returncode == 0
    train_and_kill(2, recipe, tmp_path / "runs/tiny", 6, f"engine.kind={before}")
    done = train(2, recipe, f"engine.kind={after}")
    assert done.returncode == 0 and "continuing" in done.stderr, done.stderr
    whole, resumed = losses(tmp_path / "runs/whole"), losses(tmp_path / "runs/tiny")
    assert list(resumed) == list(range(1, 13))
    assert list(resumed.values()) == pytest.approx(list(whole.values()), rel=1e-4)


def test_finished_run_is_not_repeated(recipe: Path, tmp_path: Path):
    assert train(1, recipe, "steps=2").returncode == 0
    before = (tmp_path / "runs/tiny/metrics.jsonl").read_bytes()
    again = train(1, recipe, "steps=2")
    assert again.returncode == 0 and "is finished: 2 of 2 steps" in again.stderr
    assert (tmp_path / "runs/tiny/metrics.jsonl").read_bytes() == before
    longer = train(1, recipe, "steps=3")
    assert longer.returncode == 0
    assert list(losses(tmp_path / "runs/tiny")) == [1, 2, 3]
