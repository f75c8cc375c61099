"""Linear layers that multiply in fp8 (Micikevicius et al. 2022, arXiv:2209.05433), by torchao.

Inputs, weights and gradients are scaled by their largest value at each product. Parameters stay as they are,
and everything else is computed as with bf16.
"""

import torch
from torch import nn

from isotorus.errors import UserError
from pretrain.engines.blocks import blocks

CAPABILITY = (8, 9)
"""Compute capability of the first GPUs with fp8."""
MULTIPLE = 16
"""Widths of a layer must be multiples of this for the kernels."""


def check_fp8(device: torch.device) -> None:
    """Raise `UserError` if this rank's device cannot multiply in fp8, or torchao is not installed."""
    if device.type == "cuda":
        refuse_capability(torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device))
    else:
        refuse_capability(None, "no GPU")
    try:
        import torchao.float8  # noqa: F401
    except ImportError:
        raise UserError(
            "engine.precision=fp8 needs torchao, which is not installed; pip install 'isotorus[fp8]', or use "
            "engine.precision=bf16"
        ) from None


def refuse_capability(capability: tuple[int, int] | None, name: str) -> None:
    """Raise `UserError` if a GPU with this name and compute capability has no fp8; None is no GPU."""
    if capability is None or capability < CAPABILITY:
        which = name if capability is None else f"{name}, {capability[0]}.{capability[1]}"
        raise UserError(
            "engine.precision=fp8 needs a GPU of compute capability 8.9 or more (such as H100 or L40S), here "
            f"is {which}; use engine.precision=bf16"
        )


def convert_to_fp8(encoder: nn.Module) -> None:
    """Make the linear layers in the encoder's blocks multiply in fp8, in place; other layers stay."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    inside = {module for block in blocks(encoder) for module in block.modules()}

    def fits(module: nn.Module, name: str) -> bool:
        assert isinstance(module, nn.Linear)
        return module in inside and module.in_features % MULTIPLE == 0 == module.out_features % MULTIPLE

    # The gradient of a weight is a product over tokens, whose number need not be a multiple of 16.
    config = Float8LinearConfig(pad_inner_dim=True)
    convert_to_float8_training(encoder, module_filter_fn=fits, config=config)
