"""The blocks of encoders of many kinds: they run, they do not overlap, and engines and evaluation agree."""

import pytest
import timm
import torch

from isotorus.errors import UserError
from pretrain.engines.blocks import blocks
from pretrain.models.blocks import depth_blocks, find_blocks, token_blocks

COUNTS = {
    "vit_tiny_patch16_224": 12,
    "convnext_atto": 12,
    "swin_tiny_patch4_window7_224": 12,
    "resnet18": 8,
    "efficientnet_b0": 16,
    "twins_pcpvt_small": 16,
    "crossvit_9_240": 12,
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_block_runs_in_a_forward_pass_and_holds_no_other(name: str):
    with torch.device("meta"):
        encoder = timm.create_model(name, num_classes=0).eval()
        ran = set()
        found = find_blocks(encoder)
        for block in found:
            block.module.register_forward_hook(lambda *_, name=block.name: ran.add(name))
        with torch.no_grad():
            size = encoder.default_cfg["input_size"][1]
            encoder(torch.empty(1, 3, size, size))
    assert len(found) == COUNTS[name] and ran == {block.name for block in found}
    inside = [module for block in found for module in block.module.modules()]
    assert len(inside) == len(set(inside))
    assert blocks(encoder) == [block.module for block in depth_blocks(encoder)]


def test_an_encoder_without_containers_gives_its_children_to_engines_alone():
    with torch.device("meta"):
        encoder = timm.create_model("vgg11", num_classes=0)
    assert blocks(encoder) == [child for child in encoder.children() if list(child.parameters())]
    for finder in (depth_blocks, token_blocks):
        with pytest.raises(UserError):
            finder(encoder)
