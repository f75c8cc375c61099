"""The `pack` command: images → shards, an index and statistics.

The same input gives the same bytes, and a packing that was killed continues when it is started again. Shards
are finished one by one in DEST/.packing. When all are complete they are moved out, then the tables are
written, and dataset.json last: a folder with a dataset.json is complete. Images are added to an existing data
set in the same way, and until the end the data set stays as it was.
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_pipeline.dataset import brightness, label_counts
from data_pipeline.dataset.description import DESCRIPTION, PLAIN, SKIPPED, MaskRule, Split, subsets
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset_writer import staging
from data_pipeline.dataset_writer.staging import STAGING, Base
from data_pipeline.decoders.intensity import NONE, Intensity, refuse_other
from data_pipeline.decoders.pixels import NEWEST_RULES, PixelRules
from data_pipeline.packing import (
    assignment,
    changes,
    copies,
    division,
    header_groups,
    listing,
    masks,
    other_pictures,
)
from data_pipeline.packing.assignment import Assignment
from data_pipeline.packing.build import build, write_part
from data_pipeline.packing.copies import DUPLICATES, Decoding, Dropped
from data_pipeline.packing.listing import Item
from data_pipeline.packing.manifest import Columns
from data_pipeline.packing.share import Share
from data_pipeline.scientific_formats import formats
from data_pipeline.scientific_formats.picture import Reading
from data_pipeline.storage.disk_list import DiskList
from data_pipeline.storage.folders import counted
from isotorus.errors import UserError, from_os_error, one_line


@dataclass(frozen=True)
class Options:
    """What to pack and how; all but `workers`, `part`, `strict`, `allow_duplicates` determine the bytes."""

    labels: Path | str | None = None
    """None, "folder", or the path of a CSV or Parquet file that lists the images."""
    columns: Columns = field(default_factory=Columns)
    """Names of the columns in that file."""
    missing: tuple[str, ...] | None = None
    """Cells of that file that mean "no label"; None: those that `tables.cells` lists."""
    group_pattern: str | None = None
    """Regular expression whose first group, matched in an image's path, is the name of the image's group."""
    group_field: str | None = None
    """Field of the files' headers, such as PatientID, that names the image's group."""
    val_fraction: float = 0.0
    """Fraction of the images, or of their groups, that go to DEST/val."""
    test_fraction: float = 0.0
    """Fraction of the images, or of their groups, that go to DEST/test."""
    stratify: bool = False
    """Divide each class in these fractions, as far as groups that stay whole allow."""
    channels: int | None = None
    """Leave out images that cannot be converted to this number of channels; None: all must have the same
    number."""
    channel_names: tuple[str, ...] | None = None
    """Names of the channels; None: as in the data set that the images are added to, else as the files state
    them."""
    reading: Reading | None = None
    """How to read files of scientific formats; None: by the defaults of `Reading`, and with `append` as those
    that the data set already has."""
    intensity: Intensity | None = None
    """How the numbers of the images become brightness; None: as in the data set that they are added to, and
    in a new one the largest value of an unsigned type is white."""
    shard_size: int = 256 * 10**6
    """Approximate size of a shard in bytes."""
    append: bool = False
    """Add images that the data set in DEST does not contain yet."""
    drop_duplicates: bool = False
    """Leave out near copies of other images."""
    group_duplicates: bool = False
    """Keep near copies on one side of the split, as groups."""
    allow_duplicates: bool = False
    """Publish a new split although images have near copies in another set."""
    workers: int = 1
    """Number of processes."""
    part: Share | None = None
    """Write only this share of the shards of a new data set, and publish nothing; None: all."""
    masks: Path | None = None
    """Folder with the masks of the images; None: pack no masks."""
    mask_rule: MaskRule | None = None
    """Which values of the masks are which class; None: their values are the numbers of the classes, and with
    `append` as in the data set."""
    strict: bool = False
    """Publish nothing if any file has to be left out, or if the folder holds pictures that are not read."""

    @property
    def grouped(self) -> bool:
        """Whether images are split by group."""
        return any(name is not None for name in (self.group_pattern, self.group_field, self.columns.group))

    @property
    def split(self) -> Split | None:
        """The split that was asked for; None if all images go into one set."""
        by_column = self.columns.split is not None
        if not by_column and not self.val_fraction and not self.test_fraction:
            return None
        return Split(
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            grouped=self.grouped,
            by_column=by_column,
            stratified=self.stratify,
        )


def pack(source: Path, dest: Path, options: Options) -> str:
    """Pack the images in `source` into `dest`, and return what `dest` now contains, one fact a line.

    Raises `UserError` for errors that the user can correct; finished shards are then kept, and the same call
    continues from them.
    """
    if options.append and options.missing is None:
        options = replace(options, missing=_missing_before(dest))
    passed: Counter[str] = Counter()
    items, others = _list(source, options, passed)
    not_read = f"{other_pictures.summary(others)} in {source}" if others else ""
    advice = other_pictures.advice(others)
    if others and options.strict:
        raise UserError(f"{not_read}; {advice}, or leave out --strict")
    try:
        contained = (_append if options.append else _pack_new)(source, dest, items, options)
    except OSError as error:
        raise from_os_error(error, f"packing into {dest}") from error
    left_out = [f"{not_read}; {advice}"] if others else []
    left_out += [f"left out of {source}: {counted(+passed)}"] if +passed else []
    return f"{contained}\nnot packed: {'; '.join(left_out)}" if left_out else contained


def _missing_before(dest: Path) -> tuple[str, ...] | None:
    """Return which cells meant "no label" in the table from which `dest` was packed, if any were named."""
    for name in ("", *(Path(name).name for name in subsets(str(dest)))):
        if (dest / name / DESCRIPTION).exists():
            found = Dataset(dest / name).description.table_missing
            return None if found is None else tuple(found)
    return None


def _list(source: Path, options: Options, passed: Counter[str]) -> tuple[DiskList[Item], Counter[str]]:
    """Return the images to pack, and the number of other pictures in the folder by their ending.

    Counts in `passed` what else is left out, by its kind.
    """
    if not source.is_dir():
        raise UserError(f"there is no folder {source}; give the folder that holds the images")
    if options.labels is None or options.labels == "folder":
        items, others = listing.from_folder(source, options.labels == "folder", passed)
        items = masks.images_only(items, source, options.masks)
        if options.labels == "folder":
            division.refuse_split_folders(source, items)
        if options.labels == "folder" and (within := division.sets_within_classes(items)):
            named = one_line(", ".join(within))
            print(
                f"note: the classes in {source} hold sets of a split ({named}), which are "
                "packed together; to keep them apart, list the images in a table with a --split-column",
                file=sys.stderr,
            )
    else:
        items = listing.from_manifest(source, Path(options.labels), options.columns, options.missing)
        others = Counter()
    if options.masks is not None:
        items = masks.paired(items, source, options.masks)
    of_kinds = Counter((item.format, item.unread) for item in items)
    passed.update({unread: n for (_, unread), n in of_kinds.items() if unread})
    kinds = {kind for kind, _ in of_kinds}
    formats.require(kinds)
    fields = (*(options.reading or Reading()).keep, *filter(None, [options.group_field]))
    formats.refuse_unknown(kinds - {""}, fields)
    if options.group_pattern is not None:
        items = listing.grouped(items, options.group_pattern)
    if options.group_field is not None:
        items = header_groups.grouped(source, items, options.group_field, options.workers)
    slices = sum(n for (kind, _), n in of_kinds.items() if kind == "DICOM")
    if slices and (options.val_fraction or options.test_fraction) and not options.grouped:
        print(
            f"note: the {slices} DICOM files in {source} are divided file by file, so slices of one patient "
            "can be on both sides; name the patient, e.g. with --group-field PatientID",
            file=sys.stderr,
        )
    return items, others


def _pack_new(source: Path, dest: Path, items: DiskList[Item], options: Options) -> str:
    """Pack into an empty folder, or continue a packing that was interrupted there."""
    dropped, joined, together = Dropped(), dict[str, str](), ""
    if options.drop_duplicates:
        items, dropped = copies.without_copies(source, items, [], _as_decoded(options))
    if options.group_duplicates:
        items, joined, together = copies.in_groups(source, items, _as_decoded(options))
    classes = listing.class_names(items)
    rule = None if options.masks is None else options.mask_rule or PLAIN
    assigned = assignment.assign(
        items, classes, options.split, options.shard_size, {}, options.reading, rule, joined
    )
    assignment.refuse_empty_sets(assigned)
    if _is_packed(source, dest, assigned, options) and not (dest / STAGING).exists():
        return _already_packed(source, dest, items, assigned, options)
    if options.part is not None:
        return _pack_part(source, dest, assigned, options, options.part)
    with staging.hold(dest) as folder:
        begun = staging.read(folder)
        if _is_packed(source, dest, assigned, options) and (
            begun is None or begun.plan != assigned.fingerprint
        ):
            return _already_packed(source, dest, items, assigned, options)
        bases = {name: Base(generation=0, next_shard=0) for name in assigned.sets}
        _, across = _build(source, dest, folder, assigned, bases, options)
        dropped.write(dest)
    dark = brightness.dark_line([Dataset(dest / name) for name in assigned.sets])
    return f"packed: {_summary(dest, assigned)}{dark}{dropped.line(dest)}{together}{across}"


def _as_decoded(options: Options, rules: PixelRules = NEWEST_RULES) -> Decoding:
    """Return how images are decoded to look for near copies."""
    intensity, reading = options.intensity or NONE, options.reading or Reading()
    return Decoding(options.channels, rules, intensity, reading, options.workers)


def _pack_part(source: Path, dest: Path, assigned: Assignment, options: Options, part: Share) -> str:
    """Write the shards of one part; the data set is published by `pack` without a part."""
    with staging.hold(dest, shared=True) as folder:
        mine, every = write_part(
            source,
            folder,
            assigned,
            {name: Base(generation=0, next_shard=0) for name in assigned.sets},
            part,
            channels=options.channels,
            intensity=options.intensity or NONE,
            workers=options.workers,
        )
    return (
        f"part {part}: {mine} of {every} shards are finished in {folder}; when all parts are, the same "
        "command without --part publishes the data set"
    )


def _already_packed(
    source: Path, dest: Path, items: DiskList[Item], assigned: Assignment, options: Options
) -> str:
    """Return a sentence that says what `dest` contains; raise `UserError` if files changed since."""
    sets = [Dataset(dest / name) for name in assigned.sets]
    if options.channel_names is not None and sets[0].channel_names != list(options.channel_names):
        names = ",".join(options.channel_names)
        raise UserError(
            f"{dest} is packed already, and its channels do not have these names; name them with: isotorus "
            f"name-channels {dest} {names}"
        )
    since = changes.compare(source, dest, items, sets, options.workers)
    changes.refuse_changed(dest, since)
    _, withdrawn = assignment.without_withdrawn(items, sets)
    lines = [f"already packed: {_summary(dest, assigned)}", changes.repaired_line(since), withdrawn]
    return "\n".join(filter(None, lines))


def _is_packed(source: Path, dest: Path, assigned: Assignment, options: Options) -> bool:
    """Return whether `dest` is complete; raise `UserError` if it contains anything else than these images."""
    sets = [Dataset(dest / name) for name in assigned.sets if (dest / name / DESCRIPTION).exists()]
    for dataset in sets:
        first = Dataset(dataset.path, generation=1).description
        if first.plan != assigned.fingerprint or options.channels not in (None, dataset.channels):
            raise _other_data(source, dest, sets, assigned, options)
        refuse_other(dataset.path, dataset.intensity, options.intensity or NONE)
    unfinished = (dest / STAGING).exists()
    others = (
        [path for path in dest.iterdir() if path.name not in (SKIPPED, DUPLICATES)] if dest.exists() else []
    )
    if not sets and not unfinished and others:
        raise UserError(f"{dest} is not empty; choose another folder, or empty it")
    return len(sets) == len(assigned.sets)


def _other_data(
    source: Path, dest: Path, sets: list[Dataset], assigned: Assignment, options: Options
) -> UserError:
    """Return the error for a folder that contains a data set of other images, labels or options."""
    items = DiskList(item for shards in assigned.sets.values() for shard in shards for item in shard)
    since = changes.compare(source, dest, items, sets, options.workers)
    differing = f" ({since})" if str(since) else ""
    stays = " (--append replaces and removes nothing)" if since.changed or since.gone else ""
    return UserError(
        f"{dest} already holds a data set of other images, labels or options{differing}; choose another "
        f"folder, or add what is new with --append{stays}"
    )


def _append(source: Path, dest: Path, items: DiskList[Item], options: Options) -> str:
    """Add the images that the data set in `dest` does not contain yet."""
    names = [Path(name).name for name in subsets(str(dest))] or [""]
    if not (dest / names[0] / DESCRIPTION).exists():
        raise UserError(f"{dest} holds no data set to add to; leave out --append to make one")
    with staging.hold(dest) as folder:
        begun = staging.read(folder)
        if begun and not begun.is_append:
            raise UserError(f"{dest} is not packed to its end; finish that first, without --append")
        changes.refuse_changed_sets(dest, begun)
        bases = begun.bases if begun else {name: _base(dest / name) for name in names}
        sets = [Dataset(dest / name, generation=base.generation) for name, base in bases.items()]
        assignment.refuse_misfit(dest, sets[0].description, options.channels)
        reading = assignment.reading_to_keep(dest, sets[0].description.reading, options.reading)
        refuse_other(sets[0].path, sets[0].intensity, options.intensity)
        options = replace(options, intensity=sets[0].intensity)
        rule = masks.rule_to_keep(dest, sets[0].description.masks, options.mask_rule)
        split = assignment.split_to_keep(dest, sets[0].description.split, options.split, options.grouped)
        since = changes.compare(source, dest, items, sets, options.workers)
        changes.refuse_changed(dest, since)
        items, withdrawn = assignment.without_withdrawn(items, sets)
        items = assignment.with_packed_names(items, sets)
        new, known = assignment.new_items(items, sets)
        dropped = Dropped()
        if options.drop_duplicates:
            how = _as_decoded(replace(options, reading=reading), sets[0].pixel_rules)
            new, dropped = copies.without_copies(source, new, sets, how)
            dropped.write(dest)
        gone = f"\n{changes.gone_line(since)}" if known.images and since.gone else ""
        gone += f"\n{withdrawn}" if withdrawn else ""
        if not new:
            return f"nothing new: {known}{gone}{dropped.line(dest)}"
        sides = division.sides_of(items, dict(zip(bases, sets, strict=True))) if options.grouped else None
        classes = assignment.extended_classes(new, sets)
        rule_of_new = rule if options.masks else None
        assigned = assignment.assign(new, classes, split, options.shard_size, sides, reading, rule_of_new)
        assignment.refuse_new_sets(dest, assigned, names)
        assigned = replace(assigned, sets=assigned.sets | {n: [] for n in names if n not in assigned.sets})
        added, _ = _build(source, dest, folder, assigned, bases, options)
    if not added:
        return f"nothing new: {known}; {len(new)} files skipped, see {dest / SKIPPED}"
    return f"added {added} images, {known}; now {_summary(dest, assigned)}{gone}{dropped.line(dest)}"


def _base(folder: Path) -> Base:
    """Describe the set in `folder` before the packing; new shards get numbers that no existing file has."""
    taken = [re.fullmatch(r"shard-(\d+)(?:\.\d+)?\.tar", file.name) for file in folder.iterdir()]
    return Base(
        generation=Dataset(folder).generation,
        next_shard=max((int(number[1]) + 1 for number in taken if number), default=0),
    )


def _build(
    source: Path, dest: Path, folder: Path, assigned: Assignment, bases: dict[str, Base], options: Options
) -> tuple[int, str]:
    """Call `build` with the options."""
    return build(
        source,
        dest,
        folder,
        assigned,
        bases,
        channels=options.channels,
        channel_names=options.channel_names,
        intensity=options.intensity or NONE,
        workers=options.workers,
        strict=options.strict,
        missing=options.missing,
        allow_duplicates=options.allow_duplicates or options.drop_duplicates or options.group_duplicates,
    )


def _summary(dest: Path, assigned: Assignment) -> str:
    """Say in a sentence what `dest` contains, and in a line for each set which labels and groups."""
    opened = {name: Dataset(dest / name) for name in assigned.sets}
    sets = {name: dataset.description for name, dataset in opened.items()}
    total = list(sets.values())
    images, skipped = sum(s.count for s in total), sum(s.skipped for s in total)
    sixteen_bit = sum(s.sixteen_bit for s in total)
    counts = ", ".join(f"{name} {described.count}" for name, described in sets.items() if name)
    return (
        f"{images} images"
        + (f" ({counts})" if counts else "")
        + f" in {sum(s.shards for s in total)} shards in {dest}"
        + (f"; {skipped} files skipped, see {dest / SKIPPED}" if skipped else "")
        + (
            f"; {sixteen_bit} have 16 bits a channel, {images - sixteen_bit} have 8"
            if sixteen_bit % images
            else ""
        )
        + (
            f"; read by the pixel rules {total[0].pixel_rules} that {dest} began with"
            if total[0].pixel_rules != NEWEST_RULES
            else ""
        )
        + "".join(
            f"\n{line}"
            for line in [*label_counts.lines(opened), *masks.lines(opened), *brightness.lines(opened)]
        )
    )
