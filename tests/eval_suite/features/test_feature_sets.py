"""The feature sets of one forward pass equal those that timm computes one by one."""

import timm
import torch
from torch import nn

from eval_suite.features.feature_sets import FeatureSets

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "depth": 5, "num_classes": 0}


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
def test_encoders_without_tokens_give_their_embedding():
    shallow = {"depth": 2, "num_classes": 0}
    for name, kwargs in (
        ("resnet18", {"num_classes": 0}),
        ("convnext_atto", {"num_classes": 0}),
        ("mobilenetv3_small_050", {"num_classes": 0}),
        # Their classes have tokens but cannot give them all.
        ("cait_xxs24_224", {"img_size": 32, **shallow}),
        ("xcit_nano_12_p16_224", {"img_size": 32, **shallow}),
        ("convit_tiny", {"img_size": 32, **shallow}),
    ):
        model, x = of(name, **kwargs)
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
