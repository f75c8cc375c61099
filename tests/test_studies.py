"""The studies: their runs are recipes, come in order, and are done once by however many processes."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import Config, load_config
from studies.geometry.further import FURTHER
from studies.geometry.order import Task, missing
from studies.geometry.plan import OBJECTIVES, grid, run
from studies.running import add_row, claim
from studies.torus.runs import RUNS

STUDIES = Path(__file__).resolve().parent.parent / "studies"
BASE = str(STUDIES / "geometry" / "base.yaml")


def planned(objective: str) -> list[Config]:
    """Return the configurations of an objective's grid and of the last seed of its last point."""
    tuning = grid(objective)
    last = run(objective, tuning[-1].learning_rate, tuning[-1].weight, OBJECTIVES[objective].seeds - 1)
    return [load_config(BASE, [f"name={x.name}", *x.overrides]) for x in (*tuning, last)]


def row(task: Task, score: float) -> dict[str, Any]:
    """Return the least that a row has."""
    return task.run._asdict() | {"stage": task.stage, "val": {"knn": score, "minibatch_probe": score}}


def all_tasks(names: list[str]) -> list[Task]:
    """Return all tasks in the order in which one process does them; larger weights score higher."""
    rows: list[dict[str, Any]] = []
    done: list[Task] = []
    while left := missing(rows, names):
        done.append(left[0])
        rows.append(row(left[0], left[0].run.weight))
    return done


@pytest.mark.parametrize("name", RUNS)
def test_runs_of_the_torus_study_are_recipes(name: str) -> None:
    config = load_config(str(RUNS[name].recipe), [f"name={name}", *RUNS[name].settings])
    alone = name.startswith(("lejepa", "long", "weight-1"))
    assert config.objective.kind == ("lejepa" if alone else "torus")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_tuned_with_the_same_effort(objective: str) -> None:
    """Four points, and nothing but the objective, its views and the learning rate differs from the others."""
    configs, lejepa = planned(objective), planned("lejepa")
    assert len({x.name for x in configs}) == len(configs) == 5
    for config, other in zip(configs, lejepa, strict=True):
        assert config.optimizer.lr == other.optimizer.lr
        assert (config.steps, config.data, config.encoder) == (other.steps, other.data, other.encoder)
        assert config.views.global_size == other.views.global_size


def test_grids_come_first_then_seeds_of_the_best_points_then_further_runs() -> None:
    tasks = all_tasks([*OBJECTIVES, *FURTHER])
    assert [task.stage for task in tasks[:40]] == ["val"] * 40
    assert [task.run.objective for task in tasks[:40:4]] == list(OBJECTIVES)
    seeds = tasks[40 : 40 + sum(x.seeds for x in OBJECTIVES.values())]
    assert list(dict.fromkeys(task.run.objective for task in seeds)) == list(OBJECTIVES)
    for task in seeds:
        assert task.stage == "test"
        assert task.run.weight == max(OBJECTIVES[task.run.objective].weights)
    further = [task.run.objective for task in tasks[40 + len(seeds) :]]
    assert Counter(further) == {
        "lejepa_500_images": 2, "lejepa_2000_images": 2, "lejepa_8000_images": 2, "toroidal_N8_heat": 3,
        "toroidal_N8_vit_softmax": 3, "toroidal_N8_vit_winding": 3,
    }  # fmt: skip
    assert len({task.key for task in tasks}) == len(tasks)


def test_further_runs_differ_from_their_point_in_what_their_name_says() -> None:
    runs = {task.run.name: task.run for task in all_tasks(list(FURTHER)) if task.stage == "test"}
    configs = {name: load_config(BASE, [f"name={name}", *x.overrides]) for name, x in runs.items()}
    for name, config in configs.items():
        point = run("lejepa" if "images" in name else "toroidal_N8", *runs[name][3:6])
        other = load_config(BASE, [f"name={name}", *point.overrides]).model_dump()
        differs = {key for key, value in config.model_dump().items() if value != other[key]}
        assert differs == {"data" if "images" in name else "objective" if "heat" in name else "encoder"}
    winding = [config for name, config in configs.items() if "winding" in name]
    assert {config.encoder.attention for config in winding} == {"winding"}


def test_a_grid_whose_runs_all_failed_ends_the_objective_and_not_the_study() -> None:
    rows = [row(Task(each, "val"), 0.5) | {"failed": "training"} for each in grid("vicreg")]
    assert missing(rows, ["vicreg"]) == []
    assert (
        missing([*rows[:3], row(Task(grid("vicreg")[3], "val"), 0.1)], ["vicreg"])[0].run.learning_rate
        == 3e-3
    )


WRITER = """
import sys
from pathlib import Path
from studies.running import add_row, claim

folder = Path(sys.argv[1])
for n in range(40):
    with claim(folder / str(n)) as held:
        if held is not None and not (folder / f"{n}.done").exists():
            add_row(folder / "rows.jsonl", {"name": n, "long": "x" * 20_000})
            (folder / f"{n}.done").touch()
"""


def test_processes_share_runs_and_their_rows_stay_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=STUDIES.parent) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sorted(each["name"] for each in rows) == list(range(40))


def test_a_row_after_one_that_was_cut_off_stays_whole(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"name": "a"}\n{"name": "b", "cut o')
    add_row(file, {"name": "c"})
    assert file.read_text().splitlines()[-1] == '{"name": "c"}'


def test_a_child_keeps_the_lock_of_a_runner_that_was_killed(tmp_path: Path) -> None:
    """Otherwise a second runner would start a run that is still being trained."""
    runner = (
        "import sys; from pathlib import Path; from studies.running import claim, python\n"
        f"with claim(Path({str(tmp_path / 'lock')!r})) as held:\n"
        f"    python(Path({str(tmp_path)!r}), ['-c', {CHILD!r}], held=held)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", runner], cwd=STUDIES.parent)
    try:
        wait_for(tmp_path / "started")
    finally:
        process.kill()
        process.wait()
    with claim(tmp_path / "lock") as held:
        assert held is None
    (tmp_path / "end").touch()
    wait_for(tmp_path / "ended")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with claim(tmp_path / "lock") as held:
            if held is not None:
                return
        time.sleep(0.05)
    pytest.fail("the lock is held although the child has ended")


CHILD = """
import time
from pathlib import Path
Path("started").touch()
for _ in range(600):
    if Path("end").exists():
        break
    time.sleep(0.1)
Path("ended").touch()
"""


def wait_for(file: Path) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, f"{file.name} did not come"
        time.sleep(0.05)
