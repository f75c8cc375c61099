"""Images → shards, index and statistics: same input, same bytes; killed at any time, it continues.

Shards are finished one by one in DEST/.packing. When all are there they are moved out, the index is
written and at last dataset.json: a folder with a dataset.json is whole.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from data_pipeline import listing, pool, shard
from data_pipeline.atomic import atomic
from data_pipeline.description import DESCRIPTION, Split
from data_pipeline.errors import UserError, from_os_error
from data_pipeline.index import Dataset
from data_pipeline.listing import Columns, Item
from data_pipeline.part import Part
from data_pipeline.plan import Plan, make_plan
from data_pipeline.publish import Finished, publish
from data_pipeline.shard import Staged

STAGING = ".packing"
SKIPPED = "skipped.txt"


@dataclass(frozen=True)
class Options:
    """What to pack and how; all but `workers` and `strict` decide the bytes."""

    labels: Path | str | None = None
    """None, "folder", or the CSV that lists the images."""
    columns: Columns = field(default_factory=Columns)
    """Of the CSV."""
    val_fraction: float = 0.0
    """Share of the images, or of their groups, that is set apart in DEST/val."""
    test_fraction: float = 0.0
    """The same for DEST/test."""
    shard_size: int = 256 * 10**6
    """Bytes of a shard, about."""
    workers: int = 1
    """Processes."""
    strict: bool = False
    """Publish nothing if any file is no readable image."""


@dataclass(frozen=True)
class _Task:
    source: Path
    items: list[Item]
    target: Path
    plan: str


def pack(source: Path, dest: Path, options: Options) -> str:
    """Pack the images below `source` into `dest`; returns a line that says what is there now.

    Raises `UserError` for whatever the user can mend; the shards finished by then are kept, and the
    same call continues from them.
    """
    plan = _plan(source, options)
    try:
        packed_before = _is_packed(dest, plan)
        if not packed_before:
            parts = _write_shards(source, dest / STAGING, plan, options.workers)
            _report_skipped(dest, parts, options.strict)
            _publish(dest, plan, _split(options), parts)
        shutil.rmtree(dest / STAGING, ignore_errors=True)
    except OSError as error:
        raise from_os_error(error, f"packing into {dest}") from error
    return _summary(dest, plan, "already packed" if packed_before else "packed")


def _plan(source: Path, options: Options) -> Plan:
    if not source.is_dir():
        raise UserError(f"there is no folder {source}; give the folder that holds the images")
    if options.labels is None or options.labels == "folder":
        items, classes = listing.from_folder(source, labelled=options.labels == "folder")
    else:
        items, classes = listing.from_csv(source, Path(options.labels), options.columns)
    return make_plan(items, classes, options.val_fraction, options.test_fraction, options.shard_size)


def _split(options: Options) -> Split | None:
    if not options.val_fraction and not options.test_fraction:
        return None
    return Split(
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
        grouped=options.columns.group is not None,
    )


def _is_packed(dest: Path, plan: Plan) -> bool:
    """Whether `dest` is complete; `UserError` if it holds anything that is not of this plan."""
    described = [name for name in plan.sets if (dest / name / DESCRIPTION).exists()]
    if any(Dataset(dest / name).description.plan != plan.fingerprint for name in described):
        raise UserError(
            f"{dest} already holds a data set of other images, labels or options; choose another folder"
        )
    unfinished = (dest / STAGING).exists()
    if not described and not unfinished and dest.exists() and any(dest.iterdir()):
        raise UserError(f"{dest} is not empty; choose another folder, or empty it")
    return len(described) == len(plan.sets)


def _write_shards(source: Path, staging: Path, plan: Plan, workers: int) -> dict[str, dict[Path, Part]]:
    """Write the shards that no earlier call has finished; the parts of every set, by staged shard."""
    finished = _finished(staging, plan)
    targets = {
        name: {staging / name / _shard_name(number): items for number, items in enumerate(shards)}
        for name, shards in plan.sets.items()
    }
    tasks = []
    for name, shards in targets.items():
        (staging / name).mkdir(parents=True, exist_ok=True)
        tasks += [
            _Task(source, items, target, plan.fingerprint)
            for target, items in shards.items()
            if target not in finished
        ]
    images = sum(len(task.items) for task in tasks)
    for task, part in zip(tasks, pool.run(_write_shard, tasks, workers, "packing", images), strict=True):
        finished[task.target] = part
    return {name: {target: finished[target] for target in shards} for name, shards in targets.items()}


def _write_shard(task: _Task) -> Part:
    return shard.write(task.source, task.items, task.target, task.plan)


def _finished(staging: Path, plan: Plan) -> dict[Path, Part]:
    """What earlier calls have finished of this plan; `UserError` if it is of another."""
    files = {file.with_suffix(".tar"): file for file in staging.glob("**/shard-*.json")}
    try:
        staged = {target: Staged.model_validate_json(file.read_bytes()) for target, file in files.items()}
        ours = all(shard.plan == plan.fingerprint for shard in staged.values())
    except ValidationError:  # written by another version
        ours = False
    if not ours:
        raise UserError(
            f"{staging} holds an unfinished packing of other images, labels or options; "
            "finish it with its own command, or delete that folder"
        )
    return {target: shard.part for target, shard in staged.items()}


def _report_skipped(dest: Path, sets: dict[str, dict[Path, Part]], strict: bool) -> None:
    """List the files left out; `UserError` if there should be none, or if a set has nothing else."""
    skipped = sorted(entry for parts in sets.values() for part in parts.values() for entry in part.skipped)
    if not skipped:
        return
    with atomic(dest / SKIPPED) as file:
        file.writelines(f"{path}\t{reason}\n".encode() for path, reason in skipped)
    first = f"first: {skipped[0][0]}: {skipped[0][1]}; all are in {dest / SKIPPED}"
    if strict:
        raise UserError(
            f"{len(skipped)} files are not readable images ({first}); leave out --strict to skip them, "
            "or mend them and pack into another folder"
        )
    for name, parts in sets.items():
        if not any(part.samples for part in parts.values()):
            raise UserError(
                f"no usable image for {dest / name}, {len(skipped)} files are not readable images ({first}); "
                "check the source folder"
            )


def _publish(dest: Path, plan: Plan, split: Split | None, sets: dict[str, dict[Path, Part]]) -> None:
    every = [part for parts in sets.values() for part in parts.values()]
    channels = max(channels for part in every for channels in part.contents)
    depth = 16 if any(part.sixteen_bit for part in every) else 8
    for name, parts in sets.items():
        shards: list[Finished] = []
        for staged, part in parts.items():
            if not part.samples:
                continue
            shard = dest / name / _shard_name(len(shards))
            shards.append(Finished(shard.name, part, staged.with_suffix(".npy")))
            shard.parent.mkdir(parents=True, exist_ok=True)
            if staged.exists():  # else an earlier, interrupted call has moved it
                staged.replace(shard)
        publish(
            dest / name,
            shards,
            classes=plan.classes,
            channels=channels,
            depth=depth,
            split=split,
            plan=plan.fingerprint,
            skipped=sum(len(part.skipped) for part in parts.values()),
        )


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _summary(dest: Path, plan: Plan, done: str) -> str:
    sets = {name: Dataset(dest / name) for name in plan.sets}
    counts = ", ".join(f"{name} {len(dataset)}" for name, dataset in sets.items() if name)
    skipped = sum(dataset.description.skipped for dataset in sets.values())
    return (
        f"{done}: {sum(map(len, sets.values()))} images"
        + (f" ({counts})" if counts else "")
        + f" in {sum(dataset.description.shards for dataset in sets.values())} shards in {dest}"
        + (f"; {skipped} files skipped, see {dest / SKIPPED}" if skipped else "")
    )
