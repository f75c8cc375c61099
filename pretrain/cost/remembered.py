"""Keep long counts on disk, so that the next `plan` of the same encoder need not repeat them.

A count is a mapping to numbers that follows from its arguments, the code of this package and the versions of
torch and timm. All of these are in the name of its file. A file that is missing or damaged costs a count.
joblib.Memory keeps pickles, wants its folder when a function is defined, and does not see changes in the
functions that a count calls.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from isotorus.files import atomic

P = ParamSpec("P")
Key = TypeVar("Key")
_folder: Path | None = None


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Keep counts in a folder inside this block; outside they are kept in memory alone."""
    global _folder
    _folder = folder / code()
    try:
        yield
    finally:
        _folder = None


def remembered(count: Callable[P, dict[Key, float]]) -> Callable[P, dict[Key, float]]:
    """Make a function look for its result among those of earlier processes before it counts.

    The `repr` of its arguments must say all that the result depends on. Keys are texts, numbers, or tuples
    of texts.
    """

    @functools.cache
    def known(*arguments: P.args, **options: P.kwargs) -> dict[Key, float]:
        if _folder is None:
            return count(*arguments, **options)
        asked = f"{count.__qualname__}{arguments}{sorted(options.items())}"
        file = _folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
        found = _read(file, asked)
        if found is None:
            found = count(*arguments, **options)
            _write(file, asked, found)
        return found

    return cast("Callable[P, dict[Key, float]]", functools.update_wrapper(known, count))


def code() -> str:
    """Return a name of the code that counts: a digest of this package's files, the versions of libraries, and
    the variable by which timm chooses its attention.
    """
    package = Path(__file__).parents[1]
    versions = metadata.version("torch"), metadata.version("timm")
    digest = hashlib.sha256(repr((*versions, os.environ.get("TIMM_FUSED_ATTN"))).encode())
    for file in sorted(package.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _read(file: Path, asked: str) -> dict[Any, float] | None:
    """Return what a file says about `asked`; None if it does not exist or is damaged."""
    try:
        kept = json.loads(file.read_text())
        if kept["asked"] != asked:
            return None
        return {tuple(key) if isinstance(key, list) else key: float(x) for key, x in kept["found"]}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None


def _write(file: Path, asked: str, found: dict[Any, float]) -> None:
    """Write a file; a folder that cannot be written to is no error."""
    content = json.dumps({"asked": asked, "found": list(found.items())})
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic(file) as out:
            out.write(content.encode())
