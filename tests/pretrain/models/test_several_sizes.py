"""Views of all sizes as one sequence: the same embeddings and gradients as a pass for each size."""

import copy
import functools
from collections import Counter

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from isotorus.errors import UserError
from pretrain.engines.blocks import checkpoint_blocks, compile_blocks
from pretrain.engines.check import check_engine
from pretrain.engines.config import EngineConfig
from pretrain.engines.networks import unfuse_attention
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import ViewEncoder
from pretrain.models.several_sizes import Layout, PackedAttention

TINY = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0, "img_size": 32}
TINY |= {"drop_path_rate": 0.4, "dynamic_img_size": True}
KINDS = {
    "as it is": {},
    "registers, layer scale": {"reg_tokens": 4, "init_values": 0.1},
    "mean of patches": {"class_token": False, "global_pool": "avg"},
    "norms of queries and keys": {"qk_norm": True, "no_embed_class": True},
    "attention pooling, norms after": {
        "class_token": False,
        "global_pool": "map",
        "block_fn": timm.models.vision_transformer.ResPostBlock,
    },
}


def encoder(**more: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **TINY | more)


def step(views: ViewEncoder) -> tuple[Tensor, list[Tensor]]:
    """Embeddings of 2 large and 3 small views of 5 images, and the gradients of a function of them."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(n, 5, 3, size, size, generator=generator) for n, size in ((2, 32), (3, 16))]
    out = views.train()(images, sample_keys(0, 3, 7, 5, views=5))
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    return out.detach(), [p.grad for p in views.parameters() if p.grad is not None]


def assert_equal(found: tuple[Tensor, list[Tensor]], truth: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(found[0], truth[0], rtol=1e-5, atol=1e-5)
    assert len(found[1]) == len(truth[1])
    for mine, other in zip(found[1], truth[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * other.abs().max().item() + 1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_a_pass_for_each_size(kind: str, fused: bool):
    model = encoder(**KINDS[kind])
    if not fused:
        unfuse_attention(model)
    truth = step(ViewEncoder(copy.deepcopy(model)))
    assert_equal(step(ViewEncoder(model, packed=True)), truth)


@pytest.mark.parametrize("mode", ["full", "selective", "compiled"])
def test_packed_blocks_are_recomputed_and_compiled(mode: str, monkeypatch: pytest.MonkeyPatch):
    # Traced as for the default compiler, whose C++ would take a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model = encoder()
    truth = step(ViewEncoder(copy.deepcopy(model)))
    views = ViewEncoder(model, packed=True)
    if mode == "compiled":
        compile_blocks(views.encoder)
    else:
        checkpoint_blocks(views.encoder, mode)
    assert_equal(step(views), truth)


def test_on_a_gpu_attention_is_one_call():
    """The trace needs no GPU: it checks shapes, types and devices of the forward pass."""
    calls = CountCalls()
    with FakeTensorMode(), torch.device("cuda"), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attention = timm.layers.Attention(32, 2, qk_norm=True, norm_layer=nn.LayerNorm, dtype=torch.bfloat16)
        attention.__class__ = PackedAttention
        layout = Layout(((2, 17), (3, 5)), torch.empty(6, dtype=torch.int32))
        with calls:
            out = attention(torch.empty(1, 49, 32, dtype=torch.bfloat16), attn_mask=layout)
        assert out.shape == (1, 49, 32)
    assert calls.found["torch_attn::_varlen_attn"] == 1


class CountCalls(TorchDispatchMode):
    """Count the calls of each operator inside a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found[function.name()] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("convnext_atto", {}, "ConvNeXt is not a plain ViT"),
        ("resnet18", {}, "ResNet is not a plain ViT"),
        ("vit_small_patch16_rope_224", {}, "Eva is not a plain ViT"),
        (
            "vit_tiny_patch16_224",
            {"block_fn": timm.models.vision_transformer.ParallelScalingBlock},
            "its blocks",
        ),
        ("vit_tiny_patch16_224", {"attn_layer": "diff"}, "its attention"),
    ],
)
def test_what_cannot_be_packed_is_refused(name: str, kwargs: dict, said: str):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **kwargs)
    check_engine(EngineConfig(), 1, model, False)
    with pytest.raises(UserError, match=f"engine.packed=true: {said}") as error:
        check_engine(EngineConfig(packed=True), 1, model, False)
    assert "\n" not in str(error.value) and "engine.packed=false" in str(error.value)
