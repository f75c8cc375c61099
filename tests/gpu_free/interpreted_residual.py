"""Runs the kernels of `residual_norm` in Triton's interpreter, and compares them with torch's operations.

Run by test_residual_norm.py in a process of its own, because Triton reads TRITON_INTERPRET on its import.
"""

import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.engines.blocks import checkpoint_blocks
from pretrain.models import residual_norm as paths
from pretrain.models import residual_norm_triton as kernels
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import ViewEncoder
from pretrain.models.residual_norm import FusedBlock, fuse, residual_norm

CPU = torch.device("cpu")
EPSILON = 1e-6
# A row takes the interpreter milliseconds, so there are few programs: with 9 rows each has two or three.
kernels.PROGRAMS, paths._TRIED = 4, 9
generator = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def cases() -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
    """Yield a name, x, branch and drop-path's scale."""
    for tokens in (1, 3, 9):
        yield f"{tokens} tokens", normal(tokens, 64), normal(tokens, 64), None
    for width in (1, 3, 1408, 1536):
        yield f"width {width}", 3 + normal(2, 3, width), normal(2, 3, width), None
    dropped = torch.tensor([0, 1.25, 1.25, 0, 1.25])
    yield "drop-path by image", normal(5, 7, 64), normal(5, 7, 64), dropped
    yield "drop-path by token", normal(1, 35, 64), normal(1, 35, 64), dropped.repeat_interleave(7)[None]
    yield "every other token", normal(3, 9, 64)[:, ::2], normal(3, 10, 64)[:, 1::2], None
    yield "every other row", normal(19, 64)[::2], normal(20, 64)[::2], None
    yield "channels apart", normal(3, 64, 5).mT, normal(3, 5, 128)[..., ::2], None
    yield "far from the origin", 100 + normal(4, 1536), normal(4, 1536), None
    yield "no tokens", normal(0, 5, 64), normal(0, 5, 64), None


def unfused(
    x: Tensor, branch: Tensor, gamma: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return sum and norm as timm's block computes them."""
    branch = branch * gamma
    if scale is not None:
        branch = branch * scale.to(branch.dtype).view(*scale.shape, *[1] * (branch.ndim - scale.ndim))
    total = x + branch
    norm = F.layer_norm(total.float(), x.shape[-1:], weight.float(), bias.float(), EPSILON)
    return total, norm.to(branch.dtype)


def run(way: Any, inputs: dict[str, Any], types: tuple[torch.dtype, ...]) -> dict[str, Tensor]:
    """Return outputs and gradients, in fp64; `types` are those of residual stream, branch and parameters."""
    stream, branch, parameters = types
    kinds = {"x": stream, "branch": branch, "gamma": parameters, "weight": parameters, "bias": parameters}
    mine = {
        name: value.to(kinds[name]).requires_grad_() if name in kinds else value
        for name, value in inputs.items()
    }
    total, norm = way(*mine.values())
    cotangents = torch.Generator().manual_seed(1)
    given = [torch.randn(y.shape, generator=cotangents).bfloat16().to(y.dtype) for y in (total, norm)]
    leaves = {name: mine[name] for name in kinds}
    gradients = torch.autograd.grad((total, norm), list(leaves.values()), given)
    outputs = {"total": total, "norm": norm, **dict(zip(leaves, gradients, strict=True))}
    return {name: value.detach().double() for name, value in outputs.items()}


def fused(*inputs: Any) -> tuple[Tensor, Tensor]:
    total, norm, _ = residual_norm(*inputs, EPSILON)
    return total, norm


def error(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm().clamp_min(1e-30)).item() if exact.numel() else 0.0


def compare(name: str, x: Tensor, branch: Tensor, scale: Tensor | None) -> None:
    """Assert that the kernels are exact in fp32, and with bf16 as exact as torch's operations."""
    width = x.shape[-1]
    rounded = {"x": x.bfloat16(), "branch": branch.bfloat16(), "gamma": normal(width).bfloat16()}
    inputs = {**rounded, "scale": scale, "weight": 1 + normal(width).bfloat16(), "bias": normal(width)}
    inputs["bias"] = inputs["bias"].bfloat16()
    fp32, bf16 = torch.float32, torch.bfloat16
    exact = run(unfused_exactly, inputs, (torch.float64,) * 3)
    # The interpreter truncates to bf16, and GPUs round, with half the error.
    for types, bound in (((fp32,) * 3, 2e-6), ((fp32, bf16, fp32), 2**-7), ((bf16,) * 3, 2**-6)):
        mine, theirs = run(fused, inputs, types), run(unfused, inputs, types)
        for what, truth in exact.items():
            found, allowed = error(mine[what], truth), max(bound, 1.2 * error(theirs[what], truth))
            assert found <= allowed, f"{name}, {types}: {what} differs by {found:.1e}"


def unfused_exactly(
    x: Tensor, branch: Tensor, gamma: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return sum and norm in fp64."""
    branch = branch * gamma
    if scale is not None:
        branch = branch * scale.double().view(*scale.shape, *[1] * (branch.ndim - scale.ndim))
    total = x + branch
    return total, F.layer_norm(total, x.shape[-1:], weight, bias, EPSILON)


def gradients(views: ViewEncoder) -> list[Tensor]:
    """Return embeddings and all gradients for two sizes of views, with drop-path."""
    drawn = torch.Generator().manual_seed(2)
    batch = [torch.randn(n, 3, 3, side, side, generator=drawn) for n, side in ((2, 32), (1, 16))]
    out = views.train()(batch, sample_keys(0, 3, 7, 3, views=3))
    # Not the sum of squares, which the last norm makes nearly constant.
    (out * torch.randn(out.shape, generator=drawn)).sum().backward()
    return [out.detach(), *(p.grad for p in views.parameters() if p.grad is not None)]


def compare_encoders(packed: bool, kinds: tuple[str, str]) -> None:
    """Assert that a ViT of fused blocks is the same function."""
    small = {"patch_size": 16, "embed_dim": 32, "num_heads": 2, "num_classes": 0, "img_size": 32, "depth": 2}
    options = {"dynamic_img_size": True, "init_values": 0.5, "drop_path_rate": 0.4}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **small, **options)
    truth = gradients(ViewEncoder(copy.deepcopy(model), packed))
    for kind in kinds:
        views = ViewEncoder(copy.deepcopy(model), packed)
        assert fuse([views], CPU)
        blocks: Any = views.encoder.blocks
        assert all(type(block) is FusedBlock for block in blocks)
        if kind == "compiled":
            options = {"backend": "aot_eager", "fullgraph": True, "dynamic": False}
            for block in blocks:
                block.forward = torch.compile(block.forward, **options)
        elif kind != "plain":
            checkpoint_blocks(views.encoder, kind)  # type: ignore[arg-type]
        for mine, theirs in zip(gradients(views), truth, strict=True):
            assert (found := error(mine, theirs)) < 1e-5, f"{kind}, packed={packed}: {found:.1e}"


def check_types_under_autocast() -> None:
    """Assert that the residual stream stays fp32 next to bf16 branches, as in the block that is replaced."""
    torch.manual_seed(0)
    block = timm.models.vision_transformer.Block(32, 2, init_values=0.5)
    x = normal(2, 5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        truth = block(x)
        assert fuse([block], CPU)
        mine = block(x)
    assert mine.dtype == truth.dtype == torch.float32
    assert error(mine, truth) < 2**-7


def check_that_wrong_kernels_are_left_out() -> None:
    """Assert that blocks stay as they are where a kernel gives another gradient than torch."""
    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2, init_values=0.1)
    right = kernels.backward

    def wrong(*inputs: Any) -> Any:
        x, branch, sums = right(*inputs)
        return x, branch, sums * 1.1

    with mock.patch.object(kernels, "backward", wrong):
        assert not fuse([model], CPU)
    assert type(model.blocks[0]) is not FusedBlock


def main() -> None:
    for case in cases():
        compare(*case)
    check_types_under_autocast()
    check_that_wrong_kernels_are_left_out()
    compare_encoders(False, ("plain", "full"))
    compare_encoders(True, ("selective", "compiled"))


if __name__ == "__main__":
    main()
