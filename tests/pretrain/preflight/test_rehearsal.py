"""Recipes that cannot train are refused in one line before a run begins; likely mistakes get a warning."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from isotorus.errors import UserError
from isotorus.recipe import read_yaml
from pretrain.checkpoint import damage
from pretrain.config import Config, load_config
from pretrain.models.encoder import build_encoder, create
from pretrain.preflight.likely_mistakes import warn
from pretrain.preflight.model import check_model

VIT: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2}
SMALL: dict[str, Any] = {
    "name": "x",
    "steps": 10,
    "data": {"path": "unused", "batch_size": 4, "channels": 3},
    "views": {"global_size": 32, "local_views": 2, "local_size": 32},
    "encoder": {"name": "vit_tiny_patch16_224", "kwargs": VIT},
    "objective": {"kind": "lejepa", "sigreg": {"num_slices": 16}, "projector": {"hidden": 16, "width": 8}},
    "optimizer": {"warmup_steps": 2},
}


def config(**sections: Any) -> Config:
    merged = {
        key: SMALL.get(key, {}) | x if isinstance(x, dict) and key not in ("encoder", "objective") else x
        for key, x in sections.items()
    }
    return Config(**SMALL | merged)


def refusal(ranks: int = 1, **sections: Any) -> str:
    with pytest.raises(UserError) as error:
        check_model(config(**sections), ranks)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "kwargs", "remedy"),
    [
        ("test_resnet", {"drop_rate": 0.5}, "leave out encoder.kwargs.drop_rate=0.5"),
        ("test_resnet", {"drop_block_rate": 0.2}, "leave out encoder.kwargs.drop_block_rate=0.2"),
        ("vit_tiny_patch16_224", VIT | {"attn_drop_rate": 0.1}, "encoder.kwargs.attn_drop_rate=0.1"),
        ("vit_tiny_patch16_224", VIT | {"patch_drop_rate": 0.5}, "encoder.kwargs.patch_drop_rate=0.5"),
        (
            "vit_tiny_patch16_224",
            VIT | {"depth": 9, "proj_drop_rate": 0.1},
            "encoder.kwargs.proj_drop_rate=0.1",
        ),
        (
            "vit_tiny_patch16_224",
            VIT | {"pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "drop_path_rate": 0.1},
            "leave out encoder.kwargs.pos_drop_rate and encoder.kwargs.proj_drop_rate",
        ),
        ("ghostnet_050", {}, "set encoder.kwargs.drop_rate=0"),
    ],
)
def test_random_encoders_are_refused_with_what_makes_them_so(name: str, kwargs: dict, remedy: str):
    said = refusal(encoder={"name": name, "kwargs": kwargs})
    assert "draws random numbers" in said and remedy in said


@pytest.mark.parametrize("name", ["test_vit_relpos", "swinv2_cr_tiny_224"])
def test_dropout_that_no_argument_reaches_is_turned_off(name: str):
    with torch.device("meta"):
        before, after = timm.create_model(name), create(name, {})
    rates = [[m.p for m in x.modules() if isinstance(m, nn.Dropout)] for x in (before, after)]
    assert any(rates[0]) and not any(rates[1])


def test_arguments_that_the_views_need_are_no_remedy_for_randomness():
    kwargs = {"patch_size": 8} | VIT | {"attn_drop_rate": 0.1}
    views = {"global_size": 40, "local_size": 24}  # no multiples of the patch of 16 that timm would choose
    said = refusal(encoder={"name": "vit_tiny_patch16_224", "kwargs": kwargs}, views=views)
    assert "leave out encoder.kwargs.attn_drop_rate=0.1" in said


@pytest.mark.parametrize("name", ["test_convnext", "swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_drop_path_is_no_such_randomness(name: str):
    kwargs = {"drop_path_rate": 0.3}
    views = {"global_size": 224, "local_views": 0}
    assert check_model(config(encoder={"name": name, "kwargs": kwargs}, views=views), 1).width


TURNED = {"actions": ["rotation", "hue"], "turned": 2, "turned_size": 48}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"views": TURNED | {"turned_size": 40}}, "views.turned_size=40 is not a multiple"),
        (
            {"views": TURNED, "data": {"channels": 4}},
            "views.actions has hue, which turns red, green and blue",
        ),
        (
            {"views": TURNED, "encoder": {"name": "mixer_s16_224"}},
            "does not take images of 48²",
        ),
    ],
)
def test_turned_views_that_cannot_work(sections: dict[str, Any], said: str):
    assert said in refusal(**sections)


JEPA = {"kind": "jepa", "projector": {"hidden": 16, "width": 8}, "predictor": {"hidden": 16}}
SHAPIRO = SMALL["objective"] | {"sigreg": {"num_slices": 16, "test": "shapiro_wilk"}}
ONE_VIEW = {"global_views": 1, "local_views": 0}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"objective": JEPA, "views": ONE_VIEW}, "at least 2 views are needed"),
        ({"objective": SHAPIRO, "data": {"batch_size": 2}}, "Shapiro-Wilk needs at least 3 samples, got 2"),
        (
            {"objective": SHAPIRO, "engine": {"accumulation": 2, "accumulate": "microbatch"}},
            "cannot be trained on 2 images",
        ),
        ({"data": {"batch_size": 1}}, "need at least 2 images; change data.batch_size"),
        (
            {"encoder": {"name": "test_resnet"}, "views": ONE_VIEW, "data": {"batch_size": 1}},
            "Expected more than 1 value per channel",
        ),
    ],
)
def test_sizes_that_cannot_work(sections: dict[str, Any], said: str):
    assert said in refusal(**sections)


def test_the_images_of_all_ranks_count():
    shared = {"objective": SHAPIRO, "data": {"batch_size": 4}, "engine": {"accumulation": 1}}
    check_model(config(**shared), 4)
    check_model(config(encoder={"name": "test_resnet"}, views=ONE_VIEW, data={"batch_size": 2}), 2)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("resnet18", {"drop_path": 0.1}, "did you mean drop_path_rate"),
        ("vit_tiny_patch16_224", VIT | {"num_heads": 0}, "encoder.kwargs.num_heads=0"),
        ("vit_tiny_patch16_224", VIT | {"act_layer": "foo"}, "change encoder.kwargs"),
        ("vit_tiny_patch16_224", VIT | {"patch_size": 0}, "change encoder.kwargs"),
        ("vit_tiny_patch16_224", VIT | {"pretrained": True}, "set encoder.weights"),
        ("vit_tiny_patch16_224", VIT | {"checkpoint_path": "w.pth"}, "set encoder.weights"),
        ("vit_tiny_patch16_224", VIT | {"pretrained_cfg": {"url": "http://x"}}, "set encoder.weights"),
        ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", {}, "is not the name of a timm model"),
        ("local-dir:/tmp", {}, "is not the name of a timm model"),
    ],
)
def test_arguments_that_timm_refuses_are_named_as_given(name: str, kwargs: dict, said: str):
    message = refusal(encoder={"name": name, "kwargs": kwargs})
    assert said in message and "dynamic_img_size" not in message


def test_no_loader_of_timm_is_reached_by_arguments_of_a_checkpoint():
    with pytest.raises(UserError, match=r"set encoder\.weights"):
        create("vit_tiny_patch16_224", VIT | {"pretrained": True, "cache_dir": "."})
    assert create("vit_tiny_patch16_224", VIT | {"pretrained": False})


def test_patches_that_overlap_fit_any_size():
    views = {"global_size": 64, "local_size": 50}
    assert check_model(config(encoder={"name": "pvt_v2_b0"}, views=views), 1).width == 256


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-1e5", -1e5),
        (".5E+3", 500.0),
        ("2.5", 2.5),
        ("e5", "e5"),
        ("1e5x", "1e5x"),
        ("'1e5'", "1e5"),
    ],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: object):
    assert read_yaml(f"{{a: {text}}}") == {"a": value}


def test_numbers_of_recipes_and_overrides_reach_timm(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nsteps: 1e2\ndata: {path: p}\nencoder: {kwargs: {init_values: 1e-5}}\n")
    assert load_config(str(path), []).encoder.kwargs == {"init_values": 1e-5}
    given = load_config(str(path), ["encoder.kwargs={init_values: 1e-4}"])
    assert given.encoder.kwargs == {"init_values": 1e-4} and given.steps == 100


def said(caplog: pytest.LogCaptureFixture, config: Config, newest: Path | None = None) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn(config, newest)
    return [record.getMessage() for record in caplog.records]


def test_a_warm_up_beyond_the_run_is_said(caplog: pytest.LogCaptureFixture):
    (line,) = said(caplog, config(optimizer={"warmup_steps": 500}))
    assert "optimizer.warmup_steps=500 is no less than steps=10" in line and "set fewer" in line
    assert said(caplog, config()) == []


def test_a_learning_rate_that_jumps_up_again_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    saved = {"step": 10, "config": config().model_dump(mode="json")}
    (tmp_path / "encoder.json").write_text(json.dumps(saved))
    (line,) = said(caplog, config(steps=20), tmp_path)
    assert "the learning rate rises from 5e-07 to" in line and "at step 10" in line
    assert said(caplog, config(steps=10), tmp_path) == []
    (tmp_path / "encoder.json").write_text(json.dumps(saved | {"step": 1}))
    assert said(caplog, config(steps=20), tmp_path) == []
    assert damage.describe(tmp_path)["step"] == 1


def test_weights_that_fit_in_shape_only_are_said(tmp_path: Path):
    from pretrain.checkpoint.warm_start import silent_difference

    kwargs = {**VIT, "img_size": 32, "num_classes": 0}
    trained = build_encoder("vit_tiny_patch16_224", kwargs, seed=0)
    save_file(trained.state_dict(), tmp_path / "encoder.safetensors")
    weights = str(tmp_path / "encoder.safetensors")
    with torch.device("meta"):
        other = create("vit_tiny_patch16_224", kwargs | {"num_heads": 4})
        relu = create("vit_tiny_patch16_224", kwargs | {"act_layer": "relu"})
        larger = create("vit_tiny_patch16_224", kwargs | {"img_size": 64, "drop_path_rate": 0.1})
    assert silent_difference(other, weights) == ""  # nothing is known of the file
    (tmp_path / "encoder.json").write_text(json.dumps({"name": "vit_tiny_patch16_224", "kwargs": kwargs}))
    assert "has num_heads=4, and num_heads=2" in silent_difference(other, weights)
    assert "has ReLU, and GELU" in silent_difference(relu, weights)
    assert silent_difference(larger, weights) == ""
