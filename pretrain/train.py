"""The training loop: read `train` from top to bottom, then the steps that it calls."""

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data_pipeline.dataset.masks import IGNORED
from data_pipeline.loader import Batch
from data_pipeline.order import share
from data_pipeline.transforms import augment
from isotorus.device import to_device
from pretrain.assemble import Run, assemble, load_batches
from pretrain.config import Config
from pretrain.distributed import rank, world_size
from pretrain.engines.schedule import learning_rate
from pretrain.engines.step import MicroBatch, StepResult, train_step
from pretrain.methods import takes_actions
from pretrain.methods.config import SupervisedConfig
from pretrain.models.drop_path import sample_keys
from pretrain.models.target import target_momentum
from pretrain.monitoring import collapse
from pretrain.monitoring.timing import compare_ranks
from pretrain.preflight.inputs import RunInputs
from pretrain.recording.encoder_json import encoder_json
from pretrain.run_control.signals import StopRequest
from pretrain.run_control.start_up import StartUp
from pretrain.run_control.stopping import Stopping
from pretrain.supervised.mixing import mix, mixes

if TYPE_CHECKING:  # it reads tables, which other runs do not need
    from pretrain.supervised.task import Task

log = logging.getLogger(__name__)


def train(
    config: Config,
    inputs: RunInputs,
    device: torch.device,
    stopping: Stopping | None = None,
    start_up: StartUp | None = None,
) -> int:
    """Train to `config.steps`, from the newest checkpoint if there is one; return the exit code.

    All ranks call it. Raises UserError if the data, the disk or the configuration end the run.
    """
    stopping = stopping or Stopping(config.stopping, config.folder)
    with ExitStack() as cleanup:
        run = assemble(config, inputs, device, stopping, start_up or StartUp(), cleanup)
        if run is None:
            return 0
        state, request = run.state, StopRequest.NONE
        stopping.signals.training()
        while state.step < config.steps and not state.ended_early:
            # All ranks stop before the same step, because of a signal or a failed save.
            request = stopping.agree(run.saver.failed)
            if request != StopRequest.NONE:
                break

            result = update(run)
            last = state.step == config.steps
            log_due = last or state.step % config.log_every == 0
            save_due = (
                last or state.step // config.checkpoint.every > run.saver.step // config.checkpoint.every
            )
            if not (log_due or save_due):
                continue

            # Only from here on does the host wait for the device.
            if state.guard.report():
                rollback(run)
                continue
            # While updates are being refused a save waits: a rollback to it would not help.
            save_due = last or (save_due and not state.guard.refused_in_a_row)
            scores = {}
            if save_due and state.validation:
                with run.timer.host("monitor"):
                    scores = state.validation.measure(state.step)
            if log_due or scores:
                log_row(run, result, scores)
            if save_due:
                save(run)
        finish(run, request, stopping)
    return stopping.leave(request)


def update(run: Run) -> StepResult:
    """Train on the next batch, and count the step; all ranks call it."""
    config, state, step = run.config, run.state, run.state.step
    if run.profiler:
        run.profiler.advance(step)
    with run.timer.host("data"):
        batch = next(run.batches)
    assert batch.step == state.batch
    if run.start_up:
        run.start_up.mark("first batch")
    run.corrupt.watch(batch)
    with run.timer.device("augment"):
        images = prepare(batch, config, run.inputs, run.engine.device)
    lr, momentum = rates(config, step)
    head_only = step < getattr(config.objective, "head_steps", 0)
    result = train_step(run.engine, images, step, lr, momentum, state.guard.limit, head_only)
    state.guard.watch(batch, result)
    if state.probe:
        features = result.embeddings[: config.views.global_views].mean(0)
        state.probe.learn(features, to_device(batch.labels, run.engine.device))
    state.step = step + 1
    if run.recorder:
        run.recorder.progress.step = state.step
    if run.start_up:
        result.parts["loss"].item()  # waits for the device: the step is done when its loss is there
        run.start_up.mark("first step")
        log.info(run.start_up)
        run.start_up = None
        if run.recorder:
            run.recorder.connect()
        if run.mirror:  # not earlier, because a process with threads should not fork those that load data
            run.mirror.start()
    return result


def rates(config: Config, step: int) -> tuple[float, float]:
    """Return the learning rate and the target network's momentum at a step that counts from 0."""
    optimizer = config.optimizer
    lr = learning_rate(step, config.steps, optimizer.lr, optimizer.warmup_steps, optimizer.final_lr_ratio)
    return lr, target_momentum(step, config.steps, getattr(config.objective, "momentum", 1.0))


def prepare(batch: Batch, config: Config, inputs: RunInputs, device: torch.device) -> MicroBatch:
    """Return a batch's crops on the device, augmented and normalised, with keys, and turns or targets."""
    views = []
    for crops, parameters in zip(batch.to(device).views, batch.parameters, strict=True):
        flat = crops.flatten(0, 1), parameters.flatten(0, 1)
        augmented = augment.apply(*flat, inputs.mean, inputs.std, batch.present)
        views.append(augmented.unflatten(0, crops.shape[:2]))
    mine = share(config.data.batch_size, rank(), world_size())
    keys = sample_keys(config.seed, batch.step, mine.start, len(mine), sum(len(x) for x in views))
    beside = None
    if takes_actions(config.objective, config.views):
        beside = to_device(torch.cat(batch.actions), device)
    if isinstance(config.objective, SupervisedConfig) and inputs.task:
        beside = to_device(targets_of(batch, inputs.task), device)
        if mixes(config.objective):
            place = config.objective, config.seed, batch.step, mine.start
            mixed, targets = mix(views[0][0], beside[0], *place)
            views, beside = [mixed[None]], targets[None]
    return MicroBatch(views, to_device(keys, device), beside)


def targets_of(batch: Batch, task: "Task") -> Tensor:
    """Return the targets of a batch, or the masks of its views, as `SupervisedHead` takes them, on the CPU.

    An image that stands in for a damaged one may be one that is not trained on. Then it has no target.
    """
    if not batch.masks:
        return torch.from_numpy(task.targets[batch.indices])[None]
    (masks,) = batch.masks
    unused = torch.from_numpy(~task.known[batch.indices])
    return masks.masked_fill(unused[:, None, None], IGNORED)


def rollback(run: Run) -> None:
    """Return to the newest checkpoint and skip the data up to the last refused update; all ranks call it."""
    run.state.rollback(run.saver)
    run.corrupt.rollback(run.state.batch)
    run.batches.close()
    run.batches = load_batches(run.config, run.inputs.sources, run.state.batch)
    if run.recorder:
        run.recorder.rollback(run.state.step)
    run.last_logged = run.state.step
    run.timer.restart()


def log_row(run: Run, result: StepResult, scores: dict[str, float]) -> None:
    """Log the last step, with means over the steps since the previous row; all ranks call it.

    `scores` are those on val, where there are any.
    """
    config, state, step = run.config, run.state, run.state.step
    scalars, covariance = collapse.measure(run.engine.networks.head, result, step - 1)
    named = result.parts | scalars
    row = dict(zip(named, torch.stack(list(named.values())).tolist(), strict=True))
    if run.windings and (step // config.log_every % config.monitor == 0 or step == config.steps):
        with run.timer.host("monitor"):
            row |= run.windings.measure(step)
    row |= scores
    embedded = None
    if run.held_out and run.held_out.due(step):
        with run.timer.host("monitor"):
            embedded = run.held_out.embed()
    if state.probe:
        row["probe_balanced_accuracy"] = state.probe.balanced_accuracy()
    row["lr"], _ = rates(config, step - 1)
    row |= {"skipped_steps": state.guard.refused, "passed_over_steps": state.guard.skipped_batches}
    row |= run.timer.report(step - run.last_logged)
    data_wait = row["seconds_data"] / row["seconds_step"]
    row |= compare_ranks(row.pop("seconds_alone"), data_wait)
    row["images_per_second"] = config.data.batch_size / row["seconds_step"]
    row["corrupt_samples"] = run.corrupt.report(state.batch)
    if run.recorder:
        run.recorder.write(step, row, covariance.cpu(), embedded)
    run.last_logged = step


def save(run: Run) -> None:
    """Copy the state and begin to write it as a checkpoint; all ranks call it."""
    with run.timer.host("checkpoint"):
        if run.recorder:
            run.recorder.sync()
        description = encoder_json(run.config, run.inputs)
        if run.state.validation:
            description["validation"] = run.state.validation.describe()
        run.saver.save(run.state.step, run.state.tensors(), description)


def finish(run: Run, request: StopRequest, stopping: Stopping) -> None:
    """Save what a stopped run has done since its newest checkpoint; wait for the save and the mirror."""
    if request in (StopRequest.STOP, StopRequest.REQUEUE, StopRequest.INTERRUPT):
        if run.state.step > run.saver.step and not run.state.guard.report():
            save(run)
        progress = f"{run.state.step} of {run.config.steps} steps"
        log.info("stopped by a signal after %s; the same command continues", progress)
    run.saver.wait()
    if run.mirror:
        run.mirror.finish(stopping.watchdog.progress, stopping.may_wait)
    if run.recorder:
        done = run.state.step == run.config.steps or run.state.ended_early
        run.recorder.status = "FINISHED" if done else "KILLED"
