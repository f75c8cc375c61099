"""Estimate what a run costs before it starts, for `isotorus plan`.

Nothing is trained and no data is needed. Parameters, FLOPs and memory come from the model itself on the meta
device, speed from the roofline model and stated links, or from an assumed share of the accelerator's peak.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from isotorus.errors import UserError
from pretrain.config import Config
from pretrain.cost import cpu_speed, links
from pretrain.cost.accelerators import accelerator, plans_bf16
from pretrain.cost.flops import StepFlops, step_flops
from pretrain.cost.links import Machine
from pretrain.cost.memory_estimate import Parameters, checkpoint_bytes, count_parameters, rank_memory
from pretrain.cost.step_time import StepTime, step_time
from pretrain.engines.automatic import decide
from pretrain.engines.config import EngineConfig
from pretrain.preflight.model import Model, check_model, check_ranks, check_share


@dataclass(frozen=True)
class Speed:
    """Duration of a run, predicted or at the assumed share of the peak."""

    images_per_second: float
    seconds_per_step: float
    mfu: float
    """Model FLOPs as a share of the peak; what is computed twice does not count."""
    hours: float
    gpu_hours: float
    images: int
    epochs: float | None
    """None where the number of images in the data set is not known."""


@dataclass(frozen=True)
class Memory:
    """Memory of one rank at the peak of a step, in bytes."""

    parts: dict[str, float]
    total: float
    capacity: float

    @property
    def fits(self) -> bool:
        """Whether the accelerator has enough memory."""
        return self.total <= self.capacity


@dataclass(frozen=True)
class Estimate:
    """All figures for one configuration."""

    gpus: int
    gpu: str
    precision: str
    engine: EngineConfig
    parameters: Parameters
    flops: StepFlops
    memory: Memory
    speed: Speed
    step: StepTime | None
    """What a step's seconds consist of; None with an assumed share of the peak, and on CPUs."""
    checkpoint_bytes: float
    checkpoint_seconds: float
    """Time to write one checkpoint at the assumed bandwidth."""


@dataclass(frozen=True)
class Request:
    """Assumptions of an estimate, besides the configuration."""

    gpus: int
    gpu: str
    mfu: float | None
    """Share of the peak that all executed FLOPs reach; with None the speed is predicted."""
    images: int | None
    """Number of images in the data set."""
    disk: float
    """Bytes a second that all ranks write together."""
    machine: Machine | None = None
    """Nodes and their links; None means those in which the accelerator is usually found."""
    overlap: bool = True
    """Whether communication goes on during the computation, where the engine allows it."""

    @property
    def nodes(self) -> Machine:
        """The machine on which the run is planned."""
        return self.machine or links.machine(self.gpu)


def estimate(config: Config, request: Request, model: Model | None = None) -> Estimate:
    """Return the figures of a run; raise `UserError` for what the run would refuse, except for its data.

    `model` is what `check_model` has returned for the run, if it was called before.
    """
    model = model or check_model(config, request.gpus)
    return _estimate(_decided(config, request, model), request, model)


def _decided(config: Config, request: Request, model: Model) -> Config:
    """Return the configuration with the micro-batches of these ranks, and the engine's `auto` decided."""
    config = _on(config, request.gpus)
    engine = decide(config.engine, model.encoder, _ranks_of_node(config.engine, request)).config
    return config.model_copy(update={"engine": engine})


def _estimate(config: Config, request: Request, model: Model) -> Estimate:
    """Return the figures of a run whose engine's `auto` settings are decided."""
    parameters = count_parameters(config, model)
    flops = step_flops(config, model.kwargs, model.width)
    device = "cpu" if request.gpu == "cpu" else "cuda"
    precision = "bf16" if plans_bf16(config.engine, device) else "fp32"
    hardware = accelerator(request.gpu, request.gpus)
    size = checkpoint_bytes(parameters)
    seconds, step = _seconds(config, request, model, parameters, flops)
    return Estimate(
        gpus=request.gpus,
        gpu=hardware.name,
        precision=precision,
        engine=config.engine,
        parameters=parameters,
        flops=flops,
        memory=_memory(config, request, model, parameters),
        speed=_speed(config, request, flops, hardware.peak(precision), seconds),
        step=step,
        checkpoint_bytes=size,
        checkpoint_seconds=size / request.disk,
    )


def _memory(config: Config, request: Request, model: Model, parameters: Parameters) -> Memory:
    """Return the memory of one rank, with the engine's `auto` decided."""
    device = "cpu" if request.gpu == "cpu" else "cuda"
    parts = rank_memory(config, model, parameters, request.gpus, device)
    return Memory(parts, sum(parts.values()), accelerator(request.gpu, request.gpus).memory)


def _seconds(
    config: Config, request: Request, model: Model, parameters: Parameters, flops: StepFlops
) -> tuple[float, StepTime | None]:
    """Return the seconds of a step, and what they consist of if they are predicted."""
    device = "cpu" if request.gpu == "cpu" else "cuda"
    precision = "bf16" if plans_bf16(config.engine, device) else "fp32"
    hardware, batch = accelerator(request.gpu, request.gpus), config.data.batch_size
    if request.mfu is not None:
        return batch * flops.executed / (request.gpus * request.mfu * hardware.peak(precision)), None
    if device == "cpu":
        return batch * cpu_speed.seconds_an_image(config, model.kwargs, flops, request.gpus), None
    if config.engine.precision == "fp8":
        precision = "fp8"
    step = step_time(
        config, model, parameters, flops, hardware, request.nodes, request.gpus, precision, request.overlap
    )
    return step.total, step


def _speed(config: Config, request: Request, flops: StepFlops, peak: float, seconds: float) -> Speed:
    """Return the duration of a run whose steps take `seconds`, on accelerators with this peak in FLOP/s."""
    rate = config.data.batch_size / seconds
    images = config.steps * config.data.batch_size
    hours = images / rate / 3600
    return Speed(
        images_per_second=rate,
        seconds_per_step=seconds,
        mfu=flops.model * rate / (request.gpus * peak),
        hours=hours,
        gpu_hours=hours * request.gpus,
        images=images,
        epochs=images / request.images if request.images else None,
    )


class Row(NamedTuple):
    """The same run on another number of GPUs."""

    gpus: int
    batch_size: int
    speed: Speed
    step: StepTime | None
    efficiency: float
    """Images a second on each GPU, as a share of those with the first number of GPUs."""

    def as_json(self) -> dict[str, Any]:
        """Return all figures for JSON."""
        step = self.step and dataclasses.asdict(self.step)
        return self._asdict() | {"speed": dataclasses.asdict(self.speed), "step": step}


def scaling(
    config: Config, request: Request, model: Model, numbers: list[int], grow_batch: bool
) -> list[Row]:
    """Return a row for each of some numbers of GPUs.

    The batch stays, because the objective depends on it, or with `grow_batch` grows with the GPUs from that
    of the configuration on the first number. Raises `UserError` for fewer images in a batch than GPUs.
    """
    rows: list[Row] = []
    parameters = count_parameters(config, model)
    for gpus in numbers:
        batch = config.data.batch_size * gpus // numbers[0] if grow_batch else config.data.batch_size
        data = config.data.model_copy(update={"batch_size": batch})
        here = dataclasses.replace(request, gpus=gpus)
        grown = config.model_copy(update={"data": data})
        check_share(grown, gpus)
        run = _decided(grown, here, model)
        flops = step_flops(run, model.kwargs, model.width)
        precision = "bf16" if plans_bf16(run.engine, "cuda") else "fp32"
        seconds, step = _seconds(run, here, model, parameters, flops)
        speed = _speed(run, here, flops, accelerator(here.gpu, gpus).peak(precision), seconds)
        first = rows[0].speed.images_per_second / rows[0].gpus if rows else speed.images_per_second / gpus
        rows.append(Row(gpus, batch, speed, step, speed.images_per_second / gpus / first))
    return rows


def nearest_fit(config: Config, request: Request, model: Model) -> tuple[list[str], Estimate] | None:
    """Return the first of `remedies` that fits, as command-line arguments, and its estimate; or None."""
    config = _on(config, request.gpus)
    parameters = count_parameters(config, model)
    for changes, gpus in remedies(config, request.gpus):
        try:
            engine = EngineConfig.model_validate(config.engine.model_dump() | changes)
            changed = config.model_copy(update={"engine": engine})
            here = dataclasses.replace(request, gpus=gpus)
            check_ranks(changed, model, gpus)
            decided = _decided(changed, here, model)
            fits = _memory(decided, here, model, parameters).fits
        except (ValidationError, UserError):  # settings that cannot be combined
            continue
        if fits:
            arguments = [f"engine.{key}={value}" for key, value in changes.items()]
            more = [f"--gpus {gpus}"] if gpus != request.gpus else []
            return arguments + more, _estimate(decided, here, model)
    return None


def _on(config: Config, gpus: int) -> Config:
    """Return the configuration with the micro-batches that this many ranks need."""
    return config.model_copy(update={"engine": config.engine.on(config.data.batch_size, gpus)})


def _ranks_of_node(engine: EngineConfig, request: Request) -> int:
    """Return the number of ranks on a node; raise `UserError` if engine.shard=node needs whole nodes."""
    node = min(request.nodes.gpus, request.gpus)
    if engine.kind == "fsdp" and engine.shard == "node" and request.gpus % node:
        raise UserError(
            f"engine.shard=node: {request.gpus} GPUs are no whole number of nodes of {node}; give "
            "--gpus-per-node, or engine.shard as a number"
        )
    return node


def remedies(config: Config, gpus: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield changes that need less memory, in the order of their cost.

    First sharding, then recomputing, then more passes, then more GPUs.
    """
    engine = config.engine
    modes = ["none", "selective", "full"]
    stronger = modes[modes.index(engine.activation_checkpointing) + 1 :]
    recomputing = [{"activation_checkpointing": mode} for mode in stronger]
    most = recomputing[-1] if recomputing else {}
    shard: dict[str, Any] = {}
    if gpus > 1 and engine.kind == "ddp":
        shard = {"kind": "fsdp"}
    elif gpus > 1 and engine.kind == "deepspeed":
        shard = {"zero_stage": 3}
    for change in [{}, *recomputing]:
        for sharding in (shard, {}) if change else (shard,):
            yield {**sharding, **change}, gpus
    images, passes = config.data.batch_size // gpus, 2 * engine.accumulation
    while passes <= images:
        for change in {}, most:
            yield {**shard, **change, "accumulation": passes}, gpus
        passes *= 2
    shard = shard or ({"kind": "fsdp"} if engine.kind == "ddp" else {})
    more = 2 * gpus
    while more <= config.data.batch_size:
        yield {**shard, **most}, more
        more *= 2


def as_json(config: Config, figures: Estimate, remedy: tuple[list[str], Estimate] | None) -> dict[str, Any]:
    """Return all figures for JSON."""
    values = dataclasses.asdict(figures) | {"engine": figures.engine.model_dump(mode="json")}
    values["flops"] |= {"model": figures.flops.model, "executed": figures.flops.executed}
    values["memory"]["fits"] = figures.memory.fits
    if remedy:
        arguments, other = remedy
        values["nearest_fit"] = {"arguments": arguments, **as_json(config, other, None)}
    return {"name": config.name, **values}
