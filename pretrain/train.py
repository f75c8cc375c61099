"""The train loop, from top to bottom."""

import logging
import math
import time

import torch

from data_pipeline import augment
from data_pipeline.errors import UserError
from data_pipeline.loader import Batch, Loader
from pretrain import checkpoint
from pretrain.config import Config
from pretrain.distributed import rank, world_size
from pretrain.engines.ddp import DDPEngine
from pretrain.head import LeJEPAHead
from pretrain.models.encoder import build_encoder
from pretrain.preflight import Plan
from pretrain.recorder import Recorder
from pretrain.schedule import learning_rate
from pretrain.step import train_step

log = logging.getLogger(__name__)


def train(config: Config, plan: Plan, device: torch.device) -> None:
    """Train to `config.steps`, from the newest checkpoint if there is one; on every rank alike.

    Raises UserError where the data, the disk or the configuration end the run.
    """
    checkpoints = config.folder / "checkpoints"
    engine = build_engine(config, plan, device)

    start = 0
    newest = checkpoint.latest(checkpoints)
    if newest is not None:
        start = checkpoint.restore(newest, engine)
    if start >= config.steps:
        if rank() == 0:
            log.info("%s is finished: %d of %d steps", config.folder, start, config.steps)
        return
    recorder = Recorder(config, plan.dataset, start) if rank() == 0 else None
    if recorder and newest:
        log.info("continuing %s from %s", config.folder, newest.name)

    loader = Loader(
        plan.dataset,
        batch_size=config.data.batch_size,
        views=config.views,
        augment=config.augment,
        channels=config.data.channels,
        seed=config.seed,
        rank=rank(),
        world_size=world_size(),
        start_step=start,
        workers=config.data.workers,
    )
    batches = iter(loader)
    logged, window_began, waited, saving = start, time.perf_counter(), 0.0, 0.0
    status = "FAILED"
    try:
        for step in range(start, config.steps):
            asked = time.perf_counter()
            batch = next(batches)
            assert batch.step == step
            waited += time.perf_counter() - asked

            views = photometric(batch, plan, device)
            lr = learning_rate(
                step,
                config.steps,
                config.optimizer.lr,
                config.optimizer.warmup_steps,
                config.optimizer.final_lr_ratio,
            )
            parts = train_step(engine, views, step, lr, config.engine.accumulation)

            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                # .item() waits for the device, so only here.
                row = {name: value.item() for name, value in parts.items()}
                seconds = time.perf_counter() - window_began - saving
                images = (done - logged) * config.data.batch_size
                if recorder:
                    recorder.write(
                        done, row, lr=lr, images_per_second=images / seconds, data_wait=waited / seconds
                    )
                if not all(math.isfinite(value) for value in row.values()):
                    raise UserError(
                        f"loss {row['loss']} with gradient norm {row['grad_norm']} at step {done}; "
                        "resume with a lower optimizer.lr"
                    )
                logged, window_began, waited, saving = done, time.perf_counter(), 0.0, 0.0

            if done % config.checkpoint.every == 0 or done == config.steps:
                began = time.perf_counter()
                checkpoint.save(checkpoints, done, engine, plan.description(config))
                saving += time.perf_counter() - began
        status = "FINISHED"
    finally:
        if recorder:
            recorder.close(status)


def build_engine(config: Config, plan: Plan, device: torch.device) -> DDPEngine:
    """The untrained encoder and head on this rank, ready to train."""
    encoder = build_encoder(config.encoder.name, plan.encoder_kwargs, config.seed)
    head = LeJEPAHead(plan.embedding_width, config.objective, config.views.global_views, config.seed)
    return DDPEngine(encoder, head, config.engine, config.optimizer, device)


def photometric(batch: Batch, plan: Plan, device: torch.device) -> list[torch.Tensor]:
    """A batch's crops on the device, augmented and normalised: one (v, N, C, H, W) a size."""
    views = []
    for crops, parameters in zip(batch.views, batch.parameters, strict=True):
        pixels = crops.to(device, non_blocking=True).flatten(0, 1)
        drawn = parameters.to(device, non_blocking=True).flatten(0, 1)
        views.append(augment.apply(pixels, drawn, plan.mean, plan.std).unflatten(0, crops.shape[:2]))
    return views
