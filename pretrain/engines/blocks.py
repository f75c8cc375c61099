"""An encoder's repeated blocks: what is checkpointed, compiled and sharded one by one, in this order."""

import functools
from typing import Any, Literal

import torch
import torch.nn.attention.varlen  # registers its operator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from pretrain.models.blocks import find_blocks
from pretrain.models.drop_path import KeyedDropPath

# Dear to compute for their size. Not bmm: unfused attention's scores are the largest of all.
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
    """Return the encoder's blocks in order; of an encoder without containers of blocks, its children."""
    found = [block.module for block in find_blocks(encoder)]
    return found or [child for child in encoder.children() if any(True for _ in child.parameters())]


def checkpoint_blocks(encoder: nn.Module, mode: Literal["selective", "full"]) -> None:
    """Recompute each block's activations in the backward pass, in place."""
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, SAVED)
    for block in blocks(encoder):
        _checkpoint(block, options)


def _checkpoint(block: nn.Module, options: dict[str, Any]) -> None:
    forward = block.forward
    drop_paths = [module for module in block.modules() if isinstance(module, KeyedDropPath)]

    def run(scales: list[Tensor | None], *args: Any, **kwargs: Any) -> Any:
        for module, scale in zip(drop_paths, scales, strict=True):
            module.scale = scale
        return forward(*args, **kwargs)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            # A compiled block takes the masks as inputs, and keeps them for the backward pass.
            return checkpoint(forward, *args, **options, **kwargs)
        # When the block is recomputed, views of another size have run: it is given its own masks again.
        return checkpoint(run, [module.scale for module in drop_paths], *args, **options, **kwargs)

    block.forward = checkpointed


def compile_blocks(encoder: nn.Module) -> None:
    """torch.compile each block, in place; blocks of one kind share their graphs."""
    # A graph for each image size, size of micro-batch, and for passes without gradient.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in blocks(encoder):
        block.forward = torch.compile(block.forward, dynamic=False)
