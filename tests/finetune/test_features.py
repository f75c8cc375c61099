"""The last layer of a fine-tuning reads the feature set on which a linear probe is best."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file

from data_pipeline.dataset.index import Dataset
from eval_suite.features.embed import extract, read_views
from eval_suite.features.feature_sets import FeatureSets
from eval_suite.features.representation import pretrained
from eval_suite.inputs import find
from finetune.arguments import parse
from finetune.head import best_on_val
from finetune.processes import processes
from finetune.train_and_compare import run
from isotorus.errors import UserError
from pretrain.checkpoint.export.export import export
from pretrain.methods.config import SupervisedConfig
from pretrain.run_control.signals import Signals
from pretrain.supervised.task import read_task
from tests.eval_suite.eval_samples import CLASSES, pack, write_description

CONVNEXT = {"dims": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "num_classes": 0}
WIDTH = 2 * (12 + 16 + 24)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("labelled")
    return {name: pack(folder / name, [*CLASSES] * 10, seed=i) for i, name in enumerate(("train", "val"))}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ConvNeXt with random weights, whose last norm the set `stages` does not need."""
    folder = tmp_path_factory.mktemp("convnext")
    torch.manual_seed(3)
    model = timm.create_model("convnext_atto", **CONVNEXT)
    save_file(model.state_dict(), folder / "encoder.safetensors")
    described = {"embed_dim": 24, "img_size": 64}
    changes = {"name": "convnext_atto", "kwargs": CONVNEXT, "step": 0, "config": {}}
    write_description(folder, described, **changes)
    return folder


def finetune(encoder: Path, splits: dict[str, Path], out: Path, *options: object) -> dict:
    given = [
        encoder,
        splits["train"],
        "--val",
        splits["val"],
        "--out",
        out,
        "--epochs",
        "3",
        "--workers",
        "0",
    ]
    steps = ["--min-steps", "1", "--batch-size", "10", "--lr", "0.003", "tracking.enabled=false"]
    assert run(parse([*map(str, (*given, *steps, *options))]), Signals(), 1) == 0
    found: dict = json.loads((out / "results.json").read_text())
    return found


def pixels(shards: Path) -> torch.Tensor:
    data = Dataset(str(shards))
    return torch.stack([read_views(data, i, 3, [64])[0] for i in range(len(data))]).float() / 255


def test_the_layer_reads_all_stages_and_exports_say_what_it_says(
    encoder: Path, splits: dict[str, Path], tmp_path: Path
):
    out = tmp_path / "run"
    (out / "cache").mkdir(parents=True)  # left by a start that was killed before its first step
    (out / "head.safetensors").write_bytes(b"of other options")
    found = finetune(encoder, splits, out, "--features", "stages")
    described = json.loads((out / "encoder.json").read_text())
    assert described["kwargs"]["feature_set"] == "stages" and described["embedding_width"] == WIDTH
    # Before training the network is the probe, so the blend without fine-tuned weights has its score.
    on_stages = [row for row in found["scores"]["probe"]["val"] if row["feature_set"] == "stages"]
    assert described["blend"]["val"]["0"] == max(row["balanced_accuracy"] for row in on_stages)

    with pytest.raises(UserError, match=r"reads the feature set stages, and a classifier of timm reads only"):
        export(out, tmp_path / "timm")
    export(out, tmp_path / "alone", head=False)
    alone = timm.create_model(f"local-dir:{tmp_path}/alone", pretrained=True).eval()
    said = export(out, tmp_path / "onnx", "onnx")
    assert "checked against torch" in said
    about = json.loads((tmp_path / "onnx/isotorus.json").read_text())
    assert about["label_names"] == sorted(CLASSES)
    images = pixels(splits["val"])
    mean, std = torch.tensor(0.5), torch.tensor(0.2)
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx")
    assert [x.name for x in session.get_outputs()] == ["logits"]
    (logits,) = session.run(None, {"image": images.numpy()})
    with torch.no_grad():
        assert alone(images[:1]).shape == (1, 24)
        vectors = FeatureSets(alone)((images - mean) / std)["stages"]
    (network,) = find.find([str(out)])
    layer = network.projector()
    assert layer is not None
    np.testing.assert_allclose(logits, layer(vectors).detach(), atol=1e-4)
    truth = Dataset(str(splits["val"]))
    names = [sorted(CLASSES).index(truth.classes[label]) for label in truth.labels]
    confusion = np.zeros((2, 2), int)
    np.add.at(confusion, (names, logits.argmax(1)), 1)
    assert confusion.tolist() == found["scores"]["finetuned"]["confusion"]

    # An evaluation of the fine-tuned network takes what the layer reads for its embedding.
    vectors_of = extract(
        [replace(pretrained(network), name="x")], truth, tmp_path, processes(), batch_size=8, workers=0
    )
    assert {name: x.shape[1] for name, x in vectors_of["x"].items()} == {"embedding": WIDTH, "projector": 2}
    # The same command with the same options is finished; without --features it continues the run's own.
    assert finetune(encoder, splits, out)["scores"] == found["scores"]


def test_the_best_set_on_val_is_read(splits: dict[str, Path]):
    config = SupervisedConfig(kind="supervised", outputs=2, val=str(splits["val"]))
    task = read_task(config, [Dataset(str(splits["train"]))], 3)
    noise = np.random.default_rng(0).normal(size=(2, 20, 4))
    truth = (task.targets[:, 0], np.eye(2)[task.val_y][:, 0])
    informed = [np.column_stack([x, y]) for x, y in zip(noise, truth, strict=True)]
    for order in (("good", "bad"), ("bad", "good")):
        sets = {"good": informed, "bad": noise}
        train, val = ({name: sets[name][i] for name in order} for i in (0, 1))
        name, (weight, _) = best_on_val(task, train, val)
        assert name == "good" and weight.shape == (2, 5)


def test_sets_that_the_encoder_lacks_are_refused(encoder: Path, splits: dict[str, Path], tmp_path: Path):
    with pytest.raises(
        UserError, match=r"feature set 'last4': a ConvNeXt has only embedding, stages; use one"
    ):
        finetune(encoder, splits, tmp_path / "run", "--features", "last4")
