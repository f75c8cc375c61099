"""Activation checkpointing and torch.compile, block by block of an encoder, in this order.

Both replace the `forward` of single modules. torch's own wrappers would add a level to the names of
parameters, which checkpoints must not have.
"""

import functools
from typing import Any, Literal

import torch
import torch.nn.attention.varlen  # registers its operator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from pretrain.models.blocks import find_blocks
from pretrain.models.drop_path import KeyedDropPath

# Operations whose output takes long to compute for its size. bmm is not among them: the scores of unfused
# attention are the largest tensors of all.
SAVED = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
]


def blocks(encoder: nn.Module) -> list[nn.Module]:
    """Return the encoder's blocks in order; its children, if it has no containers of blocks."""
    inner = [block.module for block in find_blocks(encoder)]
    return inner or [child for child in encoder.children() if any(True for _ in child.parameters())]


def checkpoint_blocks(encoder: nn.Module, mode: Literal["selective", "full"]) -> None:
    """Recompute the activations of each block in the backward pass, in place."""
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, SAVED)
    for block in blocks(encoder):
        _checkpoint(block, options)


def _checkpoint(block: nn.Module, options: dict[str, Any]) -> None:
    """Replace the block's `forward` by one that keeps its input alone, or what `options` ask to keep."""
    forward = block.forward
    drop_paths = [module for module in block.modules() if isinstance(module, KeyedDropPath)]

    def run(scales: list[Tensor | None], *args: Any, **kwargs: Any) -> Any:
        for module, scale in zip(drop_paths, scales, strict=True):
            module.scale = scale
        return forward(*args, **kwargs)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            # A compiled block takes drop-path's masks as inputs and keeps them for the backward pass.
            return checkpoint(forward, *args, **options, **kwargs)
        # Before the block is recomputed, views of another size have run and set other masks.
        return checkpoint(run, [module.scale for module in drop_paths], *args, **options, **kwargs)

    block.forward = checkpointed


def compile_blocks(encoder: nn.Module) -> None:
    """Compile each block with torch.compile, in place; blocks of one kind share their graphs."""
    # There is one graph for each image size and size of micro-batch, and one more without gradient.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in blocks(encoder):
        block.forward = torch.compile(block.forward, dynamic=False)
