"""The kernels of residual, layer scale and norm without a GPU: compiled, and run by Triton's interpreter."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from pretrain.engines.networks import unfuse_attention
from pretrain.models.drop_path import draw_masks, key_drop_paths, sample_keys
from pretrain.models.residual_norm import WIDEST, FusedBlock, fuse
from tests.gpu_free import interpreted_residual
from tests.gpu_free.gpu_code import code_of, kernels
from tests.gpu_free.kernels import (
    GENERATIONS,
    assert_no_register_is_spilled,
    assert_products_have_64_bits,
    compile_kernel,
    run_interpreted,
)

pytest.importorskip("triton")

KERNELS = ("_forward_kernel", "_backward_kernel")
# As under autocast: branches are bf16, and everything else is fp32.
HALF = ("branch_ptr", "norm_ptr", "norm_gradient_ptr", "branch_gradient_ptr")


def compiled(kernel: str, width: int, generation: int = 90) -> Any:
    """Compile a kernel, with drop-path, for rows of `width` channels."""
    from pretrain.models import residual_norm_triton as kernels

    function = getattr(kernels, kernel)
    options = kernels._blocks(width)
    constants = {"WIDTH": width, "BLOCK": options.pop("BLOCK")}
    types = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in function.arg_names}
    types |= dict.fromkeys(HALF, "*bf16") | {"epsilon": "fp32"}
    return compile_kernel(function, types, constants, options, generation)


@pytest.mark.parametrize("generation", GENERATIONS.values(), ids=GENERATIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_compile_and_no_register_is_spilled(kernel: str, generation: int, tmp_path: Path):
    for width in (1536, WIDEST):
        assert_no_register_is_spilled(compiled(kernel, width, generation), generation, tmp_path)


@pytest.mark.parametrize("kernel", KERNELS)
def test_offsets_are_computed_in_64_bits(kernel: str):
    """Also where all sizes and strides are below 2³¹, so that Triton passes them as 32-bit integers."""
    assert_products_have_64_bits(compiled(kernel, 1536))


@pytest.mark.nightly
def test_kernels_equal_torchs_operations_under_the_interpreter():
    """In fp32 and bf16, and in whole encoders: plain, packed, recomputed, compiled."""
    run_interpreted(interpreted_residual)


def test_where_triton_does_not_work_blocks_stay_as_they_are(caplog: pytest.LogCaptureFixture):
    """Triton launches nothing for tensors on a CPU; a node without a C compiler fails at the same place."""
    model = timm.create_model("vit_tiny_patch16_224", depth=1, init_values=0.1)
    kind = type(model.blocks[0])
    assert not fuse([model], torch.device("cpu"))
    assert type(model.blocks[0]) is kind
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("Triton failed (") and "install gcc, or set CC" in said and "\n" not in said


def block(fused: bool) -> nn.Module:
    """Return a block of ViT-g that trains with drop-path, with attention as on CPUs, where it is traced."""
    wide = {"patch_size": 14, "embed_dim": 1536, "num_heads": 24, "num_classes": 0, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", init_values=0.1, drop_path_rate=0.4, **wide)
    unfuse_attention(model)
    draw_masks(key_drop_paths(model), sample_keys(0, 3, 7, 16, views=1)[0])
    if fused:
        model.blocks[1].__class__ = FusedBlock
    return model.blocks[1].train()


@pytest.mark.nightly
def test_inductor_leaves_one_call_each_way_and_writes_no_other_kernel_for_this_norm():
    """In the code for an H100; without fusing, it writes three kernels for what goes backward in one here."""
    counts = []
    for fused in (True, False):
        module = block(fused)

        def forward(x: torch.Tensor, module: nn.Module = module) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return module(x)

        there, back = code_of(forward, torch.zeros(16, 257, 1536, requires_grad=True))
        calls = [len(re.findall(rf"isotorus\.residual_norm{way}\.default\(", code))
                 for way, code in (("", there), ("_backward", back))]  # fmt: skip
        assert calls == [int(fused)] * 2
        counts.append([sum("layer_norm" in name for name in kernels(code)) for code in (there, back)])
    # The norm at the block's start is left. Not fused, the one in the middle is normalised again as well.
    assert counts == [[1, 1], [2, 3]]
