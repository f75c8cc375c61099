"""Among the checkpoints of a run the best on val is marked and linked; the test split chooses nothing."""

from pathlib import Path

import pytest

from eval_suite.report import best_checkpoint
from eval_suite.report.best_checkpoint import best_of, chosen
from eval_suite.report.over_seeds import Evaluated, rows
from tests.eval_suite.report.compared import evaluated


def run(folder: Path, scores: dict[int, float], *, seed: int = 0, reported: str = "val") -> list[Evaluated]:
    """Return a run's evaluations with the AUROC of each step, ± 0.02."""
    made = []
    for step, value in scores.items():
        one = evaluated(folder, f"a-seed={seed}", seed=seed, step=step, ours=value, baselines={})
        one.results["reported_on"] = reported
        one.folder.mkdir(parents=True, exist_ok=True)
        made.append(one)
    return made


@pytest.mark.parametrize(
    ("newest", "noise"),
    [
        (0.88, "within noise (−0.8 to +4.8)"),  # 0.02 worse, ± 0.02·√2
        (0.86, "beyond noise (+1.2 to +6.8)"),
    ],
)
def test_the_best_is_found_and_the_newest_is_worse_beyond_noise_or_not(
    tmp_path: Path, newest: float, noise: str
):
    (best,) = best_of(rows(run(tmp_path, {100: 0.7, 200: 0.9, 300: newest}))[0])
    assert (best.row.step, best.newest.step) == (200, 300)
    assert best.beyond_noise == ("beyond" in noise)
    assert "a-seed=0: step 200 is best on val (linear probe, AUROC 90.0" in best.sentence
    assert noise in best.sentence


def test_the_newest_may_be_the_best_and_one_checkpoint_is_not_compared(tmp_path: Path):
    (best,) = best_of(rows(run(tmp_path, {100: 0.7, 200: 0.9}, reported="folds"))[0])
    assert best.sentence.endswith("it is the newest.") and "best out of fold" in best.sentence
    assert best_of(rows(run(tmp_path, {100: 0.7}))[0]) == []


def test_test_scores_choose_nothing(tmp_path: Path):
    made = run(tmp_path, {100: 0.7, 200: 0.9}, reported="test")
    for one, on_val in zip(made, (0.8, 0.6), strict=True):
        one.results["representations"]["pretrained"]["probe"] |= {
            "l2": 1.0,
            "val": [{"l2": 0.1, "auroc": 0.99}, {"l2": 1.0, "auroc": on_val}],
        }
        one.results["data"] = {"test": {"labelled": 400}, "val": {"labelled": 100}}
    found = chosen(made[0].results)
    # Only the chosen setting counts, and a quarter of the images has twice the interval.
    assert found == ("probe", "auroc", "val", 0.8, pytest.approx(0.04))
    (best,) = best_of(rows(made)[0])
    assert best.row.step == 100


def test_over_seeds_the_difference_is_paired(tmp_path: Path):
    made = [
        one
        for seed in range(3)
        for one in run(tmp_path, {1: 0.8 + seed / 10, 2: 0.79 + seed / 10}, seed=seed)
    ]
    made += run(tmp_path, {1: 0.1}, seed=3)  # it has no step 2, so it does not count
    (best,) = best_of(rows(made)[0])
    assert (best.row.step, best.newest.step, best.beyond_noise) == (1, 2, True)
    assert (best.low, best.high) == pytest.approx((0.01, 0.01))


def test_the_best_is_linked_beside_the_evaluations(tmp_path: Path):
    made = run(tmp_path, {100: 0.7, 200: 0.9, 300: 0.8})
    place = tmp_path / "runs/a-seed=0/eval/best"
    assert best_checkpoint.link(made) == ({place: made[1].folder}, [])
    assert place.readlink().name == "200"
    assert best_checkpoint.link(made[::2]) == ({place: made[2].folder}, [])
    assert place.readlink().name == "300"


def test_runs_in_one_folder_have_a_link_each(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    made = [
        Evaluated(one.results, out / f"{one.name}-{one.step}")
        for seed in (0, 1)
        for one in run(tmp_path, {100: 0.7, 200: 0.9}, seed=seed)
    ]
    best_checkpoint.link(made)
    assert {path.name: str(path.readlink()) for path in out.iterdir()} == {
        "best-a-seed=0": "a-seed=0-200",
        "best-a-seed=1": "a-seed=1-200",
    }


def test_without_links_a_file_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    best_checkpoint.link(run(tmp_path, {100: 0.7, 200: 0.9}))
    assert (tmp_path / "runs/a-seed=0/eval/best").read_text() == "200\n"


def test_a_folder_in_the_way_is_one_line(tmp_path: Path):
    made = run(tmp_path, {100: 0.7, 200: 0.9})
    (tmp_path / "runs/a-seed=0/eval/best").mkdir()
    links, notes = best_checkpoint.link(made)
    assert links == {} and len(notes) == 1 and notes[0].startswith("no link ")
