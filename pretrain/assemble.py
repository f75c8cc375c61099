"""Assemble a run: build all that the training loop works with, in the same order on all ranks."""

import logging
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from data_pipeline.loader import Batch, Loader
from data_pipeline.sources import Sources
from pretrain import engines
from pretrain.checkpoint import retention
from pretrain.checkpoint.mirror.place import Place
from pretrain.checkpoint.mirror.uploads import Uploads
from pretrain.checkpoint.run_state import RunState
from pretrain.checkpoint.saver import Saver
from pretrain.checkpoint.warm_start import initial_state, load_exactly
from pretrain.config import Config
from pretrain.distributed import rank, world_size
from pretrain.engines import Engine
from pretrain.methods import build_head, takes_actions
from pretrain.methods.config import HEAD_FILE, SupervisedConfig, Turned, reads_masks
from pretrain.models.encoder import build_encoder
from pretrain.models.feature_sets import freeze_unread
from pretrain.models.frozen import freeze
from pretrain.models.lora import add_adapters
from pretrain.monitoring.corrupt import CorruptSamples
from pretrain.monitoring.guard import Guard
from pretrain.monitoring.held_out import HeldOut
from pretrain.monitoring.online_probe import OnlineProbe
from pretrain.monitoring.profiler import Profiler
from pretrain.monitoring.timing import StepTimer, TimedEngine
from pretrain.monitoring.windings import Windings
from pretrain.preflight.inputs import RunInputs
from pretrain.recording.recorder import Recorder, catch_up
from pretrain.run_control.start_up import StartUp
from pretrain.run_control.stopping import Stopping

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What the training loop works with; each rank has one."""

    config: Config
    inputs: RunInputs
    engine: Engine
    state: RunState
    batches: Generator[Batch]
    corrupt: CorruptSamples
    saver: Saver
    timer: StepTimer
    recorder: Recorder | None
    """On rank 0; None on the others."""
    profiler: Profiler | None
    """On rank 0; None on the others."""
    start_up: StartUp | None
    """The stopwatch of the start, until the first step is done."""
    last_logged: int
    """Number of steps done when the last row was logged."""
    windings: Windings | None = None
    """For a torus head with actions, unless `monitor` is 0."""
    held_out: HeldOut | None = None
    """None without `held_out.path`."""
    mirror: Uploads | None = None
    """None without `checkpoint.mirror`."""


def assemble(
    config: Config,
    inputs: RunInputs,
    device: torch.device,
    stopping: Stopping,
    start_up: StartUp,
    cleanup: ExitStack,
) -> Run | None:
    """Build a run and continue from its newest checkpoint; return None if it is finished already.

    All ranks call it. What has to be closed at the end is left to `cleanup`, also if assembling fails half
    way. Raises UserError if the data, the disk or the checkpoint do not allow the run.
    """
    checkpoints = config.folder / "checkpoints"
    engine = build_engine(config, inputs, device)
    probe = None
    if config.online_probe and inputs.sources.classes:
        probe = OnlineProbe(inputs.embedding_width, len(inputs.sources.classes), device)
    validation = None
    if inputs.task:
        # Imported here so that other runs do not wait for scikit-learn.
        from pretrain.supervised.validation import Validation

        validation = Validation(config, inputs, engine, stopping.watchdog.progress)
    state = RunState(engine, Guard(config.guard, config.folder, engine.networks, device), probe, validation)
    stopping.watchdog.progress()
    newest = state.resume(checkpoints, config.checkpoint.on_damage)
    if state.step >= config.steps or state.ended_early:
        log.info("%s is finished: %d of %d steps", config.folder, state.step, config.steps)
        if rank() == 0:
            catch_up(config)
        if mirror := build_mirror(config, state.step, set()):
            mirror.finish(stopping.watchdog.progress, stopping.may_wait)
        return None

    recorder = profiler = None
    if rank() == 0:
        retention.tidy(checkpoints)
        state.guard.trim(state.step)
        recorder = Recorder(config, inputs, state.step, engine)
        cleanup.callback(recorder.close)
        stopping.watchdog.last_words = recorder.close
        profiler = Profiler(config.profile, config.folder / "profile")
        cleanup.callback(profiler.close)
    if newest:
        log.info("continuing %s from %s", config.folder, newest.name)

    corrupt = CorruptSamples(config.folder, state.batch, config.data.batch_size, config.data.max_corrupt)
    saver = Saver(checkpoints, config.checkpoint, state.step)
    mirror = build_mirror(config, state.step, saver.in_use)
    if mirror:
        cleanup.callback(mirror.end)
    timer = StepTimer(device)
    start_up.mark("engine and checkpoint")
    batches = load_batches(config, inputs.sources, state.batch)
    windings = None
    if config.monitor and takes_actions(config.objective, config.views):
        windings = Windings(config, inputs, engine)
    held_out = HeldOut(config, inputs, inputs.held_out, engine) if inputs.held_out else None
    run = Run(
        config,
        inputs,
        TimedEngine(engine, timer),
        state,
        batches,
        corrupt,
        saver,
        timer,
        recorder,
        profiler,
        start_up,
        state.step,
        windings,
        held_out,
        mirror,
    )
    cleanup.callback(lambda: run.batches.close())
    return run


def build_mirror(config: Config, start: int, in_use: set[int]) -> Uploads | None:
    """Return the thread that copies the run to `checkpoint.mirror`, not started yet; None without that."""
    if config.mirror is None:
        return None
    place = Place(config.mirror, config.data.cache.patience)
    return Uploads(config.folder, place, config.checkpoint, start, in_use)


def load_batches(config: Config, sources: Sources, first: int) -> Generator[Batch]:
    """Return this rank's batches, from the `first` in the order of the data on, without end."""
    loader = Loader(
        sources,
        batch_size=config.data.batch_size,
        views=config.views,
        augment=config.augment,
        channels=config.data.channel_count,
        seed=config.seed,
        order=config.data.order,
        rank=rank(),
        world_size=world_size(),
        start_step=first,
        workers=config.data.workers,
        masks=reads_masks(config.objective),
    )
    return iter(loader)


def build_engine(config: Config, inputs: RunInputs, device: torch.device) -> Engine:
    """Return the engine with the encoder and head before the first step; all ranks call it."""

    def encoder() -> nn.Module:
        model = build_encoder(config.encoder.name, inputs.encoder_kwargs, config.seed)
        if inputs.initial_weights and not next(model.parameters()).is_meta:
            weights = initial_state(
                config.encoder.name, inputs.encoder_kwargs, config.seed, inputs.initial_weights
            )
            model.load_state_dict(weights)
        add_adapters(model, config.encoder.lora, config.seed)
        freeze(model, config.encoder.freeze)
        freeze_unread(model, config.data.channel_count, config.views.global_size)
        return model

    head = build_head(
        config.objective,
        inputs.embedding_width,
        config.views.global_views,
        config.seed,
        Turned.of(config.views),
    )
    if inputs.task:
        head.get_buffer("class_weight").copy_(torch.from_numpy(inputs.task.class_weight))
    supervised = config.objective if isinstance(config.objective, SupervisedConfig) else None
    if inputs.initial_weights and supervised and supervised.head_start == "probe":
        layer = head.get_submodule("projector")
        layer.load_state_dict(load_exactly(str(config.folder / HEAD_FILE), layer, "the linear layer"))
    with_target = config.objective.kind == "jepa"
    spread = config.engine.on(config.data.batch_size, world_size())
    average = config.average.momentum
    return engines.build_engine(encoder, head, spread, config.optimizer, device, with_target, average)
