"""What torch.compile makes of an encoder's blocks: few and whole graphs, one kernel between products."""

import copy
import functools
import re

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from pretrain.engines.blocks import checkpoint_blocks, compile_blocks
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import ViewEncoder

SIZES = ((2, 32), (3, 16))
SWIGLU = {"mlp_layer": timm.layers.SwiGLUPacked, "mlp_ratio": 4}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def encoder(depth: int, **more: object) -> nn.Module:
    torch.manual_seed(0)
    small = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "num_classes": 0, "img_size": 32}
    options = {"dynamic_img_size": True, "init_values": 0.1} | more
    return timm.create_model("vit_tiny_patch16_224", depth=depth, **small, **options)


def step(views: ViewEncoder, images: int = 4) -> Tensor:
    """Train on views of two sizes."""
    generator = torch.Generator().manual_seed(1)
    batch = [torch.randn(n, images, 3, side, side, generator=generator) for n, side in SIZES]
    out = views.train()(batch, sample_keys(0, 3, 7, images, views=5))
    out.square().sum().backward()
    return out.detach()


def graphs(
    depth: int, monkeypatch: pytest.MonkeyPatch, packed: bool, recomputed: bool, **more: object
) -> int:
    """Return the number of graphs after a step; two more steps must need no other ones."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    model = encoder(depth, **more)
    truth = step(ViewEncoder(copy.deepcopy(model), packed=packed))
    views = ViewEncoder(model, packed=packed)
    if recomputed:
        checkpoint_blocks(views.encoder, "selective")
    compile_blocks(views.encoder)
    torch.testing.assert_close(step(views), truth, rtol=1e-4, atol=1e-4)
    found = counters["stats"]["unique_graphs"]
    for _ in range(2):
        step(views)
    assert counters["stats"]["unique_graphs"] == found, "a second step of the same sizes needs new graphs"
    assert not counters["graph_break"], dict(counters["graph_break"])
    monkeypatch.undo()
    return found


@pytest.mark.parametrize(
    ("packed", "more"),
    [
        pytest.param(False, {}, id="as it is"),
        pytest.param(False, {"drop_path_rate": 0.3}, id="drop-path"),
        pytest.param(True, {"drop_path_rate": 0.3}, id="packed, drop-path"),
        pytest.param(True, {"qk_norm": True}, id="packed, norms of queries and keys"),
        pytest.param(False, SWIGLU, id="SwiGLU"),
    ],
)
def test_the_number_of_graphs_does_not_grow_with_depth(
    packed: bool, more: dict, monkeypatch: pytest.MonkeyPatch
):
    shallow, deep = (graphs(depth, monkeypatch, packed, False, **more) for depth in (2, 4))
    # A graph for each size; with drop-path, another one for the first block, which has none.
    kinds = 2 if "drop_path_rate" in more else 1
    assert shallow == deep == kinds * (1 if packed else len(SIZES))


def test_recomputed_blocks_are_whole_graphs_too(monkeypatch: pytest.MonkeyPatch):
    assert graphs(2, monkeypatch, False, True) == graphs(4, monkeypatch, False, True) == len(SIZES)


@pytest.mark.nightly
def test_residual_scale_and_norm_are_one_kernel():
    """Between two matrix products, a compiled block reads and writes its tokens once.

    One kernel multiplies the output of attention by layer scale, adds it to the residual and normalises the
    sum. Its statistics are computed in fp32, so the result is that of the uncompiled block but for roundings
    to bf16.
    """
    block = encoder(1).blocks[0].eval()
    x = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(1))
    exact = block(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        unfused = block(x)
        with torch._inductor.config.patch(fx_graph_cache=False):
            fused, code = run_and_get_code(torch.compile(block.forward, dynamic=False), x)
    # Kernels are named after the operations that they compute.
    kernels = re.findall(r"^(cpp_fused\w*) = ", "\n".join(code), re.MULTILINE)
    norms = [name for name in kernels if "layer_norm" in name]
    assert len(norms) == 2, kernels
    assert len([name for name in norms if "add" in name and "mul" in name]) == 1, kernels
    bound = 2**-8 * exact.abs().max()
    assert (unfused - exact).abs().max() < 2 * bound and (fused - exact).abs().max() < 2 * bound
