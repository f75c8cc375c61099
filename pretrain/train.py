"""The train loop, from top to bottom."""

import logging
from collections.abc import Generator

import torch
from torch import nn

from data_pipeline.loader import Batch, Loader
from data_pipeline.order import share
from data_pipeline.transforms import augment
from pretrain import checkpoint, engines
from pretrain.checkpoint.saver import Saver
from pretrain.checkpoint.warm_start import initial_state
from pretrain.config import Config
from pretrain.distributed import rank, world_size
from pretrain.engines import Engine
from pretrain.engines.step import MicroBatch, train_step
from pretrain.guard import Guard
from pretrain.methods import build_head
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import build_encoder
from pretrain.models.target import target_momentum
from pretrain.monitoring import collapse, ranks
from pretrain.monitoring.corrupt import CorruptSamples
from pretrain.monitoring.online_probe import OnlineProbe
from pretrain.monitoring.profiler import Profiler
from pretrain.monitoring.timing import StepTimer
from pretrain.preflight import Plan
from pretrain.recorder import Recorder, catch_up
from pretrain.run_control.signals import Wish
from pretrain.run_control.start_up import StartUp
from pretrain.run_control.stopping import Stopping
from pretrain.schedule import learning_rate
from pretrain.state import RunState

log = logging.getLogger(__name__)


def train(
    config: Config,
    plan: Plan,
    device: torch.device,
    stopping: Stopping | None = None,
    start_up: StartUp | None = None,
) -> int:
    """Train to `config.steps`, from the newest checkpoint if there is one; on every rank alike.

    Returns the exit code. Raises UserError where the data, the disk or the configuration end the run.
    """
    stopping = stopping or Stopping(config.stopping, config.folder)
    checkpoints = config.folder / "checkpoints"
    engine = build_engine(config, plan, device)
    probe = None
    if config.online_probe and plan.sources.classes:
        probe = OnlineProbe(plan.embedding_width, len(plan.sources.classes), device)
    guard = Guard(config.guard, config.folder, engine.networks, device)
    state = RunState(engine, guard, probe)
    stopping.watchdog.progress()
    newest = state.resume(checkpoints, config.checkpoint.on_damage)
    if state.step >= config.steps:
        log.info("%s is finished: %d of %d steps", config.folder, state.step, config.steps)
        if rank() == 0:
            catch_up(config)
        return 0
    recorder = profiler = None
    if rank() == 0:
        checkpoint.tidy(checkpoints)
        guard.trim(state.step)
        recorder = Recorder(config, plan, state.step, device)
        profiler = Profiler(config.profile, config.folder / "profile")
        stopping.watchdog.last_words = lambda: recorder.close("FAILED")
    if newest:
        log.info("continuing %s from %s", config.folder, newest.name)

    batches = load(config, plan, state.batch)
    corrupt = CorruptSamples(config.folder, state.batch, config.data.batch_size, config.data.max_corrupt)
    saver = Saver(checkpoints, config.checkpoint, state.step)
    timer = StepTimer(device)
    timer.time_calls(engine)
    start_up = start_up or StartUp()
    start_up.mark("engine and checkpoint")
    began = state.step
    logged, due, wish, status = began, False, Wish.GO_ON, "FAILED"
    try:
        while state.step < config.steps:
            wish = stopping.agree(saver.failed)
            if wish != Wish.GO_ON:
                break
            step = state.step
            if profiler:
                profiler.advance(step)
            with timer.host("data"):
                batch = next(batches)
            assert batch.step == state.batch
            if step == began:
                start_up.mark("first batch")
            corrupt.watch(batch)

            optimizer = config.optimizer
            lr = learning_rate(
                step, config.steps, optimizer.lr, optimizer.warmup_steps, optimizer.final_lr_ratio
            )
            momentum = target_momentum(step, config.steps, getattr(config.objective, "momentum", 1.0))
            with timer.device("augment"):
                images = prepare(batch, config, plan, device)
            result = train_step(engine, images, step, lr, momentum, guard.limit)
            guard.watch(batch, result)
            if probe:
                features = result.embeddings[: config.views.global_views].mean(0)
                probe.learn(features, batch.labels.to(device, non_blocking=True))

            state.step = done = step + 1
            if step == began:
                float(result.parts["loss"])  # only when it is there is the step done
                start_up.mark("first step")
                log.info(start_up)
            logs = done % config.log_every == 0 or done == config.steps
            due |= done % config.checkpoint.every == 0
            if not (logs or due or done == config.steps):
                continue
            # Only from here on does the host wait for the device.
            if guard.report():
                state.take_back(saver)
                corrupt.take_back(state.batch)
                batches.close()
                batches = load(config, plan, state.batch)
                if recorder:
                    recorder.take_back(state.step)
                logged, due = state.step, False
                timer.restart()
                continue
            if logs:
                row = {name: value.item() for name, value in result.parts.items()}
                row |= collapse.measure(engine.networks.head, result, step)
                if probe:
                    row["probe_balanced_accuracy"] = probe.balanced_accuracy()
                row |= {"lr": lr, "skipped_steps": guard.skipped, "passed_over_steps": guard.passed_over}
                row |= timer.report(done - logged)
                data_wait = row["seconds_data"] / row["seconds_step"]
                row |= ranks.compare(row.pop("seconds_alone"), data_wait)
                row["images_per_second"] = config.data.batch_size / row["seconds_step"]
                row["corrupt_samples"] = corrupt.report(state.batch)
                if recorder:
                    recorder.write(done, row)
                logged = done
            # A save in a row of refused updates would be one more place to return to in vain.
            if (due and not guard.row) or done == config.steps:
                due = False
                with timer.host("checkpoint"):
                    if recorder:
                        recorder.sync()
                    saver.save(done, state.tensors(), plan.description(config))

        if wish in (Wish.STOP, Wish.REQUEUE):
            log.info("stopped by a signal after %d of %d steps", state.step, config.steps)
            if state.step > saver.step and not guard.report():
                if recorder:
                    recorder.sync()
                saver.save(state.step, state.tensors(), plan.description(config))
        saver.wait()
        status = "FINISHED" if state.step == config.steps else "KILLED"
    finally:
        batches.close()
        if recorder and profiler:
            profiler.close()
            recorder.close(status)
    return stopping.leave(wish)


def load(config: Config, plan: Plan, first: int) -> Generator[Batch]:
    """This rank's batches, from batch `first` on."""
    loader = Loader(
        plan.sources,
        batch_size=config.data.batch_size,
        views=config.views,
        augment=config.augment,
        channels=config.data.channels,
        seed=config.seed,
        order=config.data.order,
        rank=rank(),
        world_size=world_size(),
        start_step=first,
        workers=config.data.workers,
    )
    return iter(loader)


def build_engine(config: Config, plan: Plan, device: torch.device) -> Engine:
    """The untrained encoder and head on this rank, ready to train."""

    def encoder() -> nn.Module:
        model = build_encoder(config.encoder.name, plan.encoder_kwargs, config.seed)
        if plan.initial_weights and not next(model.parameters()).is_meta:
            weights = initial_state(
                config.encoder.name, plan.encoder_kwargs, config.seed, plan.initial_weights
            )
            model.load_state_dict(weights)
        return model

    head = build_head(config.objective, plan.embedding_width, config.views.global_views, config.seed)
    with_target = config.objective.kind == "jepa"
    spread = config.engine.on(config.data.batch_size, world_size())
    return engines.build_engine(encoder, head, spread, config.optimizer, device, with_target)


def prepare(batch: Batch, config: Config, plan: Plan, device: torch.device) -> MicroBatch:
    """A batch's crops on the device, augmented and normalised, and the keys of its randomness."""
    views = []
    for crops, parameters in zip(batch.to(device).views, batch.parameters, strict=True):
        augmented = augment.apply(crops.flatten(0, 1), parameters.flatten(0, 1), plan.mean, plan.std)
        views.append(augmented.unflatten(0, crops.shape[:2]))
    mine = share(config.data.batch_size, rank(), world_size())
    keys = sample_keys(config.seed, batch.step, mine.start, len(mine), sum(len(x) for x in views))
    return MicroBatch(views, keys.to(device, non_blocking=True))
