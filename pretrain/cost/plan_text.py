"""The tables and sentences that `isotorus plan` prints."""

import math
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from isotorus.numbers import duration
from pretrain.config import Config
from pretrain.cost.cpu_speed import cores
from pretrain.cost.flops import StepFlops
from pretrain.cost.goodput import Failures
from pretrain.cost.plan import Estimate, Memory, Request, Row
from pretrain.cost.smaller import MONTH
from pretrain.cost.step_time import StepTime
from pretrain.engines.config import EngineConfig

GIB = 2**30
# Explanations of parts whose names do not say enough.
NOTES = {
    "parameters": "fp32, trained",
    "optimizer": "AdamW's two moments, fp32",
    "target": "of a target network and of averaged weights",
    "views": "a rank's batch, uint8 and augmented",
    "embeddings": "of all views, with their gradient",
    "activations": "what the backward pass needs of one micro-batch",
    "weight copies": "casts of weights to bf16",
    "communication": "gathered parameters, and buffers for them and for gradients",
    "backward": "recomputed activations, gradients that are being computed",
    "projector": "activations",
    "regularizer": "SIGReg's projections, covariances, or the loss of labels or masks",
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
    if figures.step:
        console.print(_step_table(figures.step))
    epochs = f" or {speed.epochs:,.1f} epochs" if speed.epochs else ""
    if request.mfu is not None:
        basis = f"At {request.mfu:.0%} of the peak"
    else:
        basis = "Measured now on this machine" if request.gpu == "cpu" else f"Predicted, {request.nodes}"
    spent = f"{speed.gpu_hours:,.0f} GPU-hours"
    if request.gpu == "cpu":
        spent = f"{speed.hours * cores(request.gpus):,.1f} CPU-hours"
    console.print(
        f"{basis}: {speed.images_per_second:,.0f} images/s, {_seconds(speed.seconds_per_step)} a step, "
        f"MFU {speed.mfu:.1%}; {speed.images / 1e6:,.1f} M images{epochs} take {speed.hours:,.1f} h, {spent}"
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
            "[bold red]It does not fit[/], and none of the changes in docs/plan.md makes it fit: use a "
            "smaller model"
        )
        return
    arguments, other = remedy
    console.print(
        f"[bold red]It does not fit.[/] The nearest that does: [bold]{' '.join(arguments)}[/] "
        f"({other.memory.total / GIB:.1f} GiB a GPU, {other.speed.hours:,.1f} h)"
    )


def show_smaller(hours: float, gpus: int, batch_size: int, smaller: tuple[str, float] | None) -> None:
    """Print what takes less than a month."""
    more = gpus * math.ceil(hours / MONTH)
    hints = [f"{smaller[0]} on as many images takes about {smaller[1]:,.0f} h"] if smaller else []
    if more <= batch_size:
        hints.append(f"{more:,} GPUs may take a month")
    said = " and ".join(hints) or "no packaged recipe takes less; use fewer steps or more GPUs"
    Console().print(f"[bold]More than a month.[/] {said[0].upper()}{said[1:]}")


def show_scaling(rows: list[Row]) -> None:
    """Print the table of several numbers of GPUs."""
    table = Table(title="Scaling, predicted", title_justify="left")
    columns = "GPUs", "batch", "s a step", "links", "images/s", "MFU", "efficiency", "hours"
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        speed = row.speed
        share = f"{row.step.communication / row.step.total:.1%}" if row.step else "not modelled"
        table.add_row(
            f"{row.gpus:,}",
            f"{row.batch_size:,}",
            f"{speed.seconds_per_step:,.3f}",
            share,
            f"{speed.images_per_second:,.0f}",
            f"{speed.mfu:.1%}",
            f"{row.efficiency:.1%}",
            f"{speed.hours:,.1f}",
        )
    Console().print(table)


RESTARTS = (30, 60, 120, 300, 900)
"""Seconds of a restart in the table of failures."""


def show_failures(config: Config, figures: Estimate, failures: Failures) -> None:
    """Print how often to save a checkpoint, and the share of the time that is useful, if the run can fail."""
    if math.isinf(failures.every):
        return
    console, seconds = Console(), figures.speed.seconds_per_step
    if figures.speed.hours * 3600 < failures.every / 10:
        console.print(
            f"A failure is expected in one of {failures.every / figures.speed.hours / 3600:,.0f} runs"
        )
        return
    steps, given = best_steps(failures, seconds), config.checkpoint.every
    console.print(
        f"One failure in {failures.every / 3600:,.1f} h is expected. Best is checkpoint.every={steps} "
        f"({duration(steps * seconds)}): {failures.useful(steps * seconds):.1%} of the time is useful, and a "
        f"failure takes {failures.lost(steps * seconds) / seconds:,.0f} steps back. With "
        f"checkpoint.every={given}, as in the recipe, it is {failures.useful(given * seconds):.1%}"
    )
    table = Table(title="Useful share of the time, by the seconds of a restart", title_justify="left")
    for name in ("restart, s", f"every {steps} steps", f"every {given}"):
        table.add_column(name, justify="right")
    for restart in RESTARTS:
        other = replace(failures, restart=restart)
        shares = (other.useful(n * seconds) for n in (steps, given))
        table.add_row(str(restart), *(f"{share:.1%}" for share in shares))
    console.print(table)


def best_steps(failures: Failures, seconds: float) -> int:
    """Return the best number of steps of `seconds` between checkpoints."""
    return max(1, round(failures.best_interval() / seconds))


def goodput_json(config: Config, figures: Estimate, failures: Failures) -> dict[str, float | int | None]:
    """Return the figures of `show_failures` for JSON; null where there are no failures."""
    if math.isinf(failures.every):
        return {"every_seconds": None, "checkpoint_every": None, "useful": 1.0, "useful_as_given": 1.0}
    seconds = figures.speed.seconds_per_step
    steps = best_steps(failures, seconds)
    return {
        "every_seconds": failures.every,
        "checkpoint_every": steps,
        "useful": failures.useful(steps * seconds),
        "useful_as_given": failures.useful(config.checkpoint.every * seconds),
        "lost_steps": failures.lost(steps * seconds) / seconds,
    }


def _step_table(step: StepTime) -> Table:
    """Return the table of a step's seconds."""
    table = Table(title="A step on one rank, ms", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "forward passes": step.forward,
        "backward passes": step.backward,
        "clipping and AdamW": step.update,
        "gathering parameters, after the forward pass has ended": step.gathering,
        "summing gradients, after the backward pass has ended": step.reducing,
        "sums that all ranks wait for": step.waiting,
        "what whole runs take besides (docs/plan.md)": step.slack,
    }
    for name, value in rows.items():
        table.add_row(name, f"{1000 * value:,.2f}")
    table.add_row("total", f"{1000 * step.total:,.2f}", style="bold")
    return table


def _seconds(value: float) -> str:
    """Return a duration with its unit."""
    return f"{value:,.2f} s" if value >= 1 else f"{1000 * value:,.1f} ms"


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
