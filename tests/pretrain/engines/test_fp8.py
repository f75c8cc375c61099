"""fp8: refused where it cannot be, and only in the layers it is for."""

import copy
import functools
import sys
from pathlib import Path

import pytest
import timm
import torch

from isotorus.errors import UserError
from pretrain.config import load_config
from pretrain.engines.blocks import checkpoint_blocks
from pretrain.engines.fp8 import check_fp8, convert_to_fp8, refuse_capability


def test_an_older_gpu_and_no_torchao(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"here is NVIDIA A100, 8\.0; use engine.precision=bf16"):
        refuse_capability((8, 0), "NVIDIA A100")
    refuse_capability((8, 9), "NVIDIA L40S")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"needs torchao, .* pip install 'isotorus\[fp8\]'"):
        check_fp8(torch.device("cuda", 1))


def test_deepspeed_is_refused(recipe: Path):
    with pytest.raises(UserError, match=r"tried with engine\.kind=deepspeed; use engine\.kind=ddp"):
        load_config(str(recipe), ["engine.precision=fp8", "engine.kind=deepspeed"])


def test_linear_layers_of_blocks_are_converted_and_no_others():
    float8 = pytest.importorskip("torchao.float8.float8_linear")
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2, num_classes=16)
        model.blocks[1].mlp.fc1 = torch.nn.Linear(32, 40)
        model.blocks[1].mlp.fc2 = torch.nn.Linear(40, 32)
    names = list(model.state_dict())
    convert_to_fp8(model)
    found = {name for name, module in model.named_modules() if isinstance(module, float8.Float8Linear)}
    layers = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    assert found == {f"blocks.0.{layer}" for layer in layers} | {"blocks.1.attn.qkv", "blocks.1.attn.proj"}
    assert list(model.state_dict()) == names


def test_gradients_are_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch):
    """Rounded as on a GPU, multiplied in fp32."""
    float8 = pytest.importorskip("torchao.float8")
    emulated = functools.partial(float8.Float8LinearConfig, emulate=True)
    monkeypatch.setattr(float8, "Float8LinearConfig", emulated)
    torch.manual_seed(0)
    kwargs = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 2, "num_classes": 0}
    exact = timm.create_model("vit_tiny_patch16_224", **kwargs)
    rounded = copy.deepcopy(exact)
    convert_to_fp8(rounded)
    checkpoint_blocks(rounded, "selective")
    x, weights = torch.randn(5, 3, 32, 32), torch.randn(5, 64)
    gradients = []
    for model in (exact, rounded):
        (model(x) * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert 0.98 < torch.cosine_similarity(*gradients, dim=0) < 0.9999
