"""The runs that studies plan are accepted as recipes, so that no study fails after hours of training."""

from pathlib import Path

import pytest

from pretrain.config import Config, load_config
from studies.geometry.plan import OBJECTIVES, grid, run
from studies.torus.runs import RUNS

STUDIES = Path(__file__).resolve().parent.parent / "studies"


def planned(objective: str) -> list[Config]:
    """Return the configurations of an objective's grid and of the last seed of its last point."""
    tuning = grid(objective)
    last = run(objective, tuning[-1].learning_rate, tuning[-1].weight, OBJECTIVES[objective].seeds - 1)
    base = str(STUDIES / "geometry" / "base.yaml")
    return [load_config(base, [f"name={x.name}", *x.overrides]) for x in (*tuning, last)]


@pytest.mark.parametrize("name", RUNS)
def test_runs_of_the_torus_study_are_recipes(name: str) -> None:
    config = load_config(str(RUNS[name].recipe), [f"name={name}", *RUNS[name].settings])
    assert config.objective.kind == ("lejepa" if "lejepa" in name or name == "weight-1" else "torus")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_tuned_with_the_same_effort(objective: str) -> None:
    """Four points, and nothing but the objective, its views and the learning rate differs from the others."""
    configs, lejepa = planned(objective), planned("lejepa")
    assert len({x.name for x in configs}) == len(configs) == 5
    for config, other in zip(configs, lejepa, strict=True):
        assert config.optimizer.lr == other.optimizer.lr
        assert (config.steps, config.data, config.encoder) == (other.steps, other.data, other.encoder)
        assert config.views.global_size == other.views.global_size
