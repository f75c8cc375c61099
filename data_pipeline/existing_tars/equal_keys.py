"""Refuse tars in which two samples have the same key, or that hold images that were removed."""

from pathlib import Path

import numpy as np

from data_pipeline.dataset import withdrawn
from data_pipeline.dataset.index import Dataset
from data_pipeline.existing_tars import tar_scan
from data_pipeline.existing_tars.tar_scan import Scan
from data_pipeline.storage import reader, tar_files
from data_pipeline.storage.tar_reader import printable
from isotorus.errors import UserError


def refuse(scans: list[Scan], base: Dataset | None) -> None:
    """Raise `UserError` if two samples have the same key.

    Equal hashes in the index show candidates; their keys are then read from the tar files and compared.
    """
    new = [np.load(scan.rows, allow_pickle=False)["key"].copy() for scan in scans]
    hashes = np.concatenate([base.rows["key"], *new] if base else new)
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    held = len(base) if base else 0
    ends = held + np.cumsum([len(keys) for keys in new])

    def sample(i: int) -> tuple[str, str]:
        """Key and tar of a row."""
        if base is not None and i < held:
            return base.key(i), reader.join(base.path, base.shard_name(int(base.rows["shard"][i])))
        tar = int(np.searchsorted(ends, i, side="right"))
        offset = int(np.load(scans[tar].rows)["offset"][i - ends[tar]])
        return scans[tar].prefix + tar_scan.key_at(scans[tar].path, offset), scans[tar].path

    for place in again:
        (key, tar), (same, other) = (sample(int(order[place + k])) for k in (0, 1))
        if key == same:
            raise UserError(
                f"the sample {printable(key)} is in {tar_files.shown(tar)} "
                f"and again in {tar_files.shown(other)}; "
                "keys must differ: if these are different images, index into a new folder with "
                "--tar-names-in-keys, which puts the name of its tar before each key; "
                "if one is a copy, leave it out"
            )


def refuse_withdrawn(scans: list[Scan], dest: Path) -> None:
    """Raise `UserError` if a tar file holds images that were removed from the data set in `dest`."""
    removed = withdrawn.hashes(withdrawn.read(dest), "key", "group")
    for scan in scans:
        keys = np.load(scan.rows, allow_pickle=False)["key"]
        count = int(np.isin(keys, removed).sum())
        if scan.groups is not None:
            count += int(np.isin(scan.groups, removed).sum())
        if count:
            raise UserError(
                f"{tar_files.shown(scan.path)} holds {count} images that were removed from {dest} with "
                "isotorus remove; delete them from the tar, or leave that tar out"
            )
