"""`verify --phi`: list the fields of a data set that may identify a person."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline import pool
from data_pipeline.dataset.description import describe
from data_pipeline.dataset.table_files import shard_names
from data_pipeline.storage import tar_files
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import join
from data_pipeline.storage.tar_reader import Damaged, Tar, key_and_extension, printable
from data_pipeline.verifying import identifying
from isotorus.errors import UserError, from_os_error, one_line

UNREADABLE = "something that cannot be read"
"""Stands for the fields of a header or of JSON that is damaged."""
Found = dict[tuple[str, str], tuple[int, str]]
"""Number of samples and the key of the first, by place ("JSON", "image" or "key") and name of a field."""


@dataclass(frozen=True)
class _Task:
    """A shard to look through."""

    file: str
    extensions: tuple[str, ...]
    """Endings of the images."""


def phi(path: str, workers: int) -> list[str]:
    """Return a line for each identifying field that the samples of a data set have.

    Names of fields, tags of images and keys are looked at; values and pixels are not. A header or JSON that
    cannot be read has a line too. Raises `UserError` if
    `path` is not a data set or a shard cannot be read.
    """
    generations = describe(path, CacheConfig()).generations
    newest, shards = generations[-1], shard_names(path, generations, CacheConfig())
    names = [bytes(name).decode(errors="surrogateescape") for name in shards]
    tasks = [_Task(join(path, name), tuple(newest.extensions)) for name in names]
    total: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for found in pool.run(_look_through, tasks, workers, "reading", newest.count):
        for field, (count, key) in found.items():
            total[field] += count
            first.setdefault(field, key)
    return [_line(place, name, count, first[place, name]) for (place, name), count in sorted(total.items())]


def _line(place: str, name: str, count: int, first: str) -> str:
    """Return the line about one field."""
    where = f"in the {place} of {count} sample{'s' * (count > 1)} (first: {printable(first)})"
    kind = identifying.kind_of(name)
    return f"{one_line(name)}{f' ({kind})' if kind and kind != name.lower() else ''} {where}"


def _look_through(task: _Task) -> Found:
    """Return the fields in one shard; runs in a worker of `pool.run`."""
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    try:
        with tar_files.open_stream(task.file) as stream:
            tar = Tar(stream, tar_files.size_of(task.file))
            for member in tar:
                key, extension = key_and_extension(member.name) or (member.name, "")
                names: set[tuple[str, str]] = set()
                last = extension.rpartition(".")[2]
                if last == "json" and member.size:
                    names = {("JSON", name) for name in _names(_in_json, tar.read())}
                elif last in task.extensions:
                    pool.count()
                    names = {("image", name) for name in _names(identifying.in_image, tar.read())}
                    names |= {("key", "UID")} if identifying.in_key(key) else set()
                for field in names:
                    counts[field] += 1
                    first.setdefault(field, key)
    except Damaged as error:
        shown = tar_files.shown(task.file)
        raise UserError(f"{shown} {error}; isotorus verify says what is damaged") from None
    except OSError as error:
        raise from_os_error(error, f"reading {tar_files.shown(task.file)}") from error
    return {field: (count, first[field]) for field, count in counts.items()}


def _names(look: Callable[[bytes], set[str]], content: bytes) -> set[str]:
    """Return what `look` finds; what cannot be read counts as a field, because it may identify a person."""
    try:
        return look(content)
    except (ValueError, RecursionError):
        return {UNREADABLE}


def _in_json(content: bytes) -> set[str]:
    """Return the names of identifying fields in the JSON of a sample; raises ValueError if it is not JSON."""
    return set(identifying.in_json(json.loads(content)))
