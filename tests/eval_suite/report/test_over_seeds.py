"""Runs that differ by their seed alone are one row, with t-intervals over seeds and paired differences."""

import copy
from pathlib import Path
from typing import Any

import pytest

from eval_suite.report import over_seeds
from eval_suite.report.comparison_page import differences, level
from eval_suite.report.over_seeds import Row, rows
from eval_suite.report.standing import standings
from tests.eval_suite.report.compared import evaluated

T2 = 4.302652729911275
"""97.5 % quantile of Student's t with two degrees of freedom, from a table."""


def three(folder: Path, prefix: str = "a", config: dict[str, Any] | None = None, shift: float = 0) -> list:
    """Return three runs with seeds 0 to 2; AUROC .80, .82, .87; pixels .79, .80, .84; all plus `shift`."""
    values = [(0.80, 0.79), (0.82, 0.80), (0.87, 0.84)]
    return [
        evaluated(
            folder,
            f"{prefix}-seed={seed}",
            seed=seed,
            config=config,
            ours=ours + shift,
            baselines={"untrained": (0.5, (0.2, 0.4)), "pixels": (pixels + shift, (-0.02, 0.06))},
        )
        for seed, (ours, pixels) in enumerate(values)
    ]


def test_three_seeds_are_one_row_with_mean_and_t_interval(tmp_path: Path):
    (row,), notes = rows(three(tmp_path))
    assert (row.name, row.seeds, row.step, notes) == ("a", (0, 1, 2), 500, [])
    found = row.results["representations"]["pretrained"]["probe"]
    assert found["auroc"] == pytest.approx(0.83)
    half = T2 * 0.0360555 / 3**0.5  # the deviations −.03, −.01, .04 have the variance .0026 / 2
    assert found["auroc_interval"] == pytest.approx([0.83 - half, 0.83 + half], abs=1e-5)


def test_differences_are_paired_by_seed(tmp_path: Path):
    (row,), _ = rows(three(tmp_path))
    (standing,) = standings(row.results)
    assert standing.best.baseline == "pixels"
    # The differences .01, .02, .03 have the mean .02 and the deviation .01. Unpaired, the intervals of the
    # two means, about ± .09 and ± .07, would hide it.
    half = T2 * 0.01 / 3**0.5
    assert standing.best[1:] == pytest.approx((0.02, 0.02 - half, 0.02 + half))
    assert standing.outcome == "ahead of untrained"


def test_what_does_not_shape_the_encoder_may_differ(tmp_path: Path):
    runs = [
        evaluated(tmp_path, "x", seed=0, baselines={}, config={"runs": "here", "log_every": 10}),
        evaluated(tmp_path, "y", seed=1, baselines={}, config={"engine": {"kind": "fsdp"}, "engine.x": 1}),
    ]
    assert len(rows(runs)[0]) == 2  # engine.x is no field of the section, so these two are different
    runs[1] = evaluated(tmp_path, "y", seed=1, baselines={}, config={"tracking": {"enabled": False}})
    (row,), _ = rows(runs)
    assert row.name == "x, y"


def test_other_settings_are_other_rows_and_rows_are_compared_seed_by_seed(tmp_path: Path):
    slow = three(tmp_path, "a-lr=1", {"optimizer": {"lr": 1}})
    fast = three(tmp_path, "a-lr=2", {"optimizer": {"lr": 2}}, shift=0.01)
    made, _ = rows([*slow, *fast])
    assert [(row.name, row.seeds) for row in made] == [("a-lr=1", (0, 1, 2)), ("a-lr=2", (0, 1, 2))]
    # Each seed is better by .01, so the difference is certain though the intervals over seeds overlap.
    assert over_seeds.paired(made[1], made[0], "probe/auroc") == pytest.approx([0.01] * 3)
    assert level(made, "probe/auroc") == [made[1]]
    table = differences(made)
    assert table["columns"] == ["over the untrained encoder", "over raw pixels", "over a-lr=2"]
    (_, (_, pixels, worse)), (_, (_, _, itself)) = table["rows"]
    assert pixels.value == pytest.approx(0.02) and itself is None
    assert (worse.value, worse.low, worse.high) == pytest.approx((-0.01, -0.01, -0.01))


def test_a_row_has_one_step_and_a_shorter_run_is_named(tmp_path: Path):
    def at(seed: int, step: int):
        return evaluated(
            tmp_path, f"a-seed={seed}", seed=seed, step=step, baselines={}, ours=0.1 * (seed + 1)
        )

    made, notes = rows([at(0, 250), at(0, 500), at(1, 250), at(1, 500), at(2, 250)])
    assert [(row.step, row.seeds) for row in made] == [(250, (0, 1, 2)), (500, (0, 1))]
    assert notes == ["a-seed=2 is not in rows after step 250, its newest; a-seed=0 has step 500"]


def test_a_run_of_another_length_is_kept_apart_and_named(tmp_path: Path):
    short = evaluated(tmp_path, "a-seed=3", seed=3, baselines={}, step=250, config={"steps": 250})
    made, notes = rows([*three(tmp_path), short])
    assert [row.seeds for row in made] == [(0, 1, 2), ()]
    assert notes == ["a-seed=3 is a row of its own: it has steps=250, other seeds 500"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "its config.yaml is missing"),
        ("- 1", "its config.yaml holds no keys and values"),
        ("a: [", "its config.yaml is not YAML"),
        ("name: b", "its config.yaml has no seed"),
    ],
)
def test_a_run_without_a_readable_configuration_is_a_row_of_its_own(
    tmp_path: Path, text: str | None, reason: str
):
    odd = evaluated(tmp_path, "b", seed=None, baselines={})
    if text is not None:
        (tmp_path / "runs/b/config.yaml").write_text(text)
    made, notes = rows([*three(tmp_path), odd])
    assert [row.name for row in made] == ["a", "b"]
    assert notes == [f"b is a row of its own: {reason}"]


def test_a_seed_counts_once(tmp_path: Path):
    again = evaluated(tmp_path, "again", seed=2, baselines={"untrained": (0.5, (0.2, 0.4))})
    made, notes = rows([*three(tmp_path), again])
    assert [row.seeds for row in made] == [(0, 1, 2), ()]
    assert notes == ["again is a row of its own: it has the settings and the seed of a-seed=2"]


def test_a_score_that_one_seed_lacks_is_the_mean_of_the_others(tmp_path: Path):
    runs = three(tmp_path)
    del runs[1].results["representations"]["pixels"]["probe"]
    del runs[1].results["differences"]["pixels"]
    (row,), notes = rows(runs)
    assert row.results["representations"]["pixels"]["probe"]["auroc"] == pytest.approx((0.79 + 0.84) / 2)
    assert row.results["differences"]["pixels"]["probe"]["auroc"]["value"] == pytest.approx(0.02)
    assert row.results["representations"]["pretrained"]["probe"]["auroc"] == pytest.approx(0.83)
    assert notes == [
        "a-seed=1 has no linear probe score of raw pixels; its row has the mean of the other seeds"
    ]


def test_runs_of_one_name_are_told_apart(tmp_path: Path):
    made, _ = rows([evaluated(tmp_path / place, "a", seed=None, baselines={}) for place in ("x", "y")])
    assert [row.name for row in made] == [f"a ({tmp_path}/{place}/runs/a)" for place in ("x", "y")]


def test_a_single_evaluation_stays_as_it_is(tmp_path: Path):
    (one, *_) = three(tmp_path)
    before = copy.deepcopy(one.results)
    (row,), notes = rows([one])
    assert isinstance(row, Row) and row.results == before and row.seeds == () and notes == []
