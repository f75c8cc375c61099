"""Embed a data set: refuse what cannot work, share the missing parts among the processes, write the file.

What is said here of files of vectors holds for stores of token maps too.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from data_pipeline.dataset.index import Dataset
from data_pipeline.transforms.physical import check_square
from eval_suite import progress, terminal
from eval_suite.features import cache, embed
from eval_suite.features.representation import Representation, pretrained
from eval_suite.inputs import brightness, find
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.metrics import MAP, MAPS_SUFFIX
from eval_suite.vectors import anomaly, assemble, embedding, feature_choice, table, vectors_file, zarr_store
from eval_suite.vectors.about import About, describe
from eval_suite.vectors.assemble import Extras
from eval_suite.vectors.parts import Parts
from eval_suite.vectors.vectors_file import VectorsFile
from isotorus.errors import UserError, one_line

_SHOWN = 5
"""Largest number of left-out images that a note names, with the reason."""
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def run(args: argparse.Namespace) -> int:
    """Write the file of vectors that the arguments ask for; returns exit code 0."""
    out = _place(Path(args.out))
    dataset = Dataset(args.shards)
    checkpoint = _one_checkpoint(args.name).for_images_of(dataset)
    _check_data(dataset, checkpoint, args.neighbours)
    every = pretrained(checkpoint)
    if out.suffix == MAPS_SUFFIX:
        chosen = feature_choice.token_map(checkpoint, every)
    else:
        chosen = feature_choice.vectors(checkpoint, every, args.features)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    part_rows = args.part_rows or chosen.part_rows
    about = describe(checkpoint, dataset, chosen.r, chosen.name, chosen.width, device, part_rows, chosen.maps)
    reference = vectors_file.open_file(args.anomaly_against) if args.anomaly_against else None
    if reference is not None:
        anomaly.check(reference, about, args.anomaly_k)
    extras = Extras(args.neighbours, reference, args.anomaly_k)
    earlier = _earlier(out, about)
    if earlier is not None and extras.are_in(earlier.about):
        return _finished(out, earlier.about, "was there already")

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))
    try:
        if earlier is not None and out.suffix == ".parquet":
            return _add_columns(out, earlier, extras) if state.is_main_process else 0
        if state.is_main_process:
            terminal.tell(
                f"{dataset.path}: {len(dataset):,} images; feature set {chosen.name}, {chosen.why}.",
                quiet=True,
            )
            if chosen.maps is not None and (note := _of_room(out.parent, len(dataset), about)):
                terminal.tell(f"note: {note}", quiet=True)
            if note := brightness.difference(checkpoint.encoder, {dataset.path: dataset}):
                terminal.tell(f"note: {note}", quiet=True)
        progress.evaluating(f"embedding {Path(dataset.path).name}")
        parts = Parts(out.with_name(f"{out.name}.{about.identity[:8]}.parts"), len(dataset), part_rows)
        _embed(args, checkpoint, dataset, (every, chosen.r), chosen.name, parts, state)
        if not state.is_main_process:
            return 0
        progress.doing("putting the parts together")
        layout, tables = table.of_parts(parts, dataset)
        about = about.model_copy(update={"rows": layout.rows, "left_out": len(layout.left_out)})
        written = assemble.write(out, tables, about, extras)
        parts.remove()
        _tell_left_out(layout.left_out, dataset)
        return _finished(out, written, "is written")
    finally:
        state.destroy_process_group()


def _place(out: Path) -> Path:
    """Return the path of the file; raises UserError for a name or a folder that is not possible."""
    vectors_file.check_suffix(out, (*vectors_file.SUFFIXES, MAPS_SUFFIX))
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it with: mkdir -p {out.parent}")
    store = out.suffix == MAPS_SUFFIX
    if out.is_dir() and not store:
        raise UserError(f"--out {out} is a folder; name a file")
    if store and (out.is_symlink() or out.exists()) and not out.is_dir():
        raise UserError(
            f"--out {out}: a store is a folder, and this is none; choose another name, or remove it"
        )
    return out.absolute()


def _one_checkpoint(name: str) -> Checkpoint:
    """Return the checkpoint that is named; raises UserError for several, and for one that is not whole."""
    checkpoint, *others = find.find([name])
    if others:
        raise UserError(f"{name} means {1 + len(others)} checkpoints; name one of them")
    checkpoint.require_whole()
    return checkpoint


def _check_data(dataset: Dataset, checkpoint: Checkpoint, neighbours: int | None) -> None:
    """Raise UserError if the encoder cannot embed the data set, or if this has too few images for the number
    of `neighbours`.
    """
    if not len(dataset):
        raise UserError(f"{dataset.path} has no images; name another data set")
    embed.check_channels(checkpoint.encoder.channels, dataset)
    check_square(checkpoint.encoder.square, dataset)
    if neighbours is not None and neighbours >= len(dataset):
        raise UserError(
            f"--neighbours {neighbours}: {dataset.path} has {len(dataset):,} images, so an image has at most "
            f"{len(dataset) - 1:,} neighbours; give a smaller number"
        )


def _earlier(out: Path, about: About) -> VectorsFile | None:
    """Return the file that is there already, with the same vectors; None without a file.

    Raises UserError for any other file, which is not overwritten.
    """
    if not out.exists():
        return None
    try:
        earlier = vectors_file.described(out)
    except UserError as error:
        what = "folder" if out.is_dir() else "file"
        raise UserError(
            f"--out {out}: a {what} is in the way, which is kept; choose another name ({error})"
        ) from None
    found = earlier.about
    if found.identity != about.identity:
        raise UserError(f"--out {out} {_difference(found, about)}; choose another name, or remove it")
    if not earlier.own:
        raise UserError(
            f"--out {out} has these vectors, but was moved or changed, or somebody else made it; choose "
            "another name, or remove it"
        )
    if found.maps is not None and zarr_store.lacks_files(out):
        raise UserError(f"--out {out} has these maps, but some of its files are gone or cut off; remove it")
    return earlier


def _difference(found: About, about: About) -> str:
    """Say what an earlier file has that differs from the vectors that are wanted."""
    same = ("weights_sha256", "set_fingerprint", "feature_set")
    if any(getattr(found, name) != getattr(about, name) for name in same):
        what = f"{found.feature_set} of {found.encoder}, step {found.step}, of {found.shards}"
        return f"has other vectors ({what})"
    return (
        "has vectors of the same weights and images, but was made with another --part-rows, with other "
        "versions of the libraries, or on another kind of device"
    )


def _add_columns(out: Path, earlier: VectorsFile, extras: Extras) -> int:
    """Write the file again with further columns, without embedding anything."""
    kept = [column for column in earlier.columns if column not in extras.columns]

    def tables(*, features: bool = True) -> Iterator[pa.Table]:
        return earlier.tables([column for column in kept if features or column != "features"])

    written = assemble.write(out, tables, earlier.about, extras)
    return _finished(out, written, "had these vectors; further columns are added")


def _embed(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    dataset: Dataset,
    representations: tuple[Representation, Representation],
    name: str,
    parts: Parts,
    state: PartialState,
) -> None:
    """Write the parts that are missing, each process its share; all processes must call this.

    The `representations` give all feature sets, as evaluations keep them, and the one that is called `name`.
    Raises UserError on all processes for data that cannot be read, and where the disk refuses.
    """
    missing, failure, features = [], "", None
    if state.is_main_process:
        try:
            parts.make_folder()
            missing = parts.missing()
            if there := len(parts) - len(missing):
                terminal.tell(f"Continued: {there:,} of {len(parts):,} parts are there already.", quiet=True)
            home = (checkpoint.run or checkpoint.folder) / "eval" / cache.FOLDER
            place = Path(args.cache) if args.cache else home
            how = {"name": name, "count": parts.rows}
            if missing and name != MAP:
                features = embedding.cached(place, representations, dataset, state.device, **how)
            if features is not None:
                terminal.tell(f"The vectors are in the cache of an evaluation, {place}.", quiet=True)
                embedding.copy_parts(parts, missing, dataset, features)
        except UserError as error:
            failure = str(error)
    agreed = [([] if features is not None else missing, failure)]
    broadcast_object_list(agreed)
    missing, failure = agreed[0]
    if not failure:
        with state.split_between_processes(missing) as share:
            try:
                loading = {"batch_size": args.batch_size, "workers": args.workers}
                embedding.embed_parts(
                    parts, share, dataset, representations[1], name, state.device, **loading
                )
            except UserError as error:
                failure = str(error)
        failure = next(filter(None, gather_object([failure])), "")
    if failure:
        raise UserError(failure)
    if state.is_main_process and (absent := parts.unwritten()):
        raise UserError(
            f"{len(absent):,} of {len(parts):,} parts are not in {parts.folder}; write to a folder that all "
            "nodes share"
        )


def _tell_left_out(left_out: Mapping[int, str], dataset: Dataset) -> None:
    """Name on standard error the images that have no row, at most `_SHOWN` of them."""
    if not left_out:
        return
    print(f"note: {len(left_out):,} of {len(dataset):,} images are left out", file=sys.stderr)
    for sample in sorted(left_out)[:_SHOWN]:
        print(one_line(f"  {dataset.name(sample)}: {left_out[sample]}"), file=sys.stderr)
    if len(left_out) > _SHOWN:
        print(f"  and {len(left_out) - _SHOWN:,} more", file=sys.stderr)


def _of_room(folder: Path, images: int, about: About) -> str:
    """Return a note if the disk has too little room for the maps and for the parts that they are made of,
    and "" if it has enough.
    """
    need, free = 2 * images * _size_of_map(about), shutil.disk_usage(folder).free
    if need <= free:
        return ""
    return (
        f"the maps and their parts take {_shown(need)}, and {folder} has {_shown(free)}; a full disk loses "
        "nothing, as the same command continues"
    )


def _size_of_map(about: About) -> int:
    """Return the bytes of the map of an image."""
    assert about.maps is not None
    rows, columns = about.maps.grid
    return rows * columns * about.width * np.dtype(about.maps.dtype).itemsize


def _shown(size: int) -> str:
    unit, name = next((each for each in _UNITS if size >= each[0]), _UNITS[-1])
    return f"{size / unit:,.1f} {name}"


def _finished(out: Path, about: About, said: str) -> int:
    """Say what the file or the store has and what can be done with it; returns exit code 0."""
    (_tell_maps if about.maps is not None else _tell_vectors)(out, about, said)
    return 0


def _tell_maps(out: Path, about: About, said: str) -> None:
    assert about.maps is not None
    rows, columns = about.maps.grid
    terminal.tell(
        f"{out} {said}: {about.rows:,} maps of {rows} × {columns} tokens of {about.width:,} numbers, "
        f"{_shown(about.rows * _size_of_map(about))}",
        quiet=False,
    )
    terminal.tell(
        f'In Python: zarr.open("{out}", mode="r")["tokens"][0]; its arrays: docs/vectors.md', quiet=False
    )


def _tell_vectors(out: Path, about: About, said: str) -> None:
    shown = _shown(out.stat().st_size)
    terminal.tell(
        f"{out} {said}: {about.rows:,} vectors of {about.width:,} numbers ({about.feature_set}), {shown}",
        quiet=False,
    )
    first = next(vectors_file.open_file(out).pieces()).keys[0]
    terminal.tell(f"Near images: isotorus search {out} {first} --page near.html", quiet=False)
    others = "--against FILE: another encoder's vectors of these images"
    terminal.tell(f"Geometry and scores: isotorus eval {out} ({others})", quiet=False)
    if out.suffix == ".parquet":
        terminal.tell(f'In Python: pandas.read_parquet("{out}"); its columns: docs/vectors.md', quiet=False)
