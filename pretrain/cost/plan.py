"""Estimate what a run costs before it starts, for `isotorus plan`.

Nothing is trained and no data is needed. Parameters, FLOPs and memory come from the model itself on the meta
device, speed from an assumed share of the accelerator's peak.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from isotorus.errors import UserError
from pretrain.config import Config
from pretrain.cost.accelerators import accelerator, plans_bf16
from pretrain.cost.flops import StepFlops, step_flops
from pretrain.cost.memory_estimate import Parameters, checkpoint_bytes, count_parameters, rank_memory
from pretrain.engines.automatic import decide
from pretrain.engines.config import EngineConfig
from pretrain.preflight import check_model

GIB = 2**30


@dataclass(frozen=True)
class Speed:
    """Duration of a run at the assumed share of the peak."""

    images_per_second: float
    seconds_per_step: float
    mfu: float
    """Model FLOPs as a share of the peak; less than the assumed share where something is computed twice."""
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
    checkpoint_bytes: float
    checkpoint_seconds: float
    """Time to write one checkpoint at the assumed bandwidth."""


@dataclass(frozen=True)
class Request:
    """Assumptions of an estimate, besides the configuration."""

    gpus: int
    gpu: str
    mfu: float
    """Share of the peak that all executed FLOPs reach."""
    images: int | None
    """Number of images in the data set."""
    disk: float
    """Bytes a second that all ranks write together."""
    node: int = 8
    """GPUs of a node, over which engine.shard=node shards."""


def estimate(config: Config, request: Request) -> Estimate:
    """Return the figures of a run; raise `UserError` for what the run would refuse, except for its data."""
    model = check_model(config, request.gpus)
    config = _on(config, request.gpus)
    engine = decide(config.engine, model.encoder, _ranks_of_node(config.engine, request)).config
    config = config.model_copy(update={"engine": engine})
    parameters = count_parameters(config, model)
    flops = step_flops(config, model.kwargs, model.width)
    device = "cpu" if request.gpu == "cpu" else "cuda"
    precision = "bf16" if plans_bf16(config.engine, device) else "fp32"
    hardware = accelerator(request.gpu, request.gpus)
    parts = rank_memory(config, model, parameters, request.gpus, device)
    size = checkpoint_bytes(parameters)
    return Estimate(
        gpus=request.gpus,
        gpu=hardware.name,
        precision=precision,
        engine=config.engine,
        parameters=parameters,
        flops=flops,
        memory=Memory(parts, sum(parts.values()), hardware.memory),
        speed=_speed(config, request, flops, hardware.peak(precision)),
        checkpoint_bytes=size,
        checkpoint_seconds=size / request.disk,
    )


def _speed(config: Config, request: Request, flops: StepFlops, peak: float) -> Speed:
    """Return the duration of a run on an accelerator with this peak in FLOP/s."""
    rate = request.gpus * request.mfu * peak / flops.executed
    images = config.steps * config.data.batch_size
    hours = images / rate / 3600
    return Speed(
        images_per_second=rate,
        seconds_per_step=config.data.batch_size / rate,
        mfu=request.mfu * flops.model / flops.executed,
        hours=hours,
        gpu_hours=hours * request.gpus,
        images=images,
        epochs=images / request.images if request.images else None,
    )


def nearest_fit(config: Config, request: Request) -> tuple[list[str], Estimate] | None:
    """Return the first of `remedies` that fits, as command-line arguments, and its estimate; or None."""
    config = _on(config, request.gpus)
    for changes, gpus in remedies(config, request.gpus):
        try:
            engine = EngineConfig.model_validate(config.engine.model_dump() | changes)
            changed = config.model_copy(update={"engine": engine})
            changed_estimate = estimate(changed, dataclasses.replace(request, gpus=gpus))
        except (ValidationError, UserError):  # settings that cannot be combined
            continue
        if changed_estimate.memory.fits:
            arguments = [f"engine.{key}={value}" for key, value in changes.items()]
            return arguments + ([f"--gpus {gpus}"] if gpus != request.gpus else []), changed_estimate
    return None


def _on(config: Config, gpus: int) -> Config:
    """Return the configuration with the micro-batches that this many ranks need."""
    return config.model_copy(update={"engine": config.engine.on(config.data.batch_size, gpus)})


def _ranks_of_node(engine: EngineConfig, request: Request) -> int:
    """Return the number of ranks on a node; raise `UserError` if engine.shard=node needs whole nodes."""
    node = min(request.node, request.gpus)
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


# Explanations of parts whose names do not say enough.
NOTES = {
    "parameters": "fp32, trained",
    "optimizer": "AdamW's two moments, fp32",
    "target": "of a target network and of averaged weights",
    "views": "a rank's batch, uint8 and augmented",
    "embeddings": "of all views, with their gradient",
    "activations": "that the backward pass needs, of one micro-batch",
    "weight copies": "casts of weights to bf16",
    "communication": "gathered parameters, and buffers for them and for gradients",
    "backward": "recomputed activations, gradients under way",
    "projector": "activations",
    "regularizer": "SIGReg's projections, or covariances",
    "reserve": "CUDA context, libraries and fragmentation; on CPUs torch itself",
}


def show(
    config: Config, request: Request, figures: Estimate, remedy: tuple[list[str], Estimate] | None
) -> None:
    """Print the estimate as tables."""
    console, speed, flops = Console(), figures.speed, figures.flops
    console.print(
        f"[bold]{config.name}[/]: {config.encoder.name} on {figures.gpus} × {figures.gpu}, "
        f"{figures.precision}, {_engine(figures.engine)}; "
        f"batch {config.data.batch_size}, {config.steps:,} steps"
    )
    counts = figures.parameters
    console.print(
        f"Parameters: encoder {counts.encoder / 1e6:,.1f} M, projector {counts.projector / 1e6:,.1f} M"
        + (f", target network or average {counts.target / 1e6:,.1f} M" if counts.target else "")
    )
    console.print(_flops_table(flops))
    console.print(_memory_table(figures.memory))
    epochs = f" or {speed.epochs:,.1f} epochs" if speed.epochs else ""
    console.print(
        f"At {request.mfu:.0%} of the peak: {speed.images_per_second:,.0f} images/s, "
        f"{speed.seconds_per_step:,.2f} s a step, MFU {speed.mfu:.1%}; {speed.images / 1e6:,.1f} M images"
        f"{epochs} take {speed.hours:,.1f} h, {speed.gpu_hours:,.0f} GPU-hours"
    )
    saved = -(-config.steps // config.checkpoint.every)
    console.print(
        f"A checkpoint: {figures.checkpoint_bytes / 1e9:,.1f} GB, {figures.checkpoint_seconds:,.1f} s at "
        f"{request.disk / 1e9:g} GB/s; {saved:,} of them in the run"
    )
    if figures.memory.fits:
        return
    if remedy is None:
        console.print(
            "[bold red]It does not fit[/], and nothing that was tried makes it: use a smaller model"
        )
        return
    arguments, other = remedy
    console.print(
        f"[bold red]It does not fit.[/] The nearest that does: [bold]{' '.join(arguments)}[/] "
        f"({other.memory.total / GIB:.1f} GiB a GPU, {other.speed.hours:,.1f} h)"
    )


def _flops_table(flops: StepFlops) -> Table:
    """Return the table of FLOPs."""
    table = Table(title="FLOPs an image (all its views)", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "encoder, forward": flops.encoder_forward,
        "projector, forward": flops.projector_forward,
        "SIGReg or covariances, forward": flops.regularizer_forward,
        "backward, 2 × these": flops.backward,
        "target network, forward": flops.target_forward,
        "recomputed (activation checkpointing)": flops.recomputed,
        "first pass of exact accumulation": flops.accumulated,
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, _tera(value))
    table.add_row("the model's, for MFU", _tera(flops.model), style="bold")
    if flops.executed != flops.model:
        table.add_row("executed", _tera(flops.executed), style="bold")
    return table


def _memory_table(memory: Memory) -> Table:
    """Return the table of memory."""
    table = Table(title="Memory of a rank at the peak, GiB", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name, size in memory.parts.items():
        if size >= GIB / 200:
            table.add_row(name, f"{size / GIB:,.2f}", NOTES.get(name, ""))
    total = f"of {memory.capacity / GIB:,.1f}: {'fits' if memory.fits else 'does not fit'}"
    table.add_row("total", f"{memory.total / GIB:,.2f}", total, style="bold" if memory.fits else "bold red")
    return table


def _tera(flops: float) -> str:
    """Return FLOPs with their unit."""
    return f"{flops / 1e12:,.3f} T" if flops >= 1e9 else f"{flops / 1e9:,.3f} G"


def _engine(engine: EngineConfig) -> str:
    """Return the engine's settings in words."""
    said = [engine.kind + (f" ZeRO-{engine.zero_stage}" if engine.kind == "deepspeed" else "")]
    if engine.shard:
        said.append(f"shards over {engine.shard}")
    if engine.packed:
        said.append("packed")
    if engine.activation_checkpointing != "none":
        said.append(f"{engine.activation_checkpointing} activation checkpointing")
    if engine.accumulation > 1:
        said.append(f"{engine.accumulation} micro-batches ({engine.accumulate})")
    return ", ".join(said)


def as_json(config: Config, figures: Estimate, remedy: tuple[list[str], Estimate] | None) -> dict[str, Any]:
    """Return all figures for JSON."""
    values = dataclasses.asdict(figures) | {"engine": figures.engine.model_dump(mode="json")}
    values["flops"] |= {"model": figures.flops.model, "executed": figures.flops.executed}
    values["memory"]["fits"] = figures.memory.fits
    if remedy:
        arguments, other = remedy
        values["nearest_fit"] = {"arguments": arguments, **as_json(config, other, None)}
    return {"name": config.name, **values}
