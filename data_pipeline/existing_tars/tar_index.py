"""The `index` command: a data set that refers to existing tar files, which are read once and not changed."""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from data_pipeline import pool
from data_pipeline.dataset import brightness, label_counts
from data_pipeline.dataset.description import DESCRIPTION, SKIPPED
from data_pipeline.dataset.index import Dataset, key_prefix
from data_pipeline.dataset.table_files import GROUPS, INDEX, SHARDS
from data_pipeline.dataset_writer import staging
from data_pipeline.dataset_writer.part import common_channels, contents_of
from data_pipeline.dataset_writer.publish import FinishedShard, publish
from data_pipeline.decoders.decode import EXTENSIONS
from data_pipeline.decoders.intensity import NONE, Intensity, refuse_other
from data_pipeline.decoders.pixels import NEWEST_RULES, PixelRules
from data_pipeline.existing_tars import equal_keys, label_places, tar_labels, tar_scan
from data_pipeline.existing_tars.tar_scan import Rule, Scan
from data_pipeline.packing import other_pictures
from data_pipeline.storage import reader, tar_files
from data_pipeline.storage.folders import counted
from data_pipeline.storage.tar_files import TarFile
from isotorus.errors import UserError, from_os_error
from isotorus.files import atomic, sweep


@dataclass(frozen=True)
class Options:
    """How tar files are read; all fields but `workers` and `strict` determine the index."""

    rule: Rule = field(default_factory=Rule)
    """Which files of a sample are its image and its label."""
    classes: Path | None = None
    """Text file of class names, one per line, in the order of the numbers used as labels."""
    intensity: Intensity | None = None
    """How the numbers of the images become brightness; None: as in the data set that they are added to, and
    in a new one the largest value of an unsigned type is white."""
    append: bool = False
    """Add tar files that the data set does not contain yet, as a new generation."""
    workers: int = 1
    """Number of processes."""
    strict: bool = False
    """Publish nothing if any image cannot be read."""


@dataclass(frozen=True)
class _Task:
    """A tar file to scan, and the file for its index rows."""

    path: str
    rule: Rule
    rows: Path
    pixel_rules: PixelRules
    intensity: Intensity
    prefix: str


def index(sources: Sequence[str], target: str, options: Options) -> str:
    """Index the tar files in `sources` (files, folders or URLs) in the folder `target`.

    Returns a sentence that says what the data set now contains. Raises `UserError` for errors that the user
    can correct. After an error or a kill the data set is as it was before.
    """
    if reader.is_remote(target):
        raise UserError(f"{target}: an index is written to a local folder; give one, and copy it there then")
    dest = Path(target)
    passed: Counter[str] = Counter()
    classes = None if options.classes is None else tar_labels.read_classes(options.classes)
    tars = {_name(tar.path, dest): tar for tar in tar_files.find(sources, passed)}
    plan = _fingerprint(tars, classes, options.rule)
    base = _base(dest, plan, options)
    new = tars if base is None else _added(tars, base)
    special = f"\nleft out: {counted(+passed)}" if +passed else ""
    if not new:
        _clean(dest)
        return f"already indexed: {_summary(dest)}{special}"
    try:
        with staging.hold(dest) as folder:
            if staging.read(folder) is not None:
                raise staging.other_packing(folder)
            scans = _scan_all(list(new.values()), folder, dest, base, options)
            others = sum((scan.others for scan in scans), Counter[str]())
            if others and options.strict:
                raise UserError(
                    f"{other_pictures.summary(others)} in the tars; convert them to PNG or TIFF, or leave "
                    "out --strict"
                )
            _publish(dest, scans, classes, plan, base, options)
    except OSError as error:
        raise from_os_error(error, f"indexing into {dest}") from error
    without_image = sum(scan.without_image for scan in scans)
    further = sum(scan.further_images for scan in scans)
    left_out = f"; {without_image} samples without an image left out" if without_image else ""
    left_out += f"; {further} further images of the samples left out" if further else ""
    not_read = f"\nnot indexed: {other_pictures.summary(others)}" if others else ""
    return f"indexed: {_summary(dest, left_out)}{not_read}{label_places.hint(scans, options.rule)}{special}"


def _clean(dest: Path) -> None:
    """Delete what an index that was killed at its end left in `dest`, unless another process works there."""
    with contextlib.suppress(UserError, OSError):
        if (dest / staging.STAGING).exists():
            with staging.hold(dest):
                sweep(dest, (INDEX, SHARDS, GROUPS, DESCRIPTION, SKIPPED))


def _name(path: str, dest: Path) -> str:
    """Return the name of a tar in the data set: a relative path if it is below `dest`, else a full path or
    URL.
    """
    if reader.is_remote(path):
        return path
    folder = Path(os.path.abspath(dest))  # noqa: PTH100  keeps symbolic links
    return Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else path


def _fingerprint(tars: dict[str, TarFile], classes: list[str] | None, rule: Rule) -> str:
    """Return a hash of the tar files, class names and rule, which identifies what is to be indexed."""
    sizes = {name: tar.size for name, tar in tars.items()}
    read_as = asdict(rule)
    for later in ("missing", "group_field", "label_extension"):  # hashes of earlier versions lack these
        if read_as[later] in (None, False):
            del read_as[later]
    return hashlib.sha256(json.dumps([sizes, classes, read_as]).encode()).hexdigest()


def _base(dest: Path, plan: str, options: Options) -> Dataset | None:
    """Return the data set that `dest` contains, or None; raise `UserError` if it does not fit the options."""
    if not (dest / DESCRIPTION).exists():
        if options.append:
            raise UserError(f"{dest} holds no data set to add to; leave out --append")
        return None
    base = Dataset(dest)
    if not options.append and base.description.plan != plan:
        raise UserError(
            f"{dest} already holds a data set of other tars or options; "
            "add tars to it with --append, or choose another folder"
        )
    refuse_other(base.path, base.intensity, options.intensity or (None if options.append else NONE))
    return base


def _added(tars: dict[str, TarFile], base: Dataset) -> dict[str, TarFile]:
    """Return the tar files that the data set does not contain; raise `UserError` if another one has
    changed.
    """
    shards = {base.shard_name(i): base.shards[i] for i in range(len(base.shards))}
    indexed = (Path(base.path) / DESCRIPTION).stat().st_mtime_ns
    for name in tars.keys() & shards.keys():
        tar, shard = tars[name], shards[name]
        advice = "bring the old one back, or index all tars into another folder"
        if tar.size != shard["bytes"]:
            raise UserError(
                f"{tar_files.shown(tar.path)} has {tar.size} bytes, {shard['bytes']} when it was indexed; "
                f"{advice}"
            )
        if _is_newer(tar.path, indexed) and _sha256(tar.path) != shard["sha256"].decode():
            raise UserError(f"{tar_files.shown(tar.path)} has other bytes than when it was indexed; {advice}")
    return {name: tar for name, tar in tars.items() if name not in shards}


def _is_newer(path: str, time: int) -> bool:
    """Return whether a local file was modified after a time in nanoseconds since the epoch."""
    return not reader.is_remote(path) and Path(path).stat().st_mtime_ns > time


def _sha256(path: str) -> str:
    """Return the SHA-256 of a local file in hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _rule(base: Dataset | None, options: Options) -> Rule:
    """Return the rule for new tar files; what is not given is as in the data set.

    Raises `UserError` if the data set has groups, and nothing says which group the new images are in.
    """
    rule = options.rule
    if base is None:
        return rule
    if base.groups is not None and rule.group_field is None:
        raise UserError(
            f"{base.path} knows the groups of its images; name the field with those of the new ones with "
            "--group-key"
        )
    if rule.tar_names_in_keys and not base.description.tar_names_in_keys:
        raise UserError(
            f"the keys in {base.path} do not begin with the names of tars; leave out --tar-names-in-keys, or "
            "index all tars into another folder"
        )
    rule = replace(rule, tar_names_in_keys=base.description.tar_names_in_keys)
    if rule.missing is None and base.description.missing is not None:
        rule = replace(rule, missing=tuple(base.description.missing))
    if rule.label_field is None and rule.label_extension is None:
        before = base.description
        rule = replace(rule, label_field=before.label_field, label_extension=before.label_extension)
    return rule


def _pixel_rules(base: Dataset | None) -> PixelRules:
    """Return the pixel rules for new tar files: those of the data set that they are added to, else the
    newest.
    """
    return base.pixel_rules if base is not None else NEWEST_RULES


def _intensity(base: Dataset | None, options: Options) -> Intensity:
    """Return how numbers of new tar files become brightness: as in the data set that they are added to."""
    return base.intensity if base is not None else options.intensity or NONE


def _scan_all(
    tars: list[TarFile], folder: Path, dest: Path, base: Dataset | None, options: Options
) -> list[Scan]:
    """Read all tar files, in several processes."""
    rule, intensity = _rule(base, options), _intensity(base, options)
    tasks = []
    for number, tar in enumerate(tars):
        prefix = key_prefix(rule.tar_names_in_keys, _name(tar.path, dest))
        rows = folder / f"index-{number}.npy"
        tasks.append(_Task(tar.path, rule, rows, _pixel_rules(base), intensity, prefix))
    megabytes = sum(tar.size // 10**6 for tar in tars)
    scans = pool.run(_scan, tasks, options.workers, "indexing, MB", megabytes)
    _refuse_no_images(scans)
    label_places.refuse_unknown_place(scans, options.rule)
    if options.rule.group_field is not None and not any(
        s.groups is not None and s.groups.any() for s in scans
    ):
        raise UserError(
            f"no sample has a group in the field {options.rule.group_field!r} of its .json; choose with "
            "--group-key"
        )
    return scans


def _scan(task: _Task) -> Scan:
    """Read one tar file; runs in a worker of `pool.run`."""
    return tar_scan.scan(task.path, task.rule, task.rows, task.pixel_rules, task.intensity, task.prefix)


def _publish(
    dest: Path, scans: list[Scan], names: list[str] | None, plan: str, base: Dataset | None, options: Options
) -> None:
    """Check that the tar files fit together, and publish them as a generation."""
    scans = _respelled(scans, names or (base.classes if base else []), complete=names is not None)
    classes = _classes(scans, names, base)
    for scan in scans:
        _number_labels(scan, classes)
    equal_keys.refuse(scans, base)
    equal_keys.refuse_withdrawn(scans, dest)
    contents = [scan.part.contents for scan in scans]
    if base is not None:
        contents.append(contents_of(base))
    channels = common_channels(contents)
    sixteen_bit = any(scan.part.sixteen_bit for scan in scans) or (base is not None and base.depth == 16)
    skipped = sorted(entry for scan in scans for entry in scan.part.skipped)
    _report_skipped(dest, skipped, options.strict)
    rule = _rule(base, options)
    publish(
        dest,
        [
            FinishedShard(_name(scan.path, dest), scan.part, scan.rows, scan.groups)
            for scan in scans
            if scan.part.samples
        ],
        classes=classes,
        channels=channels,
        channel_names=base.channel_names if base else None,
        depth=16 if sixteen_bit else 8,
        split=None,
        plan=plan,
        skipped=len(skipped),
        pixel_rules=_pixel_rules(base),
        intensity=_intensity(base, options),
        label_field=rule.label_field,
        label_extension=rule.label_extension,
        tar_names_in_keys=rule.tar_names_in_keys,
        missing=rule.missing,
        base=base,
    )
    sweep(dest, (INDEX, SHARDS, GROUPS, DESCRIPTION, SKIPPED))


def _classes(scans: list[Scan], names: list[str] | None, base: Dataset | None) -> list[str]:
    """Return the classes of the data set; `names` are those of the --classes file."""
    known = base.classes if base else []
    if names is not None and names[: len(known)] != known:
        raise UserError(
            f"--classes does not begin with the {len(known)} classes that the data set has; "
            "keep them in their order and add new ones at the end"
        )
    return tar_labels.classes_of([scan.labels for scan in scans], names or known, complete=names is not None)


def _respelled(scans: list[Scan], known: list[str], complete: bool) -> list[Scan]:
    """Return the scans with equal names for equal labels of all tars, such as True for TRUE and true.

    Where some labels are fractions, whole numbers are names as well, unless the `known` classes are
    `complete`.
    """
    names = sorted({name for scan in scans for name in scan.labels.names})
    if not complete and tar_labels.are_values([*names, *known]):
        scans = [_with_numbers_as_names(scan) for scan in scans]
        names = sorted({name for scan in scans for name in scan.labels.names})
    if not names or any(scan.labels.largest >= 0 for scan in scans):
        return scans
    spelled = tar_labels.respelled(names, known)
    return [
        replace(scan, labels=replace(scan.labels, names=[spelled[name] for name in scan.labels.names]))
        for scan in scans
    ]


def _with_numbers_as_names(scan: Scan) -> Scan:
    """Return a scan with the names of its whole numbers, after changing its index rows in the same way."""
    rows = np.load(scan.rows, allow_pickle=False)
    numbers = rows["label"] >= 0
    names = [*scan.labels.names, *map(str, np.unique(rows["label"][numbers]))]
    place = {name: -2 - i for i, name in enumerate(names)}
    rows["label"][numbers] = [place[str(number)] for number in rows["label"][numbers]]
    with atomic(scan.rows) as file:
        np.save(file, rows)
    return replace(scan, labels=replace(scan.labels, largest=-1, names=names))


def _number_labels(scan: Scan, classes: list[str]) -> None:
    """Replace label names in the index rows of a tar by the indices of their classes."""
    if not scan.labels.names:
        return
    number = {name: i for i, name in enumerate(classes)}
    rows = np.load(scan.rows, allow_pickle=False)
    named = rows["label"] < -1
    rows["label"][named] = np.array([number[name] for name in scan.labels.names])[-2 - rows["label"][named]]
    with atomic(scan.rows) as file:
        np.save(file, rows)


def _report_skipped(dest: Path, skipped: list[tuple[str, str]], strict: bool) -> None:
    """Add the images that cannot be read to skipped.txt; raise `UserError` with `strict` if there are any."""
    if not skipped:
        return
    file = dest / SKIPPED
    lines = file.read_text().splitlines() if file.exists() else []
    lines = list(dict.fromkeys([*lines, *map("\t".join, skipped)]))
    with atomic(file) as stream:
        stream.writelines(f"{line}\n".encode() for line in lines)
    if strict:
        raise UserError(
            f"{len(skipped)} images cannot be read (first: {skipped[0][0]}: {skipped[0][1]}; all are in "
            f"{file}); leave out --strict to skip them, or repair the tars"
        )


def _refuse_no_images(scans: list[Scan]) -> None:
    """Raise `UserError` if no tar file contains an image that can be read."""
    if any(scan.part.samples for scan in scans):
        return
    if skipped := [entry for scan in scans for entry in scan.part.skipped]:
        raise UserError(
            f"no usable image in {len(scans)} tars, {len(skipped)} cannot be read "
            f"(first: {skipped[0][0]}: {skipped[0][1]}); check the tars"
        )
    raise UserError(
        f"no image in {len(scans)} tars; expected members called KEY.EXTENSION "
        f"with an extension of {', '.join(sorted(EXTENSIONS))}"
    )


def _summary(dest: Path, left_out: str = "") -> str:
    """Say in a sentence what the data set contains and what was left out, and in a line which labels."""
    dataset = Dataset(dest)
    skipped = dataset.description.skipped
    return (
        f"{len(dataset)} images in {len(dataset.shards)} tars, described in {dest}"
        + (f"; {skipped} images skipped, see {dest / SKIPPED}" if skipped else "")
        + "\n".join([left_out, *label_counts.lines({"": dataset}), *brightness.lines({"": dataset})])
    )
