"""Averaged weights follow their formula, ignore refused updates, and are in checkpoints and evaluations."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isotorus.errors import UserError
from pretrain import engines
from pretrain.config import load_config
from pretrain.engines.config import EngineConfig, OptimizerConfig
from pretrain.engines.step import MicroBatch, train_step
from pretrain.methods import build_head
from pretrain.methods.config import LeJEPAConfig
from pretrain.models.encoder import build_encoder
from pretrain.preflight.check import check
from pretrain.train import train

CPU = torch.device("cpu")
VIT = {"img_size": 16, "patch_size": 8, "in_chans": 1, "num_classes": 0, "depth": 1, "embed_dim": 16}
SMALL = {"projector": {"hidden": 8, "width": 4}, "sigreg": {"num_slices": 8}}
Weights = dict[str, torch.Tensor]


def images(step: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(step)
    return MicroBatch(
        [torch.randn(2, 6, 1, 16, 16, generator=generator)], torch.zeros(2, 6, dtype=torch.int64)
    )


def test_the_average_follows_its_formula_and_no_refused_update():
    engine = engines.build_engine(
        lambda: build_encoder("vit_tiny_patch16_224", VIT | {"num_heads": 2}, seed=0),
        build_head(LeJEPAConfig(**SMALL), 16, n_global=2, seed=0),
        EngineConfig(precision="fp32"),
        OptimizerConfig(),
        CPU,
        average=0.3,
    )

    def weights(prefixes: tuple[str, str]) -> Weights:
        state = engine.networks.state_dict()
        encoder, projector = prefixes
        renamed = {k.replace(encoder, "encoder/", 1): x for k, x in state.items() if k.startswith(encoder)}
        renamed |= {
            k.replace(projector, "projector/", 1): x for k, x in state.items() if k.startswith(projector)
        }
        return {name: x.double().clone() for name, x in renamed.items() if "running" not in name}

    online, averaged = ("encoder.", "head.projector."), ("average.encoder.", "average.projector.")
    expected, accepted = weights(online), 0
    for step in range(5):
        refuse = torch.zeros_like if step == 2 else None
        train_step(engine, images(step), step, lr=1e-2, limit=refuse)
        if step != 2:
            momentum = min(0.3, (1 + accepted) / (10 + accepted))
            now = weights(online)
            expected = {k: momentum * x + (1 - momentum) * now[k] for k, x in expected.items()}
            accepted += 1
        torch.testing.assert_close(weights(averaged), expected, rtol=1e-5, atol=1e-7)
    assert engine.networks.average_updates == accepted == 4
    apart = max((x - weights(online)[k]).abs().max() for k, x in weights(averaged).items())
    assert apart > 1e-4


def run(recipe: Path, *overrides: str) -> Path:
    config = load_config(str(recipe), list(overrides))
    train(config, check(config, world_size=1), CPU)
    return config.folder / "checkpoints"


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_restart_continues_the_average_and_an_older_run_has_none(one_process: None, recipe: Path):
    average = "average.momentum=0.9"
    whole = run(recipe, "steps=4", "name=whole", average) / "step_00000004"
    halves = run(recipe, "steps=4", "checkpoint.every=2", average)
    for path in halves.glob("step_00000004/*"):
        path.unlink()
    (halves / "step_00000004").rmdir()
    run(recipe, "steps=4", average)
    for name in ("encoder_average.safetensors", "projector_average.safetensors"):
        one, two = load_file(whole / name), load_file(halves / "step_00000004" / name)
        assert one.keys() == load_file(whole / name.replace("_average", "")).keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    last, mean = (load_file(whole / f"encoder{end}.safetensors") for end in ("", "_average"))
    assert any(not torch.equal(last[key], mean[key]) for key in last)

    without = run(recipe, "steps=2", "name=without")
    assert not list(without.glob("*/*average*"))
    with pytest.raises(
        UserError, match=r"average\.momentum=0\.9: .* has no average to continue; leave it out"
    ):
        run(recipe, "steps=4", "name=without", average)
    run(recipe, "steps=6", "name=whole")  # an average may end
