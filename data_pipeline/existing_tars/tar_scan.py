"""Read one existing tar file: index rows of its samples, their labels, and whatever is wrong with it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline import pool
from data_pipeline.dataset.index import LARGEST_IMAGE, key_hash
from data_pipeline.dataset_writer.part import Census, Part, common_channels
from data_pipeline.decoders.decode import EXTENSIONS, decode_valid
from data_pipeline.decoders.intensity import Intensity
from data_pipeline.decoders.pixels import PixelRules
from data_pipeline.existing_tars import tar_labels
from data_pipeline.existing_tars.tar_labels import Label, Labels
from data_pipeline.packing import other_pictures
from data_pipeline.storage import tar_files
from data_pipeline.storage.folders import COMPANION
from data_pipeline.storage.tar_reader import Damaged, Member, Tar, key_and_extension, printable, stem
from isotorus.errors import UserError, from_os_error, no_memory
from isotorus.files import atomic

_LINK = "a link, not a file; make the tar with --dereference and --hard-dereference"


@dataclass(frozen=True)
class Rule:
    """Which files of a sample are its image and its label."""

    image_extension: str | None = None
    """Everything after the first dot of the image's file name; None: any known image extension."""
    label_field: str | None = None
    """Field of the sample's JSON file that contains its label; None: the label is the text of a file."""
    channels: int | None = None
    """Leave out images that cannot be converted to this number of channels; None: all must have the same
    number."""
    group_field: str | None = None
    """Field of the sample's `.json` file that names its group, such as a patient; None: no groups."""
    missing: tuple[str, ...] | None = None
    """Labels that mean "no label"; None: those that `data_pipeline.tables.cells` lists."""
    label_extension: str | None = None
    """What the names of the files with the labels end in, such as "txt"; None: `.json` if there is a
    `label_field`, else `.cls`."""
    tar_names_in_keys: bool = False
    """Whether keys begin with the names of their tars, for tars whose samples are numbered alike."""

    @property
    def label_ending(self) -> str:
        """What the names of the files with the labels end in, without the first dot."""
        return tar_labels.ending_of(self.label_field, self.label_extension)

    def __post_init__(self) -> None:
        if self.label_extension is not None and _is_image(self.label_extension):
            raise UserError(
                f"--label-extension {self.label_extension!r} is of an image; give the ending of the files "
                "that hold the labels, such as txt"
            )
        if self.label_extension == "json" and self.label_field is None:
            raise UserError("--label-extension json: name the field with the label as well, with --label-key")
        if self.image_extension is not None and not _is_image(self.image_extension):
            raise UserError(
                f"--image-extension {self.image_extension!r} is of no image; expected one that ends in "
                f"{', '.join(sorted(EXTENSIONS))}"
            )


@dataclass(frozen=True)
class Scan:
    """What one tar file contains."""

    path: str
    part: Part
    prefix: str
    """What comes before the names in the tar to make keys."""
    rows: Path
    """File (.npy) of its index rows; the label -2-i stands for the name `labels.names[i]`."""
    labels: Labels
    without_image: int
    """Number of samples that have no image."""
    further_images: int
    """Number of images that were left out because `Rule.image_extension` chooses another of their sample."""
    others: Counter[str]
    """Number of samples that have only a picture of a format that is not read, by its ending."""
    unread: Counter[str]
    """Number of files that are neither images nor labels, by what follows the last dot of their names."""
    fields: list[str]
    """Names of the fields in the first `.json` file."""
    groups: NDArray[np.uint64] | None
    """Hash of the group of each row, 0 for none; None without `Rule.group_field`."""


def scan(
    path: str, rule: Rule, rows: Path, pixel_rules: PixelRules, intensity: Intensity, prefix: str = ""
) -> Scan:
    """Read a tar file, and write the index rows of its samples to the file `rows`; `prefix` is that of keys.

    Runs in a worker of `pool.run` and reports megabytes to the progress bar. Raises `UserError`, which names
    the tar, if it is damaged, contains two files of one name, has several images for a sample, or an invalid
    label.
    """
    try:
        with tar_files.open_stream(path) as stream:
            tar = Tar(stream, tar_files.size_of(path))
            samples = _Samples(path, rule, pixel_rules, intensity, prefix)
            samples.read(tar)
        result = samples.finish(tar, rows)
        common_channels([result.part.contents])  # raises now, not only when all tars are read
        return result
    except Damaged as error:
        raise UserError(f"the tar {tar_files.shown(path)} {error}; repair it or leave it out") from None
    except OSError as error:
        raise from_os_error(error, f"indexing {path}") from error


def key_at(path: str, offset: int) -> str:
    """Return the key of the sample that has a file whose content begins at byte `offset` of the tar."""
    with tar_files.open_stream(path) as stream:
        tar = Tar(stream, tar_files.size_of(path))
        name = next(member.name for member in tar if member.offset == offset)
    key, _ = key_and_extension(name) or (name, "")
    return key


class _Samples:
    """Collects the files of a tar by key; the files of one sample need not be next to each other."""

    def __init__(
        self, path: str, rule: Rule, pixel_rules: PixelRules, intensity: Intensity, prefix: str
    ) -> None:
        self._path, self._rule, self._prefix = path, rule, prefix
        self._pixel_rules, self._intensity = pixel_rules, intensity
        self._census = Census()
        self._images: dict[str, list[str]] = {}  # extensions of the images of each key
        self._several = False  # whether a key has several images
        self._further = 0
        self._others: dict[str, str] = {}  # ending of a picture that is not read, by key
        self._labels: dict[str, Label] = {}  # by key, or by the longer stem of the file's name
        self._groups: dict[str, int] = {}  # hash of each group, by key or stem as well
        self._indexed: list[tuple[str, str]] = []  # key and stem of the images, in the order of the rows
        self._keys: set[str] = set()
        self._unread: Counter[str] = Counter()
        self._fields: list[str] | None = None  # of the first .json

    def read(self, tar: Tar) -> None:
        """Read all files of the tar."""
        megabytes = 0
        for member in tar:
            split = key_and_extension(member.name)
            companion = member.name.rpartition("/")[2].startswith(COMPANION)
            if split is not None and not companion:
                self._add(member, *split, tar.read)
            pool.count((member.offset + member.size) // 10**6 - megabytes)
            megabytes = (member.offset + member.size) // 10**6

    def finish(self, tar: Tar, file: Path) -> Scan:
        """Write the index rows to `file` and return the result."""
        if self._several:
            raise self._several_images()
        part, rows = self._census.part(tar.size, tar.sha256)
        known = [self._labels.get(key, self._labels.get(longer)) for key, longer in self._indexed]
        names = sorted({label for label in known if isinstance(label, str)})
        numbers = [label for label in known if isinstance(label, int)]
        place = {name: -2 - i for i, name in enumerate(names)}
        rows["label"] = [place[k] if isinstance(k, str) else -1 if k is None else k for k in known]
        with atomic(file) as stream:
            np.save(stream, rows)
        return Scan(
            self._path,
            part,
            self._prefix,
            file,
            Labels(self._path, max(numbers, default=-1), names),
            without_image=len(self._keys - self._images.keys()),
            further_images=self._further,
            others=Counter(end for key, end in self._others.items() if key not in self._images),
            unread=self._unread,
            fields=self._fields or [],
            groups=None
            if self._rule.group_field is None
            else np.array(
                [self._groups.get(key, self._groups.get(longer, 0)) for key, longer in self._indexed],
                np.uint64,
            ),
        )

    def _add(self, member: Member, key: str, extension: str, content: Callable[[], bytes]) -> None:
        """Use a file of the tar if it is an image or a label; `content` reads its bytes."""
        self._keys.add(key)
        chosen = self._rule.image_extension
        if extension == chosen or (chosen is None and _is_image(extension)):
            extensions = self._images.setdefault(key, [])
            if extension in extensions:
                raise self._error(f"holds {printable(member.name)} twice; leave out one of them")
            extensions.append(extension)
            self._several = self._several or len(extensions) > 1
            if not self._several:  # else the tar is read on only for what to advise
                self._add_image(member, key, extension, content)
        elif _is_image(extension):
            self._further += 1
        elif ending := other_pictures.known_ending(member.name):
            self._others[key] = ending
        else:
            self._add_facts(member, key, extension, content)

    def _several_images(self) -> UserError:
        """Return the error for a tar with several images of one key.

        They may be views of one sample only if their endings begin with letters. Otherwise dots inside names
        were read as the end of keys, and choosing one ending would lose nearly all images.
        """
        key, endings = next((key, found) for key, found in self._images.items() if len(found) > 1)
        what = f"holds several images of the sample {printable(key)}: {_shown(endings)}"
        views = ""
        if all(ending[0].isalpha() for found in self._images.values() if len(found) > 1 for ending in found):
            views = (
                f"if they are views of one sample, choose one with --image-extension {endings[0]}, which "
                "leaves the others out; if they are different samples, "
            )
        return self._error(
            f"{what}; {views}a key ends at the first dot of a file's name, so the dots within these names "
            "are the cause: unpack the tar and make a data set of that folder with pack, which keeps all"
        )

    def _add_facts(self, member: Member, key: str, extension: str, content: Callable[[], bytes]) -> None:
        """Take the label and the group of a sample from a file, which is read once, if it holds them.

        The file `a.left.cls` labels the image `a.left.png` unless there is a file `a.cls`. Raises `UserError`
        if the file cannot be read.
        """
        rule = self._rule
        kind = extension.rpartition(".")[2]
        labelled = tar_labels.label_stem(key, extension, rule.label_ending)
        for_label = labelled is not None
        name = stem(key, extension) if labelled is None else labelled
        group_field = rule.group_field if kind == "json" else None
        if not for_label:
            self._unread[kind] += 1
        if not for_label and group_field is None:
            if kind == "json" and self._fields is None and member.size <= tar_labels.LARGEST:
                self._fields = tar_labels.fields(content())
            return
        if for_label and name in self._labels:
            raise self._error(f"holds {printable(member.name)} twice; leave out one of them")
        what = "label" if for_label else "group"
        try:
            if member.link:
                raise ValueError(f"is {_LINK}")
            if member.size > tar_labels.LARGEST:
                raise ValueError(f"has {member.size} bytes; at most {tar_labels.LARGEST} are supported")
            text = content()
            if self._fields is None and (rule.label_field or group_field):
                self._fields = tar_labels.fields(text)
            if for_label:
                self._labels[name] = tar_labels.parse_label(text, rule.label_field, rule.missing)
            what = "group"
            if group_field is not None and (group := tar_labels.parse_group(text, group_field, rule.missing)):
                self._groups[name] = key_hash(group)
        except ValueError as error:
            raise self._error(f"gives no {what}: {printable(member.name)} {error}") from None

    def _add_image(self, member: Member, key: str, extension: str, content: Callable[[], bytes]) -> None:
        """Count an image, or skip it with a reason if it is a link, too large or cannot be decoded."""
        name = f"{tar_files.shown(self._path)}/{printable(member.name)}"
        if member.link:
            self._census.skip(name, _LINK)
        elif member.size > LARGEST_IMAGE:
            self._census.skip(name, f"{member.size} bytes; at most {LARGEST_IMAGE} are supported")
        else:
            data = content()
            try:
                pixels, valid = decode_valid(
                    data,
                    self._rule.channels,
                    depth=None,
                    rules=self._pixel_rules,
                    intensity=self._intensity,
                )
            except MemoryError as error:
                raise no_memory(name, error) from None
            except ValueError as error:
                self._census.skip(name, str(error))
                return
            last = extension.rpartition(".")[2]
            self._census.add(name, self._prefix + key, last, -1, member.offset, data, pixels, valid)
            self._indexed.append((key, stem(key, extension)))

    def _error(self, reason: str) -> UserError:
        """Return the error about this tar."""
        return UserError(f"the tar {tar_files.shown(self._path)} {reason}")


def _shown(names: list[str], most: int = 3) -> str:
    """Return names for messages, the first ones of many."""
    return ", ".join(map(printable, names[:most])) + ", …" * (len(names) > most)


def _is_image(extension: str) -> bool:
    """Return whether an extension is one of image files; only what follows its last dot counts."""
    return f".{extension.rpartition('.')[2]}" in EXTENSIONS
