"""Winding attention is dense attention with a mask, forward and backward, and trains as any encoder does."""

import functools
import json
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from eval_suite.inputs.checkpoints import Checkpoint
from isotorus import jsonl
from isotorus.errors import UserError
from pretrain.checkpoint import damage
from pretrain.checkpoint.export.export import export
from pretrain.config import load_config
from pretrain.cost.activation_memory import encoder_footprint
from pretrain.cost.flops import step_flops
from pretrain.engines.blocks import checkpoint_blocks, compile_blocks
from pretrain.engines.check import check_engine
from pretrain.engines.config import EngineConfig
from pretrain.geometry.jets.transport import holonomy
from pretrain.models.config import EncoderConfig
from pretrain.models.encoder import build_encoder, create, timm_kwargs
from pretrain.models.winding_attention import (
    Address,
    Addresses,
    attend_in_blocks,
    attend_sorted,
    block_mask,
)
from pretrain.preflight.check import check
from pretrain.preflight.model import check_model
from pretrain.train import train

TINY = {"img_size": 32, "patch_size": 4, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
NAME = "vit_tiny_patch16_224"


def dense(q: Tensor, k: Tensor, v: Tensor, a: Addresses) -> Tensor:
    """Return the attention (N, T, heads, d), by a mask and a bias on all pairs."""
    bias = a.membership[:, None, :] - (a.layers[:, :, None] - a.layers[:, None, :]).abs()
    bias = bias.masked_fill(a.classes[:, :, None] != a.classes[:, None, :], -torch.inf)
    weights = (torch.einsum("nihd,njhd->nhij", q, k) + bias[:, None]).softmax(-1)
    return torch.einsum("nhij,njhd->nihd", weights, v)


def addressed(images: int, tokens: int, classes: int, skew: float = 0.0) -> tuple[Tensor, Address]:
    """Return tokens, and a map to addresses; a larger `skew` fills their classes less equally."""
    torch.manual_seed(tokens)
    address = Address(8, classes).double()
    with torch.no_grad():
        address.bias += skew
    return torch.randn(images, tokens, 8, dtype=torch.float64), address


@pytest.mark.parametrize(
    ("tokens", "classes", "skew"),
    [(150, 4, 0.0), (97, 8, 3.0), (40, 64, 0.0), (33, 1, 0.0), (2, 5, 0.0), (1, 3, 0.0)],
)
def test_it_is_dense_attention_with_a_mask(tokens: int, classes: int, skew: float):
    x, address = addressed(3, tokens, classes, skew)
    leaves = [t.requires_grad_() for t in (x, *torch.randn(3, 3, tokens, 2, 16, dtype=torch.float64))]
    weights = torch.randn(3, tokens, 2, 16, dtype=torch.float64)

    def outputs(attend) -> list[Tensor]:
        out = attend(*leaves[1:], address(leaves[0]))
        return [out, *torch.autograd.grad((out * weights).sum(), [*leaves, *address.parameters()])]

    truth = outputs(dense)
    found = outputs(lambda *given: attend_sorted(classes, *given))
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=3e-5)
    assert classes == 1 or tokens < 3 or all(gradient.abs().max() > 1e-3 for gradient in truth[1:])
    with torch.no_grad():
        torch.testing.assert_close(
            attend_in_blocks(*leaves[1:], address(x)), truth[0].detach(), rtol=1e-5, atol=1e-6
        )


def test_across_classes_is_exactly_nothing_and_no_row_is_empty():
    x, address = addressed(1, 60, 6)
    q, k, v = torch.randn(3, 1, 60, 2, 4, dtype=torch.float64)
    found = address(x)
    v.requires_grad_()
    out = attend_sorted(6, q, k, v, found)
    for i in (0, 17, 59):
        (gradient,) = torch.autograd.grad(out[0, i, 0, 0], v, retain_graph=True)
        other = found.classes[0] != found.classes[0, i]
        assert other.any() and not gradient[0, other].any()
        assert gradient[0, ~other, 0, 0].sum() == pytest.approx(1, abs=1e-6)
    alone = found._replace(classes=torch.arange(60)[None])
    torch.testing.assert_close(attend_sorted(60, q, k, v, alone), v)


def test_layers_weigh_by_their_distance():
    """With equal scores weights are e^{−|n_q − n_k|}, normalised."""
    n = torch.tensor([[0.0, 1.0, 3.0]])
    one = Addresses(torch.zeros(1, 3, dtype=torch.int64), n, torch.zeros(1, 3))
    v = torch.eye(3).view(1, 3, 1, 3)
    weights = attend_sorted(1, torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 4), v, one)[0, :, 0]
    expected = torch.exp(-(n[0, :, None] - n[0]).abs())
    torch.testing.assert_close(weights, expected / expected.sum(1, keepdim=True))


def test_blocks_that_are_passed_over_have_no_pair():
    classes = torch.randint(0, 6, (2, 1000), generator=torch.Generator().manual_seed(0)).sort(1).values

    def same(n: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return classes[n, i] == classes[n, j]

    truth = create_block_mask(same, 2, None, 1000, 1000, device="cpu")
    assert torch.equal(block_mask(classes).to_dense(), truth.to_dense())
    assert truth.to_dense().float().mean() < 0.5


def test_one_class_and_one_layer_is_softmax_attention():
    plain, winding = build_encoder(NAME, TINY, 0), build_encoder(NAME, TINY | {"winding_classes": 1}, 0)
    for block in winding.blocks:
        torch.nn.init.zeros_(block.attn.address.weight)
    missing, extra = plain.load_state_dict(winding.state_dict(), strict=False)
    assert not missing and {key.split(".", 2)[2] for key in extra} == {
        "attn.address.weight",
        "attn.address.bias",
    }
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(winding(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["selective", "full", "compiled"])
def test_blocks_are_recomputed_and_compiled(mode: str, monkeypatch: pytest.MonkeyPatch):
    # Traced as for the default compiler, whose C++ would take a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    x, gradients = torch.randn(2, 3, 32, 32), []
    for changed in (False, True):
        encoder = build_encoder(NAME, TINY | {"winding_classes": 4, "qk_norm": True}, 0)
        if changed and mode == "compiled":
            compile_blocks(encoder)
        elif changed:
            checkpoint_blocks(encoder, mode)
        encoder(x).square().mean().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
        assert all(p.grad is not None for p in encoder.parameters())
    torch.testing.assert_close(gradients[1], gradients[0])
    address = gradients[0]["blocks.0.attn.address.weight"]
    assert all(row.abs().max() > 0 for row in address), "angles and layers are learned"


def test_transport_goes_through():
    encoder = build_encoder(NAME, TINY | {"winding_classes": 2}, 0).double().eval()
    tokens = torch.randn(12, 32, dtype=torch.float64)
    classes = encoder.blocks[0].attn.address(encoder.blocks[0].norm1(tokens)).classes
    together = (classes == classes.mode().values).nonzero().flatten().tolist()
    apart = (classes != classes.mode().values).nonzero().flatten().tolist()
    assert holonomy(encoder.blocks[0], tokens, together[:3]).cut is None
    assert holonomy(encoder.blocks[0], tokens, [*together[:2], apart[0]]).cut is not None


def test_plan_counts_what_is_left_of_attention():
    chosen = load_config("lejepa_vits16_winding", [])
    plain = load_config("lejepa_vits16_winding", ["encoder.attention=softmax"])
    found, full = (step_flops(c, check_model(c, 1).kwargs, 384) for c in (chosen, plain))
    # Of 196 and 36 tokens, 8 equally full classes have 24 or 25, and 4 or 5; 25 are filled up to 28.
    pairs = {
        "full": [(2, 196**2), (6, 36**2)],
        "classes": [(2, 4 * 24**2 + 4 * 28**2), (6, 4 * 4**2 + 4 * 5**2)],
    }
    full_pairs, class_pairs = (sum(v * n for v, n in pairs[key]) for key in ("full", "classes"))
    addresses = 2 * 3 * 384 * (2 * 196 + 6 * 36)
    saved = 12 * (2 * 2 * 384 * (full_pairs - class_pairs) - addresses)
    assert full.encoder_forward - found.encoder_forward == saved

    def activations(more: dict) -> float:
        kwargs = TINY | more | {"img_size": 64, "patch_size": 2}
        setting = (NAME, kwargs, [(1, 64)], 3, 4, EngineConfig(), "cpu", False, 0.0)
        return encoder_footprint(*setting)["activations"]

    assert activations({"winding_classes": 8}) < 0.6 * activations({})


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_run_trains_and_is_read_by_the_evaluation(one_process: None, recipe: Path, tmp_path: Path):
    asked = ["encoder.attention=winding", "encoder.winding_classes=3", "steps=3", "checkpoint.every=3"]
    config = load_config(str(recipe), asked)
    train(config, check(config, world_size=1), torch.device("cpu"))
    assert len(jsonl.read(config.folder / "metrics.jsonl")) == 3
    folder = config.folder / "checkpoints/latest"
    assert damage.describe(folder)["kwargs"]["winding_classes"] == 3
    description = folder / "encoder.json"
    saved = Checkpoint(folder / "encoder.safetensors", description, config.folder)
    encoder = saved.pretrained().eval()
    address = encoder.blocks[1].attn.address
    initial = saved.untrained().blocks[1].attn.address
    assert address.classes == 3 and (address.weight - initial.weight).abs().max() > 1e-5
    assert encoder(torch.randn(2, 1, 32, 32)).shape == (2, 32)
    for format in ("timm", "transformers"):
        with pytest.raises(UserError, match="neither timm nor transformers computes") as error:
            export(config.folder, tmp_path / "out", format)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="of another architecture"):
        check(load_config(str(recipe), ["steps=4"]), world_size=1)
    warm = [f"encoder.weights={config.folder}", "name=warm"]
    with pytest.raises(UserError, match="unknown to the model"):
        check(load_config(str(recipe), warm), world_size=1)
    json.dumps(saved.encoder.kwargs)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_encoders_without_that_attention_are_refused(name: str):
    with pytest.raises(UserError, match=r"encoder\.attention=winding: .* is not a plain ViT") as error:
        timm_kwargs(EncoderConfig(name=name, attention="winding"), 224, 3)
    assert "\n" not in str(error.value) and "attention=softmax" in str(error.value)


def test_packed_sequences_are_refused():
    with torch.device("meta"):
        encoder = create(NAME, TINY | {"winding_classes": 2})
        assert isinstance(timm.create_model(NAME, **TINY), type(encoder))
    with pytest.raises(UserError, match=r"engine.packed=true: its attention is not the usual one"):
        check_engine(EngineConfig(packed=True), 1, encoder, False)
