"""Masks are packed beside their images, and no mask that does not fit costs an image."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.__main__ import main
from data_pipeline.dataset import masks
from data_pipeline.dataset.index import Dataset
from isotorus.errors import UserError

RANDOM = np.random.default_rng(0)
MASK = RANDOM.integers(0, 3, (6, 8)).astype(np.uint8)


def _folders(tmp_path: Path, count: int = 4) -> tuple[Path, Path]:
    """Write images of 8 × 6 pixels and a mask for each; the mask of image i is `MASK` shifted by i."""
    images, of_masks = tmp_path / "images", tmp_path / "masks"
    for folder in (images / "a", of_masks / "a"):
        folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(RANDOM.integers(0, 256, (6, 8, 3)).astype(np.uint8)).save(images / f"a/{i}.png")
        Image.fromarray(np.roll(MASK, i, axis=1)).save(of_masks / f"a/{i}.png")
    return images, of_masks


def _pack(*arguments: object) -> None:
    assert main(["pack", *map(str, arguments), "--workers", "1"]) == 0


def _number(dataset: Dataset, i: int) -> int:
    return int(dataset.key(i).rpartition("/")[2])


def test_every_pixel_of_every_mask_comes_back(tmp_path, capsys):
    images, of_masks = _folders(tmp_path)
    _pack(images, tmp_path / "set", "--masks", of_masks, "--labels", "folder")
    dataset = Dataset(tmp_path / "set")
    for i in range(4):
        np.testing.assert_array_equal(masks.read(dataset, i), np.roll(MASK, _number(dataset, i), axis=1))
    assert "4 images with a mask; classes: 0, 1, 2" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "set"), "--workers", "1"]) == 0
    assert main(["info", str(tmp_path / "set")]) == 0
    assert "masks        4 images, classes 0, 1, 2" in capsys.readouterr().out
    _pack(images, tmp_path / "set", "--masks", of_masks, "--labels", "folder")
    assert "already packed" in capsys.readouterr().out
    with pytest.raises(UserError, match="already holds a data set of other images, labels or options"):
        _pack(images, tmp_path / "set", "--labels", "folder")


def test_masks_that_do_not_fit_are_listed_and_their_images_packed(tmp_path, capsys):
    images, of_masks = _folders(tmp_path, 6)
    Image.fromarray(MASK[:5]).save(of_masks / "a/1.png")
    Image.fromarray(RANDOM.integers(0, 256, (6, 8, 3)).astype(np.uint8)).save(of_masks / "a/2.png")
    (of_masks / "a/3.png").write_bytes(b"no image")
    Image.fromarray(MASK.astype(np.uint16) + 300).save(of_masks / "a/4.png")
    (of_masks / "a/5.png").unlink()
    _pack(images, tmp_path / "set", "--masks", of_masks)
    dataset, said = Dataset(tmp_path / "set"), capsys.readouterr()
    assert len(dataset) == 6
    assert [_number(dataset, i) for i in range(6) if masks.read(dataset, i) is not None] == [0]
    assert "1 images with a mask" in said.out and "4 files skipped" in said.out
    assert "1 of 6 images have no mask" in said.err and "a/5.png" in said.err
    listed = (tmp_path / "set/skipped.txt").read_text()
    assert "a/1.png (its mask a/1.png)\tit has 8 × 5 pixels, its image 8 × 6" in listed
    assert all(words in listed for words in ("it has colours", "it is no PNG", "the value 302"))
    with pytest.raises(UserError, match="cannot be packed"):
        _pack(images, tmp_path / "strict", "--masks", of_masks, "--strict")


def test_values_are_given_to_classes_by_name(tmp_path, capsys):
    images, of_masks = _folders(tmp_path, 2)
    for i in range(2):
        Image.fromarray(np.where(MASK > 0, 255, 0).astype(np.uint8)).convert("1").convert("L").save(
            of_masks / f"a/{i}.png"
        )
    _pack(images, tmp_path / "plain", "--masks", of_masks)
    assert "--mask-classes 0=background,255=object" in capsys.readouterr().out
    rule = ("--mask-classes", "0=ground,255=cell")
    _pack(images, tmp_path / "set", "--masks", of_masks, *rule)
    assert "classes: ground, cell" in capsys.readouterr().out
    np.testing.assert_array_equal(masks.read(Dataset(tmp_path / "set"), 0), MASK > 0)
    Image.fromarray(RANDOM.integers(0, 256, (6, 8, 3)).astype(np.uint8)).save(images / "a/7.png")
    Image.fromarray(np.full((6, 8), 255, np.uint8)).save(of_masks / "a/7.png")
    _pack(images, tmp_path / "set", "--masks", of_masks, "--append")
    dataset = Dataset(tmp_path / "set")
    assert dataset.description.masks is not None and dataset.description.masks.images == 3
    assert (masks.read(dataset, 2) == 1).all()
    with pytest.raises(UserError, match="other classes of masks"):
        _pack(images, tmp_path / "set", "--masks", of_masks, "--append", "--mask-classes", "0,1")


def test_masks_beside_their_images_and_in_a_folder_among_them(tmp_path, capsys):
    images, of_masks = _folders(tmp_path, 2)
    for i in range(2):
        (of_masks / f"a/{i}.png").replace(images / f"a/{i}.mask.png")
    _pack(images, tmp_path / "apart")
    assert len(Dataset(tmp_path / "apart")) == 4
    assert "2 files are named like masks of images beside them" in capsys.readouterr().err
    _pack(images, tmp_path / "set", "--masks", images)
    dataset = Dataset(tmp_path / "set")
    assert len(dataset) == 2 and masks.read(dataset, 1) is not None
    (images / "masks" / "a").mkdir(parents=True)
    for i in range(2):
        (images / f"a/{i}.mask.png").replace(images / f"masks/a/{i}.png")
    _pack(images, tmp_path / "inside", "--masks", images / "masks")
    assert len(Dataset(tmp_path / "inside")) == 2


def test_masks_in_tars_of_others_are_read(tmp_path):
    images, of_masks = _folders(tmp_path, 3)
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for i in range(3):  # in the order of the names, so that the mask is before its image
            tar.add(of_masks / f"a/{i}.png", f"{i}.mask.png")
            tar.add(images / f"a/{i}.png", f"{i}.png")
    arguments = [str(tmp_path / "some.tar"), str(tmp_path / "set"), "--image-extension", "png"]
    assert main(["index", *arguments, "--workers", "1"]) == 0
    dataset = Dataset(tmp_path / "set")
    for i in range(3):
        np.testing.assert_array_equal(masks.read(dataset, i), np.roll(MASK, _number(dataset, i), axis=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--masks", "nowhere"], "no such folder"),
        (["--masks", "empty"], "expected a PNG of the same path, for a/0.png: a/0.png or a/0.mask.png"),
        (["--mask-classes", "0,1"], "--masks FOLDER"),
        (["--masks", "masks", "--mask-classes", "0=a,b"], "e.g. 0=background,255=cell"),
        (["--masks", "masks", "--mask-classes", "0=a,1=a"], "occurs twice"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, monkeypatch, options, words):
    images, _ = _folders(tmp_path, 1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        _pack(images, tmp_path / "set", *options)
    assert words in str(refused.value)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGB", "RGBA"])
def test_grey_pngs_of_every_kind_are_numbers(tmp_path, mode):
    values = (MASK > 0).astype(np.uint8) * (255 if mode == "1" else 1)
    image = Image.fromarray(values).convert(mode) if mode != "P" else Image.fromarray(values)
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 30, 40])
    image.save(tmp_path / "mask.png")
    read = masks.decode((tmp_path / "mask.png").read_bytes(), *MASK.shape)
    np.testing.assert_array_equal(read, MASK > 0)


def test_near_copies_are_left_out_where_images_have_masks(tmp_path, capsys):
    images, of_masks = _folders(tmp_path)
    large = Image.fromarray(RANDOM.integers(0, 256, (16, 16, 3)).astype(np.uint8)).resize((64, 64))
    for name in ("x", "y"):
        large.save(images / f"a/{name}.png")
    Image.fromarray(np.full((64, 64), 2, np.uint8)).save(of_masks / "a/x.png")
    Image.fromarray(np.full((6, 8), 2, np.uint8)).save(of_masks / "a/y.png")  # does not fit
    _pack(images, tmp_path / "set", "--masks", of_masks, "--drop-duplicates")
    assert "1 near copy" in capsys.readouterr().out
    dataset = Dataset(tmp_path / "set")
    kept = {dataset.key(i): masks.read(dataset, i) is not None for i in range(len(dataset))}
    assert kept == {**{f"a/{i}": True for i in range(4)}, "a/x": True}
