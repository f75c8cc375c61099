"""The probes of patch tokens by the command line: results, page, terminal, and what cannot be measured."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.eval_suite.eval_samples import ONE, pack_folder

TOKENS = ("--metrics", "attentive_probe,segmentation_probe", *ONE, "--seed", "1")


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The options of splits whose images are brighter where their masks say so; the class is the side."""
    folder = tmp_path_factory.mktemp("masked")
    named: list[object] = []
    for seed, (split, count) in enumerate({"train": 24, "val": 12, "test": 12}.items()):
        random = np.random.default_rng(seed)
        images, masks = folder / split / "images", folder / split / "masks"
        for i in range(count):
            side = ("left", "right")[i % 2]
            pixels, mask = random.integers(0, 100, (32, 40, 3)), np.zeros((32, 40), np.uint8)
            mask[8:24, slice(4, 20) if i % 2 == 0 else slice(20, 36)] = 1
            pixels[mask == 1] += 150
            mask[:2] = 255
            for where, array in ((images, pixels.astype(np.uint8)), (masks, mask)):
                (where / side).mkdir(parents=True, exist_ok=True)
                if i < count - 2 or where is images:  # two images without a mask
                    Image.fromarray(array).save(where / side / f"{i}.png")
        out = folder / "packed" / split
        out.parent.mkdir(exist_ok=True)
        pack_folder(images, out, "--labels", "folder", "--masks", str(masks))
        named += [f"--{split}", out]
    return [*named, "--folds", "0"]


def test_both_probes_are_in_results_page_and_terminal(command, run: Path, masked, tmp_path):
    out = tmp_path / "out"
    given = ("--baselines", "untrained,pixels,handmade", "--out", out, "--cache", tmp_path / "cache")
    outcome = command(run, *masked, *TOKENS, *given)
    assert outcome.code == 0, outcome.err
    results, page = json.loads((out / "results.json").read_text()), (out / "report.html").read_text()
    pretrained = results["representations"]["pretrained"]
    masks, attentive = pretrained["segmentation_probe"], pretrained["attentive_probe"]
    assert masks["images"] == [22, 10, 10] and masks["reported_on"] == "test"
    assert masks["miou"] > masks["majority"]["miou"] + 0.2
    assert masks["miou_interval"][0] <= masks["miou"] <= masks["miou_interval"][1]
    assert results["representations"]["pixels"]["segmentation_probe"]["miou"] > 0.9
    assert attentive["auroc_interval"][0] <= attentive["auroc"] and len(attentive["confusion"]) == 2
    for method, score in (("attentive_probe", "auroc"), ("segmentation_probe", "miou")):
        theirs = results["representations"]["untrained"][method][score]
        found = results["differences"]["untrained"][method][score]
        assert found["value"] == pytest.approx(pretrained[method][score] - theirs)
        assert found["interval"][0] <= found["value"] <= found["interval"][1]
    assert {"metric": "pixels/attentive_probe", "reason": "raw pixels have no patch tokens"} in results[
        "left_out"
    ]
    assert f"{100 * masks['miou']:.1f}" in page and "Segmentation of masks" in page
    assert "attentive probe" in page and "attentive probe" in outcome.out
    assert "Masks on the test split: mIoU" in outcome.out and "mIoU %" in outcome.out
    assert "\\xa0" not in outcome.out
    reason = "descriptors of whole images have no patch tokens"
    assert {"metric": "handmade/segmentation_probe", "reason": reason} in results["left_out"]
    assert not list((tmp_path / "cache").glob("tokens-*"))


def test_without_masks_the_reason_is_there_and_other_probes_go_on(command, run: Path, data, tmp_path):
    given = ("--baselines", "", "--out", tmp_path / "out")
    outcome = command(run, *data, *TOKENS, *given)
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    reason = "train has no masks; pack the images with --masks FOLDER"
    assert {"metric": "segmentation_probe", "reason": reason} in results["left_out"]
    assert results["representations"]["pretrained"]["attentive_probe"]["reported_on"] == "test"


def test_vectors_have_no_tokens(command, tmp_path):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", features=random.normal(size=(60, 4)), labels=np.arange(60) % 2)
    outcome = command(tmp_path / "x.npz", "--metrics", "attentive_probe", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"metric": "attentive_probe", "reason": "it needs the images"} in results["left_out"]
