"""The schedule, optimizer groups, batch norm and encoders, compared with independent implementations."""

import math
from pathlib import Path

import pytest
import timm
import torch

from isotorus import jsonl
from isotorus.errors import UserError
from pretrain.engines.config import OptimizerConfig
from pretrain.engines.optimizer import build_optimizer, update
from pretrain.engines.schedule import learning_rate
from pretrain.models.batch_norm import GlobalBatchNorm
from pretrain.models.config import EncoderConfig, MLPConfig
from pretrain.models.encoder import ViewEncoder, build_encoder, timm_kwargs
from pretrain.models.projector import build_mlp


def test_schedule_warms_up_then_falls_to_the_final_ratio():
    rates = [learning_rate(step, 100, 1.0, 10, 1e-3) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1e-3)
    middle = 1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * 40 / 89))
    assert rates[50] == pytest.approx(middle)


def test_weight_decay_spares_biases_norms_and_tokens():
    encoder = ViewEncoder(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0))
    head = build_mlp(192, MLPConfig(hidden=8), 4, seed=0)
    optimizer = build_optimizer(encoder, head, OptimizerConfig(weight_decay=0.1))
    names = {id(p): n for n, p in [*encoder.named_parameters(), *head.named_parameters()]}
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    spared = {names[id(p)] for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]}
    assert decayed | spared == set(names.values())
    assert {"encoder.pos_embed", "encoder.cls_token", "encoder.norm.weight", "1.weight", "6.bias"} <= spared
    assert {"encoder.blocks.0.attn.qkv.weight", "encoder.patch_embed.proj.weight", "0.weight"} <= decayed


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_updates_are_those_of_torchs_optimizer(clip: float):
    ours, torchs = (build_mlp(6, MLPConfig(hidden=8), 4, seed=0) for _ in range(2))
    empty = torch.nn.Module()
    empty.encoder = torch.nn.Identity()
    mine = build_optimizer(empty, ours, OptimizerConfig())
    reference = build_optimizer(empty, torchs, OptimizerConfig(), fused=False)
    for step in range(4):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        for head in (ours, torchs):
            (1e3 * head(x).square().sum()).backward()
        expected = torch.nn.utils.clip_grad_norm_(torchs.parameters(), clip)
        limit = expected / 2 if step == 1 else None  # the second update is refused
        assert update(mine, 1e-3, clip, limit) == pytest.approx(expected.item())
        if step != 1:
            for group in reference.param_groups:
                group["lr"] = 1e-3
            reference.step()
        reference.zero_grad()
        assert all(parameter.grad is None for parameter in ours.parameters())
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert {float(state["step"]) for state in mine.state.values()} == {3}


def test_eps_is_that_of_the_update():
    """The first moments are those of one gradient g, so AdamW moves by lr · g / (|g| + ε), and decays."""
    head, encoder = build_mlp(6, MLPConfig(hidden=8), 4, seed=0), torch.nn.Module()
    encoder.encoder = torch.nn.Identity()
    optimizer = build_optimizer(encoder, head, OptimizerConfig(eps=0.3, weight_decay=0.1))
    head(torch.randn(16, 6, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    expected = {}
    for name, p in head.named_parameters():
        assert p.grad is not None
        decay = 0.1 if p.ndim > 1 else 0.0
        expected[name] = p.detach() * (1 - 1e-2 * decay) - 1e-2 * p.grad / (p.grad.abs() + 0.3)
    update(optimizer, 1e-2, clip_grad=1e6)
    torch.testing.assert_close(dict(head.named_parameters()), expected)


def test_batch_norm_is_torch_batch_norm_on_one_process():
    ours, torchs = GlobalBatchNorm(5), torch.nn.BatchNorm1d(5)
    x = (torch.randn(3, 7, 5) * 4 + 100).requires_grad_()
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(3, 7, 5)
    (ours(x) * weights).sum().backward()
    (torchs(y.flatten(0, 1)).unflatten(0, (3, 7)) * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_var, torchs.running_var)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(y.flatten(0, 1)).unflatten(0, (3, 7)))


def test_encoder_weights_come_from_the_seed_alone():
    kwargs = timm_kwargs(EncoderConfig(name="vit_tiny_patch16_224", kwargs={"depth": 1}), 32, 1)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_encoder("vit_tiny_patch16_224", kwargs, seed=5).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second = build_encoder("vit_tiny_patch16_224", kwargs, seed=5).state_dict()
    other = build_encoder("vit_tiny_patch16_224", kwargs, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["patch_embed.proj.weight"], other["patch_embed.proj.weight"])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto"])
def test_views_of_two_sizes_through_any_encoder(name: str):
    encoder = build_encoder(name, timm_kwargs(EncoderConfig(name=name), 64, 1), seed=0)
    views = [torch.randn(2, 3, 1, 64, 64), torch.randn(4, 3, 1, 32, 32)]
    embeddings = ViewEncoder(encoder).eval()(views, torch.zeros(6, 3, dtype=torch.int64))
    assert embeddings.shape == (6, 3, encoder.num_features)
    # The last global and the first local view, each of image 1, stand where they belong.
    torch.testing.assert_close(embeddings[1, 1], encoder(views[0][1, 1:2])[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embeddings[2, 1], encoder(views[1][0, 1:2])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("vit_tinny_patch16_224", {}, "did you mean vit_tiny_patch16_224?"),
        ("vit_tiny_patch16_224", {"dept": 2}, "change encoder.kwargs"),
    ],
)
def test_encoders_that_timm_does_not_have(name: str, kwargs: dict, said: str):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        timm_kwargs(EncoderConfig(name=name, kwargs=kwargs), 32, 1)


def test_metrics_file_survives_a_kill_and_is_read_in_pieces(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    file = jsonl.StepLog(path, step=1)
    rows, offset = jsonl.read_from(path, 0)
    assert [row["step"] for row in rows] == [1]
    file.write({"step": 2, "loss": math.nan})
    with path.open("a") as other:
        other.write('{"step": 3')
    rows, offset = jsonl.read_from(path, offset)
    assert rows == [{"step": 2, "loss": None}]
    assert jsonl.read_from(path, offset) == ([], offset)
    assert [row["step"] for row in jsonl.read(path)] == [1, 2]
