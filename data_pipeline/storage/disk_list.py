"""A list in a temporary file, so that memory does not grow with its length.

sqlite3 would need a table for each kind of element; its speed was not compared.
"""

import heapq
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Generic, Self, TypeVar

from isotorus.errors import from_os_error

T = TypeVar("T")

_CHUNK = 256
"""Elements that are written and read at once."""
_SORTED_AT_ONCE = 2**15
"""Elements that are sorted in memory."""


class DiskList(Generic[T]):
    """A list of elements that can be pickled; it grows at its end, and is read from its beginning.

    The file lies in the folder for temporary files, which the variable TMPDIR names. It has no name, so Linux
    deletes it when the list is gone, also if the process is killed. A list that is sent to another process is
    read there from the same file, as long as the first process has the list. `UserError` is raised if the
    file cannot be written.
    """

    def __init__(self, elements: Iterable[T] = ()) -> None:
        try:
            self._file: Any = tempfile.TemporaryFile()  # noqa: SIM115
        except OSError as error:
            raise _no_room(error) from error
        self._path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        self._places: list[int] = []  # where in the file each chunk begins
        self._last: list[T] = []  # elements after the last full chunk
        self._first, self._count = 0, 0  # place in the first chunk, and number, of the elements of this list
        for element in elements:
            self.append(element)

    def append(self, element: T) -> None:
        """Add an element at the end of a list that is no part of another one."""
        self._last.append(element)
        self._count += 1
        if len(self._last) == _CHUNK:
            try:
                self._places.append(self._file.tell())
                pickle.dump(self._last, self._file, pickle.HIGHEST_PROTOCOL)
                self._file.flush()
            except OSError as error:
                raise _no_room(error) from error
            self._last = []

    def part(self, start: int, stop: int) -> Self:
        """Return the elements from `start` up to `stop`, which stay in the same file."""
        start, stop = start + self._first, stop + self._first
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._first, part._count = start % _CHUNK, stop - start
        part._places = self._places[start // _CHUNK : -(-stop // _CHUNK)]
        part._last = self._last if stop > len(self._places) * _CHUNK else []
        return part

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return islice(self._all(), self._first, self._first + self._count)

    def ordered(self, by: Callable[[T], Any]) -> Iterator[T]:
        """Yield all elements sorted by a key; equal ones in the order of the list."""
        runs = DiskList(
            element for some in batches(self, _SORTED_AT_ONCE) for element in sorted(some, key=by)
        )
        starts = range(0, len(runs), _SORTED_AT_ONCE)
        parts = [runs.part(start, min(start + _SORTED_AT_ONCE, len(runs))) for start in starts]
        return heapq.merge(*parts, key=by)

    def _all(self) -> Iterator[T]:
        for place in self._places:
            # Opened anew, because processes that share a descriptor also share its position.
            with open(self._path, "rb") as file:  # noqa: PTH123
                file.seek(place)
                chunk = pickle.load(file)
            yield from chunk
        yield from self._last

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


def batches(elements: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the elements in lists of this length; the last may be shorter."""
    rest = iter(elements)
    while some := list(islice(rest, size)):
        yield some


def _no_room(error: OSError) -> Exception:
    return from_os_error(error, "writing a list of images to the folder for temporary files (TMPDIR)")
