"""`python -m eval_suite layers` measures checkpoints and writes one page and its numbers."""

import contextlib
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from eval_suite.layers import command, quantities
from isotorus.errors import exit_code
from pretrain.models.encoder import build_encoder
from tests.eval_suite.eval_samples import Outcome, save_checkpoint

STEPS = (10, 20, 30)


def layers(*arguments: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exit_code(lambda: command.main([str(x) for x in arguments]))
    return Outcome(code, out.getvalue(), err.getvalue())


def tilt(checkpoint: Path, share: float) -> None:
    """Add noise to every weight of a checkpoint, `share` times as large as the weights."""
    weights = load_file(checkpoint / "encoder.safetensors")
    generator = torch.Generator().manual_seed(int(1000 * share))
    moved = {
        name: x + share * x.std(correction=0) * torch.randn(x.shape, generator=generator)
        for name, x in weights.items()
    }
    save_file(moved, checkpoint / "encoder.safetensors")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of three checkpoints: the second equals the first, the third has changed weights."""
    folder = tmp_path_factory.mktemp("layers") / "tiny <i>run</i>"
    for step in STEPS:
        checkpoint = save_checkpoint(folder / "checkpoints" / f"step_{step:08d}", step=step)
        if step == 30:
            tilt(checkpoint, 0.2)
    uri = f"sqlite:///{folder.parent / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("layers", artifact_location=str(folder.parent / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    (folder / "mlflow.json").write_text(json.dumps({"uri": uri, "experiment": "layers", "run_id": run_id}))
    return folder


@pytest.fixture(scope="module")
def measured(training: Path, splits: dict[str, Path]) -> dict[str, Any]:
    """Measure every quantity of the run once and return layers.json."""
    every = ",".join(quantities.NAMES)
    uri = f"sqlite:///{training.parent / 'mlflow.db'}"
    options = ["--data", splits["train"], "--metrics", every, "--few", 4, "--mlflow", uri]
    done = layers(training, "--every", 10, *options)
    assert done.code == 0, done.err
    return json.loads((training / "eval" / "layers" / "layers.json").read_text())


def values(measured: dict[str, Any], name: str) -> list[list[float | None]]:
    (run,) = measured["runs"]
    return [checkpoint["values"][name] for checkpoint in run["checkpoints"]]


def test_every_quantity_has_a_value_for_every_block_and_checkpoint(measured: dict[str, Any]):
    (run,) = measured["runs"]
    assert run["blocks"] == ["blocks.0", "blocks.1"]
    assert [checkpoint["step"] for checkpoint in run["checkpoints"]] == list(STEPS)
    # Matrices of 24 columns are too small for the tail of a spectrum.
    for name in set(quantities.NAMES) - {"heavy_tail", *quantities.NEEDS_BEFORE}:
        for row in values(measured, name):
            assert len(row) == 2 and all(isinstance(x, float) for x in row), name
    assert measured["failures"] == []


def test_holonomy_has_a_map_over_images(measured: dict[str, Any]):
    (run,) = measured["runs"]
    assert [len(x["defect"]) for x in run["holonomy_maps"]] == [4, 4]
    for shown in run["holonomy_maps"]:
        assert all(0 < x < 2 for row in shown["defect"] for x in row)


def test_paths_of_the_last_checkpoint_stand_beside_the_untrained_encoder(
    measured: dict[str, Any], training: Path
):
    (run,) = measured["runs"]
    text = (training / "eval" / "layers" / "layers.html").read_text()
    assert len(run["paths"]) == 6 and "Paths of augmented images" in text and "At the last block, " in text
    for row in run["paths"]:
        assert len(row["trained"]) == len(row["untrained"]) == 3  # the pixels and two blocks
        assert row["trained"][0] == row["untrained"][0]
        assert row["trained"][2]["low"] < row["trained"][2]["angle"] < row["trained"][2]["high"]
    of_last = sum(row["trained"][2]["angle"] for row in run["paths"]) / 6
    assert values(measured, "bending")[2][1] == pytest.approx(of_last)


def test_equal_checkpoints_measure_the_same_and_did_not_move(measured: dict[str, Any]):
    for name in quantities.NAMES:
        first, second, _ = values(measured, name)
        if name not in quantities.NEEDS_BEFORE:
            assert first == second, name
    for name in quantities.NEEDS_BEFORE:
        first, second, third = values(measured, name)
        assert first == [None, None]
        assert second == [0, 0]
        assert all(x > 0 for x in third)


def test_rotation_is_the_angle_that_the_weights_were_moved_by(measured: dict[str, Any], training: Path):
    before, after = (
        load_file(training / "checkpoints" / f"step_{step:08d}" / "encoder.safetensors") for step in (20, 30)
    )
    matrices = [name for name, x in before.items() if name.startswith("blocks.0.") and x.ndim > 1]
    cosines = torch.cat([torch.cosine_similarity(before[n].double(), after[n].double()) for n in matrices])
    expected = math.degrees(float(cosines.clamp(-1, 1).acos().mean()))
    assert values(measured, "rotation")[2][0] == pytest.approx(expected, rel=1e-5)


def test_the_page_holds_everything_and_fetches_nothing(measured: dict[str, Any], training: Path):
    text = (training / "eval" / "layers" / "layers.html").read_text()
    shown = [q for q in quantities.QUANTITIES if q.name != "heavy_tail"]
    # And two images with a map of their holonomy.
    assert text.count("<svg") == len(shown) + 2
    assert text.count('src="data:image/jpeg;base64,') == 2
    for quantity in shown:
        assert f"<b>{quantity.title}</b>" in text
    assert "Without a value for this encoder or these checkpoints: tail exponent" in text
    assert "tiny &lt;i&gt;run&lt;/i&gt;" in text and "<i>run</i>" not in text
    assert not re.search(r"<script|<link|<iframe|@import|url\((?!#)", text)


def test_values_are_in_the_runs_own_mlflow_run(measured: dict[str, Any], training: Path):
    record = json.loads((training / "mlflow.json").read_text())
    client = MlflowClient(record["uri"])
    history = client.get_metric_history(record["run_id"], "layers/rank/1")
    assert [(m.step, m.value) for m in history] == [
        (step, row[1]) for step, row in zip(STEPS, values(measured, "rank"), strict=True)
    ]
    artifacts = {x.path for x in client.list_artifacts(record["run_id"], "eval/layers")}
    assert artifacts == {"eval/layers/layers.html", "eval/layers/layers.json"}


def test_averaged_weights_are_a_series_of_their_own(tmp_path: Path, splits: dict[str, Path]):
    checkpoint = save_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000007")
    shutil.copy(checkpoint / "encoder.safetensors", checkpoint / "encoder_average.safetensors")
    averaged = checkpoint / "encoder_average.safetensors"
    options = ["--data", splits["val"], "--metrics", "rank", "--images", 10]
    both = layers(tmp_path / "run", averaged, *options, "--json")
    assert both.code == 0, both.err
    last, average = json.loads(both.out)["runs"]
    assert (last["folder"], average["folder"]) == (str(tmp_path / "run"), None)  # MLflow gets the first only
    kept = (tmp_path / "run" / "eval" / "layers" / "layers.json").read_bytes()
    assert layers(averaged, *options).code == 0
    assert (tmp_path / "run" / "eval" / "layers" / "layers.json").read_bytes() == kept
    assert (tmp_path / "run" / "eval" / "layers-average" / "layers.html").exists()


def test_a_store_that_is_gone_costs_no_result(tmp_path: Path, splits: dict[str, Path]):
    run = tmp_path / "run"
    for step in STEPS[:2]:
        save_checkpoint(run / "checkpoints" / f"step_{step:08d}", step=step)
    record = {"uri": f"sqlite:///{tmp_path}/absent.db", "experiment": "layers", "run_id": "0" * 32}
    (run / "mlflow.json").write_text(json.dumps(record))
    options = ["--data", splits["val"], "--metrics", "rank", "--images", 10, "--mlflow", record["uri"]]
    done = layers(run, "--every", 10, *options)
    assert done.code == 0, done.err
    assert (run / "eval" / "layers" / "layers.html").exists()


def test_a_convolutional_encoder_is_measured_but_for_what_needs_tokens(
    tmp_path: Path, splits: dict[str, Path]
):
    folder, kwargs = tmp_path / "convnext", {"in_chans": 3, "num_classes": 0}
    changes = {"name": "test_convnext", "kwargs": kwargs, "embedding_width": 64, "image_size": 64}
    save_checkpoint(folder, complete=False, **changes)
    encoder = build_encoder("test_convnext", kwargs, 0)
    assert encoder.num_features == 64 and isinstance(encoder, timm.models.ConvNeXt)
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    names = "residual,contraction,stability,dormant,holonomy"
    done = layers(folder, "--data", splits["val"], "--metrics", names, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["runs"][0]["checkpoints"][0]["values"]
    assert found["holonomy"] == [None] * 9
    for name in ("residual", "contraction", "stability", "dormant"):
        assert all(value is not None and value >= 0 for value in found[name])
    assert "Without a value" in (tmp_path / "out" / "layers.html").read_text()


def test_angles_of_a_periodic_label(tmp_path: Path, checkpoint: Path, splits: dict[str, Path]):
    """The images' two classes have the hours 0 and 12, so the hour can be predicted from what is seen."""
    rows = [f"{i},{12 * (i % 2)}" for i in range(44) if i != 7]
    (tmp_path / "hours.csv").write_text("key,hour\n" + "\n".join(rows) + "\n")
    period = ["--targets", tmp_path / "hours.csv", "--period", "hour=24", "--metrics", "angle"]
    done = layers(checkpoint, "--data", splits["train"], *period, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert max(json.loads(done.out)["runs"][0]["checkpoints"][0]["values"]["angle"]) < 80


def test_a_damaged_checkpoint_costs_itself_alone(tmp_path: Path, training: Path, splits: dict[str, Path]):
    broken = save_checkpoint(tmp_path / "broken")
    (broken / "encoder.safetensors").write_bytes(b"no tensors")
    fine = training / "checkpoints" / "step_00000010"
    out = tmp_path / "out"
    done = layers(fine, broken, "--data", splits["val"], "--metrics", "rank", "--out", out)
    assert done.code == 1
    assert "failed: broken, step 7:" in done.err and "not a whole safetensors file" in done.err
    found = json.loads((out / "layers.json").read_text())
    assert [len(run["checkpoints"]) for run in found["runs"]] == [1]
    assert "not a whole safetensors file" in (out / "layers.html").read_text()


def test_costs_are_listed(checkpoint: Path, splits: dict[str, Path]):
    done = layers(checkpoint, "--data", splits["val"], "--metrics", "list")
    assert done.code == 0
    for name in quantities.NAMES:
        assert re.search(rf"^ *{name} .* \d+\.\d +(yes|no)", done.out, re.MULTILINE), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "rnk"], "--metrics: unknown name 'rnk'; did you mean rank?"),
        (["--metrics", ","], "--metrics is empty"),
        (["--images", "5"], "argument --images: 5: expected a whole number, 10 or more"),
        (["--few", "0"], "argument --few: 0: expected a whole number, 1 or more"),
        (["--period", "hour=24"], "--targets and --period go together"),
        (["--targets", "x.csv", "--period", "hour"], "--period hour: expected COLUMN=PERIOD"),
        (["--targets", "x.csv", "--period", "hour=-1"], "--period hour=-1: expected COLUMN=PERIOD"),
        (["--out", "/proc/nowhere"], "writing results to /proc/nowhere"),
    ],
)
def test_what_is_refused(checkpoint: Path, splits: dict[str, Path], arguments: list[str], message: str):
    done = layers(checkpoint, "--data", splits["val"], *arguments)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}") and done.err.count("\n") == 1


def test_runs_of_several_folders_need_a_place_for_their_page(
    tmp_path: Path, training: Path, splits: dict[str, Path]
):
    other = save_checkpoint(tmp_path / "other" / "checkpoints" / "step_00000007").parents[1]
    done = layers(training, other, "--data", splits["val"])
    assert done.code == 2 and "say with --out where the page of all should go" in done.err
