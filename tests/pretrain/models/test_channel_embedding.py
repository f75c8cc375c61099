"""Encoders that use the channels that an image has, against sums that are written out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isotorus.errors import UserError
from pretrain.checkpoint.warm_start import fit
from pretrain.models.channel_embedding import ChannelConv2d, fold
from pretrain.models.config import EncoderConfig
from pretrain.models.encoder import ViewEncoder, build_encoder, create, timm_kwargs

NAMES = ["a", "b", "c", "d", "e"]
VIT: tuple[str, dict[str, Any]] = (
    "vit_tiny_patch16_224",
    {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
)
RESNET: tuple[str, dict[str, Any]] = ("resnet10t", {})
CONVNEXT: tuple[str, dict[str, Any]] = ("convnext_atto", {"depths": [1, 1, 1, 1]})


def built(name: str, kwargs: dict) -> nn.Module:
    """Return an encoder of five named channels, whose embedding is not zero. It is in evaluation mode, so
    that the images of a batch do not influence each other.
    """
    config = EncoderConfig(name=name, kwargs=kwargs)
    encoder = build_encoder(name, timm_kwargs(config, 32, 5, named=True), seed=0).eval()
    with torch.no_grad():
        first(encoder).channel_embedding.normal_()
    return encoder


def first(encoder: nn.Module) -> ChannelConv2d:
    (found,) = [module for module in encoder.modules() if isinstance(module, ChannelConv2d)]
    return found


def images(*present: int, count: int = 2) -> Tensor:
    """Return normal images (count, 5, 32, 32) that are zero in all channels but `present`."""
    x = torch.randn(count, 5, 32, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(5)
    mask[list(present)] = 1
    return x * mask[:, None, None]


def test_the_first_convolution_is_the_scaled_sum_over_the_channels_that_are_there() -> None:
    conv = first(built(*VIT))
    x = images(1, 3)
    expected = torch.zeros(2, 32, 4, 4)
    for channel in (1, 3):
        of_channel = nn.functional.conv2d(x[:, [channel]], conv.weight[:, [channel]], stride=8)
        expected += of_channel + conv.channel_embedding[channel][:, None, None]
    assert conv.bias is not None
    expected = math.sqrt(5 / 2) * expected + conv.bias[:, None, None]
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)
    assert conv(images()).isfinite().all()  # an image without channels


def test_without_absent_channels_and_embedding_it_is_the_encoder_of_timm() -> None:
    name, kwargs = VIT
    plain = build_encoder(name, timm_kwargs(EncoderConfig(name=name, kwargs=kwargs), 32, 5), seed=0).eval()
    named = built(*VIT)
    nn.init.zeros_(first(named).channel_embedding)
    state = named.state_dict()
    assert state.pop("patch_embed.proj.channel_embedding").shape == (5, 32)
    assert all(torch.equal(x, state[key]) for key, x in plain.state_dict().items())
    x = images(0, 1, 2, 3, 4)
    torch.testing.assert_close(named(x), plain(x), atol=1e-5, rtol=1e-5)


def test_an_absent_channel_has_no_influence_and_gets_no_gradient() -> None:
    encoder, x = built(*VIT), images(0, 2)
    conv = first(encoder)
    before = encoder(x)
    before.square().sum().backward()
    for parameter, axis in ((conv.weight, 1), (conv.channel_embedding, 0)):
        assert parameter.grad is not None
        size = parameter.grad.abs().transpose(0, axis).flatten(1).amax(1)
        assert [bool(s) for s in size] == [True, False, True, False, False]
    with torch.no_grad():
        conv.weight[:, 1] += 1
        conv.channel_embedding[4] += 1
    assert torch.equal(encoder(x), before)


@pytest.mark.parametrize("arm", [VIT, RESNET, CONVNEXT])
def test_an_image_gives_the_same_whatever_channels_others_of_its_batch_have(arm: tuple[str, dict]) -> None:
    encoder = built(*arm)
    one, other = images(0, 1, count=1), images(2, 3, 4, count=1)
    together = encoder(torch.cat([one, other]))
    torch.testing.assert_close(together, torch.cat([encoder(one), encoder(other)]), atol=1e-5, rtol=1e-4)
    views = ViewEncoder(encoder).eval()([one[None]], torch.zeros(1, 1, dtype=torch.int64))
    torch.testing.assert_close(views[0], encoder(one), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arm", [VIT, RESNET, CONVNEXT])
def test_folded_to_some_channels_it_is_a_plain_encoder_that_gives_the_same(arm: tuple[str, dict]) -> None:
    encoder, x = built(*arm), images(3, 0)
    expected = encoder(x)
    fold(encoder, NAMES, ["d", "unknown", "a"])
    assert not any(isinstance(module, ChannelConv2d) for module in encoder.modules())
    torch.testing.assert_close(
        encoder(x[:, [3, 1, 0]] + images(1)[:, [0, 1, 0]]), expected, atol=1e-5, rtol=1e-4
    )
    assert not [key for key in encoder.state_dict() if "channel_embedding" in key]


def test_weights_of_a_plain_encoder_begin_with_an_embedding_of_zero() -> None:
    name, kwargs = VIT
    plain = build_encoder(name, timm_kwargs(EncoderConfig(name=name, kwargs=kwargs), 32, 3), seed=0)
    named = built(*VIT)
    state = fit(plain.state_dict(), named, name, "weights")
    assert not state["patch_embed.proj.channel_embedding"].any()
    expected = plain.state_dict()["patch_embed.proj.weight"][:, [0, 1, 2, 0, 1]] * (3 / 5)
    assert torch.equal(state["patch_embed.proj.weight"], expected)
    with pytest.raises(UserError, match=r"finds channels by name; export it"):
        fit(named.state_dict(), plain, name, "weights")


def test_encoders_without_a_plain_first_convolution_are_refused_in_a_line() -> None:
    with pytest.raises(UserError, match=r"does not read images by one plain convolution.*data\.channels=N"):
        create("crossvit_tiny_240", {"in_chans": 5, "num_classes": 0, "channel_embedding": True})
    with pytest.raises(UserError, match=r"encoder\.kwargs\.channel_embedding: .*set data\.channels"):
        timm_kwargs(EncoderConfig(kwargs={"channel_embedding": True}), 32, 5)
