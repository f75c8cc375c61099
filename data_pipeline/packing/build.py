"""Write the assigned shards into the staging folder, then publish them as a generation of every set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline import pool
from data_pipeline.dataset import channel_names as names_of_channels
from data_pipeline.dataset import files
from data_pipeline.dataset.description import DESCRIPTION, PLAIN, SKIPPED
from data_pipeline.dataset.files import FILES
from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.dataset.modified import MODIFIED
from data_pipeline.dataset.spacing import SPACING
from data_pipeline.dataset.table_files import GROUPS, INDEX, SHARDS
from data_pipeline.dataset_writer import staging
from data_pipeline.dataset_writer.part import Part, common_channels, contents_of
from data_pipeline.dataset_writer.publish import FinishedShard, publish
from data_pipeline.dataset_writer.staging import Base, State
from data_pipeline.decoders.intensity import Intensity
from data_pipeline.decoders.pixels import NEWEST_RULES, PixelRules
from data_pipeline.packing import shard
from data_pipeline.packing.assignment import Assignment
from data_pipeline.packing.copies_across import across
from data_pipeline.packing.shard import Task
from data_pipeline.packing.share import Share
from data_pipeline.scientific_formats.picture import Reading
from isotorus.errors import UserError
from isotorus.files import atomic, sweep


def build(
    source: Path,
    dest: Path,
    folder: Path,
    assigned: Assignment,
    bases: dict[str, Base],
    *,
    channels: int | None,
    channel_names: Sequence[str] | None,
    intensity: Intensity,
    workers: int,
    strict: bool,
    missing: Sequence[str] | None,
    allow_duplicates: bool = False,
) -> tuple[int, str]:
    """Write the assigned shards into the staging `folder`, publish them, and return the number of images
    added, and a note about near copies across the sets of a new split, which is "" if there are none.

    Such copies are an error unless `allow_duplicates`. `channel_names` are the names that the user gave; with
    None, the names come from the data set that the images are added to, or from the files. `missing` are the
    cells of the table that meant "no label", and `bases` says for each set which generation the shards are
    added to. Work that an earlier, interrupted call has finished is kept. Raises `UserError` for errors that
    the user can correct; then nothing new is published, and finished shards stay in the staging folder.
    """
    old = {
        name: Dataset(dest / name, generation=base.generation)
        for name, base in bases.items()
        if base.generation
    }
    state = _begin(folder, assigned, bases, channels, _rules(old), intensity)
    tasks = _tasks(source, folder, assigned, state)
    parts = _write_shards(tasks, workers, check_sources=not state.complete)
    _report_skipped(dest, tasks, parts, strict, is_new=not old)
    contents = [*(part.contents for part in parts.values()), *(contents_of(base) for base in old.values())]
    depths = [
        *(16 if part.sixteen_bit else 8 for part in parts.values()),
        *(base.depth for base in old.values()),
    ]
    images = sum(part.samples for part in parts.values())
    channels_of_all = common_channels(contents)
    names = _channel_names(list(parts.values()), list(old.values()), channels_of_all, channel_names)
    near = across(tasks, parts) if assigned.split and not old and not state.complete else None
    if near and assigned.split and not allow_duplicates:
        near.refuse(folder, assigned.split.by_column)
    if images:
        staging.write(folder, state.model_copy(update={"complete": True}))
        for name, shards in tasks.items():
            publish(
                dest / name,
                _move(shards, parts, dest / name, bases[name].next_shard),
                classes=assigned.classes,
                channels=channels_of_all,
                channel_names=names,
                depth=max(depths),
                split=assigned.split,
                plan=assigned.fingerprint,
                skipped=sum(len(parts[task.target].skipped) for task in shards),
                pixel_rules=state.pixel_rules,
                intensity=intensity,
                table_missing=missing,
                reading=assigned.reading,
                mask_rule=assigned.mask_rule,
                base=old.get(name),
            )
    for name in ("", *tasks):
        sweep(dest / name, (INDEX, SHARDS, GROUPS, FILES, SPACING, MODIFIED, DESCRIPTION, SKIPPED))
    staging.clear(folder)
    return images, near.line(dest) if near else ""


def write_part(
    source: Path,
    folder: Path,
    assigned: Assignment,
    bases: dict[str, Base],
    share: Share,
    *,
    channels: int | None,
    intensity: Intensity,
    workers: int,
) -> tuple[int, int]:
    """Write the shards of one part into the staging `folder`, and return their number and that of all parts.

    Several processes may do so at the same time; `build` then finds the shards finished, and publishes them.
    Raises `UserError` if another part has other images or options.
    """
    state = State(
        plan=assigned.fingerprint,
        bases=bases,
        channels=channels,
        pixel_rules=NEWEST_RULES,
        intensity=intensity,
    )
    begun = staging.write_first(folder, state)
    if (begun.plan, begun.channels, begun.intensity) != (state.plan, channels, intensity):
        raise UserError(
            f"{folder} was begun with other images, labels or options than those of part {share}; give the "
            "same to all parts, or delete that folder to begin anew"
        )
    every = [task for shards in _tasks(source, folder, assigned, begun).values() for task in shards]
    mine = share.of_list(every)
    _write_shards({str(share): mine}, workers, check_sources=not begun.complete)
    return len(mine), len(every)


def _rules(old: dict[str, Dataset]) -> PixelRules:
    """Return the pixel rules for new images: those of the sets that they are added to, else the newest."""
    return next((dataset.pixel_rules for dataset in old.values()), NEWEST_RULES)


def _channel_names(
    parts: list[Part], old: list[Dataset], channels: int, asked: Sequence[str] | None
) -> list[str] | None:
    """Return the names of the channels: those that the user `asked` for, else those of the sets that the
    images are added to, else, for new sets, those that all files state; None if there are none.

    Raises `UserError` if these contradict each other.
    """
    found = names_of_channels.stated((names for part in parts for names in part.channel_names), channels)
    before = old[0].channel_names if old else None
    if asked is None:
        if before and found and found != before:
            raise UserError(
                f"{old[0].path} has the channels {', '.join(before)}, and the new files have "
                f"{', '.join(found)}; pack them into another folder"
            )
        return before if old else found
    if channels and len(asked) != channels:
        raise UserError(
            f"--channel-names names {len(asked)} channels, and the images have {channels}; give one "
            "name for each channel"
        )
    if before and before != list(asked):
        raise UserError(
            f"{old[0].path} has the channels {', '.join(before)}; leave out --channel-names, or rename them "
            "first with isotorus name-channels"
        )
    return list(asked)


def _begin(
    folder: Path,
    assigned: Assignment,
    bases: dict[str, Base],
    channels: int | None,
    rules: PixelRules,
    intensity: Intensity,
) -> State:
    """Record in the staging folder what this packing is, and return the record.

    Raises `UserError` if the folder contains an unfinished packing of other images or options.
    """
    begun = staging.read(folder)
    accepted = begun is not None and begun.complete
    if begun and (
        begun.plan != assigned.fingerprint
        or (accepted and (begun.channels, begun.intensity) != (channels, intensity))
    ):
        raise staging.other_packing(folder)
    state = State(
        plan=assigned.fingerprint,
        bases=bases,
        channels=channels,
        pixel_rules=begun.pixel_rules if begun else rules,
        intensity=intensity,
        complete=accepted,
    )
    staging.write(folder, state)
    return state


def _tasks(source: Path, folder: Path, assigned: Assignment, state: State) -> dict[str, list[Task]]:
    """Return a task for each shard of every set."""
    classes = {name: i for i, name in enumerate(assigned.classes)}
    is_new = not any(base.generation for base in state.bases.values())
    return {
        name: [
            Task(
                source,
                items,
                classes,
                state.channels,
                folder / name / _name(i),
                state.pixel_rules,
                assigned.reading or Reading(),
                state.intensity,
                assigned.mask_rule or PLAIN,
                find_copies=is_new and assigned.split is not None,
            )
            for i, items in enumerate(shards)
        ]
        for name, shards in assigned.sets.items()
    }


def _write_shards(tasks: dict[str, list[Task]], workers: int, *, check_sources: bool) -> dict[Path, Part]:
    """Write the shards that no earlier call has finished; return the `Part` of every shard by its staged
    file.
    """
    parts: dict[Path, Part] = {}
    missing = []
    for task in (task for shards in tasks.values() for task in shards):
        task.target.parent.mkdir(parents=True, exist_ok=True)
        part = shard.finished(task, check_sources=check_sources)
        if part is None:
            missing.append(task)
        else:
            parts[task.target] = part
    common_channels(part.contents for part in parts.values())
    images = sum(len(task.items) for task in missing)
    written = pool.run(shard.write, missing, workers, "packing", images)
    return parts | {task.target: part for task, part in zip(missing, written, strict=True)}


def _report_skipped(
    dest: Path, tasks: dict[str, list[Task]], parts: dict[Path, Part], strict: bool, *, is_new: bool
) -> None:
    """Write the list of files that were left out to skipped.txt; for a new data set it replaces that of an
    earlier call.

    Raises `UserError` with `strict` if there are any, and for a new data set if one of its sets has no
    images. If none has, the staging folder is deleted: it holds no work, and would refuse other options.
    """
    skipped = sorted(entry for part in parts.values() for entry in part.skipped)
    if not skipped:
        if is_new:
            (dest / SKIPPED).unlink(missing_ok=True)
        return
    lines = [f"{path}\t{reason}" for path, reason in skipped]
    if not is_new and (dest / SKIPPED).exists():  # files left out earlier stay in the list
        lines = sorted({*lines, *(dest / SKIPPED).read_text().splitlines()})
    with atomic(dest / SKIPPED) as file:
        file.writelines(f"{line}\n".encode() for line in lines)
    if is_new and not any(part.samples for part in parts.values()):
        staging.clear(dest / staging.STAGING)
    first = f"first: {skipped[0][0]}: {skipped[0][1]}; all are in {dest / SKIPPED}"
    if strict:
        raise UserError(
            f"{len(skipped)} files cannot be packed ({first}); leave out --strict to skip them, "
            "or repair them and pack into another folder"
        )
    for name, shards in tasks.items():
        if is_new and not any(parts[task.target].samples for task in shards):
            raise UserError(
                f"no usable image for {dest / name}, {len(skipped)} files cannot be packed ({first}); "
                "correct what the reason names, or check the source folder"
            )


def _move(tasks: list[Task], parts: dict[Path, Part], folder: Path, number: int) -> list[FinishedShard]:
    """Move the shards that contain samples out of the staging folder, numbered from `number` on."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[FinishedShard] = []
    for task in tasks:
        part = parts[task.target]
        if not part.samples:
            continue
        name = _name(number + len(shards))
        if task.target.exists():  # if not, an earlier call that was interrupted has moved it
            task.target.replace(folder / name)
        rows = task.target.with_suffix(".npy")
        table = np.load(rows, allow_pickle=False)
        stored = np.load(task.files, allow_pickle=False) if task.files.exists() else None
        file_rows = files.of_rows(table) if stored is None else stored
        groups = shard.groups(task, table["key"], file_rows["key"])
        spacing = np.load(task.spacing, allow_pickle=False) if task.spacing.exists() else None
        times = _times(task, file_rows["key"])
        shards.append(FinishedShard(name, part, rows, groups, times, stored, spacing))
    return shards


def _times(task: Task, file_keys: NDArray[np.uint64]) -> NDArray[np.int64] | None:
    """Return the time of each row's file, whose key is in `file_keys`; None if a file changed since an
    earlier call wrote the shard.
    """
    if not shard.is_current(task):
        return None
    by_file = {key_hash(item.key): item.modified for item in task.items}
    return np.array([by_file[key] for key in file_keys.tolist()], np.int64)


def _name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:06d}.tar"
