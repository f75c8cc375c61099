"""The `name-channels` command: give the channels of a data set names, without packing it again."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.dataset.description import describe, subsets
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset_writer import staging
from data_pipeline.dataset_writer.write_tables import write_description
from data_pipeline.storage.cache import CacheConfig
from isotorus.errors import UserError, from_os_error, one_line


def name_channels(dest: Path, names: Sequence[str]) -> str:
    """Name the channels of the data set in `dest`, or of all sets of a split there; return what was done.

    The names hold for all generations. Pixels, tables and fingerprints stay as they are. Raises `UserError`
    if a set has another number of channels, if its packing is not finished, or if another process is packing
    into `dest`.
    """
    sets = [Dataset(folder) for folder in subsets(str(dest)) or [str(dest)]]
    for dataset in sets:
        if len(names) != dataset.channels:
            raise UserError(
                f"{dataset.path} has {dataset.channels} channels, and {len(names)} names are given; give one "
                "name for each channel, in the order of the images"
            )
    try:
        with staging.hold(dest) as folder:
            if staging.read(folder) is not None:
                raise UserError(
                    f"the packing of {dest} is not finished; first repeat the command that began it"
                )
            for dataset in sets:
                _write(Path(dataset.path), names)
    except OSError as error:
        raise from_os_error(error, f"naming the channels of {dest}") from error
    said = ", ".join(map(one_line, names))
    return f"{dest}: the channels are {said}; next, train on several sets with data.channels=union"


def _write(folder: Path, names: Sequence[str]) -> None:
    """Write the names into dataset.json."""
    described = describe(str(folder), CacheConfig())
    named = [each.model_copy(update={"channel_names": list(names)}) for each in described.generations]
    write_description(folder, described.model_copy(update={"generations": named}))
