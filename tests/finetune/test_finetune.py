"""`isotorus finetune` as a user gives it, on small images: the folder it makes, resuming, the export."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from data_pipeline.dataset.index import Dataset
from eval_suite.features.embed import read_views
from eval_suite.inputs import find
from eval_suite.usefulness.probe import L2_GRID
from finetune.arguments import parse
from finetune.recipe import build, from_scratch
from finetune.train_and_compare import run
from isotorus.errors import UserError
from pretrain.checkpoint.export.export import export
from pretrain.checkpoint.mirror.address import copies
from pretrain.checkpoint.warm_start import initial_state
from pretrain.config import load_config
from pretrain.preflight.model import check_model
from pretrain.run_control.signals import Signals
from tests.eval_suite.eval_samples import CLASSES, KWARGS, pack, save_checkpoint

QUICK = (
    "--epochs",
    "3",
    "--min-steps",
    "1",
    "--batch-size",
    "10",
    "--workers",
    "0",
    "--lr",
    "0.003",
    "--features",
    "embedding",
    "tracking.enabled=false",
)

KEPT = ("--cutmix", "1", "checkpoint.every=4", "checkpoint.keep_last=null")


class Tuned(NamedTuple):
    encoder: Path
    splits: dict[str, Path]
    folder: Path
    said: str
    results: dict


def finetune(*arguments: object) -> str:
    """Run the command in this process; return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run(parse([*map(str, arguments)]), Signals(), 1) == 0
    return out.getvalue()


def scores_after_a_kill(whole: Path, again: Path, *command: object) -> dict:
    """Return the scores of a run of 12 steps that goes on in `again` from step 4 of `whole`.

    The command must end with the weights of the whole run.
    """
    shutil.copytree(whole, again, symlinks=True)
    for step in (8, 12):
        shutil.rmtree(again / f"checkpoints/step_{step:08d}")
    finetune(*command)
    for name in ("encoder.safetensors", "projector.safetensors"):
        one, other = (load_file(folder / "checkpoints/step_00000012" / name) for folder in (whole, again))
        assert all(torch.equal(one[key], other[key]) for key in one)
    return json.loads((again / "results.json").read_text())["scores"]


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("labelled")
    return {
        "train": pack(folder / "train", [*CLASSES] * 20 + [""] * 4, seed=0),
        "val": pack(folder / "val", [*CLASSES] * 10, seed=1),
        "test": pack(folder / "test", [*CLASSES] * 10, seed=2),
    }


def arguments(encoder: Path, splits: dict[str, Path], out: Path) -> list[object]:
    return [encoder, splits["train"], "--val", splits["val"], "--test", splits["test"], "--out", out, *QUICK]


@pytest.fixture(scope="session")
def tuned(packed: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A fine-tuning of 12 steps, beside a probe, with all checkpoints kept."""
    folder = tmp_path_factory.mktemp("tuned")
    encoder = save_checkpoint(folder / "encoder")
    said = finetune(*arguments(encoder, packed, folder / "run"), *KEPT)
    results = json.loads((folder / "run/results.json").read_text())
    return Tuned(encoder, packed, folder / "run", said, results)


def test_the_folder_has_scores_beside_the_probe_and_a_page(tuned: Tuned):
    scores = tuned.results["scores"]
    assert tuned.results["reported_on"] == "test" and tuned.results["names"] == sorted(CLASSES)
    for name in ("finetuned", "probe"):
        low, high = scores[name]["balanced_accuracy_interval"]
        assert low <= scores[name]["balanced_accuracy"] <= high
    found = tuned.results["differences"]["probe"]["balanced_accuracy"]
    assert found["value"] == pytest.approx(
        scores["finetuned"]["balanced_accuracy"] - scores["probe"]["balanced_accuracy"]
    )
    assert found["interval"][0] <= found["value"] <= found["interval"][1]
    page = (tuned.folder / "report.html").read_text()
    assert "&lt;b&gt;x&lt;/b&gt;" in page and "<b>x</b>" not in page
    assert f"isotorus export {tuned.folder}" in tuned.said


def test_the_best_step_on_val_is_the_one_in_the_folder(tuned: Tuned):
    rows = [json.loads(line) for line in (tuned.folder / "metrics.jsonl").read_text().splitlines()]
    scored = {row["step"]: row["val_balanced_accuracy"] for row in rows if "val_balanced_accuracy" in row}
    assert set(scored) == {4, 8, 12}
    best = max(scored, key=lambda step: (scored[step], -step))
    assert tuned.results["scores"]["finetuned"]["best_step"] == best
    found = json.loads((tuned.folder / "encoder.json").read_text())["blend"]
    assert set(found["val"]) == {"0", "0.25", "0.5", "0.75", "1"}
    assert found["val"][f"{found['share']:g}"] == max(found["val"].values())
    assert found["val"]["1"] == pytest.approx(scored[best])
    before = load_file(tuned.encoder / "encoder.safetensors")
    after = load_file(tuned.folder / f"checkpoints/step_{best:08d}/encoder.safetensors")
    for name, x in load_file(tuned.folder / "encoder.safetensors").items():
        torch.testing.assert_close(x, torch.lerp(before[name], after[name], found["share"]))


def test_a_hard_image_among_memorised_ones_is_no_fault(tuned: Tuned):
    """Losses of memorised labels are near 0, so one that is not would count as a spike and end the run."""
    assert yaml.safe_load((tuned.folder / "config.yaml").read_text())["guard"]["spike"] is None


def test_fine_tuning_starts_as_the_linear_probe(tuned: Tuned):
    """The layer that it starts from gives the log-odds of scikit-learn's fit at one of the strengths."""
    train = Dataset(str(tuned.splits["train"]))
    model = timm.create_model("vit_tiny_patch16_224", **KWARGS).eval()
    model.load_state_dict(load_file(tuned.encoder / "encoder.safetensors"))

    def embedded(dataset: Dataset) -> np.ndarray:
        pixels = torch.stack([read_views(dataset, i, 3, [32])[0] for i in range(len(dataset))]).float() / 255
        with torch.no_grad():
            return model((pixels - 0.5) / 0.2).numpy().astype(float)

    head = {name: x.numpy() for name, x in load_file(tuned.folder / "head.safetensors").items()}
    x, known = embedded(train), train.labels >= 0
    # scikit-learn orders the classes by number, and the network by name.
    order = np.argsort(np.argsort(train.classes))
    y = order[train.labels[known]]
    scale = x[known].std(0)
    found = (x @ head["0.weight"].T + head["0.bias"])[known]
    strengths = [
        LogisticRegression(C=1 / (l2 * known.sum()), class_weight="balanced", tol=1e-8, max_iter=10_000)
        .fit((x[known] - x[known].mean(0)) / scale, y)
        .decision_function((x[known] - x[known].mean(0)) / scale)
        for l2 in L2_GRID
    ]
    ours = found[:, 1] - found[:, 0]
    assert min(np.abs(ours - each).max() for each in strengths) < 0.01


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(tuned: Tuned, tmp_path: Path):
    """A kill leaves the checkpoint of step 4; mixed images, the best score and the order of data go on."""
    again = tmp_path / "run"
    scores = scores_after_a_kill(tuned.folder, again, *arguments(tuned.encoder, tuned.splits, again), *KEPT)
    assert scores["finetuned"] == tuned.results["scores"]["finetuned"]


def test_the_exported_timm_model_gives_the_classes(tuned: Tuned, tmp_path: Path):
    export(tuned.folder, tmp_path / "model")
    model = timm.create_model(f"local-dir:{tmp_path}/model", pretrained=True).eval()
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["label_names"] == sorted(CLASSES) and model.num_classes == 2
    described = json.loads((tuned.folder / "encoder.json").read_text())
    test = Dataset(str(tuned.splits["test"]))
    pixels = torch.stack([read_views(test, i, 3, [32])[0] for i in range(len(test))]).float() / 255
    mean, std = (torch.tensor(described[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        predicted = model((pixels - mean) / std).argmax(1).numpy()
    confusion = np.zeros((2, 2), int)
    names = [test.classes[label] for label in test.labels]
    np.add.at(confusion, ([sorted(CLASSES).index(name) for name in names], predicted), 1)
    assert confusion.tolist() == tuned.results["scores"]["finetuned"]["confusion"]


def test_numbers_of_a_table_come_back_in_their_units(tuned: Tuned, tmp_path: Path):
    table = tmp_path / "table.csv"
    keys = [str(i) for i in range(44)]
    rows = [f"{key},{100.5 + 10 * (i % 2)},{i}" for i, key in enumerate(keys)]
    table.write_text("\n".join(["key,level,number", *rows]))
    out = tmp_path / "numbers"
    targets = ["--targets", table, "--target-columns", "level", "--baselines", "none"]
    finetune(*arguments(tuned.encoder, tuned.splits, out), *targets)
    results = json.loads((out / "results.json").read_text())
    assert results["task"] == "regression" and results["score"] == "r2"
    assert results["scores"]["finetuned"]["mae"] < 10
    described = json.loads((out / "encoder.json").read_text())["supervised"]
    assert described["center"] == pytest.approx([105.5]) and described["scale"] == pytest.approx([5.0])
    export(out, tmp_path / "model")
    model = timm.create_model(f"local-dir:{tmp_path}/model", pretrained=True).eval()
    with torch.no_grad():
        assert 80 < model(torch.zeros(1, 3, 32, 32)).item() < 130


@pytest.mark.parametrize(
    ("labels", "changes", "said"),
    [
        ([""] * 6, {}, "train has no labels"),
        (["a"] * 6, {}, "one class, a"),
        (["a", "b"] * 3, {}, "val has classes of which train has no labelled image"),
        ([*CLASSES] * 3, {"--targets": "t.csv", "--target-columns": "x"}, "no column"),
        ([*CLASSES] * 3, {"--out": "taken"}, "has other files"),
        ([*CLASSES] * 3, {"--freeze": 9}, "has 2 blocks"),
        ([*CLASSES] * 3, {"--mixup": 1, "--batch-size": 5}, "pairs"),
    ],
)
def test_refusals(
    labels: list[str], changes: dict[str, object], said: str, tuned: Tuned, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("key,y\n0,1\n")
    Path("taken").mkdir()
    Path("taken/notes.txt").write_text("mine")
    train = pack(tmp_path / "train", labels, seed=0)
    given = {"--val": tuned.splits["val"], "--out": tmp_path / "out", "--workers": 0} | changes
    options = [x for pair in given.items() for x in pair]
    with pytest.raises(UserError, match=said) as refused:
        run(parse([*map(str, (tuned.encoder, train, *options))]), Signals(), 1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.sources=[{path: other}]", "data.sources: the argument SHARDS decides this"),
        ("objective.targets.labels=5", "objective.targets.labels: the argument --labels decides this"),
        ("objective.targets={labels: 5}", "objective.targets: the argument --targets decides this"),
        ("objective.kind=lejepa", "objective.kind: the argument --target-kind decides this"),
        ("objective={balanced: false}", "objective is a section of which the command decides some fields"),
    ],
)
def test_fields_that_options_decide_are_refused(override: str, said: str, tuned: Tuned, tmp_path: Path):
    """The comparison follows the options, so it would be one with other data."""
    with pytest.raises(UserError, match=re.escape(said)):
        finetune(*arguments(tuned.encoder, tuned.splits, tmp_path / "run"), override)


def test_other_options_for_a_folder_are_refused(tuned: Tuned):
    with pytest.raises(UserError, match=r"was made with optimizer.lr=0.003, not 0.1"):
        finetune(*arguments(tuned.encoder, tuned.splits, tuned.folder), *KEPT, "--lr", "0.1")


def test_the_cache_is_no_place_for_a_run(tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="lies in the cache, which may be emptied"):
        finetune(*arguments(tuned.encoder, tuned.splits, copies() / "mine-tuned"), *KEPT)


def test_a_mirror_that_cannot_be_used_is_refused_before_training(tuned: Tuned, tmp_path: Path):
    (tmp_path / "file").touch()
    given = [*arguments(tuned.encoder, tuned.splits, tmp_path / "run"), *KEPT]
    with pytest.raises(UserError, match=r"^checkpoint\.mirror: .* cannot be written "):
        finetune(*given, f"checkpoint.mirror=file://{tmp_path}/file/runs")
    assert not (tmp_path / "run").exists()


def test_baselines_of_two_fine_tunings_are_not_mirrored_to_one_place(recipe: Path):
    supervised = "objective={kind: supervised, val: x, task: multiclass, outputs: 2}"
    overrides = ["checkpoint.mirror=s3://bucket/runs/", supervised]
    places = [from_scratch(load_config(str(recipe), [*overrides, f"name={x}"])).mirror for x in ("a", "b")]
    assert places == [f"s3://bucket/runs/{x}/baselines/scratch" for x in ("a", "b")]


def test_an_encoder_of_smaller_crops_than_evaluations_show_keeps_its_position_embedding(
    packed: dict[str, Path], tmp_path: Path
):
    """A run with views.whole_size is evaluated, and so fine-tuned, on larger images than its crops."""
    encoder = save_checkpoint(tmp_path / "encoder", image_size=48, kwargs=KWARGS | {"dynamic_img_size": True})
    (checkpoint,) = find.find([str(encoder)])
    tuned = build(parse([*map(str, arguments(encoder, packed, tmp_path / "run"))]), checkpoint)
    model = check_model(tuned, 1)
    assert tuned.views.global_size == 48 and model.kwargs["img_size"] == 32
    state = initial_state(tuned.encoder.name, model.kwargs, 0, str(tuned.encoder.weights))
    assert torch.equal(state["pos_embed"], load_file(encoder / "encoder.safetensors")["pos_embed"])
