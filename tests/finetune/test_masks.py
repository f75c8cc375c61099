"""`isotorus finetune` on masks, as a user gives it: scores, resuming, the export, what is refused."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import jaccard_score

from data_pipeline.dataset import masks
from data_pipeline.dataset.index import Dataset
from data_pipeline.targets import mask_scores
from data_pipeline.transforms.views import center_mask
from eval_suite.features.embed import read_views
from eval_suite.inputs import find
from finetune.arguments import parse
from finetune.masks import examples
from finetune.recipe import build, note
from isotorus.errors import UserError
from pretrain.checkpoint.export.export import export
from tests.eval_suite.eval_samples import CLASSES, pack, save_checkpoint, write_description
from tests.finetune.test_finetune import finetune, scores_after_a_kill
from tests.masked_shapes import NAMES, pack_centred, pack_shapes

QUICK = ("--epochs", "4", "--min-steps", "1", "--batch-size", "8", "--workers", "0", "--lr", "0.003")
KEPT = ("tracking.enabled=false", "checkpoint.every=4", "checkpoint.keep_last=null")


class Tuned(NamedTuple):
    encoder: Path
    splits: dict[str, Path]
    folder: Path
    said: str
    results: dict


def given(encoder: Path, splits: dict[str, Path], out: Path) -> list[object]:
    return [encoder, splits["train"], "--val", splits["val"], "--test", splits["test"], "--out", out, *QUICK]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A fine-tuning of 12 steps on 24 masks, beside a probe, with all checkpoints kept."""
    folder = tmp_path_factory.mktemp("masks")
    sizes = {"train": (26, 0, 2), "val": (12, 1, 0), "test": (12, 2, 1)}
    splits = {name: pack_shapes(folder / name, n, seed, without=w) for name, (n, seed, w) in sizes.items()}
    encoder = save_checkpoint(folder / "encoder")
    said = finetune(*given(encoder, splits, folder / "run"), *KEPT)
    results = json.loads((folder / "run/results.json").read_text())
    return Tuned(encoder, splits, folder / "run", said, results)


def seen(dataset: Dataset, samples: list[int]) -> tuple[torch.Tensor, np.ndarray]:
    """Return the pixels in [0, 1] and the masks of samples, as the encoder sees them."""
    pixels = torch.stack([read_views(dataset, i, 3, [32])[0] for i in samples]).float() / 255
    return pixels, np.stack([center_mask(masks.read(dataset, i), 32) for i in samples])


def from_onnx(folder: Path, images: torch.Tensor) -> np.ndarray:
    return onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"image": images.numpy()})[0]


def from_torch(folder: Path, images: torch.Tensor) -> np.ndarray:
    return torch.export.load(folder / "model.pt2").module()(images).detach().numpy()


@pytest.mark.parametrize(
    ("format", "predict"), [("torch", from_torch), pytest.param("onnx", from_onnx, marks=pytest.mark.nightly)]
)
def test_exported_files_have_the_miou_that_the_results_say(
    format: str, predict: Callable[[Path, torch.Tensor], np.ndarray], tuned: Tuned, tmp_path: Path
):
    assert "checked against torch" in export(tuned.folder, tmp_path / "model", format)
    test = Dataset(tuned.splits["test"])
    samples = [i for i in range(len(test)) if masks.read(test, i) is not None]
    assert len(samples) == 11 == tuned.results["data"]["test"]["labelled"]
    pixels, truth = seen(test, samples)
    logits = predict(tmp_path / "model", pixels)
    assert logits.shape == (11, 3, 32, 32)
    known = truth < 255
    each = jaccard_score(truth[known], logits.argmax(1)[known], average=None)
    scores = tuned.results["scores"]["finetuned"]
    assert scores["miou"] == pytest.approx(each.mean(), abs=1e-4)
    assert [row["name"] for row in scores["per_class"]] == list(NAMES)
    np.testing.assert_allclose([row["iou"] for row in scores["per_class"]], each, atol=1e-4)
    assert json.loads((tmp_path / "model/isotorus.json").read_text())["label_names"] == list(NAMES)
    assert predict(tmp_path / "model", torch.rand(2, 3, 40, 48)).shape == (2, 3, 40, 48)


def test_other_exports_leave_the_layer_out_or_say_what_to_do(tuned: Tuned, tmp_path: Path):
    with pytest.raises(UserError, match="predicts masks, and timm has no models that do; use --format onnx"):
        export(tuned.folder, tmp_path / "timm")
    export(tuned.folder, tmp_path / "encoder", head=False)
    model = timm.create_model(f"local-dir:{tmp_path}/encoder", pretrained=True)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 24)


def test_it_starts_as_the_segmentation_probe_and_learns(tuned: Tuned):
    scores = tuned.results["scores"]
    blend = json.loads((tuned.folder / "encoder.json").read_text())["blend"]
    # Tokens of the probe have half precision.
    assert blend["val"]["0"] == pytest.approx(max(of["miou"] for of in scores["probe"]["val"]), abs=2e-3)
    curve = dict(scores["finetuned"]["val_curve"])
    assert set(curve) == {4, 8, 12} and blend["val"]["1"] == pytest.approx(max(curve.values()))
    assert max(blend["val"].values()) > blend["val"]["0"]
    found = tuned.results["differences"]["probe"]["miou"]
    assert found["value"] == pytest.approx(scores["finetuned"]["miou"] - scores["probe"]["miou"])
    assert found["interval"][0] <= found["value"] <= found["interval"][1]
    assert tuned.results["task"] == "segmentation" and tuned.results["data"]["train"]["labelled"] == 24
    assert "segmentation probe on the pretrained encoder, which is not trained: mIoU" in tuned.said
    assert f"isotorus export {tuned.folder} --out model/ --format onnx" in tuned.said
    assert "share of the pixels" in (tuned.folder / "report.html").read_text()


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(tuned: Tuned, tmp_path: Path):
    again = tmp_path / "run"
    command = given(tuned.encoder, tuned.splits, again)
    assert scores_after_a_kill(tuned.folder, again, *command, *KEPT) == tuned.results["scores"]


def test_the_encoder_alone_gives_vectors_to_other_commands(tuned: Tuned):
    (checkpoint,) = find.find([str(tuned.folder)])
    with torch.no_grad():
        assert checkpoint.pretrained()(torch.zeros(2, 3, 32, 32)).shape == (2, 24)
    assert checkpoint.projector() is None and checkpoint.encoder.supervised.task == "segmentation"


MAPS = {
    "convnext_atto": {"dims": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "patch_size": 2},
    "resnet10t": {},
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", list(MAPS))
def test_a_convnet_learns_from_the_maps_of_its_last_stages(name: str, tuned: Tuned, tmp_path: Path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    torch.manual_seed(1)
    kwargs = MAPS[name] | {"num_classes": 0}
    model = timm.create_model(name, **kwargs)
    save_file(model.state_dict(), folder / "encoder.safetensors")
    write_description(
        folder, kwargs | {"embed_dim": model.num_features, "img_size": 32}, name=name, kwargs=kwargs, step=1
    )
    (folder / "COMPLETE").touch()
    options = [*KEPT, "--baselines", "none", "--labels", "50%"]
    finetune(*given(folder, tuned.splits, tmp_path / "run"), *options)
    results = json.loads((tmp_path / "run/results.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert results["data"]["train"]["labelled"] == 12 and rows[-1]["loss"] < rows[0]["loss"]
    width = sum(stage["num_chs"] for stage in model.feature_info[-3:])
    assert load_file(tmp_path / "run/projector.safetensors")["0.weight"].shape == (3, width)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mixup", "1"], "--mixup is not for --target-kind segmentation, as only labels of whole"),
        (["--features", "last2"], "--features is not for"),
        (["augment.rotation_probability=0.5"], r"cannot turn masks by any angle; set augment\.rotation"),
        (["views.global_views=2"], "learns from one view of each image"),
        (["--labels", "25"], "--labels 25: train has 24 labelled images"),
    ],
)
def test_refusals(options: list[str], said: str, tuned: Tuned, tmp_path: Path):
    with pytest.raises(UserError, match=said) as refused:
        finetune(*given(tuned.encoder, tuned.splits, tmp_path / "run"), *options)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_sets_without_masks_are_refused(tuned: Tuned, tmp_path: Path):
    labelled = pack(tmp_path / "labelled", [*CLASSES] * 3, seed=0)
    splits = tuned.splits | {"train": labelled}
    with pytest.raises(UserError, match=r"train: .* has no masks; pack its images with --masks FOLDER"):
        finetune(*given(tuned.encoder, splits, tmp_path / "run"), "--target-kind", "segmentation")


@pytest.mark.parametrize("split", ["val", "test"])
def test_scored_pixels_with_less_than_two_classes_are_refused_before_training(
    split: str, tuned: Tuned, tmp_path: Path
):
    for centre, said in ((masks.IGNORED, "no class within"), (0, "one class, ground, within")):
        splits = tuned.splits | {split: pack_centred(tmp_path / str(centre), 4, centre)}
        with pytest.raises(UserError, match=rf"masks of {split} \(.*\) hold {said} the centred squares"):
            finetune(*given(tuned.encoder, splits, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_without_a_probe_the_layer_starts_at_random_and_the_page_says_why(tuned: Tuned, tmp_path: Path):
    """A probe reads the centred squares of train, which here have one class; crops show others too."""
    splits = tuned.splits | {"train": pack_centred(tmp_path / "train", 8, 0)}
    command = given(tuned.encoder, splits, tmp_path / "run")
    why = "the masks of train hold fewer than two classes within the centred squares"
    with pytest.raises(UserError, match=f"cannot be fitted: {why}.*start from random weights with --head"):
        finetune(*command)
    (tmp_path / "run/lock").touch()  # as a training leaves that ended before its first step
    said = finetune(*command, "--head", "random", "tracking.enabled=false")
    assert f"The segmentation probe is left out: {why}" in said and "fine-tuned: mIoU" in said
    assert f"The segmentation probe is left out: {why}" in (tmp_path / "run/report.html").read_text()


def test_labels_come_before_masks_unless_masks_are_asked_for(tuned: Tuned, tmp_path: Path):
    labels = "".join(f"{i}.png,{CLASSES[i % 2]}\n" for i in range(8))
    (tmp_path / "labels.csv").write_text(f"image,label\n{labels}")
    both = pack_shapes(tmp_path / "both", 8, 0, "--labels", str(tmp_path / "labels.csv"))
    (checkpoint,) = find.find([str(tuned.encoder)])
    arguments = [str(tuned.encoder), str(both), "--val", str(both), "--out", str(tmp_path / "run")]
    labelled = build(parse(arguments), checkpoint)
    assert labelled.objective.task == "multiclass"
    assert "has labels and masks; labels are predicted, and masks with --target" in note(checkpoint, labelled)
    masked = build(parse([*arguments, "--target-kind", "segmentation"]), checkpoint)
    assert masked.objective.task == "segmentation" and note(checkpoint, masked) == ""


def test_the_page_shows_images_from_the_worst_to_the_best(tuned: Tuned):
    shown = tuned.results["examples"]
    test = Dataset(tuned.splits["test"])
    masked = {test.key(i) for i in range(len(test)) if masks.read(test, i) is not None}
    assert len(shown) == 6 and {of["key"] for of in shown} <= masked
    assert [of["miou"] for of in shown] == sorted(of["miou"] for of in shown)
    page = (tuned.folder / "report.html").read_text()
    assert all(of["picture"] in page for of in shown)


def test_outlines_are_where_masks_end():
    truth, predicted = np.zeros((2, 8, 8), np.uint8)
    truth[:, 4:], predicted[4:], truth[0, 0] = 1, 1, masks.IGNORED
    uri = examples.picture(torch.full((1, 8, 8), 99, dtype=torch.uint8), truth, predicted)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    scale = len(drawn) // 8
    middle = 4 * scale
    is_true, is_predicted = ((drawn == colour).all(-1) for colour in (examples.TRUE, examples.PREDICTED))
    assert is_true[2 * scale, middle - 1 : middle + 1].all() and is_true[2 * scale].sum() == 2
    assert is_predicted[middle - 1 : middle + 1].all() and is_predicted.sum() == 2 * len(drawn)


def test_the_miou_of_an_image_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 3, (2, 5, 6, 7))
    truth[0][truth[0] == 2] = 0
    found = examples.miou_of_each(mask_scores.count(truth, predicted, 3))
    expected = [
        jaccard_score(t.ravel(), p.ravel(), labels=np.unique(t), average="macro")
        for t, p in zip(truth, predicted, strict=True)
    ]
    assert found == pytest.approx(expected)
