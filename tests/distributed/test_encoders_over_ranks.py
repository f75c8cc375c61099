"""Encoders of all families, also with batch norm, train the same on one and two ranks in any engine."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.tensor import DTensor

from isotorus.errors import UserError
from pretrain import engines
from pretrain.engines import Engine
from pretrain.engines.check import check_engine
from pretrain.engines.config import EngineConfig, OptimizerConfig
from pretrain.engines.step import MicroBatch, train_step
from pretrain.methods import build_head
from pretrain.methods.config import LeJEPAConfig
from pretrain.models.config import EncoderConfig
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import build_encoder, embedding_width, timm_kwargs

IMAGES, STEPS = 4, 2
WINDING = "vit_tiny_patch16_224"
Options = dict[str, Any]

# The encoders of these names, made thin and shallow.
ENCODERS: dict[str, Options] = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "stem_width": 8},
    "resnetv2_18": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "stem_chs": 8},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "drop_path_rate": 0.3},
    "swin_tiny_patch4_window7_224": {
        "depths": [1, 1],
        "embed_dim": 16,
        "num_heads": [2, 4],
        "strict_img_size": False,
    },
    "vit_small_patch14_reg4_dinov2": {
        "patch_size": 8,
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
        "init_values": 0.1,
    },
    WINDING: {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
}
ENGINES: dict[str, Options] = {
    "ddp": {},
    "fsdp": {"kind": "fsdp"},
    "zero-3": {"kind": "deepspeed", "zero_stage": 3},
}
CASES = [
    *itertools.product(["resnet18", "convnext_atto", WINDING], ENGINES),
    ("resnetv2_18", "ddp"),
    ("swin_tiny_patch4_window7_224", "fsdp"),
    ("vit_small_patch14_reg4_dinov2", "fsdp"),
]


def build(name: str, options: Options) -> Engine:
    attention = "winding" if name == WINDING else "softmax"
    kwargs = timm_kwargs(EncoderConfig(name=name, kwargs=ENCODERS[name], attention=attention), 64, 3)
    with torch.device("meta"):
        width = embedding_width(build_encoder(name, kwargs, 0), name, 3, [64, 32])
    objective = LeJEPAConfig(sigreg={"num_slices": 64}, projector={"hidden": 24, "layers": 2, "width": 8})
    return engines.build_engine(
        lambda: build_encoder(name, kwargs, seed=0),
        build_head(objective, width, n_global=2, seed=0),
        EngineConfig(**{"precision": "fp32"} | options),
        OptimizerConfig(),
        torch.device("cpu"),
    )


def train(engine: Engine) -> dict[str, Any]:
    """Return losses and gradient norms of some steps, and this rank's buffers after them."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    count, curve = IMAGES // ranks, []
    share = slice(rank * count, (rank + 1) * count)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        views = [
            torch.randn(v, IMAGES, 3, n, n, generator=generator)[:, share] for v, n in ((2, 64), (3, 32))
        ]
        keys = sample_keys(5, step, share.start, count, views=5)
        parts = train_step(engine, MicroBatch(views, keys), step, lr=1e-4).parts
        curve += [parts["loss"].item(), parts["grad_norm"].item()]
    return {"curve": curve, "buffers": {n: b.clone() for n, b in engine.networks.named_buffers()}}


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    found = {}
    for name, kind in CASES:
        engine = build(name, ENGINES[kind])
        found[name, kind] = train(engine)
        if name == "resnet18":
            dcp.save(engine.state(), checkpoint_id=folder / kind)
            state = engine.state()["model"].items()
            whole = {n: x.full_tensor() if isinstance(x, DTensor) else x for n, x in state}
            torch.save(whole, folder / f"{kind}{rank}.pt")
    torch.save(found, folder / f"found{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    mp.spawn(rank_main, (folder,), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[tuple[str, str], Any]]:
    return [torch.load(folder / f"found{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", ENCODERS)
def test_two_ranks_are_one(ranks: list[dict[tuple[str, str], Any]], name: str):
    alone = train(build(name, {}))
    for kind in [kind for encoder, kind in CASES if encoder == name]:
        first, second = (found[name, kind] for found in ranks)
        assert first["curve"] == second["curve"], kind
        assert first["curve"] == pytest.approx(alone["curve"], rel=2e-5), kind
        for buffer, value in first["buffers"].items():
            # Moments of batch norm: of the global batch, and so the same everywhere.
            assert torch.equal(value, second["buffers"][buffer]), (kind, buffer)
            # A weight whose gradient is all rounding still moves by up to the learning rate.
            torch.testing.assert_close(value, alone["buffers"][buffer], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ENGINES)
def test_torch_alone_opens_a_checkpoint(folder: Path, kind: str, ranks: list[Any]):
    dcp_to_torch_save(folder / kind, folder / "whole.pt")
    whole = torch.load(folder / "whole.pt", weights_only=True)
    trained = torch.load(folder / f"{kind}0.pt")
    assert whole["model"].keys() == trained.keys()
    assert all(torch.equal(whole["model"][name], value) for name, value in trained.items())
    weight = "encoder.encoder.layer1.0.conv1.weight"
    moments = whole["optimizer"]["state"][weight]
    assert moments["step"] == STEPS and moments["exp_avg_sq"].shape == trained[weight].shape


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", WINDING])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_in_bf16_gives_the_same_steps(name: str, mode: str):
    kept = train(build(name, {"precision": "bf16"}))
    again = train(build(name, {"precision": "bf16", "activation_checkpointing": mode}))
    # Casts that are not shared between views' sizes have their gradients summed in fp32.
    assert again["curve"] == pytest.approx(kept["curve"], rel=1e-4)


def test_other_batch_norms_are_refused_on_several_ranks():
    with torch.device("meta"):
        encoder = build_encoder("levit_128", {"num_classes": 0}, 0)
    check_engine(EngineConfig(), 1, encoder, followed=False)
    with pytest.raises(UserError, match=r"is a BatchNorm1d.*on 2 ranks; use one process"):
        check_engine(EngineConfig(), 2, encoder, followed=False)
