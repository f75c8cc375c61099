"""Names and arguments of models, from a recipe or a stranger's description, open nothing and have ranges."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from isotorus.errors import UserError
from pretrain.models.encoder import create

VIT = "vit_tiny_patch16_224"
ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("no_network")


def refusal(name: str, kwargs: dict[str, Any]) -> str:
    with torch.device("meta"), pytest.raises(UserError) as error:
        create(name, kwargs)
    said = str(error.value)
    assert "\n" not in said and len(said) < 500
    return said


@pytest.mark.parametrize(
    "kwargs",
    [
        {"pretrained": True},
        {"pretrained_cfg": {"url": "http://127.0.0.1:9/x.py"}, "pretrained": True},
        {"pretrained_cfg": {"file": "/etc/passwd"}},
        {"pretrained_cfg_overlay": {"hf_hub_id": "a/b"}},
        {"checkpoint_path": "/etc/passwd"},
        {"cache_dir": "."},
        *({name: True} for name in ("features_only", "scriptable", "exportable", "no_jit", "pruned")),
        {"feature_cls": "fx"},
        {"device": "meta"},
        {"dtype": "float16"},
        {"block_fn": "os.system"},
        {"pretrained_model_args": {}},
        {"model_name": "x"},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_arguments_that_describe_no_architecture(kwargs: dict[str, Any]):
    assert f"encoder.kwargs.{next(iter(kwargs))}" in refusal(VIT, kwargs)


@pytest.mark.parametrize(
    "name",
    [
        *("hf-hub:a/b", "hf_hub:a/b", "HF-HUB:a/b", "local-dir:/etc", "local-dir:.", "timm/vit_tiny", "../x"),
        *("", "vit tiny", "a" * 100_000, "vit\n", "x\ud800"),
    ],
    ids=lambda name: ascii(name[:12]),
)
def test_names_that_are_places(name: str):
    assert "is not the name of a timm model" in refusal(name, {})


@pytest.mark.parametrize("value", [0, -1, 10**9, 10**400, True, "12", {}, 1.5, float("nan"), [[2]], [2] * 99])
@pytest.mark.parametrize("key", ["num_heads", "embed_dim", "patch_size", "img_size", "in_chans"])
def test_numbers_out_of_range(key: str, value: object):
    assert f"encoder.kwargs.{key}=" in refusal(VIT, {key: value})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"depth": 10**6},
        {"norm_layer": "nope"},
        {"act_layer": "os.system('x')"},
        {"drop_path_rate": 2},
        {"qkv_bias": "yes"},
        {"embed_dim": 30, "num_heads": 4},
        {"global_pool": "nope"},
        {"embed_dim": []},
    ],
    ids=str,
)
def test_whatever_timm_cannot_build_is_one_line(kwargs: dict[str, Any]):
    refusal(VIT, kwargs)


def test_an_argument_that_says_that_nothing_is_read_is_nothing():
    with torch.device("meta"):
        assert create(VIT, {"pretrained": False, "pretrained_cfg": None, "depth": 1, "num_classes": 0})


def test_the_packaged_recipes_have_allowed_arguments():
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        encoder = yaml.safe_load(file.read_text()).get("encoder", {})
        if kwargs := encoder.get("kwargs"):
            with torch.device("meta"):
                assert create(encoder["name"], kwargs)
