"""Training on masks, part by part: the loss of pixels, the map of an encoder, what is refused."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import jaccard_score, log_loss
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.__main__ import main
from data_pipeline.dataset import info, masks
from data_pipeline.dataset.index import Dataset
from data_pipeline.loader import Loader
from data_pipeline.sources import Sources
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from isotorus.errors import UserError
from pretrain.methods.config import SupervisedConfig, TargetsConfig
from pretrain.methods.supervised import SupervisedHead
from pretrain.models.encoder import create_on_meta, embedding_width
from pretrain.models.feature_sets import give
from pretrain.supervised.masks import choose, read_masks
from pretrain.supervised.task import read_task
from pretrain.supervised.validation import counted, score
from pretrain.train import targets_of
from tests.masked_shapes import NAMES, pack_shapes

RANDOM = torch.Generator().manual_seed(0)


def config(**changes: object) -> SupervisedConfig:
    values = {"kind": "supervised", "task": "segmentation", "outputs": 3, "val": "val"}
    return SupervisedConfig.model_validate(values | changes)


def test_the_loss_is_the_cross_entropy_of_the_pixels_with_a_class():
    head = SupervisedHead(5, config(), seed=0)
    maps = torch.randn(1, 4, 2, 2, 5, generator=RANDOM)
    masks = torch.randint(0, 3, (1, 4, 6, 6), generator=RANDOM).to(torch.uint8)
    masks[0, 1, :3], masks[0, 3] = 255, 255
    output = head(maps, 0, masks)
    assert output.projections.shape == (1, 4, 2, 2, 3)
    # Bilinear weights of a grid of 2 in 6 pixels, by hand: pixel i lies at (i + 0.5) / 3 − 0.5 cells.
    place = np.clip((np.arange(6) + 0.5) / 3 - 0.5, 0, 1)
    weights = np.stack([1 - place, place], axis=1)
    logits = np.einsum("ya,xb,nabk->nyxk", weights, weights, output.projections[0].double().numpy())
    known = masks[0].numpy() < 255
    shares = torch.from_numpy(logits[known]).softmax(-1).numpy()
    expected = log_loss(masks[0].numpy()[known], shares, labels=[0, 1, 2])
    assert output.parts["loss"].item() == pytest.approx(expected, rel=1e-5)
    head.class_weight.copy_(torch.tensor([1.0, 0.5, 4.0]))
    weights = head.class_weight.numpy()[masks[0].numpy()[known]]
    expected = log_loss(masks[0].numpy()[known], shares, labels=[0, 1, 2], sample_weight=weights)
    assert head(maps, 0, masks).parts["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_a_balanced_loss_gives_all_classes_the_same_weight(shapes: Path):
    dataset = Dataset(shapes)
    plain, balanced = (
        read_task(config(val=str(shapes), balanced=each), [dataset], 3) for each in (False, True)
    )
    assert (plain.class_weight == 1).all()
    found = [masks.read(dataset, i) for i in np.flatnonzero(balanced.known)]
    pixels = np.bincount(np.concatenate([mask[mask < 255] for mask in found]))
    np.testing.assert_allclose(balanced.class_weight * pixels, pixels.mean(), rtol=1e-6)


def test_the_loss_has_a_deterministic_form_on_gpus():
    """torch refuses `nll_loss2d`, the loss of maps, there if `engine.deterministic` is set."""
    called: set[str] = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.add(str(function))
            return function(*args, **kwargs or {})

    head = SupervisedHead(5, config(label_smoothing=0.1), seed=0)
    with Record():
        masks = torch.zeros(1, 2, 4, 4, dtype=torch.uint8)
        head(torch.randn(1, 2, 2, 2, 5), 0, masks).parts["loss"].backward()
    assert any("nll_loss" in name for name in called) and not any("nll_loss2d" in name for name in called)


def test_nothing_is_learned_from_a_batch_without_masks():
    head = SupervisedHead(5, config(), seed=0)
    maps = torch.randn(1, 2, 2, 2, 5).requires_grad_()
    head(maps, 0, torch.full((1, 2, 4, 4), 255, dtype=torch.uint8)).parts["loss"].backward()
    assert maps.grad is not None and not maps.grad.any()


def test_the_map_of_a_vit_is_its_patch_tokens():
    kwargs = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 8, "num_heads": 2, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", **kwargs).eval()
    images = torch.rand(2, 3, 16, 16)
    tokens = model.forward_features(images)[:, 1:]
    give(model, "map")
    torch.testing.assert_close(model(images), tokens.unflatten(1, (4, 4)))


def test_an_encoder_without_a_map_is_refused():
    with pytest.raises(UserError, match=r"a Linear gives no patch tokens .* use an encoder such as a ViT"):
        give(torch.nn.Linear(2, 2), "map")
    hiera = create_on_meta("hiera_tiny_224", {"num_classes": 0, "feature_set": "map"})
    with pytest.raises(UserError, match=r"a vector for each cell of an .*=hiera_tiny_224 does not"):
        embedding_width(hiera, "hiera_tiny_224", 3, [224])


def test_the_score_is_the_miou_of_scikit_learn():
    logits = torch.randn(5, 2, 2, 3, generator=RANDOM)
    truth = torch.randint(0, 3, (5, 8, 8), generator=RANDOM).to(torch.uint8)
    truth[:, :2] = 255
    predicted = F.interpolate(logits.permute(0, 3, 1, 2), (8, 8), mode="bilinear").argmax(1)
    known = truth < 255
    expected = jaccard_score(truth[known], predicted[known], average="macro")
    rows = torch.cat([counted(logits[:2], truth[:2]), counted(logits[2:], truth[2:])])
    assert score("segmentation", np.zeros(5), rows.double().numpy()) == pytest.approx(expected)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_shapes(tmp_path_factory.mktemp("shapes"), 6, 0, without=2)


def test_images_without_a_mask_are_left_out(shapes: Path):
    task = read_task(config(val=str(shapes)), [Dataset(shapes)], 3)
    assert task.names == list(NAMES) and task.known.sum() == 4
    assert {Dataset(shapes).key(i) for i in task.val_rows} == {"0", "1", "2", "3"}
    few = read_task(config(val=str(shapes), targets={"labels": 2}), [Dataset(shapes)], 3)
    assert few.known.sum() == 2 and few.known[~task.known].sum() == 0
    assert few.fingerprint != task.fingerprint


def pack_masks(folder: Path, values: list[int], *options: str) -> Dataset:
    """Pack one image for each value, whose mask is 0 in half of the pixels and the value in the others."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i, value in enumerate(values):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"images/{i}.png")
        mask = np.repeat([0, value], 32).reshape(8, 8).astype(np.uint8)
        Image.fromarray(mask).save(folder / f"masks/{i}.png")
    arguments = ["pack", str(folder / "images"), str(folder / "set"), *options, "--workers", "1"]
    assert main(arguments) == 0
    return Dataset(folder / "set")


@pytest.mark.parametrize(
    ("val", "rule", "said"),
    [
        ([], "", "val: .* has no masks; pack its images with --masks FOLDER"),
        ([0], "", "the masks of val hold one class, 0, so nothing"),
        ([1, 3], "", "val has masks with classes that no mask of train has: 3; use"),
        ([1], "0=sky,1=sea", "masks of train have the classes a, b, c, and those of val sky, sea; pack both"),
    ],
)
def test_refusals(val: list[int], rule: str, said: str, tmp_path: Path):
    given = ["--masks", str(tmp_path / "val/masks")] if val else []
    named = ["--mask-classes", rule] if rule else []
    first = ["--mask-classes", "0=a,1=b,2=c"] if rule else []
    train = pack_masks(tmp_path / "train", [1, 2], "--masks", str(tmp_path / "train/masks"), *first)
    judged = pack_masks(tmp_path / "val", val or [1], *given, *named)
    with pytest.raises(UserError, match=said) as refused:
        read_masks({"train": train, "val": judged})
    assert "\n" not in str(refused.value)


def test_classes_that_were_packed_from_other_values_are_refused(tmp_path: Path):
    """The number 1 is another class there, although both sets have the numbers 0 and 1."""
    renumbered, plain, named = (
        pack_masks(tmp_path / name, [1], "--masks", str(tmp_path / name / "masks"), *rule)
        for name, rule in {
            "renumbered": ["--mask-classes", "1=cell,0=ground"],
            "plain": [],
            "named": ["--mask-classes", "0=ground,1=cell,2=debris"],
        }.items()
    )
    with pytest.raises(UserError, match="classes cell, ground, and those of val 0, 1, …; pack both"):
        read_masks({"train": renumbered, "val": plain})
    # The training names its classes without looking at test.
    assert read_masks({"train": plain, "val": plain, "test": named}).names == ["0", "1"]
    assert read_masks({"train": named, "val": plain}).names == ["ground", "cell", "debris"]


def test_few_masks_that_lack_a_class_of_val_are_refused(tmp_path: Path):
    data = pack_masks(tmp_path, [1, 2], "--masks", str(tmp_path / "masks"))
    few = config(val=str(data.path), targets={"labels": 1})
    with pytest.raises(UserError, match=r"no mask of train \(the 1 that are used\) has: [12];"):
        read_task(few, [data], 3)


def test_masks_of_a_set_are_read_once(tmp_path: Path):
    """A command opens a set several times; the second time only zeros are left to read."""
    path = pack_shapes(tmp_path, 6, 0, without=2)

    def chosen() -> tuple[dict[str, set[int]], int]:
        sets = {"train": Dataset(path), "val": Dataset(path)}
        found = choose(read_masks(sets), sets, TargetsConfig(labels=3))
        return found.classes, int(found.known["train"].sum())

    first = chosen()
    (shard,) = path.glob("*.tar")
    shard.write_bytes(bytes(shard.stat().st_size))
    assert chosen() == first and first[1] == 3


def test_a_source_may_lack_chosen_masks(tmp_path: Path):
    parts = [pack_masks(tmp_path / name, [1], "--masks", str(tmp_path / name / "masks")) for name in "ab"]
    task = read_task(config(val=str(parts[0].path), outputs=2, targets={"labels": 1}), parts, 3)
    assert task.known.sum() == 1 and len(task.known) == 2


def test_masks_that_were_removed_are_not_known_and_not_counted(tmp_path: Path):
    """After the removal there are as many images as there were masks before."""
    path = pack_shapes(tmp_path, 6, 0, without=2)
    (tmp_path / "gone.txt").write_text("0\n1\n")
    assert main(["remove", str(path), "--keys", str(tmp_path / "gone.txt")]) == 0
    assert masks.find(Dataset(path)).known.sum() == 2 < len(Dataset(path)) == 4
    assert "masks        2 images, classes ground, disc, square" in info.as_text(str(path))


def test_an_image_that_stands_in_for_a_damaged_one_has_no_mask_unless_it_is_trained_on(tmp_path: Path):
    path = pack_shapes(tmp_path, 6, 0)
    task = read_task(config(val=str(path), targets={"labels": 1}), [Dataset(path)], 3)
    (shard,) = path.glob("*.tar")
    data, used = shard.read_bytes(), int(np.flatnonzero(task.known)[0])
    start = int(Dataset(path).rows[used]["offset"])
    shard.write_bytes(data[:start] + b"JUNKJUNK" + data[start + 8 :])
    sources = Sources([Dataset(path)], [1.0]).only(task.known)
    views, augment = ViewsConfig(global_views=1, global_size=16, local_views=0), AugmentConfig()
    loader = Loader(sources, batch_size=4, views=views, augment=augment, channels=3, seed=1, masks=True)
    batch = next(iter(loader))
    assert len(batch.replaced) >= 4 and not task.known[batch.indices].any()
    assert (batch.masks[0] < 255).any() and (targets_of(batch, task) == 255).all()


def test_a_mask_of_another_size_in_a_foreign_tar_is_refused(tmp_path: Path):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/0.tar", "w") as tar:
        for name, side, format in (("0.jpg", 16, "JPEG"), ("0.mask.png", 8, "PNG")):
            file = io.BytesIO()
            Image.fromarray(np.eye(side, dtype=np.uint8)).save(file, format=format)
            member = tarfile.TarInfo(name)
            member.size = file.tell()
            tar.addfile(member, io.BytesIO(file.getvalue()))
    arguments = ["index", str(tmp_path / "tars"), str(tmp_path / "set"), "--image-extension", "jpg"]
    assert main([*arguments, "--workers", "1"]) == 0
    with pytest.raises(UserError, match="it has 8 × 8 pixels, its image 16 × 16; make them equal"):
        read_masks({"train": Dataset(tmp_path / "set"), "val": Dataset(tmp_path / "set")})
