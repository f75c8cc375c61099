"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685), by which an encoder learns few parameters.

Every linear layer W of the blocks becomes W + s·B·A, with A (r, in) random, B (out, r) zero at first, and
s = `SCALE`. A and B are trained, and all other parameters stay as they are. `peft` adds A and B to the model.
The encoder's files of a checkpoint have W + s·B·A as W, under the names that timm knows.
"""

import importlib.util

import torch
from torch import Tensor, nn

from isotorus.errors import UserError
from pretrain.models.blocks import find_blocks

SCALE = 2
"""s, which peft calls lora_alpha / r. As it is fixed, another rank needs no other learning rate."""


def check_adapters(rank: int, name: str, encoder: nn.Module, precision: str) -> None:
    """Raise UserError for an encoder, a precision or an environment that cannot have adapters."""
    if not rank:
        return
    if not _linear_layers(encoder):
        raise UserError(
            f"encoder.lora={rank}: the blocks of {name} have no linear layers, which adapters need; leave it "
            "out, or use a ViT, Swin or ConvNeXt"
        )
    if precision == "fp8":
        raise UserError(f"encoder.lora={rank} has not been tried with engine.precision=fp8; use bf16")
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"encoder.lora={rank} needs the library peft; install it: pip install isotorus[lora]")


def add_adapters(encoder: nn.Module, rank: int, seed: int) -> None:
    """Add adapters to a timm model, in place, with A drawn from `seed` alone; nothing else is trained."""
    if not rank:
        return
    import peft  # takes seconds, and most runs have no adapters

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        names = _linear_layers(encoder)
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=names), encoder
        )


def merge(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an encoder with its adapters added to its weights, under timm's names."""
    merged = {}
    for name, x in state.items():
        place, inner, leaf = name.rpartition(".base_layer.")
        if inner and leaf == "weight":
            a, b = (state[f"{place}.lora_{part}.default.weight"] for part in "AB")
            x = x + SCALE * (b @ a)
        if ".lora_" not in name:
            merged[f"{place}.{leaf}" if inner else name] = x
    return merged


def _linear_layers(encoder: nn.Module) -> list[str]:
    """Return the names of the linear layers inside the blocks."""
    return [
        f"{block.name}.{name}"
        for block in find_blocks(encoder)
        for name, module in block.module.named_modules()
        if isinstance(module, nn.Linear)
    ]
