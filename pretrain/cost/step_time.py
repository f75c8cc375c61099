"""Predict the seconds of a training step: computing by the roofline model, and communication over links."""

import json
from dataclasses import dataclass

from pretrain.config import Config
from pretrain.cost import roofline
from pretrain.cost.datasheets import Accelerator
from pretrain.cost.flops import StepFlops
from pretrain.cost.links import Group, Machine, all_ranks
from pretrain.cost.memory_estimate import Parameters
from pretrain.cost.traffic import Calls, step_traffic
from pretrain.engines.config import EngineConfig
from pretrain.preflight.model import Model

WHOLE_RUNS = 0.79
"""Share of this model's speed that whole runs reach, with gaps between kernels, clocks that fall under load,
slower ranks and data loading. From one run, NVIDIA's ViT-g/14 on 8 A100: 693 images/s (NeMo user guide,
Vision Transformer, Performance; settings in NeMo-Framework-Launcher, vit/g_14.yaml). Without this
factor the model predicts 870."""
UPDATE = 40
"""Bytes moved for each parameter of a rank by clipping and AdamW: the gradient read for its norm, read and
written to scale it; parameter, gradient and two moments read, three of them written."""
FOLLOW = 12
"""Bytes moved for each parameter of a target network or an average: both read, one written."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on one rank; `total` is their sum."""

    forward: float
    """Forward passes of encoder, target network and head, also those of exact accumulation."""
    backward: float
    """Backward passes, and what they compute again."""
    update: float
    """Clipping, optimizer and target network."""
    gathering: float
    """Communication that goes on after the forward pass has ended."""
    reducing: float
    """Communication that goes on after the backward pass has ended."""
    waiting: float
    """Sums that batch norms and the loss need, and other calls during which nothing is computed."""
    slack: float
    """What whole runs take beyond the sum of these, see `WHOLE_RUNS`."""

    @property
    def total(self) -> float:
        """Seconds of the step."""
        computing = self.forward + self.backward + self.update
        return computing + self.gathering + self.reducing + self.waiting + self.slack

    @property
    def communication(self) -> float:
        """Seconds in which a rank only communicates."""
        return self.gathering + self.reducing + self.waiting


@dataclass(frozen=True)
class Passes:
    """Seconds that computing takes in a step."""

    forward: float
    backward: float


def step_time(
    config: Config,
    model: Model,
    parameters: Parameters,
    flops: StepFlops,
    hardware: Accelerator,
    machine: Machine,
    ranks: int,
    precision: str,
    overlap: bool,
) -> StepTime:
    """Return the seconds of a step on the rank with most images; the engine's `auto` is decided."""
    images = -(-config.data.batch_size // ranks)
    passes = compute(config, model, flops, hardware, images, precision)
    moved = UPDATE * parameters.trained + FOLLOW * parameters.target
    update = moved / shards(config.engine, ranks) / (roofline.COPY * hardware.bandwidth)
    beside: dict[str, list[float]] = {"forward": [], "backward": [], "nothing": []}
    last: dict[str, float] = {"forward": 0.0, "backward": 0.0}
    for calls in step_traffic(config, parameters, ranks, precision != "fp32"):
        taken = call_seconds(calls, machine, ranks, config.engine.ranks_of_replica or ranks)
        beside[calls.beside].append(taken)
        if calls.beside in last:
            last[calls.beside] = max(last[calls.beside], taken / calls.number)
    gathering, reducing, waiting = (sum(taken) for taken in beside.values())
    if overlap:
        # The first gathering comes before all computation and the last sum after it, so one call always
        # counts.
        gathering = max(last["forward"], gathering - passes.forward)
        reducing = max(last["backward"], reducing - passes.backward)
    known = passes.forward + passes.backward + update
    return StepTime(
        passes.forward,
        passes.backward,
        update,
        gathering,
        reducing,
        waiting,
        slack=known * (1 / WHOLE_RUNS - 1),
    )


def shards(engine: EngineConfig, ranks: int) -> int:
    """Return how many ranks share the moments."""
    if engine.kind == "fsdp":
        return engine.ranks_of_replica or ranks
    return ranks if engine.kind == "deepspeed" and engine.zero_stage else 1


def compute(
    config: Config, model: Model, flops: StepFlops, hardware: Accelerator, images: int, precision: str
) -> Passes:
    """Return the seconds that a rank computes on its images."""
    engine = config.engine
    setting = roofline.Pass(
        views=tuple((r.views, r.size) for r in config.views.resolutions()),
        channels=config.data.channel_count,
        images=-(-images // engine.accumulation),
        checkpointing=engine.activation_checkpointing,
        bf16=precision != "fp32",
        fused=engine.compile is True,
    )
    operations = roofline.encoder_operations(config.encoder.name, json.dumps(model.kwargs), setting)
    once, back = (
        roofline.seconds(operations, phase, hardware, precision) for phase in ("forward", "backward")
    )
    first = engine.accumulation if flops.accumulated else 0
    forward = once * (engine.accumulation + first)
    forward *= 1 + flops.target_forward / flops.encoder_forward * engine.accumulation / (
        engine.accumulation + first
    )
    # MLPs compute in the encoder's precision; statistics in fp32.
    peak = hardware.peak("fp32" if precision == "fp32" else "bf16")
    head = flops.projector_forward / peak + flops.regularizer_forward / hardware.fp32
    head *= images / roofline.MATRIX
    return Passes(forward + head, back * engine.accumulation + 2 * head)


def call_seconds(calls: Calls, machine: Machine, ranks: int, shard: int) -> float:
    """Return the seconds of all calls of one kind; `shard` ranks share a replica."""
    group = all_ranks(machine, ranks)
    if calls.over == "shard":
        group = all_ranks(machine, shard)
    elif calls.over == "replicas":
        node = min(machine.gpus, ranks)
        inside = max(1, node // shard)
        group = Group(machine, inside, -(-ranks // shard // inside), rivals=min(shard, node))
    once = group.reduce if calls.kind == "all-reduce" else group.gather
    return once(calls.bytes) + (calls.number - 1) * (once(0.0))
