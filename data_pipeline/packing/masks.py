"""Find the mask of each image by its name, and turn its values into numbers of classes."""

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.description import PLAIN, MaskRule, Masks
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.masks import EXTENSION, IGNORED, decode, encode, is_mask
from data_pipeline.packing.listing import Item, MaskFile, Named
from data_pipeline.storage.disk_list import DiskList
from isotorus.errors import UserError, from_os_error, one_line
from isotorus.foreign_files import open_regular


def images_only(items: DiskList[Item], source: Path, folder: Path | None) -> DiskList[Item]:
    """Return the items that are images and no masks.

    If the `folder` of masks is inside `source`, all files in it are masks; if it is `source` itself, files
    named like scan.mask.png are. Without a folder no file is a mask, and a note on stderr counts files that
    are named like masks of images beside them.
    """
    if folder is None:
        like = _like_masks(items)
        if like.count:
            print(
                f"note: {like.count} files are named like masks of images beside them (first: "
                f"{one_line(like.first[0])}) and are packed as images; to pack them as masks: "
                f"--masks {source}",
                file=sys.stderr,
            )
        return items
    if not folder.resolve().is_relative_to(source.resolve()):
        return items
    inside = f"{folder.resolve().relative_to(source.resolve()).as_posix()}/"
    if inside == "./":
        images = DiskList(item for item in items if not is_mask(item.path))
    else:
        images = DiskList(item for item in items if not item.path.startswith(inside))
    if not images:
        raise UserError(f"{source} holds no images besides the masks in {folder}; check both folders")
    return images


def _like_masks(items: DiskList[Item]) -> Named:
    """Return the files that are named like masks of images beside them."""
    found = Named()
    if any(is_mask(item.path) for item in items):
        for _, some in groupby(items.ordered(_image_stem), _image_stem):
            paths = [item.path for item in some]
            for path in filter(is_mask, paths) if not all(map(is_mask, paths)) else ():
                found.add(path)
    return found


def _image_stem(item: Item) -> str:
    """Return the path of an image without its ending; for a file named like a mask, that of its image."""
    path = item.path
    return path[: -len(EXTENSION) - 1] if is_mask(path) else path.rpartition(".")[0]


def paired(items: DiskList[Item], source: Path, folder: Path) -> DiskList[Item]:
    """Return the images with their masks: for a/scan.jpg the mask is a/scan.mask.png in `folder`, or
    a/scan.png unless that is the image itself.

    A note on stderr counts images without a mask. Raises `UserError` if no image has one.
    """
    if not folder.is_dir():
        raise UserError(f"--masks {folder}: there is no such folder; give the folder that holds the masks")
    found = DiskList(item._replace(mask=_mask(item, source, folder)) for item in items)
    without = Named(item.path for item in found if item.mask is None)
    if without.count == len(found):
        first = without.first[0]
        stem = first.rpartition(".")[0]
        raise UserError(
            f"--masks {folder} holds no mask of the {len(items)} images; expected a PNG of the same path, "
            f"for {first}: {stem}.png or {stem}.{EXTENSION}"
        )
    if without.count:
        print(
            f"note: {without.count} of {len(items)} images have no mask in {folder} (first: "
            f"{one_line(without.first[0])})",
            file=sys.stderr,
        )
    return found


def _mask(item: Item, source: Path, folder: Path) -> MaskFile | None:
    """Return the mask of an image; None if there is no such file."""
    stem = item.path.rpartition(".")[0] or item.path
    for name in (f"{stem}.{EXTENSION}", f"{stem}.png"):
        file = folder / name
        try:
            if not file.is_file() or file.samefile(source / item.path):
                continue
            status = file.stat()
        except OSError as error:
            raise from_os_error(error, "reading the masks") from error
        return MaskFile(str(file), name, status.st_size, status.st_mtime_ns)
    return None


def packed(mask: MaskFile, height: int, width: int, rule: MaskRule) -> bytes:
    """Return the PNG of a mask as it is packed, for an image of this size.

    Raises ValueError, with the reason in one line, if it does not fit the image or the rule, and `UserError`
    if it cannot be read.
    """
    try:
        with open_regular(Path(mask.path)) as file:
            data = file.read(mask.size + 1)
    except OSError as error:
        raise from_os_error(error, "reading the masks") from error
    values = decode(data, height, width)
    if rule.values:
        return encode(_classes(values, rule.values))
    if (largest := int(values.max())) > IGNORED:
        raise ValueError(
            f"it holds the value {largest}; expected numbers of classes from 0 to 254, and {IGNORED} for none"
        )
    return encode(values.astype(np.uint8))


def _classes(values: NDArray[np.integer], of_classes: list[int]) -> NDArray[np.uint8]:
    """Return the number of the class of each value, and `IGNORED` for values that are of no class."""
    numbers = np.full(2**16, IGNORED, np.uint8)
    numbers[of_classes] = np.arange(len(of_classes))
    return numbers[values]


def rule(text: str) -> MaskRule:
    """Return the rule of --mask-classes, such as 0=background,255=cell or 0,255; raises `UserError`."""
    values, names = [], []
    for part in text.split(","):
        value, named, name = part.strip().partition("=")
        number = value.isascii() and value.isdecimal() and int(value) < 2**16
        if not number or (named and not name.strip()):
            raise UserError(
                f"--mask-classes {text}: expected pixel values with names, e.g. 0=background,255=cell"
            )
        values.append(int(value))
        names.append(name.strip() or value)
    if len(set(values)) < len(values) or len(set(names)) < len(names) or len(values) > IGNORED:
        raise UserError(f"--mask-classes {text}: a value or a name occurs twice; give each class once")
    if not all(name.isprintable() for name in names):
        raise UserError("--mask-classes: a name is not text that can be printed; give another one")
    return MaskRule(values=values, names=names)


def rule_to_keep(dest: Path, packed: Masks | None, asked: MaskRule | None) -> MaskRule:
    """Return the rule for new masks, which is that of the masks `packed` before; raises `UserError` if
    another one is `asked` for.
    """
    if packed is None or asked in (None, packed.rule):
        return packed.rule if packed else asked or PLAIN
    raise UserError(
        f"{dest} was packed with other classes of masks; leave out --mask-classes, which stay as they were, "
        "or pack into another folder"
    )


def lines(sets: dict[str, Dataset]) -> Iterator[str]:
    """Yield a line for each set with masks: how many images have one, and which classes occur."""
    for name, dataset in sets.items():
        masks = dataset.description.masks
        if masks is None:
            continue
        named = masks.rule.names
        classes = ", ".join(one_line(named[c]) if c < len(named) else str(c) for c in masks.classes)
        before = f"{name}: " if name else ""
        yield f"  {before}{masks.images} images with a mask; classes: {classes or 'none'}"
        if len(masks.classes) < 2:
            yield (
                f"  note: these masks hold fewer than two classes, since {IGNORED} means 'not labelled'; if "
                f"{IGNORED} is an object, pack into another folder with --mask-classes "
                f"0=background,{IGNORED}=object"
            )
