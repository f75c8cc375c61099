"""One train step on 1, 2 and 4 ranks, whole or accumulated, is one process's step on the whole batch."""

from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pydantic import TypeAdapter

from pretrain import engines
from pretrain.engines import Engine
from pretrain.engines.config import EngineConfig, OptimizerConfig
from pretrain.engines.step import MicroBatch, accumulated_backward, microbatch_backward, train_step
from pretrain.methods import build_head
from pretrain.methods.config import ObjectiveConfig, Turned
from pretrain.models.config import EncoderConfig
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import build_encoder, timm_kwargs

IMAGES, STEP, SEED = 16, 3, 5
Found = dict[str, torch.Tensor]

SMALL = {"hidden": 24, "layers": 2}
AUTO = {"auto_weight": {"enabled": True, "rate": 0.1}}
METHODS = {
    "lejepa": {"kind": "lejepa", "encoder_weight": 0.1, "sigreg": {"num_slices": 64}},
    "auto-weight": {"kind": "lejepa", "sigreg": {"test": "watson"}} | AUTO,
    "vicreg": {"kind": "jepa"},
    "jepa-smooth": {
        "kind": "jepa",
        "regularizer": "sigreg",
        "sigreg": {"num_slices": 64},
        "prediction": "smooth_l1",
    },
    "toroidal": {"kind": "jepa", "regularizer": "toroidal", "grid_size": 2} | AUTO,
    "torus": {"kind": "torus", "angles": 2, "weight": 0.2},
    "torus-drawn": {"kind": "torus", "angles": 6, "num_frequencies": 128} | AUTO,
    "torus-turned": {"kind": "torus", "angles": 3, "order": [1, 4]},
    "torus-content": {"kind": "torus", "content": "lejepa", "content_weight": 0.3, "pose_width": 12},
}
TURNED = {
    "torus-turned": Turned(0, ("rotation", "hue")),
    "torus-content": Turned(2, ("rotation", "hue")),
}


def build_engine(method: str) -> Engine:
    small = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "drop_path_rate": 0.3}
    name = "vit_tiny_patch16_224"
    kwargs = timm_kwargs(EncoderConfig(name=name, kwargs=small), 32, 1)
    values = dict(METHODS[method])
    projector = {"projector": SMALL | {"width": 8}}
    values |= {"head": SMALL} if values["kind"] == "torus" else projector
    values |= {"lejepa": projector | {"sigreg": {"num_slices": 64}}} if "content" in values else {}
    config = TypeAdapter(ObjectiveConfig).validate_python(values)
    head = build_head(config, 32, n_global=2, seed=0, turned=TURNED.get(method))
    fp32, cpu = EngineConfig(precision="fp32"), torch.device("cpu")
    with_target = config.kind == "jepa"
    return engines.build_engine(
        lambda: build_encoder(name, kwargs, seed=0), head, fp32, OptimizerConfig(), cpu, with_target
    )


def images(share: slice, method: str = "") -> MicroBatch:
    """Return 2 large and 3 small views of a share of the batch, with keys and turns as the training loop."""
    generator = torch.Generator().manual_seed(1)
    views = [
        torch.randn(2, IMAGES, 1, 32, 32, generator=generator),
        torch.randn(3, IMAGES, 1, 16, 16, generator=generator),
    ]
    first, last, _ = share.indices(IMAGES)
    keys = sample_keys(SEED, STEP, first, last - first, views=5)
    turns = 6 * torch.rand(5, IMAGES, 2, generator=generator)[:, share] if method in TURNED else None
    return MicroBatch([x[:, share] for x in views], keys, turns)


def measure(method: str, share: slice, accumulation: int) -> Found:
    """Return loss parts, gradients and buffers, and the loss and gradient norm after an update."""
    engine = build_engine(method)
    batches = images(share, method).split(accumulation)
    result = accumulated_backward(engine, batches, STEP)
    found = {f"part {name}": value for name, value in result.parts.items()}
    for name, parameter in engine.networks.online_parameters():
        assert parameter.grad is not None, name
        found[f"grad {name}"] = parameter.grad.clone()
    found |= {f"buffer {name}": buffer.clone() for name, buffer in engine.networks.named_buffers()}
    engine.step(lr=1e-3, momentum=0.9)
    later = train_step(engine, images(share, method), STEP + 1, lr=1e-3)
    return found | {f"later {name}": value for name, value in later.parts.items()}


@cache
def truth(method: str) -> Found:
    """Return the results of one process without a process group, on the whole batch."""
    return measure(method, slice(None), 1)


def compare(found: Found, truth: Found) -> None:
    assert found.keys() == truth.keys()
    largest = max(g.abs().max().item() for name, g in truth.items() if name.startswith("grad"))
    for name, value in truth.items():
        # Adam's first update has the size lr for a gradient of any size, so it magnifies rounding.
        relative = {"part": 1e-5, "later": 2e-3}.get(name.split()[0], 1e-4)
        floor = 1e-5 * largest if name.startswith("grad") else 1e-6
        torch.testing.assert_close(
            found[name], value, rtol=relative, atol=floor, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulation", [3, 8])
def test_accumulation_on_one_process(method: str, accumulation: int):
    compare(measure(method, slice(None), accumulation), truth(method))


def rank_main(rank: int, sizes: list[int], folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", len(sizes))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(sizes))
    start = sum(sizes[:rank])
    found = {
        (method, accumulation): measure(method, slice(start, start + sizes[rank]), accumulation)
        for method in METHODS
        for accumulation in (1, 2)
    }
    if rank == len(sizes) - 1:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "sizes",
    [[11, 5], *(pytest.param(even, marks=pytest.mark.nightly) for even in ([8, 8], [4] * 4))],
    ids=str,
)
def test_ranks_and_accumulation(tmp_path: Path, sizes: list[int]):
    mp.spawn(rank_main, (sizes, str(tmp_path)), nprocs=len(sizes))
    for (method, _), found in torch.load(tmp_path / "found.pt").items():
        compare(found, truth(method))


@pytest.mark.parametrize("method", ["lejepa", "torus", "toroidal", "torus-content"])
def test_a_mean_of_micro_batch_losses_is_another_objective(method: str):
    """What exact accumulation is for, and what `accumulate: microbatch` does on purpose."""
    naive = microbatch_backward(build_engine(method), images(slice(None), method).split(4), STEP)
    assert abs(naive.parts["loss"] / truth(method)["part loss"] - 1) > 1e-3


def test_a_step_that_is_not_finite_changes_nothing():
    engine = build_engine("lejepa")
    train_step(engine, images(slice(None)), STEP, lr=1e-3)
    before = {name: x.clone() for name, x in engine.networks.state_dict().items() if "running" not in name}
    broken = images(slice(None))
    broken.views[1][2, 3] = torch.nan
    norm = train_step(engine, broken, STEP + 1, lr=1e-3).parts["grad_norm"]
    assert not norm.isfinite()
    after = engine.networks.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert all(x.isfinite().all() for x in after.values())
