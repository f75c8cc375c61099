"""Arithmetic that gives the same bits every time."""

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from isotorus.device import without_autocast


def be_deterministic() -> None:
    """Make every operation of this process give equal results for equal inputs, or raise `RuntimeError`.

    Call it before anything is computed on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


class Resize(TorchFunctionMode):
    """Resizes images by matrix products while this mode is active.

    A ViT resizes its position embeddings for views of another size, and on GPUs the gradient of torch's own
    function is a sum in random order.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.interpolate and kwargs.get("mode") in ("bilinear", "bicubic") and "size" in kwargs:
            return resize(*args, **kwargs)
        return function(*args, **kwargs)


def resize(images: Tensor, size: tuple[int, int], **options: Any) -> Tensor:
    """Do what `torch.nn.functional.interpolate` does to images (N, C, H, W), by two matrix products.

    Bilinear and bicubic interpolation are linear and separable.
    """
    with without_autocast(images.device):
        rows, columns = (
            F.interpolate(
                torch.eye(before, dtype=images.dtype, device=images.device)[None, None],
                size=(after, before),
                **options,
            )[0, 0]
            for before, after in zip(images.shape[2:], size, strict=True)
        )
        return rows @ images @ columns.T
