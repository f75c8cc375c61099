"""`python -m pretrain --config recipe.yaml [dotted.key=value …]`: train one run, alone or under a launcher.

`python -m pretrain init …` writes a recipe and `recipes` lists the packaged ones, `plan …` says what a run
costs, `sweep …` runs a grid of runs, `watch …` follows a run, `export …` writes an encoder for other
libraries, and `who-saw …` names the runs that trained on some images.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from isotorus import logs
from isotorus.errors import ArgumentParser, UserError, exit_code, from_os_error, is_out_of_memory
from isotorus.processes import collector_paused, end_with_launcher, first_rank_reports, has_launcher
from isotorus.scheduled_ranks import check_ranks, set_ranks
from pretrain.run_control.signals import Signals
from pretrain.run_control.start_up import StartUp
from pretrain.run_control.surroundings import set_surroundings

# All else is imported where it is used, because that takes seconds. Before that a mistake in the arguments or
# the recipe is refused, and signals are noted.
if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from pretrain.config import Config
    from pretrain.preflight.inputs import RunInputs

COMMANDS = {
    "init": "pretrain.starting.init_command",
    "recipes": "pretrain.starting.recipes_command",
    "plan": "pretrain.cost.plan_command",
    "sweep": "pretrain.sweep",
    "watch": "pretrain.monitoring.watch_command",
    "export": "pretrain.checkpoint.export.command",
    "who-saw": "pretrain.recording.who_saw.command",
}
"""Other commands, and the modules with their `main`, which are imported when the command is given."""
USER_ERRORS = "isotorus/user_errors"
"""Key of the process group's store that counts the ranks that have met a user error."""


def main() -> int:
    """Train one run, or hand on to another command; return the exit code (see docs/runs.md)."""
    trains = sys.argv[1:2] == [] or sys.argv[1] not in COMMANDS
    ranks = set_ranks() if trains else None
    level = logging.ERROR if first_rank_reports() else logging.INFO
    logs.start(level, quiet=("alembic", "aiobotocore", "botocore"))
    if not trains:
        code: int = importlib.import_module(COMMANDS[sys.argv[1]]).main(sys.argv[2:])
        return code
    check_ranks()
    end_with_launcher()
    if ranks:
        logging.info(ranks)
    signals, start_up = Signals(), StartUp()
    signals.listen()
    set_surroundings()
    start_up.mark("python")
    with collector_paused():
        config = parse(sys.argv[1:])
        start_up.mark("configuration")
        from pretrain import train  # noqa: F401, imported here to measure how long it takes
        from pretrain.preflight.check import check
    start_up.mark("imports")
    inputs = None
    try:
        if not is_behind_mirror(config):
            inputs = check(config, int(os.environ.get("WORLD_SIZE", "1")))
    except OSError as error:
        raise from_os_error(error, f"preparing {config.folder}") from error
    start_up.mark("data")
    with process_group(config.stopping.hang) as device:
        start_up.mark("process group")
        code = run(config, inputs, device, signals, start_up)
    for reader in multiprocessing.active_children():
        reader.kill()  # Python would wait for one that hangs, and the watchdog has ended
    return code


class TrainParser(ArgumentParser):
    """An argument parser whose help ends with all fields of a recipe; a run does not wait for that text."""

    def format_help(self) -> str:
        from pretrain.config import describe_fields

        self.epilog = "fields, each set in the file or as dotted.key=value:\n" + describe_fields()
        return super().format_help()


def parse(arguments: list[str]) -> Config:
    """Read the command line and the configuration that it names; raises UserError."""
    from pretrain.config import load_config

    parser = TrainParser(
        prog="isotorus train",
        description="Train one run; several processes: torchrun --nproc-per-node N -m pretrain …; "
        "a grid of runs: isotorus sweep --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a packaged recipe")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    # DeepSpeed's launcher adds it to every command; the environment says the same.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args(arguments)
    return load_config(given.config, given.overrides)


def is_behind_mirror(config: Config) -> bool:
    """Return whether `checkpoint.mirror` has a newer checkpoint than the run's folder.

    Raises UserError if the mirror cannot be used.
    """
    if config.mirror is None:
        return False
    from pretrain.checkpoint.mirror.place import Place
    from pretrain.checkpoint.mirror.restore import is_ahead, try_out

    place = Place(config.mirror, config.data.cache.patience)
    try_out(place, config.folder, os.environ.get("RANK", "0") == "0")
    if not is_ahead(place, config.folder):
        return False
    if config.resume == "never":
        raise UserError(
            f"{config.mirror} has a checkpoint of this run and resume=never; choose another name, or "
            "resume=auto"
        )
    return True


def catch_up_with_mirror(config: Config, inputs: RunInputs | None, progress: Callable[[], None]) -> RunInputs:
    """Download a newer checkpoint from the run's mirror, if it has one; return the inputs of the run.

    All ranks call it. `inputs` are what `check` returned before, or None if the mirror was ahead. After a
    download they are read again.
    """
    import torch.distributed as dist

    from pretrain.checkpoint.mirror.place import Place
    from pretrain.checkpoint.mirror.restore import restore
    from pretrain.preflight.check import check

    restored = False
    if config.mirror is not None:
        place = Place(config.mirror, config.data.cache.patience)
        restored = restore(place, config.folder, progress)
    return check(config, dist.get_world_size()) if restored or inputs is None else inputs


def run(
    config: Config, inputs: RunInputs | None, device: torch.device, signals: Signals, start_up: StartUp
) -> int:
    """Train; print a user error once, however many ranks meet it or wait for a rank that met it.

    `inputs` are None if the run's mirror has a newer checkpoint than its folder.
    """
    import torch.distributed as dist

    from pretrain.run_control.lock import hold
    from pretrain.run_control.peers import ERROR_REPORTED
    from pretrain.run_control.stopping import Stopping
    from pretrain.train import train

    store = dist.distributed_c10d._get_default_store()
    try:
        with (
            hold(config.folder) if dist.get_rank() == 0 else nullcontext() as lock,
            Stopping(config.stopping, config.folder, signals, lock) as stopping,
        ):
            ready = catch_up_with_mirror(config, inputs, stopping.watchdog.progress)
            return train(config, ready, device, stopping, start_up)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if not isinstance(error, (UserError, OSError)) and not is_out_of_memory(error):
            # A rank that ends with a user error breaks the collectives of the others, which adds nothing.
            if count_user_errors(store, 0) > 0:
                abandon()
            raise
        if count_user_errors(store, 1) <= 1:
            print(f"error: {as_user_error(error, config, device)}", file=sys.stderr, flush=True)
            with suppress(RuntimeError):  # the store's host may be lost
                store.set(ERROR_REPORTED, "")
        else:  # wait, because the launcher ends all ranks soon after the first one leaves
            with suppress(RuntimeError):
                store.wait([ERROR_REPORTED], timedelta(seconds=180))
        wait_as_host(store, seconds=10)
        abandon()


def as_user_error(error: Exception, config: Config, device: torch.device) -> UserError:
    """Say what the user can do about an error that is no defect of the program."""
    from pretrain.cost.out_of_memory import explain

    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        return explain(error, config, device)
    assert isinstance(error, OSError)
    return from_os_error(error, f"run {config.folder}")


def count_user_errors(store: dist.Store, new: int) -> int:
    """Add `new` to the count of ranks with a user error and return it; 0 if the store does not answer."""
    try:
        return store.add(USER_ERRORS, new)
    except RuntimeError:
        return 0


def wait_as_host(store: dist.Store, seconds: float) -> None:
    """Stay until all ranks have counted their error, or for some seconds, if this rank holds their store.

    Without a launcher, rank 0 holds it. A rank that finds no store would print its error again.
    """
    import torch.distributed as dist

    until = time.monotonic() + seconds
    while dist.get_rank() == 0 and not has_launcher() and time.monotonic() < until:
        if count_user_errors(store, 0) >= dist.get_world_size():
            break
        time.sleep(0.05)


def abandon() -> NoReturn:
    """End the process at once with exit code 2; a clean end would wait for ranks that wait for this one."""
    sys.stderr.flush()
    os._exit(2)


@contextmanager
def process_group(hang: float) -> Iterator[torch.device]:
    """Join the process group that the launcher describes, or a group of one; yield this rank's device.

    The group's own timeout is longer than `hang` seconds, so that the watchdog acts first: the timeout would
    kill a rank without a stack.
    """
    import torch
    import torch.distributed as dist

    from pretrain.run_control.device import bind_near, choose_device

    device, backend = choose_device(), "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        bind_near(device)
        backend = "cpu:gloo,cuda:nccl"
    if "RANK" in os.environ:
        # With its device known, NCCL connects now, and each barrier is on this device.
        of = device if device.type == "cuda" else None
        dist.init_process_group(backend, timeout=timedelta(seconds=hang + 60), device_id=of)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(exit_code(main))
