"""The train loop, from top to bottom."""

import logging
import time

import torch

from data_pipeline import augment
from data_pipeline.errors import UserError
from data_pipeline.loader import Batch, Loader
from pretrain import checkpoint, monitors
from pretrain.config import Config
from pretrain.corrupt import CorruptSamples
from pretrain.distributed import rank, world_size
from pretrain.engines.ddp import DDPEngine
from pretrain.guard import Guard
from pretrain.methods import build_head
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import build_encoder
from pretrain.models.target import target_momentum
from pretrain.online_probe import OnlineProbe
from pretrain.preflight import Plan
from pretrain.recorder import Recorder, catch_up
from pretrain.schedule import learning_rate
from pretrain.step import MicroBatch, train_step

log = logging.getLogger(__name__)


def train(config: Config, plan: Plan, device: torch.device) -> None:
    """Train to `config.steps`, from the newest checkpoint if there is one; on every rank alike.

    Raises UserError where the data, the disk or the configuration end the run.
    """
    checkpoints = config.folder / "checkpoints"
    engine = build_engine(config, plan, device)
    probe = None
    if config.online_probe and plan.sources.classes:
        probe = OnlineProbe(plan.embedding_width, len(plan.sources.classes), device)

    start = 0
    newest = checkpoint.latest(checkpoints)
    if newest is not None:
        start = checkpoint.restore(newest, engine, probe)
    if start >= config.steps:
        log.info("%s is finished: %d of %d steps", config.folder, start, config.steps)
        if rank() == 0:
            catch_up(config)
        return
    recorder = None
    if rank() == 0:
        checkpoint.remove_partial(checkpoints)
        recorder = Recorder(config, len(plan.sources), start)
    if newest:
        log.info("continuing %s from %s", config.folder, newest.name)

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
        start_step=start,
        workers=config.data.workers,
    )
    batches = iter(loader)
    guard = Guard(device)
    corrupt = CorruptSamples(config.folder, start, config.data.batch_size, config.data.max_corrupt)
    logged, window_began, waited, saving = start, time.perf_counter(), 0.0, 0.0
    status = "FAILED"
    try:
        for step in range(start, config.steps):
            asked = time.perf_counter()
            batch = next(batches)
            assert batch.step == step
            waited += time.perf_counter() - asked
            corrupt.watch(batch)

            optimizer = config.optimizer
            lr = learning_rate(
                step, config.steps, optimizer.lr, optimizer.warmup_steps, optimizer.final_lr_ratio
            )
            momentum = target_momentum(step, config.steps, getattr(config.objective, "momentum", 1.0))
            result = train_step(engine, prepare(batch, config, plan, device), step, lr, momentum)
            guard.watch(result.parts["grad_norm"], result.projections)
            if probe:
                features = result.embeddings[: config.views.global_views].mean(0)
                probe.learn(features, batch.labels.to(device, non_blocking=True))

            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                # Only here does the host wait for the device.
                refused, reason = guard.report()
                row = {name: value.item() for name, value in result.parts.items()}
                row |= monitors.measure(engine.online["head"], result, step)
                if probe:
                    row["probe_balanced_accuracy"] = probe.balanced_accuracy()
                seconds = time.perf_counter() - window_began - saving
                row["lr"], row["data_wait"], row["skipped_steps"] = lr, waited / seconds, guard.skipped
                row["corrupt_samples"] = corrupt.report(done)
                row["images_per_second"] = (done - logged) * config.data.batch_size / seconds
                if recorder:
                    recorder.write(done, row)
                if refused:
                    log.warning("%d of the last %d steps refused: %s", refused, done - logged, reason)
                if refused == done - logged:
                    raise UserError(
                        f"every step from {logged + 1} to {done} was refused: {reason}; "
                        "resume with a lower optimizer.lr"
                    )
                logged, window_began, waited, saving = done, time.perf_counter(), 0.0, 0.0

            if done % config.checkpoint.every == 0 or done == config.steps:
                began = time.perf_counter()
                checkpoint.save(checkpoints, done, engine, probe, plan.description(config))
                saving += time.perf_counter() - began
        status = "FINISHED"
    finally:
        batches.close()
        if recorder:
            recorder.close(status)


def build_engine(config: Config, plan: Plan, device: torch.device) -> DDPEngine:
    """The untrained encoder and head on this rank, ready to train."""
    encoder = build_encoder(config.encoder.name, plan.encoder_kwargs, config.seed)
    head = build_head(config.objective, plan.embedding_width, config.views.global_views, config.seed)
    with_target = config.objective.kind == "jepa"
    return DDPEngine(encoder, head, config.engine, config.optimizer, device, with_target)


def prepare(batch: Batch, config: Config, plan: Plan, device: torch.device) -> MicroBatch:
    """A batch's crops on the device, augmented and normalised, and the keys of its randomness."""
    views = []
    for crops, parameters in zip(batch.to(device).views, batch.parameters, strict=True):
        augmented = augment.apply(crops.flatten(0, 1), parameters.flatten(0, 1), plan.mean, plan.std)
        views.append(augmented.unflatten(0, crops.shape[:2]))
    images = len(batch.indices)
    keys = sample_keys(config.seed, batch.step, rank() * images, images, sum(len(x) for x in views))
    return MicroBatch(views, keys.to(device, non_blocking=True))
