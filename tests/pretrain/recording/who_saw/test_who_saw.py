"""`who-saw` beside the batches that the loader gives, also for mixtures, removed images and changed runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.__main__ import main as data_pipeline
from data_pipeline.dataset.index import Dataset
from data_pipeline.loader import Loader
from data_pipeline.sources import Sources
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from isotorus.errors import UserError
from pretrain.methods.config import SupervisedConfig
from pretrain.recording.who_saw.command import main
from pretrain.supervised.task import read_task

FORMATS = Path(__file__).parents[3] / "formats"
SOURCE = {"path": "sets/cells/train", "weight": 1.0}
Answer = Callable[..., dict[str, Any]]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder, made the current one, with data sets and a run of an earlier version."""
    shutil.copytree(FORMATS / "sets", tmp_path / "sets")
    shutil.copytree(FORMATS / "runs/lejepa", tmp_path / "runs/one", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    def ask(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    return ask


def checkpoint(run: Path, step: int, data: dict[str, Any], fingerprint: str, **more: Any) -> Path:
    """Write another checkpoint of the run with other facts in its encoder.json."""
    folder = run / f"checkpoints/step_{step:08d}"
    before = run / "checkpoints/step_00000006/encoder.json"
    facts = json.loads((FORMATS / "runs/lejepa/checkpoints/step_00000006/encoder.json").read_text())
    facts["config"]["data"] |= data
    facts |= {"step": step, "data_fingerprint": fingerprint} | more
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "encoder.json").unlink(missing_ok=True)
    (folder / "encoder.json").write_text(json.dumps(facts))
    shutil.copy(FORMATS / "runs/lejepa/checkpoints/step_00000006/COMPLETE", folder / "COMPLETE")
    assert before.exists() or step
    return folder


def first_steps(sources: Sources, steps: int, order: str = "uniform", batch_size: int = 6) -> dict[int, int]:
    """Return the step, counted from 1, in which the loader first gives each sample."""
    views = ViewsConfig(global_size=8, local_views=0)
    loader = Loader(
        sources, batch_size=batch_size, views=views, augment=AugmentConfig(), channels=3, seed=0, order=order
    )
    seen: dict[int, int] = {}
    for step, batch in zip(range(1, steps + 1), loader, strict=False):
        for index in batch.indices.tolist():
            seen.setdefault(index, step)
    return seen


def test_the_steps_are_those_of_the_loader(work: Path, answer: Answer):
    dataset = Dataset("sets/cells/train")
    seen = first_steps(Sources([dataset], [1.0]), 6)
    checkpoint(work / "runs/one", 2, {}, dataset.fingerprint)
    for i in range(len(dataset)):
        (found,) = answer("sets/cells", dataset.key(i))["runs"]
        assert found["first_step"] == seen[i], i
        held = ["step_00000002"] * (seen[i] <= 2) + ["step_00000006"]
        assert [Path(each).name for each in found["checkpoints"]] == held
        assert found["results"] == ["runs/one/eval/6/results.json"]


@pytest.mark.parametrize("order", ["uniform", "windowed"])
def test_mixtures_and_sets_that_changed_since(work: Path, answer: Answer, order: str):
    old, cells = Dataset("sets/grown", generation=1), Dataset("sets/cells/train")
    sources = Sources([cells, old], [3.0, 1.0])
    given = [SOURCE | {"weight": 3.0}, {"path": "sets/grown", "weight": 1.0}]
    data = {"path": None, "sources": given, "order": order, "batch_size": 4}
    checkpoint(work / "runs/two", 9, data, sources.fingerprint)
    (work / "runs/two/config.yaml").touch()
    seen = first_steps(sources, 9, order, 4)
    first = {old.key(i): seen.get(len(cells) + i) for i in range(len(old))}
    added = Dataset("sets/grown").key(len(old))
    for removed in range(3):
        for key, step in first.items():
            runs = answer("sets/grown", key)["runs"]
            assert [each["first_step"] for each in runs] == ([step] if step else []), (key, removed)
        assert answer("sets/grown", added)["runs"] == []
        (work / "keys.txt").write_text("\n".join(list(first)[removed * 2 : removed * 2 + 2]))
        data_pipeline(["remove", "sets/grown", "--keys", "keys.txt", "--workers", "1"])
        data_pipeline(["compact", "sets/grown", "--workers", "1"])
    assert len(Dataset("sets/grown")) == 7


def test_batches_that_were_passed_over_move_the_order(work: Path, answer: Answer):
    dataset = Dataset("sets/cells/train")
    row = {"batch": 3, "taken_back_to": 1, "passed_over": 2}
    (work / "runs/one/skipped.jsonl").write_text(json.dumps(row) + "\n")
    batches = first_steps(Sources([dataset], [1.0]), 8)
    late = next(i for i, batch in batches.items() if batch == 4)  # first seen in batch 3, which is step 2
    assert answer("sets/cells", dataset.key(late))["runs"][0]["first_step"] == 2


def test_first_weights_of_another_run_know_what_it_saw(work: Path, answer: Answer):
    weights = str(work / "runs/one/checkpoints/step_00000006/encoder.safetensors")
    other = Dataset("sets/plain")
    started = {"file": weights, "sha256": "0" * 64}
    checkpoint(work / "runs/tuned", 3, {"path": "sets/plain"}, other.fingerprint, warm_start=started)
    (work / "runs/tuned/config.yaml").touch()
    key = Dataset("sets/cells/train").key(0)
    found = {each["run"]: each for each in answer("sets/cells", key)["runs"]}
    assert found["runs/tuned"]["weights"] == weights and found["runs/tuned"]["first_step"] == 0
    assert answer("sets/plain", other.key(0))["runs"][0]["run"] == "runs/tuned"


def test_runs_that_cannot_be_judged_are_named(work: Path, answer: Answer, capsys: pytest.CaptureFixture[str]):
    key = Dataset("sets/cells/train").key(0)
    for name in ("empty", "broken", "gone"):
        (work / "runs" / name).mkdir()
        (work / "runs" / name / "config.yaml").touch()
    (checkpoint(work / "runs/broken", 6, {}, "0") / "encoder.json").write_text("{")
    checkpoint(work / "runs/gone", 6, {"path": "sets/absent"}, "f" * 16)
    told = answer("sets/cells", key)
    assert sorted(told["cannot_be_told"]) == ["runs/broken", "runs/empty", "runs/gone"]
    assert main(["sets/cells", key]) == 0
    said = capsys.readouterr().out
    assert "runs/empty: not known: it has no complete checkpoint" in said
    assert "runs affected: 1; not affected: 0; not known: 3" in said
    for arguments, message in (
        (["sets/cells"], "no image is named"),
        (["sets/cells", "nothing"], "1 of 1 names are in no set"),
        (["sets/cells", key, "--runs", "sets"], "is no run and holds none"),
    ):
        with pytest.raises(UserError, match=message):
            main(arguments)


def test_a_run_that_read_other_data_before(work: Path, answer: Answer):
    """Its first checkpoints are gone, and its newest says how it read until step 4."""
    cells, plain = Dataset("sets/cells/train"), Dataset("sets/plain")
    run = work / "runs/two"
    first = json.loads(
        (checkpoint(run, 4, {"batch_size": 4}, cells.fingerprint) / "encoder.json").read_text()
    )
    shutil.rmtree(run / "checkpoints")
    now = {"path": "sets/plain", "batch_size": 4}
    checkpoint(run, 6, now, plain.fingerprint, seed=0, readings_before=[first])
    (run / "config.yaml").touch()
    seen = first_steps(Sources([cells], [1.0]), 4, batch_size=4)
    for i in range(len(cells)):
        found = {each["run"]: each for each in answer("sets/cells", cells.key(i))["runs"]}
        assert found.get("runs/two", {}).get("first_step") == seen.get(i), i


def test_a_run_that_visited_only_images_with_a_target(work: Path, answer: Answer):
    cells, val = Dataset("sets/cells/train"), Dataset("sets/cells/val")
    known = np.arange(len(cells)) % 3 > 0
    keys = [cells.key(int(i)) for i in np.flatnonzero(known)] + [val.key(i) for i in range(len(val))]
    lines = [f"{key},{i % 2 + 0.5 * i}" for i, key in enumerate(keys)]
    (work / "ages.csv").write_text("\n".join(["key,age", *lines]))
    targets = {"file": "ages.csv", "columns": ["age"]}
    objective = {
        "kind": "supervised",
        "task": "regression",
        "outputs": 1,
        "val": val.path,
        "targets": targets,
    }
    task = read_task(SupervisedConfig.model_validate(objective), [cells], 3)
    of = {"images": int(known.sum()), "channels": 3, "supervised": task.describe()}
    folder = checkpoint(work / "runs/two", 3, {}, cells.fingerprint, **of)
    facts = json.loads((folder / "encoder.json").read_text())
    facts["config"]["objective"] = objective
    (folder / "encoder.json").write_text(json.dumps(facts))
    (work / "runs/two/config.yaml").touch()
    seen = first_steps(Sources([cells], [1.0]).only(task.known), 3)
    for i in range(len(cells)):
        found = {each["run"]: each for each in answer("sets/cells", cells.key(i))["runs"]}
        assert found.get("runs/two", {}).get("first_step") == seen.get(i), i
    (work / "ages.csv").unlink()
    told = answer("sets/cells", cells.key(0))["cannot_be_told"]["runs/two"]
    assert f"it trained on {known.sum()} of {len(cells)} images" in told


@pytest.mark.parametrize(
    "facts", [{"config": "x"}, {"warm_start": 5}, {"warm_start": {"file": "\0"}}, {"readings_before": [1]}]
)
def test_damaged_descriptions_are_said_in_a_line(work: Path, answer: Answer, facts: dict[str, Any]):
    file = work / "runs/one/checkpoints/step_00000006/encoder.json"
    content = json.loads(file.read_text()) | facts
    file.unlink()
    file.write_text(json.dumps(content))
    told = answer("sets/cells", Dataset("sets/cells/train").key(0))
    assert len(told["runs"]) + len(told["cannot_be_told"]) == 1
