"""All engines take one process's steps, resume each other's checkpoints and refuse the same steps.

Four processes are started once. They first form a group of four, then two of them form a group of two, which
also runs DeepSpeed, then all form a group of four again, to read what the two wrote.
"""

import itertools
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from pydantic import TypeAdapter

from data_pipeline.order import share
from pretrain import engines
from pretrain.engines import Engine
from pretrain.engines.config import EngineConfig, OptimizerConfig
from pretrain.engines.step import MicroBatch, train_step
from pretrain.methods import build_head
from pretrain.methods.config import ObjectiveConfig, Turned
from pretrain.models.config import EncoderConfig
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import build_encoder, timm_kwargs

# A batch that neither two nor four ranks share equally.
IMAGES, STEPS, SAVED = 9, 10, 3
# As large as many gradients are, so that an engine with another ε would take other steps.
EPS = 1e-3
MOMENTUM = 0.5
"""Momentum of the averaged weights, which runs on every engine keep."""
Options = dict[str, Any]
Curve = list[tuple[float, float]]

METHODS: dict[str, Options] = {
    "lejepa": {"kind": "lejepa", "encoder_weight": 0.1, "sigreg": {"num_slices": 64}},
    "jepa": {"kind": "jepa"},
    "torus": {"kind": "torus", "content": "lejepa", "pose_width": 12},
}
TURNED = Turned(2, ("rotation", "hue"))
"""The two large views that `images` gives are upright, and the three small ones are turned."""
FSDP, ZERO = {"kind": "fsdp"}, {"kind": "deepspeed"}
OFFLOAD = {"offload": "cpu", "accumulation": 2}
FULL, SELECTIVE = {"activation_checkpointing": "full"}, {"activation_checkpointing": "selective"}

# Engines by number of ranks; "jepa" or "torus" in a name is the method.
TWO: dict[str, Options] = {
    "ddp": {},
    "ddp accumulating, checkpointing": {"accumulation": 2} | FULL,
    "fsdp": FSDP,
    "fsdp checkpointing": FSDP | FULL,
    "fsdp unsharded between, accumulating": FSDP | {"accumulation": 2, "reshard_after_forward": False},
    "fsdp packed, checkpointing": FSDP | {"packed": True} | FULL,
    "fsdp jepa": FSDP | {"accumulation": 2} | SELECTIVE,
    "fsdp torus": FSDP,
    "zero-0": ZERO | {"zero_stage": 0, "accumulation": 2},
    "zero-1": ZERO | {"zero_stage": 1, "accumulation": 2},
    "zero-1 offload": ZERO | {"zero_stage": 1} | OFFLOAD,
    "zero-2": ZERO,
    "zero-2 jepa": ZERO | {"accumulation": 2} | SELECTIVE,
    "zero-2 offload": ZERO | {"zero_stage": 2} | OFFLOAD,
    "zero-3": ZERO | {"zero_stage": 3},
    "zero-3 accumulating, checkpointing": ZERO | {"zero_stage": 3, "accumulation": 2} | FULL,
    "zero-3 jepa packed": ZERO | {"zero_stage": 3, "packed": True},
    "zero-3 torus": ZERO | {"zero_stage": 3, "accumulation": 2},
    "zero-3 jepa": ZERO | {"zero_stage": 3, "accumulation": 2},
    "zero-3 offload": ZERO | {"zero_stage": 3} | OFFLOAD,
}
FOUR: dict[str, Options] = {
    "hsdp": FSDP | {"shard": 2},
    "hsdp accumulating, checkpointing": FSDP | {"shard": 2, "accumulation": 2} | FULL,
}
WRITERS_OF_TWO: dict[str, Options] = {
    "ddp": {},
    "fsdp": FSDP,
    "zero-1": ZERO | {"zero_stage": 1},
    "zero-2": ZERO | {"zero_stage": 2},
    "zero-3": ZERO | {"zero_stage": 3},
}
WRITERS_OF_FOUR: dict[str, Options] = {"fsdp 4": FSDP, "hsdp 4": FSDP | {"shard": 2}}
WRITERS = [*WRITERS_OF_TWO, *WRITERS_OF_FOUR]

# These run every time: each kind of engine, each option somewhere, each checkpoint read by its own engine
# and by another. Engines without options train where checkpoints are written and read. All run nightly.
QUICK = {
    "ddp accumulating, checkpointing",
    "fsdp packed, checkpointing",
    "fsdp jepa",
    "fsdp torus",
    "zero-2 jepa",
    "zero-2 offload",
    "zero-3 torus",
    "zero-3 jepa packed",
    "hsdp accumulating, checkpointing",
}
QUICK_REFUSALS = {"ddp", "fsdp", "zero-3"}
PAIRS = list(itertools.product(WRITERS, WRITERS))
"""Pairs of a reader and a writer."""
QUICK_PAIRS = {*zip(WRITERS, WRITERS, strict=True), *zip(WRITERS, [*WRITERS[1:], WRITERS[0]], strict=True)}


def cases(every: Iterable[Any], quick: set[Any]) -> list[Any]:
    """Return the parameters of a test; those that are not quick are nightly."""
    marks = {True: (), False: (pytest.mark.nightly,)}
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks[case in quick])
        for case in every
    ]


def build(options: Options, method: str = "lejepa") -> Engine:
    name = "vit_tiny_patch16_224"
    small = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "drop_path_rate": 0.3}
    kwargs = timm_kwargs(EncoderConfig(name=name, kwargs=small), 32, 1)
    mlp = {"hidden": 24, "layers": 2}
    values = METHODS[method] | {"projector": mlp | {"width": 8}}
    if method == "torus":
        values = METHODS[method] | {"head": mlp, "lejepa": {"projector": values["projector"]}}
    config = TypeAdapter(ObjectiveConfig).validate_python(values)
    return engines.build_engine(
        lambda: build_encoder(name, kwargs, seed=0),
        build_head(config, 32, n_global=2, seed=0, turned=TURNED if method == "torus" else None),
        EngineConfig(**{"precision": "fp32"} | options),
        OptimizerConfig(eps=EPS),
        torch.device("cpu"),
        with_target=method == "jepa",
        average=MOMENTUM,
    )


def images(step: int, method: str = "") -> MicroBatch:
    """Return this rank's share of a step's 2 large and 3 small views, with keys and turns as in training."""
    generator = torch.Generator().manual_seed(step)
    views = [
        torch.randn(2, IMAGES, 1, 32, 32, generator=generator),
        torch.randn(3, IMAGES, 1, 16, 16, generator=generator),
    ]
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    mine = share(IMAGES, rank, ranks)
    keys = sample_keys(5, step, mine.start, len(mine), views=5)
    turns = 6 * torch.rand(5, IMAGES, 2, generator=generator)[:, mine.start : mine.stop]
    return MicroBatch(
        [x[:, mine.start : mine.stop] for x in views], keys, turns if method == "torus" else None
    )


def train(engine: Engine, first: int, last: int, method: str = "") -> Curve:
    """Return loss and gradient norm of the steps; the learning rate of 1e-3 makes early steps matter."""
    curve = []
    for step in range(first, last):
        lr = 1e-3 * min(1, (step + 1) / 4)
        result = train_step(engine, images(step, method), step, lr, momentum=0.9)
        curve.append((result.parts["loss"].item(), result.parts["grad_norm"].item()))
    return curve


def trained(options: Options, method: str) -> tuple[Curve, dict[str, torch.Tensor]]:
    """Return the curve of all steps, and the averaged weights after them."""
    engine = build(options, method)
    curve = train(engine, 0, STEPS, method)
    model = engine.state()["model"]
    averages = {name: x for name, x in model.items() if name.startswith("average") and "running" not in name}
    whole = {name: x.full_tensor() if hasattr(x, "full_tensor") else x for name, x in averages.items()}
    return curve, {name: x.detach().cpu().clone() for name, x in whole.items()}


def method_of(name: str) -> str:
    return next((method for method in ("jepa", "torus") if method in name), "lejepa")


def write(folder: Path, writers: dict[str, Options]) -> None:
    for name, options in writers.items():
        engine = build(options)
        train(engine, 0, SAVED)
        dcp.save(engine.state(), checkpoint_id=folder / name)


def read(folder: Path, options: Options, writers: list[str]) -> dict[str, Curve]:
    """Resume several checkpoints one after another with the same engine."""
    engine, found = build(options), {}
    for name in writers:
        state = engine.state()
        dcp.load(state, checkpoint_id=folder / name)
        engine.load(state)
        found[name] = train(engine, SAVED, SAVED + 3)
    return found


def refuse(options: Options) -> tuple[list[str], Curve]:
    """Return what refused steps have changed, and the losses and gradient norms of two steps after them.

    The steps have a NaN on the last rank, or a loss or gradient norm above its limit.
    """
    engine = build(options | {"accumulation": 2}, "jepa")
    train(engine, 0, 2)
    before = snapshot(engine)
    broken = images(2)
    if dist.get_rank() == dist.get_world_size() - 1:
        broken.views[1][2, 0] = torch.nan
    norms = [
        train_step(engine, batch, 2, 1e-3, 0.9, limit).parts["grad_norm"].item()
        for batch, limit in (
            (broken, None),
            (broken, torch.ones_like),
            (images(2), lambda loss: 1e-3 + 0 * loss),
        )
    ]
    assert not math.isfinite(norms[0]) and not math.isfinite(norms[1]) and norms[2] > 1e-3, norms
    after = snapshot(engine)
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    return changed, train(engine, 3, 5)


def snapshot(engine: Engine) -> dict[str, torch.Tensor]:
    """Return this rank's parameters (target and online), moments and step counts, but not buffers."""
    state = engine.state()
    flat = dict(state["model"])
    for name, moments in state["optimizer"]["state"].items():
        flat |= {f"{name} {key}": value for key, value in moments.items()}
    local = {name: x.to_local() if hasattr(x, "to_local") else x for name, x in flat.items()}
    return {name: x.clone() for name, x in local.items() if "running" not in name}


def rank_main(rank: int, folder: Path, everything: bool) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    names = {*TWO, *FOUR} if everything else QUICK
    refused = {*WRITERS_OF_TWO} if everything else QUICK_REFUSALS
    written = {
        reader: [w for r, w in PAIRS if r == reader and (everything or (r, w) in QUICK_PAIRS)]
        for reader in WRITERS
    }
    join(folder / "a", rank, 4)
    found |= {name: trained(options, "lejepa") for name, options in FOUR.items() if name in names}
    write(folder, WRITERS_OF_FOUR)
    dist.destroy_process_group()
    if rank < 2:
        join(folder / "b", rank, 2)
        found |= {name: trained(options, method_of(name)) for name, options in TWO.items() if name in names}
        found |= {
            f"{name} refused": refuse(WRITERS_OF_TWO[name]) for name in WRITERS_OF_TWO if name in refused
        }
        write(folder, WRITERS_OF_TWO)
        found |= {f"{n} read": read(folder, options, written[n]) for n, options in WRITERS_OF_TWO.items()}
        bf16 = {"precision": "bf16"}
        found |= {f"{n} bf16": train(build(TWO[n] | bf16), 0, STEPS) for n in ("ddp", "fsdp", "zero-3")}
        dist.destroy_process_group()
    (folder / f"done{rank}").touch()
    while not all((folder / f"done{other}").exists() for other in range(4)):
        time.sleep(0.1)
    join(folder / "c", rank, 4)
    found |= {f"{n} read": read(folder, options, written[n]) for n, options in WRITERS_OF_FOUR.items()}
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


def join(store: Path, rank: int, ranks: int) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(store), ranks), rank=rank, world_size=ranks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def found(folder: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the results of the quick cases, or of all cases if nightly tests run."""
    here = [item for item in request.session.items if item.path == request.path]
    everything = any(item.get_closest_marker("nightly") for item in here)
    mp.spawn(rank_main, (folder, everything), nprocs=4)
    return torch.load(folder / "found.pt", weights_only=False)


@pytest.fixture(scope="module")
def whole() -> dict[str, tuple[Curve, dict[str, torch.Tensor]]]:
    """Return the results of one process without a process group, with the whole batch at once."""
    return {method: trained({}, method) for method in METHODS}


@pytest.fixture(scope="module")
def truth(whole) -> dict[str, Curve]:
    return {method: curve for method, (curve, _) in whole.items()}


def deviation(curve: Curve, truth: Curve) -> tuple[float, float]:
    """Return the largest relative deviation of loss and gradient norm."""
    assert len(curve) == len(truth)
    pairs = list(zip(curve, truth, strict=True))
    return tuple(max(abs(a[i] / b[i] - 1) for a, b in pairs) for i in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("name", cases([*TWO, *FOUR], QUICK))
def test_ten_steps_are_those_of_one_process(found, truth, name):
    (curve, _), exact = found[name], truth[method_of(name)]
    # A short pair has an angle with a long gradient, so rounding errors of a torus grow fast.
    same, loosest = (3, (1e-4, 5e-3)) if method_of(name) == "torus" else (10, (1e-5, 2e-5))
    loss, norm = deviation(curve[:same], exact[:same])
    # Gradients of uneven shares are summed in yet another order.
    assert loss < 1e-5 and norm < 2e-5, (loss, norm)
    loss, norm = deviation(curve, exact)
    assert loss < loosest[0] and norm < loosest[1], (loss, norm)


@pytest.mark.parametrize("name", cases([*TWO, *FOUR], QUICK))
def test_averaged_weights_are_those_of_one_process(found, whole, name):
    averages, exact = found[name][1], whole[method_of(name)][1]
    assert averages.keys() == exact.keys() and averages["average_updates"] == STEPS
    first = build({}, method_of(name)).networks.state_dict()
    moved = max((x - first[key]).abs().max() for key, x in exact.items() if x.is_floating_point())
    assert moved > 1e-3
    for key, x in exact.items():
        torch.testing.assert_close(averages[key], x, rtol=0, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("reader", "writer"), cases(PAIRS, QUICK_PAIRS))
def test_every_engine_resumes_every_other(found, truth, reader, writer):
    loss, norm = deviation(found[f"{reader} read"][writer], truth["lejepa"][SAVED : SAVED + 3])
    assert loss < 1e-5 and norm < 1e-5, (loss, norm)


def test_one_process_resumes_every_engine(found, folder, truth):
    for writer, curve in read(folder, {}, WRITERS).items():
        loss, norm = deviation(curve, truth["lejepa"][SAVED : SAVED + 3])
        assert loss < 1e-5 and norm < 1e-5, (writer, loss, norm)


@pytest.mark.parametrize("name", cases(WRITERS_OF_TWO, QUICK_REFUSALS))
def test_refused_steps_change_nothing(found, name):
    changed, after = found[f"{name} refused"]
    assert not changed
    loss, norm = deviation(after, found["ddp refused"][1])
    assert loss < 1e-5 and norm < 1e-5, (loss, norm)


def test_bf16_stays_near(found, truth):
    """With fp32 masters and statistics, ten steps in bf16 (rounding 2⁻⁸) stay near those in fp32.

    The bounds are for rounding: with batches of 8, 9 and 16, on four data sets each, the loss differed by
    0.06 to 0.66 %.
    """
    for name in ("ddp", "fsdp", "zero-3"):
        loss, norm = deviation(found[f"{name} bf16"], truth["lejepa"])
        assert loss < 0.01 and norm < 0.03, (name, loss, norm)
