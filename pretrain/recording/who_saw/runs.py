"""What the folder of a run says about the images that it trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from isotorus import foreign_files, jsonl
from isotorus.errors import UserError
from pretrain.recording.who_saw.first_seen import Reading, first_batches
from pretrain.recording.who_saw.past_sets import States, of_run
from pretrain.recording.who_saw.visited import visited

_RESULTS = "eval/*/results.json"


@dataclass(frozen=True)
class Sight:
    """A run that trained on some of the images."""

    run: Path
    images: int
    """Number of images that it saw until its newest checkpoint."""
    first_step: int
    """The step, counted from 1, in which it saw the first of them; 0 if a run that saw them wrote its first
    weights."""
    checkpoints: list[Path]
    """Checkpoints after that step."""
    before: list[Path]
    """Checkpoints before that step."""
    results: list[Path]
    """Evaluations whose probes were fitted on some of the images."""
    replaced: int
    """Number of damaged images that the run replaced by others; these others are not looked at."""
    weights: str = ""
    """The file of its first weights, if a run that saw the images has written it."""


class Checkpoint(NamedTuple):
    """What encoder.json says about a checkpoint."""

    path: Path
    step: int
    facts: dict[str, Any]

    @property
    def weights(self) -> str:
        """The file that the first weights of its run came from; "" where they were random."""
        return str((self.facts.get("warm_start") or {}).get("file", ""))


def find_runs(folders: list[Path]) -> list[Path]:
    """Return the runs in folders and below them; raise `UserError` for a folder without any."""
    runs: list[Path] = []
    for folder in folders:
        found = sorted({path.parent for path in folder.rglob("config.yaml")}) if folder.is_dir() else []
        if not found:
            raise UserError(f"{folder} is no run and holds none (no config.yaml); name one such as runs/")
        runs += found
    return list(dict.fromkeys(runs))


def checkpoints(run: Path) -> list[Checkpoint]:
    """Return the complete checkpoints of a run, the oldest first; raise `UserError` if one cannot be read."""
    found = []
    for path in sorted((run / "checkpoints").glob("step_*")):
        if not (path / "COMPLETE").exists():
            continue
        facts = foreign_files.read_json(path / "encoder.json")
        if not _describes(facts):
            raise UserError(f"{path}/encoder.json does not describe a checkpoint")
        found.append(Checkpoint(path, facts["step"], facts))
    return sorted(found, key=lambda each: each.step)


def _describes(facts: Any) -> bool:
    """Return whether the content of an encoder.json has the form that this module reads."""
    if not isinstance(facts, dict) or type(facts.get("step")) is not int:
        return False
    before = facts.get("readings_before", [])
    mappings = isinstance(facts.get("config") or {}, dict) and isinstance(facts.get("warm_start") or {}, dict)
    return mappings and isinstance(before, list) and all(map(_describes, before))


def _segments(saved: list[Checkpoint]) -> Iterator[tuple[int, list[Checkpoint]]]:
    """Yield steps, the oldest first, each with the descriptions of how the run may have read its data until
    then.

    Earlier versions did not record what a restart changed. Between two of their checkpoints the run may have
    read as either of the two says, so both are yielded.
    """
    newest, steps = saved[-1], {each.step for each in saved}
    before = [Checkpoint(newest.path, each["step"], each) for each in newest.facts.get("readings_before", [])]
    history = sorted([*saved, *(each for each in before if each.step not in steps)], key=lambda c: c.step)
    for number, each in enumerate(history):
        recorded = each in before or "readings_before" in each.facts
        yield each.step, history[number if recorded else max(number - 1, 0) : number + 1]


def sight(run: Path, saved: list[Checkpoint], asked: States) -> Sight | None:
    """Return what a run saw of the images until its newest checkpoint; None if it saw none.

    Raises `UserError` if this cannot be found out.
    """
    offsets = _passed_over(run)
    seen: dict[tuple[int, ...], int] = {}
    start = 0
    for step, read_as in _segments(saved):
        stop = step + max([0, *(passed for _, passed in offsets)])
        for of in {_identity(each): each for each in read_as}.values():
            for image, batch in _first_batches(of, asked, start, stop).items():
                at = batch + 1 - max([0, *(passed for begin, passed in offsets if begin <= batch)])
                seen[image] = min(at, seen.get(image, at))
        start = stop
    results = [path for path in sorted(run.glob(_RESULTS)) if _was_fitted(path, asked)]
    if not seen and not results:
        return None
    first = min(seen.values(), default=saved[-1].step + 1)
    return Sight(
        run,
        len(seen),
        first,
        [each.path for each in saved if each.step >= first],
        [each.path for each in saved if each.step < first],
        results,
        len(jsonl.read(run / "corrupt.jsonl", "step")),
    )


def _first_batches(
    checkpoint: Checkpoint, asked: States, start: int, stop: int
) -> dict[tuple[int, ...], int]:
    """Return the first batch that held each image, by fingerprint, source and index, in [start, stop)."""
    try:
        config, seed = checkpoint.facts["config"], int(checkpoint.facts["seed"])
        data, fingerprint = config["data"], str(checkpoint.facts["data_fingerprint"])
        given = data["sources"] or [{"path": data["path"], "weight": 1.0}]
        sources = [(str(source["path"]), float(source["weight"])) for source in given]
        kind, size = data["order"], int(data["batch_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{checkpoint.path}/encoder.json lacks what a run has ({error})") from None
    states = of_run(fingerprint, sources, asked)
    if states is None:
        return {}
    if kind not in ("uniform", "windowed") or size < 1:
        raise UserError(f"{checkpoint.path}/encoder.json has the order {kind!r} of batches of {size}")
    only = visited(checkpoint.facts, states, [path for path, _ in sources])
    reading = Reading(states, [weight for _, weight in sources], seed, kind, size, only)
    return {
        (int(fingerprint, 16), *image): batch for image, batch in first_batches(reading, start, stop).items()
    }


def _identity(checkpoint: Checkpoint) -> str:
    """Return what determines the images that a run reads."""
    facts = checkpoint.facts
    config = facts.get("config") or {}
    return repr((facts.get("data_fingerprint"), facts.get("seed"), config.get("data")))


def _passed_over(run: Path) -> list[tuple[int, int]]:
    """Return from which batch on how many batches were passed over, because updates were refused."""
    rows = jsonl.read(run / "skipped.jsonl", "passed_over")
    return [
        (row["taken_back_to"] + row["passed_over"], row["passed_over"])
        for row in rows
        if type(row.get("taken_back_to")) is int
    ]


def _was_fitted(results: Path, asked: States) -> bool:
    """Return whether the probes of an evaluation were fitted on images that are asked for."""
    try:
        about = foreign_files.read_json(results)
        fingerprint = str(about["data"]["train"]["fingerprint"])
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return False
    return fingerprint in asked and bool(asked[fingerprint].images)


def inherited(saved: dict[Path, list[Checkpoint]], sights: dict[Path, Sight]) -> Iterator[Sight]:
    """Yield a `Sight` for each run whose first weights a run that saw the images has written, also over
    several runs.
    """
    known = {path.resolve() for one in sights.values() for path in one.checkpoints}
    left = {run: each for run, each in saved.items() if each}
    while found := [run for run, each in left.items() if _folder_of_weights(each[-1]) in known]:
        for run in found:
            each, own = left.pop(run), sights.get(run)
            paths = [checkpoint.path for checkpoint in each]
            known |= {path.resolve() for path in paths}
            yield Sight(
                run,
                own.images if own else 0,
                0,
                paths,
                [],
                own.results if own else [],
                own.replaced if own else 0,
                each[-1].weights,
            )


def _folder_of_weights(checkpoint: Checkpoint) -> Path | None:
    """Return the folder of the first weights of a checkpoint's run; None where they were random."""
    try:
        return Path(checkpoint.weights).resolve().parent if checkpoint.weights else None
    except (OSError, ValueError, RuntimeError):  # no name of a file
        return None
