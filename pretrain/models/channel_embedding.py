"""Encoders for images that have only some of the channels, as when several instruments are trained together.

A channel that an image lacks is zero at every pixel after normalisation, where zero is the channel's mean. So
the pixels show which channels an image has, and no mask is passed beside them. The first convolution reads
this from the pixels. For an image with n of C channels it computes

    √(C/n) · Σ_c (W_c ∗ x_c + e_c) + b,    the sum over the n channels,

where e_c is a vector (D,) that is learned for each channel and zero at first. The weights W_c are drawn
independently, so at first the variance of the sum is proportional to n, and the factor makes it the same for
any number of channels. With all channels and e = 0 this is timm's own convolution.

Kernels that are chosen by channel are the "SliceParam" of Chen et al. 2023 (CHAMMI, arXiv:2310.19224). The
learned vector is that of Bao et al. 2023 (ChannelViT, arXiv:2309.16108). ChannelViT makes separate tokens of
each channel, so that attention costs C² times as much; here an image has as many tokens as in any ViT. A
channel that augmentation drops counts as absent, which is the channel sampling of ChannelViT.

`fold` turns an encoder that finds channels by name into a plain one for images of stated channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isotorus.errors import UserError

EMBEDDING = "channel_embedding"
"""Name of the learned vectors in the first convolution, and of the argument of an encoder that has them."""


class ChannelConv2d(nn.Conv2d):
    """A convolution that sees which channels an image has; it has torch's parameters and an embedding."""

    channel_embedding: nn.Parameter
    """e, (C, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, D, H', W') for images (N, C, H, W) that are zero in the channels that they lack."""
        present = x.any(-1).any(-1).float()
        factor = (self.in_channels / present.sum(1, keepdim=True).clamp(min=1)).sqrt()
        shift = (factor * present) @ self.channel_embedding.float()
        if self.bias is not None:
            shift = shift + self.bias.float()
        # The factor is applied to the image: the output may be of half precision, and larger.
        out = self._conv_forward(x * factor[..., None, None], self.weight, None)
        return out + shift.to(out.dtype)[..., None, None]


def embed_channels(encoder: nn.Module) -> None:
    """Make an encoder's first convolution a `ChannelConv2d`, in place.

    Raises `UserError` if the encoder has no such convolution.
    """
    conv = _first_convolution(encoder)
    if type(conv) is not nn.Conv2d or conv.groups != 1:
        raise UserError(
            f"data.channels by name: a {type(encoder).__name__} does not read images by one plain "
            "convolution, which channels by name need; use an encoder.name such as a ViT, Swin, ConvNeXt or "
            "ResNet, or data.channels=N"
        )
    # A new module would have to copy what timm and torch keep in this one. Changing the class changes
    # `forward` alone: parameters, names and hooks stay.
    conv.__class__ = ChannelConv2d
    conv.register_parameter(EMBEDDING, nn.Parameter(torch.zeros(conv.in_channels, conv.out_channels)))


@torch.no_grad()
def fold(encoder: nn.Module, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Turn an encoder of the channels `names` into a plain one for images of the channels `wanted`, in place.

    For such an image it returns what the encoder returned for the same image with zeros in all other
    channels. A channel that is not among `names` has no influence. A convolution without a bias gets one.
    """
    conv = _first_convolution(encoder)
    assert isinstance(conv, ChannelConv2d)
    known = [name for name in wanted if name in names]
    factor = math.sqrt(len(names) / max(len(known), 1))
    weight = conv.weight.new_zeros((conv.out_channels, len(wanted), *conv.kernel_size))
    for place, name in enumerate(wanted):
        if name in names:
            weight[:, place] = factor * conv.weight[:, names.index(name)]
    shift = factor * conv.channel_embedding[[names.index(name) for name in known]].sum(0)
    bias = shift if conv.bias is None else conv.bias + shift
    conv.__class__ = nn.Conv2d  # type: ignore[assignment]
    del conv.channel_embedding
    conv.in_channels = len(wanted)
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)


def _first_convolution(encoder: nn.Module) -> nn.Module | None:
    """Return the convolution that reads the image; None if there is not just one."""
    known: Any = getattr(encoder, "pretrained_cfg", None) or {}
    name = known.get("first_conv")
    try:
        return encoder.get_submodule(name) if isinstance(name, str) and name else None
    except AttributeError:
        return None
