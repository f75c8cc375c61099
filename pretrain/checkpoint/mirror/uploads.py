"""Copy a run's checkpoints to its mirror, from a thread of each rank, while training goes on.

Rank 0 chooses the checkpoint, and each rank copies and verifies the files that it wrote. When all files are
in the mirror, rank 0 copies COMPLETE, which makes the checkpoint count. The ranks send each other messages
through the process group's store, so that nothing waits for a collective call. The newest checkpoint is
copied first, then those before it that the mirror keeps. A failure is logged once, and what failed is
repeated until it succeeds.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch.distributed as dist

from data_pipeline.storage.remote import NoAnswer, shown
from isotorus import foreign_files
from isotorus.errors import UserError, from_os_error
from pretrain.checkpoint import damage, folders, retention
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.mirror.place import HISTORY, LISTING, SMALL, Altered, Place, folder
from pretrain.distributed import rank, world_size

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_LONGEST_PAUSE = 60.0  # seconds between attempts
_PASSES_SOON = 3  # attempts without an answer that are not logged
_COPIED, _GONE = "copied", "gone"


class _Ended(Exception):
    """The run no longer waits for the mirror."""


class _Lost(UserError):
    """An object is no longer in the mirror, though it was verified."""


class Uploads(threading.Thread):
    """A thread of each rank. All ranks make the same calls. A run that fails does not wait for the thread.

    `in_use` is the set of steps that the saver does not remove. Rank 0 adds the step that it is copying.
    """

    def __init__(
        self, run: Path, place: Place, config: CheckpointConfig, start: int, in_use: set[int]
    ) -> None:
        """Prepare to mirror the folder `run`, which has done `start` steps."""
        super().__init__(name="mirror", daemon=True)
        self.run_folder, self.checkpoints, self.config = run, run / "checkpoints", config
        self.place = Place(place.url, 0)  # this thread has its own attempts
        self._start, self._in_use = start, in_use
        self._done: set[int] | None = None
        """Steps that are or were whole in the mirror; None until the mirror has been asked."""
        self._unreadable: set[int] = set()
        """Steps whose files are absent or damaged. They are tried again once no other step is missing."""
        self._small: dict[str, tuple[int, int]] = {}
        """Size and modification time of each small file when it was copied."""
        self._number = 0  # of the copy that is being made
        self._last = threading.Event()
        """Set when no more checkpoints will be saved."""
        self._ended = threading.Event()
        self._problem = ""
        self._peers = None
        if world_size() > 1:
            # This thread has a connection of its own, because a waiting call may block that of the process.
            default = dist.distributed_c10d._get_default_store().clone()
            self._peers = dist.PrefixStore(f"isotorus/mirror/{place.url}", default)
            self._peers.set_timeout(timedelta(seconds=30))

    def run(self) -> None:
        try:
            if rank() == 0:
                self._lead()
            else:
                self._follow()
        except _Ended:
            pass
        except RuntimeError as error:  # the process group's store is gone, and so is the run
            log.debug("the mirror's thread ends: %s", error)

    def finish(self, progress: Callable[[], None], may_wait: Callable[[], bool]) -> None:
        """Wait for the last upload, then log what the mirror lacks.

        It waits for at most `mirror_wait` seconds, and only while `may_wait` returns true. Meanwhile
        `progress` is called.
        """
        if not self.is_alive():
            self.start()
        self._last.set()
        until = time.monotonic() + self.config.mirror_wait
        while self.is_alive() and not self._gives_up(until, may_wait):
            self.join(_POLL_SECONDS / 4)
            progress()
        if rank() != 0:
            return
        missing = self._missing() if self.is_alive() else []
        self.end()
        if self.is_alive():
            named = ", ".join(f"step_{step:08d}" for step in missing) or "the newest rows of metrics.jsonl"
            why = f" ({self._problem})" if self._problem else ""
            log.warning(
                "%s lacks %s, for which the run waits no longer (checkpoint.mirror_wait=%g)%s; run the same "
                "command again to copy it",
                shown(self.place.url), named, self.config.mirror_wait, why,
            )  # fmt: skip

    def _gives_up(self, until: float, may_wait: Callable[[], bool]) -> bool:
        """Return whether rank 0 no longer waits; rank 0 waits until a time of `time.monotonic` at most."""
        if rank() == 0 or self._peers is None:
            return time.monotonic() > until or not may_wait()
        try:
            return bool(self._peers.check(["end"]))
        except RuntimeError:  # the store's host is lost
            return True

    def end(self) -> None:
        """Stop copying. A checkpoint that is not whole in the mirror does not count there."""
        if rank() == 0 and self._peers is not None and not self._ended.is_set():
            try:
                self._peers.set("end", "")
            except RuntimeError:  # the store's host is lost, which ends the other ranks
                log.debug("the mirror threads of the other ranks did not hear of the end")
        self._ended.set()

    def _lead(self) -> None:
        """Copy checkpoints when they are saved; only rank 0 calls it."""
        self._until_it_works(self._look)
        while True:
            last = self._last.is_set()
            missing = self._missing()
            if missing:
                self._copy(max(missing, key=lambda step: (step not in self._unreadable, step)))
            elif last:
                self._until_it_works(self._copy_small_files)
                self.end()
                return
            else:
                self._pause(_POLL_SECONDS)

    def _follow(self) -> None:
        """Copy this rank's files of each checkpoint that rank 0 names."""
        assert self._peers is not None
        while True:
            if self._peers.check([f"{self._number + 1}"]):
                self._number += 1
                step = int(self._peers.get(f"{self._number}"))
                self._report(self._copy_own(step, self._listed(step)))
            elif self._peers.check(["end"]):
                return
            else:
                self._pause(_POLL_SECONDS)

    def _look(self) -> None:
        """Ask what the mirror has, up to the step of the start; later steps are done again."""
        self._done = {step for step in self.place.complete() if step <= self._start}

    def _missing(self) -> list[int]:
        """Return the steps of the complete checkpoints that the mirror lacks and would keep."""
        here, done = folders.steps(self.checkpoints), self._done or set()
        return sorted(here - done - set(self._superfluous(here | done)))

    def _superfluous(self, steps: set[int]) -> list[int]:
        keep_last = self.config.mirror_keep_last or self.config.keep_last
        try:
            return retention.superfluous(self.checkpoints, steps, keep_last, self.config.keep_every)
        except UserError:  # the newest has been damaged meanwhile; the next start reports it
            return []

    def _copy(self, step: int) -> None:
        """Copy a checkpoint, on all ranks, and make it count."""
        assert self._done is not None
        self._in_use.add(step)
        try:
            listed = self._listed(step)
            self._until_it_works(lambda: self._clear(step))
            self._number += 1
            if self._peers is not None:
                self._peers.set(f"{self._number}", str(step))
            if self._copy_own(step, listed) == _GONE or not self._await_others():
                self._note_unreadable(step)
                self._pause(_POLL_SECONDS)
                return
            self._until_it_works(self._copy_small_files)
            self._until_it_works(lambda: self._commit(step, listed))
            self._done.add(step)
            self._unreadable.discard(step)
        except FileNotFoundError:  # removed meanwhile
            self._pause(_POLL_SECONDS)
            return
        except _Lost as error:  # copy all again
            self._say(error)
            self._pause(_POLL_SECONDS)
            return
        finally:
            self._in_use.discard(step)
        self._until_it_works(self._thin_out)

    def _note_unreadable(self, step: int) -> None:
        """Log once that a checkpoint cannot be copied, unless it was removed meanwhile."""
        if step in folders.steps(self.checkpoints) and step not in self._unreadable:
            self._unreadable.add(step)
            log.warning(
                "%s is not in the mirror, because some of its files are absent or damaged; training goes on, "
                "and the upload is tried again",
                self.run_folder / folder(step),
            )

    def _copy_own(self, step: int, listed: dict[str, list[int]]) -> str:
        """Copy the files that this rank wrote; return `_COPIED`, or `_GONE` if one is absent or damaged."""
        own = [name for name in listed if _writer(name) % world_size() == rank()]
        try:
            for name in sorted(own):
                self._until_it_works(partial(self._copy_file, step, name, listed[name]))
        except FileNotFoundError:
            return _GONE
        return _COPIED if listed else _GONE

    def _copy_file(self, step: int, name: str, expected: list[int]) -> None:
        """Copy a file of a checkpoint; raise FileNotFoundError if it is absent or damaged on the disk."""
        path = f"{folder(step)}/{name}"
        try:
            self.place.write(path, self.run_folder / path, expected)
        except Altered:
            if found := damage.of_file(self.run_folder / folder(step), name):
                raise FileNotFoundError(found) from None
            raise

    def _commit(self, step: int, listed: dict[str, list[int]]) -> None:
        """Write COMPLETE, which makes a checkpoint count, if all its other files are in the mirror."""
        there = self.place.objects().get(step, {})
        for name, (size, _) in listed.items():
            if there.get(name) != size:
                raise _Lost(f"{shown(self.place.at(folder(step)))}/{name} is not there any more as written")
        self.place.write(f"{folder(step)}/{LISTING}", (self.run_folder / folder(step) / LISTING).read_bytes())

    def _clear(self, step: int) -> None:
        """Delete COMPLETE of an earlier copy of a checkpoint, which would count while it is replaced."""
        if (there := self.place.objects().get(step)) and LISTING in there:
            self.place.delete(step, [LISTING])

    def _thin_out(self) -> None:
        """Delete the checkpoints that the mirror does not keep, and what unfinished uploads have left."""
        there = self.place.objects()
        whole = {step for step, names in there.items() if LISTING in names}
        left = {step for step in set(there) - whole if step < max(whole, default=0)}
        for step in sorted(left | set(self._superfluous(whole))):
            self.place.delete(step, list(there[step]))

    def _copy_small_files(self) -> None:
        """Copy config.yaml, metrics.jsonl and similar files that have changed."""
        history = (self.run_folder / HISTORY).glob("*.yaml")
        for name in (*SMALL, *(f"{HISTORY}/{path.name}" for path in sorted(history))):
            try:
                status = (self.run_folder / name).stat()
                content = (self.run_folder / name).read_bytes()
            except FileNotFoundError:
                continue
            state = status.st_size, status.st_mtime_ns
            if self._small.get(name) != state:
                self.place.write(name, content)
                self._small[name] = state

    def _listed(self, step: int) -> dict[str, list[int]]:
        """Return the size and checksum of each file of a checkpoint; none if COMPLETE cannot be read."""
        try:
            return dict(foreign_files.read_json(self.run_folder / folder(step) / LISTING))
        except (OSError, UserError, ValueError, TypeError):
            return {}

    def _await_others(self) -> bool:
        """Wait until the other ranks have copied their files; return whether all of them could."""
        waiting = set(range(1, world_size()))
        outcomes = set()
        while waiting and self._peers is not None:
            for other in sorted(waiting):
                key = f"{self._number}/{other}"
                said = self._peers.get(key).decode() if self._peers.check([key]) else ""
                if said in (_COPIED, _GONE):
                    waiting.discard(other)
                    outcomes.add(said)
                elif said:
                    self._say(f"rank {other}: {said}")
            if waiting:
                self._pause(_POLL_SECONDS)
        return outcomes <= {_COPIED}

    def _report(self, text: str) -> None:
        """Send rank 0 the outcome of this rank's part of the present checkpoint, or a problem."""
        assert self._peers is not None
        self._peers.set(f"{self._number}/{rank()}", text)

    def _until_it_works(self, action: Callable[[], None]) -> None:
        """Repeat an action until it succeeds, with growing pauses; log its failure once.

        Raises FileNotFoundError if a local file is gone, and `_Lost` if `action` does.
        """
        attempt = 0
        while True:
            self._pause(0)
            try:
                action()
                if rank() == 0 and self._problem:
                    log.info("%s is written to again", shown(self.place.url))
                    self._problem = ""
                return
            except (FileNotFoundError, _Lost):
                raise
            except Exception as error:  # the libraries behind fsspec raise all kinds
                attempt += 1
                if not isinstance(error, NoAnswer) or attempt > _PASSES_SOON:
                    self._say(_in_words(error))
            self._pause(min(_POLL_SECONDS / 2 * 2**attempt, _LONGEST_PAUSE))

    def _say(self, problem: object) -> None:
        """Log a problem if none is logged already; other ranks send it to rank 0, which logs it."""
        if rank() != 0:
            self._report(str(problem))
        elif not self._problem:
            log.warning("the mirror is behind; training goes on, and the upload is tried again: %s", problem)
            self._problem = str(problem)

    def _pause(self, seconds: float) -> None:
        """Wait; raise `_Ended` if the run no longer waits for the mirror."""
        ended = self._ended.wait(seconds)
        if ended or (rank() != 0 and self._peers is not None and self._peers.check(["end"])):
            raise _Ended


def _in_words(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return str(from_os_error(error, "copying to the mirror"))
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _writer(name: str) -> int:
    """Return the rank that wrote a file of a checkpoint."""
    parts = name.split("_")
    return int(parts[2]) if name.startswith("__") and parts[2].isdecimal() else 0
