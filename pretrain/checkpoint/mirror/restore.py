"""Download the newest checkpoint of a run from its mirror, if the run's folder has none or older ones."""

import logging
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from data_pipeline.storage.remote import NoAnswer, NotThere, shown
from isotorus.errors import UserError
from isotorus.files import atomic, sync
from pretrain.checkpoint import folders
from pretrain.checkpoint.mirror.place import LISTING, Altered, Place, folder
from pretrain.distributed import cpu_group, on_all_ranks, rank, world_size

log = logging.getLogger(__name__)


def try_out(place: Place, run: Path, first: bool) -> None:
    """Raise `UserError` if the mirror cannot be used; the `first` process also writes to it.

    If the run's folder has a checkpoint, a write that fails for the moment is only logged, as while the run
    trains.
    """
    try:
        place.objects()
        try:
            if first:
                place.try_out()
        except (NoAnswer, Altered) as error:
            if not folders.steps(run / "checkpoints"):
                raise
            log.warning("the mirror does not keep what is written; the run starts nevertheless: %s", error)
    except UserError as error:
        raise UserError(f"checkpoint.mirror: {error}") from None
    except Exception as error:  # the libraries behind fsspec raise all kinds
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(
            f"checkpoint.mirror={shown(place.url)} cannot be used ({said}); use a URL such as s3://bucket/runs"
        ) from None


def is_ahead(place: Place, run: Path) -> bool:
    """Return whether the mirror has a newer complete checkpoint than the folder of the run."""
    return _newest(place.complete()) > _newest(folders.steps(run / "checkpoints"))


def restore(place: Place, run: Path, progress: Callable[[], None]) -> bool:
    """Download the newest checkpoint, if it is newer than those in the run's folder; return whether it was.

    All ranks call it, and each downloads a part of the files, calling `progress` meanwhile. A checkpoint that
    is damaged in the mirror is skipped, with a line in the log. Raises `UserError`, on all ranks, if the
    store does not answer.
    """
    group = cpu_group(timedelta(days=1))  # a large checkpoint takes its time
    damaged: set[int] = set()
    while True:
        step, listed = on_all_ranks(lambda: _choose(place, run, damaged) if rank() == 0 else (0, {}), group)[
            0
        ]
        if not step:
            return False
        if not (wrong := _download(place, run, step, listed, progress, group)):
            return True
        if rank() == 0:
            log.warning("step %d of %s is damaged there: %s", step, shown(place.url), wrong)
        damaged.add(step)


def _download(
    place: Place,
    run: Path,
    step: int,
    listed: dict[str, list[int]],
    progress: Callable[[], None],
    group: dist.ProcessGroup,
) -> str:
    """Download one checkpoint into the run's folder; return what is wrong with it, or "" if it is whole."""
    partial = run / "checkpoints" / f".partial_{step:08d}"

    def prepare() -> None:
        if rank() == 0:
            log.info("downloading step %d of %s, which %s lacks", step, shown(place.url), run)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    on_all_ranks(prepare, group)
    found = on_all_ranks(lambda: _download_share(place, step, listed, partial, progress), group)
    if wrong := next(filter(None, found), ""):
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        return wrong
    on_all_ranks(lambda: _publish(place, run, step, partial) if rank() == 0 else None, group)
    return ""


def _choose(place: Place, run: Path, damaged: set[int]) -> tuple[int, dict[str, list[int]]]:
    """Return the newest step that is whole in the mirror, and its files; 0 if the run's folder is as new."""
    for step in sorted(place.complete() - damaged, reverse=True):
        if step <= _newest(folders.steps(run / "checkpoints")):
            break
        try:
            return step, place.listing(step)
        except (Altered, NotThere) as error:
            log.warning("step %d of %s is damaged there: %s", step, shown(place.url), error)
            damaged.add(step)
    return 0, {}


def _download_share(
    place: Place, step: int, listed: dict[str, list[int]], partial: Path, progress: Callable[[], None]
) -> str:
    """Download this rank's share of a checkpoint; return what is wrong with it, or "" if it is whole."""
    for name in sorted(listed)[rank() :: world_size()]:
        size, checksum = listed[name]
        try:
            with (partial / name).open("wb") as file:
                found = place.read(f"{folder(step)}/{name}", size, file, progress)
                file.flush()
                os.fsync(file.fileno())
        except NoAnswer:
            raise
        except UserError as error:  # absent, or shorter
            return str(error)
        if found != checksum:
            return f"{name} has another checksum than when it was written"
    return ""


def _publish(place: Place, run: Path, step: int, partial: Path) -> None:
    """Write the run's small files, then make the checkpoint count."""
    for name, content in place.small_files().items():
        (run / name).parent.mkdir(exist_ok=True)
        with atomic(run / name) as file:
            file.write(content)
    (partial / LISTING).write_bytes(place.content(f"{folder(step)}/{LISTING}"))
    for path in (partial / LISTING, partial):
        sync(path)
    final = run / folder(step)
    if final.exists():  # without COMPLETE: a copy that was not finished
        shutil.rmtree(final)
    partial.rename(final)
    sync(final.parent)


def _newest(steps: set[int]) -> int:
    return max(steps, default=0)
