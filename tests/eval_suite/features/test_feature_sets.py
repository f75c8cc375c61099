"""The feature sets of one forward pass equal those that timm computes one by one."""

from functools import partial

import pytest
import timm
import torch
from torch import nn

from eval_suite.features.feature_sets import FeatureSets

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "depth": 5, "num_classes": 0}
SWIN = {"img_size": 32, "embed_dim": 12, "num_heads": (1, 2, 2, 4), "depths": (1, 1, 2, 1), "window_size": 1}


def of(name: str, **kwargs: object) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval(), torch.randn(3, 3, 32, 32)


@torch.no_grad()
def test_a_vit_with_registers():
    model, x = of("vit_tiny_patch16_224", reg_tokens=2, **SMALL)
    found = FeatureSets(model)(x)
    assert {name: tuple(v.shape) for name, v in found.items()} == {
        "embedding": (3, 24),
        "patch_mean": (3, 24),
        "last2": (3, 48),
        "last4": (3, 96),
    }
    torch.testing.assert_close(found["embedding"], model(x))
    tokens = model.forward_features(x)
    torch.testing.assert_close(found["patch_mean"], tokens[:, 3:].mean(1))
    layers = model.get_intermediate_layers(x, n=4, return_prefix_tokens=True, norm=True)
    torch.testing.assert_close(found["last4"], torch.cat([prefix[:, 0] for _, prefix in layers], dim=1))
    torch.testing.assert_close(found["last2"], found["last4"][:, 48:])


@torch.no_grad()
def test_a_vit_that_averages_its_tokens():
    model, x = of("vit_tiny_patch16_224", global_pool="avg", class_token=False, **SMALL)
    found = FeatureSets(model)(x)
    assert list(found) == ["embedding", "last2", "last4"]
    torch.testing.assert_close(found["embedding"], model(x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "kwargs", "stages", "pixels"),
    [
        ("resnet18", {"channels": [16, 32, 64, 128]}, ("layer2", "layer3", "layer4"), (2, 3)),
        ("convnext_atto", {}, ("stages.1", "stages.2", "stages.3"), (2, 3)),
        ("swin_tiny_patch4_window7_224", SWIN, ("layers.1", "layers.2", "layers.3"), (1, 2)),
    ],
)
def test_stages_are_mean_and_deviation_of_the_last_three_maps(
    name: str, kwargs: dict[str, object], stages: tuple[str, ...], pixels: tuple[int, int]
):
    model, x = of(name, num_classes=0, **kwargs)
    maps: dict[str, torch.Tensor] = {}
    passes: list[int] = []
    for stage in stages:
        model.get_submodule(stage).register_forward_hook(lambda _, __, out, at=stage: maps.update({at: out}))
    model.get_submodule(stages[0]).register_forward_hook(lambda *_: passes.append(1))
    expected = model(x)
    parts = [f(maps[stage]) for stage in stages for f in (partial(mean, pixels), partial(deviation, pixels))]
    sets = FeatureSets(model)
    assert list(sets(x)) == ["embedding", "stages"]
    passes.clear()
    found = sets(x)
    assert len(passes) == 1, "the network runs once"
    torch.testing.assert_close(found["embedding"], expected)
    torch.testing.assert_close(found["stages"], torch.cat(parts, dim=1))


def mean(pixels: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
    return x.mean(pixels)


def deviation(pixels: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(pixels, keepdim=True)).square().mean(pixels).sqrt()


@torch.no_grad()
def test_encoders_without_tokens_and_stages_give_their_embedding():
    shallow = {"depth": 2, "num_classes": 0}
    for name, kwargs in (
        # Their classes have tokens but cannot give them all, and all their blocks work at one resolution.
        ("cait_xxs24_224", {"img_size": 32, **shallow}),
        ("xcit_nano_12_p16_224", {"img_size": 32, **shallow}),
        ("convit_tiny", {"img_size": 32, **shallow}),
    ):
        model, x = of(name, **kwargs)
        found = FeatureSets(model)(x)
        assert list(found) == ["embedding"]
        torch.testing.assert_close(found["embedding"], model(x))


@torch.no_grad()
def test_an_encoder_whose_output_is_not_that_of_its_stages_has_none():
    model, x = of("test_resnet", num_classes=0)
    model.forward = lambda images: 2 * model.forward_head(model.forward_features(images))
    found = FeatureSets(model)(x)
    assert list(found) == ["embedding"]
    torch.testing.assert_close(found["embedding"], model(x))


@torch.no_grad()
def test_angles_lie_on_the_flat_torus():
    model, x = of("vit_tiny_patch16_224", **SMALL)
    found = FeatureSets(model, nn.Linear(24, 6), angles=3)(x)
    pairs = found["projector"].unflatten(1, (3, 2))
    angles = torch.atan2(pairs[..., 1], pairs[..., 0])
    expected = torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1)
    torch.testing.assert_close(found["angles"], expected)
