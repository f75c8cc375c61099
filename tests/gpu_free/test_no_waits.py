"""In a training step the host never waits for the device, and at logged steps only where it reads results."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from data_pipeline.loader import Batch
from data_pipeline.transforms.columns import IDENTITY
from pretrain import train
from pretrain.assemble import Run
from pretrain.checkpoint.run_state import RunState
from pretrain.config import Config
from pretrain.engines.networks import build_on_meta
from pretrain.methods import build_head
from pretrain.methods.config import LeJEPAConfig, Turned
from pretrain.models.encoder import build_encoder, timm_kwargs
from pretrain.monitoring.corrupt import CorruptSamples
from pretrain.monitoring.guard import Guard
from pretrain.monitoring.online_probe import OnlineProbe
from pretrain.monitoring.timing import StepTimer, TimedEngine
from pretrain.objectives import univariate
from tests.gpu_free.waits import Waits
from tests.gpu_free.wrappers import DEVICE, allow_meta, wrap

IMAGES, RANKS, CLASSES = 2, 8, 3
VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "drop_path_rate": 0.3}
ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit_tiny_patch16_224", "kwargs": VIT},
    "resnet": {"name": "resnet18", "kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}},
}
SMALL = {"hidden": 16, "layers": 3}
SLICES = {"num_slices": 16}
AUTO = {"auto_weight": {"enabled": True}}
METHODS: dict[str, dict[str, Any]] = {
    "lejepa": {"kind": "lejepa", "sigreg": SLICES, "encoder_weight": 0.1} | AUTO,
    "jepa": {"kind": "jepa", "prediction": "smooth_l1"} | AUTO,
    "jepa by sigreg": {"kind": "jepa", "regularizer": "sigreg", "sigreg": SLICES} | AUTO,
    "toroidal jepa": {"kind": "jepa", "regularizer": "toroidal", "grid_size": 2} | AUTO,
    "torus": {"kind": "torus", "angles": 2},
    "torus by drawn frequencies": {"kind": "torus", "angles": 6, "encoder_weight": 0.1, "sigreg": SLICES}
    | AUTO,
    "torus with actions": {
        "kind": "torus",
        "content": "lejepa",
        "pose_width": 4,
        "lejepa": {"sigreg": SLICES, "projector": SMALL | {"width": 8}},
    },
}
TURNED = {"actions": ["rotation", "hue"], "turned": 2, "turned_size": 32}
READ_AT_LOGGED_STEPS = {
    "copy to the host in guard.report",
    "copy to the host in train.log_row",
    "boolean index in online_probe.balanced_accuracy",
    "aten::_local_scalar_dense of online_probe.balanced_accuracy",
}


@pytest.fixture(autouse=True)
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make this process one of eight ranks whose messages go nowhere."""
    allow_meta(monkeypatch)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    yield
    dist.destroy_process_group()


def build(objective: dict[str, Any], encoder: str, folder: Path, engine_options: dict[str, Any]) -> Run:
    """Assemble a run as `pretrain.assemble` does, with networks and batches that have no values."""
    torus, actions = objective["kind"] == "torus", "content" in objective
    objective = objective | ({"head": SMALL} if torus else {"projector": SMALL | {"width": 8}})
    config = Config(
        name="x",
        runs=str(folder),
        steps=10,
        data={"path": "unused", "batch_size": IMAGES * RANKS, "channels": 3},
        views={"global_size": 32, "local_views": 2, "local_size": 16} | (TURNED if actions else {}),
        encoder=ENCODERS[encoder],
        objective=objective,
        engine={"precision": "fp32"} | engine_options,
        average={"momentum": 0.99},
    )
    kwargs = timm_kwargs(config.encoder, 32, 3)
    name, width = config.encoder.name, 32 if encoder == "vit" else 8
    with DEVICE:
        built = build_encoder(name, kwargs, 0)
    # The meta device has no autocast, so the networks are built for a CPU.
    networks = build_on_meta(
        built,
        build_head(config.objective, width, config.views.global_views, 0, Turned.of(config.views)),
        config.objective.kind == "jepa",
        config.engine,
        torch.device("cpu"),
        config.average.momentum,
    ).to(DEVICE)
    engine = wrap(networks, config)
    state = RunState(
        engine, Guard(config.guard, folder, networks, DEVICE), OnlineProbe(width, CLASSES, DEVICE)
    )
    timer = StepTimer(torch.device("cpu"))
    return Run(
        config,
        SimpleNamespace(mean=(0.5,) * 3, std=(0.2,) * 3),  # type: ignore[arg-type]
        TimedEngine(engine, timer),
        state,
        (batch(step, actions) for step in range(10)),  # type: ignore[arg-type]
        CorruptSamples(folder, 0, IMAGES * RANKS, 0.1),
        None,  # type: ignore[arg-type]
        timer,
        None,
        None,
        None,
        0,
    )


def batch(step: int, actions: bool) -> Batch:
    """Return a batch as the loader gives it where there is a GPU; one image is blurred and solarized.

    With actions there are turned views behind the others.
    """
    sizes = (32, 16, 32) if actions else (32, 16)
    parameters = torch.tensor(IDENTITY).expand(2, IMAGES, -1).clone()
    parameters[0, 0, 5:7] = torch.tensor([1.0, 0.5])
    turned = parameters.clone()
    turned[..., 7] = 1.0
    return Batch(
        step,
        np.arange(IMAGES),
        np.zeros(IMAGES, dtype=np.int64),
        torch.tensor([0, -1]),
        [torch.zeros(2, IMAGES, 3, size, size, dtype=torch.uint8) for size in sizes],
        [parameters, parameters, turned][: len(sizes)],
        [],
        [torch.ones(2, IMAGES, 2) for _ in sizes] if actions else [],
    ).pin_memory()


def waits_of_steps(run: Run) -> tuple[set[str], set[str]]:
    """Return what waits in a step and after it where it is logged, when constants are on the device."""
    waits, logged = Waits(), Waits()
    with Waits().watch():  # constants are copied, and DDP puts its buckets in order
        train.update(run)
        train.update(run)
    with waits.watch():
        result = train.update(run)
    with logged.watch():
        run.state.guard.report()
        train.log_row(run, result, {})
    return waits.found, logged.found


@pytest.mark.parametrize(
    ("method", "encoder"),
    [
        *((method, "vit") for method in METHODS),
        *((method, "resnet") for method in ("lejepa", "jepa", "torus")),
    ],
)
def test_a_step_waits_for_nothing(method: str, encoder: str, tmp_path: Path):
    in_step, logged = waits_of_steps(build(METHODS[method], encoder, tmp_path, {}))
    assert in_step == set() and logged <= READ_AT_LOGGED_STEPS


MICRO_BATCHES = {
    f"{accumulate} accumulation": {"accumulation": 2, "accumulate": accumulate}
    for accumulate in ("exact", "microbatch")
}
ENGINES: dict[str, dict[str, Any]] = {
    "packed": {"packed": True},
    "fsdp": {"kind": "fsdp"},
    "fsdp, packed": {"kind": "fsdp", "packed": True},
    "fsdp, not resharded": {"kind": "fsdp", "reshard_after_forward": False},
    **{
        f"{kind}, {name}": {"kind": kind} | x for kind in ("ddp", "fsdp") for name, x in MICRO_BATCHES.items()
    },
}


@pytest.mark.parametrize(
    ("engine", "method"),
    [
        *((engine, "lejepa") for engine in ENGINES),
        # A target network is averaged, and runs without gradients.
        *(
            (engine, "jepa")
            for engine in ("fsdp, packed", "fsdp, exact accumulation", "ddp, exact accumulation")
        ),
    ],
)
def test_engines_wait_for_nothing(engine: str, method: str, tmp_path: Path):
    """The wrappers' own code is in the trace: hooks, buckets, gathered and scattered buffers."""
    in_step, logged = waits_of_steps(build(METHODS[method], "vit", tmp_path, ENGINES[engine]))
    assert in_step == set() and logged <= READ_AT_LOGGED_STEPS


@pytest.mark.parametrize("test", univariate.TESTS)
def test_no_test_of_sigreg_waits(test: str):
    values = METHODS["lejepa"] | {"sigreg": SLICES | {"test": test}, "projector": SMALL | {"width": 8}}
    head = build_head(LeJEPAConfig(**values), 32, 2, seed=0).to(DEVICE)
    embeddings = torch.zeros(4, IMAGES, 32, device=DEVICE, requires_grad=True)
    waits = Waits()
    for step, watching in enumerate((Waits(), waits)):  # in the first step constants are copied
        with watching.watch():
            head(embeddings, step).parts["loss"].backward()
    assert waits.found == set()


WAITING = {
    "a value that is read": lambda x, host: x.sum().item(),
    "a branch on a value": lambda x, host: bool(x.sum() > 0),
    "a boolean index": lambda x, host: x[x > 0],
    "nonzero": lambda x, host: x.nonzero(),
    "a number made on the host": lambda x, host: torch.tensor(3.0, device=x.device) * x,
    "a blocking copy": lambda x, host: host.pin_memory().to(x.device) * x,
    "a copy of ordinary memory": lambda x, host: host.to(x.device, non_blocking=True) * x,
    "a copy that converts": lambda x, host: host.pin_memory().to(x.device, x.dtype, non_blocking=True) * x,
    "a copy into a tensor": lambda x, host: x.copy_(host),
    "a copy to the host": lambda x, host: x.cpu(),
    "an index in a list": lambda x, host: x[[0, 1]],
    "a wait in the backward pass": lambda x, host: _Reading.apply(x.requires_grad_()).sum().backward(),
}


class _Reading(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * grads[0].max().item()


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_found(name: str):
    waits = Waits()
    with waits.watch():
        WAITING[name](torch.zeros(4, device=DEVICE), torch.ones(4, dtype=torch.float64))
    assert len(waits.found) == 1


def test_a_page_locked_copy_does_not_wait():
    waits = Waits()
    with waits.watch():
        torch.zeros(3, device=DEVICE) + torch.ones(3).pin_memory().to(DEVICE, non_blocking=True)
    assert waits.found == set()
