"""The commands `remove` and `compact`: their arguments, what they refuse, and what they print."""

import argparse
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from data_pipeline.dataset.description import describe, subsets
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset_writer import staging
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import is_remote
from data_pipeline.withdrawal.choose import find, mask, read_keys
from data_pipeline.withdrawal.compact import compact
from data_pipeline.withdrawal.remove import refuse_others, remove
from isotorus.errors import UserError, from_os_error

_COPIES = (
    "copies may still be in: object stores and backups that this folder was copied to, folders of "
    "data.cache, pages of preview and search, files of embed, features that eval keeps, and the source folder"
)


def add_remove(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `remove`."""
    add = parser.add_argument
    add("dest", metavar="DEST", help="local folder of a data set, or one that contains those of a split")
    add("--keys", type=Path, metavar="FILE", help="text file with the key or path of an image on each line")
    group = "group of which all images are removed, such as a patient; may be given several times"
    add("--group", action="append", default=[], metavar="GROUP", help=group)
    add("--dry-run", action="store_true", help="say what would be removed, and change nothing")


def add_compact(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compact`."""
    add = parser.add_argument
    add("dest", metavar="DEST", help="local folder of a data set, or one that contains those of a split")


def run_remove(args: argparse.Namespace) -> None:
    """Run `remove`; raise `UserError` for what cannot be removed, before anything is changed."""
    if args.keys is None and not args.group:
        raise UserError("nothing to remove is named; give --keys FILE or --group GROUP")
    keys = read_keys(args.keys) if args.keys else []
    folders = _folders(args.dest)
    # The sets are read under the lock, so that no other command changes them before they are published.
    with nullcontext() if args.dry_run else _held(args.dest, folders, "removing images from"):
        sets = {Path(folder).name: Dataset(folder) for folder in folders}
        names = find(sets, keys, args.group)
        gone = {name: mask(dataset, names) for name, dataset in sets.items()}
        counts = {name: int(chosen.sum()) for name, chosen in gone.items() if chosen.any()}
        for name in counts:
            refuse_others(sets[name], gone[name])
        for name in counts if not args.dry_run else ():
            remove(sets[name], gone[name], names.groups, args.workers)
    each = f" ({', '.join(f'{name} {n}' for name, n in counts.items())})" if counts and len(sets) > 1 else ""
    named = f"{len(keys)} key{'s' * (len(keys) != 1)}, {len(args.group)} group{'s' * (len(args.group) != 1)}"
    total = sum(counts.values())
    if args.dry_run:
        print(f"would remove {total} images{each} of {args.dest}: {named}; nothing was changed")
        return
    left = sum(len(dataset) for dataset in sets.values()) - total
    earlier = f"; {names.before} of them were removed before" if names.before else ""
    print(f"removed {total} images{each} of {args.dest}: {named}{earlier}; {left} images are left")
    if not total and not any(dataset.description.tables for dataset in sets.values()):
        return
    what = [*(["--keys", str(args.keys)] if args.keys else []), *(f"--group={name}" for name in args.group)]
    who_saw = shlex.join(["isotorus", "who-saw", args.dest, *what, "--runs", "runs/"])
    print(f"which runs trained on them: {who_saw}; train those again that must not have seen them")
    compacting = shlex.join(["isotorus", "compact", args.dest])
    print(f"next: {compacting} (until then the shards and older generations still hold them)")


def run_compact(args: argparse.Namespace) -> None:
    """Run `compact`, and say what was deleted and where copies may be."""
    folders = _folders(args.dest)
    removed = {folder: describe(folder, CacheConfig()).generations[-1].removed for folder in folders}
    if not any(removed.values()):
        raise UserError(
            f"nothing was removed from {args.dest}, so nothing is to be deleted; see isotorus remove --help"
        )
    with _held(args.dest, folders, "compacting"):
        done = [compact(Path(folder), args.workers) for folder in folders]
    written, deleted, dropped = (sum(each) for each in zip(*done, strict=True))
    print(
        f"{args.dest} holds no bytes of the {sum(removed.values())} removed images: {written} shards were "
        f"written again, {deleted} deleted, and {dropped} older generations dropped; runs that read "
        "those cannot be resumed"
    )
    print(_COPIES)
    print(f"next: isotorus verify {args.dest}")


def _folders(dest: str) -> list[str]:
    """Return the folders of the sets in DEST, which must be on a disk."""
    if is_remote(dest):
        raise UserError(
            f"{dest} is no folder on a disk; change the local copy, copy it to the store again, and delete "
            "there what the local folder no longer has"
        )
    return subsets(dest) or [dest]


@contextmanager
def _held(dest: str, folders: list[str], doing: str) -> Iterator[None]:
    """Hold the lock of DEST, and where it is a set of a split, also that of the folder of all sets, which is
    the one that packing holds.

    Raises `UserError` if a packing is unfinished there, or for what the file system refuses.
    """
    above = Path(dest).absolute().parent
    of_split = folders == [dest] and describe(dest, CacheConfig()).generations[-1].split is not None
    places = [above, Path(dest)] if of_split and os.access(above, os.W_OK) else [Path(dest)]
    try:
        with ExitStack() as locks:
            for place in places:
                folder = locks.enter_context(staging.hold(place))
                if staging.read(folder) is not None:
                    raise UserError(
                        f"{folder} holds an unfinished packing; finish it with its own command, or delete "
                        "that folder, then run this command again"
                    )
            yield
    except OSError as error:
        raise from_os_error(error, f"{doing} {dest}") from error
