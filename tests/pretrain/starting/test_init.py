"""`isotorus init` and `isotorus recipes`: what they write can be trained with, and says why."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_pipeline.dataset.index import Dataset
from data_pipeline.preview.symmetry import differences
from isotorus.errors import UserError
from pretrain.config import load_config
from pretrain.preflight.check import check
from pretrain.starting import found, recipe
from pretrain.starting.found import Images, Machine, images
from tests.console import ROOT, isotorus

PHOTOS = Images(
    path="shards",
    count=200_000,
    side=480,
    channels=3,
    depth=8,
    labelled=0,
    classes=0,
    groups=None,
    remote=False,
    mirrored={"upside down": 0.1, "left to right": 0.0, "about the diagonal": 0.1},
)


def test_a_run_starts_with_what_init_writes(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = isotorus("init", shards, "--name", "mine", "--hours", "0.01")
    assert done.returncode == 0, done.stderr
    assert "next: isotorus train --config recipe.yaml" in done.stderr
    (tmp_path / "recipe.yaml").write_text(done.stdout + done.stderr)  # as with &> recipe.yaml
    monkeypatch.chdir(tmp_path)
    config = load_config("recipe.yaml", [])
    assert config.name == "mine" and config.data.channels == 1 and config.views.global_size == 32
    assert config.data.batch_size == 15 and config.optimizer.warmup_steps < config.steps
    check(config, 1)
    assert "60 images of 40 pixels" in done.stdout and "images/s, measured now" in done.stdout


@pytest.mark.parametrize(
    ("machine", "count"),
    [
        (Machine("h100", 8, 64), 9_000),
        (Machine("l40s", 1, 16), 3_000_000),
        (Machine("cpu", 1, 2), 3_000_000),
    ],
)
def test_every_choice_is_a_configuration_that_fits(machine: Machine, count: int, tmp_path: Path):
    text, config = recipe.written(replace(PHOTOS, count=count), machine, 6.0, "photos")
    (tmp_path / "written.yaml").write_text(text)
    assert load_config(str(tmp_path / "written.yaml"), []) == config
    assert max(map(len, text.splitlines())) <= 110
    # PyYAML reads YAML 1.1, where 2e-3 is text.
    assert isinstance(yaml.safe_load(text)["optimizer"]["lr"], float)
    assert "vertical_flip" not in text
    passes = config.steps * config.data.batch_size / count
    assert passes <= 801


def test_less_time_means_fewer_steps(tmp_path: Path):
    machine = Machine("h100", 1, 8)
    short, long = (recipe.written(PHOTOS, machine, hours, "x")[1].steps for hours in (0.05, 0.5))
    assert long == pytest.approx(10 * short, rel=0.1)


def test_the_facts_of_a_set_are_found(shards: Path):
    found = images(Dataset(str(shards)))
    assert (found.count, found.side, found.channels, found.depth) == (60, 40, 1, 8)
    assert found.labelled == 60 and found.classes == 2 and not found.remote


def test_the_share_of_a_common_difference():
    random = np.random.default_rng(0)
    noise = random.standard_normal((4000, 32, 32)).astype(np.float32)
    alike = differences(noise)
    assert max(map(abs, alike.values())) < 0.005
    # Each difference is twice the ramp, and twice the odd part of the noise: E|d|² = 4 r² + 4 · 32 σ².
    ramp = np.linspace(-1, 1, 8, dtype=np.float32).repeat(4)[:, None] * np.float32(0.2)
    cells_variance = 1 / 16
    signal = 8 * float(np.square(2 * ramp[::4, 0]).sum())
    expected = signal / (signal + 64 * 2 * cells_variance)
    found = differences(noise + ramp)
    assert found["upside down"] == pytest.approx(expected, rel=0.03)
    assert abs(found["left to right"]) < 0.005
    assert differences(np.ones((2, 32, 32), np.float32)) == dict.fromkeys(found, 0.0)


@pytest.mark.parametrize(
    ("path", "name", "said"),
    [
        ("shards", "a b", "name='a b'"),
        ("s3://me:secret@bucket/shards", "x", "data.path holds a URL with a password"),
    ],
)
def test_what_no_run_would_take_is_refused(path: str, name: str, said: str):
    with pytest.raises(UserError, match=said):
        recipe.written(replace(PHOTOS, path=path), Machine("h100", 1, 8), 1.0, name)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"--gpu cpu --gpus 100: .* does not fit into memory"):
        recipe.written(PHOTOS, Machine("cpu", 100, 2), 1.0, "x")


def test_more_accelerators_than_images_in_a_batch_are_refused():
    with pytest.raises(UserError, match=r"--gpus 8: 16 images in shards make batches of 4, .* --gpus 4 or"):
        recipe.written(replace(PHOTOS, count=16), Machine("h100", 8, 64), 1.0, "x")


def test_recipes_are_listed_and_shown(tmp_path: Path):
    (tmp_path / "configs").mkdir()  # a folder of this name in the present folder is the user's own
    (tmp_path / "configs/own.yaml").write_text("# A recipe of the user.\n")
    listed = isotorus("recipes", folder=tmp_path)
    names = [path.stem for path in (ROOT / "configs").glob("*.yaml")]
    assert sorted(line.split()[0] for line in listed.stdout.splitlines()[:-2]) == sorted(names)
    assert isotorus("recipes", "--show", "torus_m2").stdout == (ROOT / "configs/torus_m2.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recipes", "--show", "torus_m3"], "did you mean torus_m2?"),
        (["init", "nowhere"], "nowhere"),
        (["init", "nowhere", "--gpus", "0"], "--gpus 0: expected 1 or more"),
        (["init", "nowhere", "--hours", "-1"], "--hours -1: expected a number above 0"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str):
    done = isotorus(*arguments)
    assert done.returncode == 2 and said in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_gpu_that_is_not_known_counts_as_an_h100_and_the_recipe_says_so():
    unknown = found.of_device("NVIDIA GeForce RTX 9999", 2)
    text, _ = recipe.written(PHOTOS, unknown, 1.0, "x")
    said = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    assert unknown.gpu == "h100" and "NVIDIA GeForce RTX 9999 is not among the accelerators" in said
    known = found.of_device("NVIDIA H100 80GB HBM3", 2)
    assert known.gpu == "h100" and not known.note
