"""Say whether a soak has lost nothing and whether nothing grows; draw its curves."""

import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.distributed.runs import ENVIRONMENT, ROOT, command
from tests.soak.piece import read
from tests.soak.recipe import ENDLESS, EVERY, KEPT, options

FULL = (KEPT + 1) * EVERY
"""Step from which on the number of checkpoints stays."""
FLAT = 1.1
"""By what factor the median of the last third of the samples may exceed that of the first third."""
SLACK = {"open_files": 5, "files": 5, "processes": 1, "rss_mb": 30}
"""What it may exceed in any case."""


def check(folder: Path, figure: Path | None) -> int:
    """Print what was found; return 0 if all is well, else 1."""
    samples, events = read(folder / "samples.jsonl"), read(folder / "events.jsonl")
    if not samples:
        print(f"{folder} has no samples; run: python -m tests.soak run {folder}")
        return 2
    print(described(samples, events))
    rows = read(folder / "run/metrics.jsonl")
    undisturbed = _undisturbed(folder, rows[-1]["step"])
    wrong = [*history(rows), *differences(rows, undisturbed), *left_behind(events), *growth(samples)]
    if figure:
        draw(samples, events, figure)
        print(f"the curves are in {figure}")
    for each in wrong:
        print(f"wrong: {each}")
    if not wrong:
        print("each step is there once, with the losses of a run without faults, and nothing grows")
    return 1 if wrong else 0


def described(samples: list[dict[str, Any]], events: list[dict[str, Any]]) -> str:
    """Return in words how long the soak was and what happened in it."""
    begins = [event["time"] for event in events if event["event"] == "a piece begins"]
    lasts = zip(begins, [*begins[1:], samples[-1]["time"]], strict=True)
    pieces = [
        (max(each["time"] for each in (*events, *samples) if began <= each["time"] <= until) - began) / 60
        for began, until in lasts
    ]
    faults = Counter(event["event"] for event in events if "number" in event and "code" not in event)
    starts = sum(event["event"] == "the command is given" for event in events)
    named = ", ".join(f"{count} × {what}" for what, count in sorted(faults.items()))
    return (
        f"{len(pieces)} pieces of {' + '.join(f'{x:.0f}' for x in pieces)} minutes, "
        f"{samples[-1]['step']} steps, {starts} starts, {sum(faults.values())} faults: {named}"
    )


def history(rows: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with the steps that are logged: each has to be there once, in order."""
    steps = [row["step"] for row in rows]
    if steps == list(range(1, len(steps) + 1)):
        return []
    twice = [step for step, count in Counter(steps).items() if count > 1]
    missing = sorted(set(range(1, max(steps) + 1)) - set(steps))
    return [f"steps logged twice: {twice[:5]}, missing: {missing[:5]}, of {len(steps)} rows"]


def differences(rows: list[dict[str, Any]], undisturbed: dict[int, float]) -> list[str]:
    """Return where losses are not those of a run without faults, to the last bit."""
    off = {
        r["step"]: (r["loss"], undisturbed[r["step"]]) for r in rows if r["loss"] != undisturbed[r["step"]]
    }
    if not off:
        return []
    first, largest = min(off), max(abs(a / b - 1) for a, b in off.values())
    return [f"{len(off)} of {len(rows)} losses differ, from step {first} on, by {largest:.1e} at most"]


def left_behind(events: list[dict[str, Any]]) -> list[str]:
    """Return the processes that did not end with their run."""
    return [f"left behind: {event['left']}" for event in events if "left" in event]


def growth(samples: list[dict[str, Any]]) -> list[str]:
    """Return what is larger in the last third of the samples than in the first.

    They count from the step on at which there are as many checkpoints as are kept, and while there are
    loaders, because a rank that is starting has few files.
    """
    samples = [sample for sample in samples if sample["step"] > FULL and "loader" in sample["processes"]]
    wrong = []
    for kind, slack in SLACK.items():
        for name in sorted({name for sample in samples for name in sample[kind]}):
            # The folder of logs has some files for each start, by design.
            values = [_largest(sample[kind][name]) for sample in samples if name in sample[kind]]
            third = len(values) // 3
            if name == "run folder, logs" or third < 3:
                continue
            first, last = statistics.median(values[:third]), statistics.median(values[-third:])
            if last > max(FLAT * first, first + slack):
                wrong.append(f"{kind} of {name} grew from {first:g} to {last:g}")
    return wrong


def _largest(value: Any) -> float:
    return max(value) if isinstance(value, list) else value


def _undisturbed(folder: Path, steps: int) -> dict[int, float]:
    """Return the losses of a run on two ranks of this host without faults."""
    alone = folder / "alone"
    alone.mkdir(exist_ok=True)
    log = alone / "run/metrics.jsonl"
    if not (rows := read(log)) or rows[-1]["step"] < steps:
        _, name, *settings = options(alone, str(folder / "packed"), ENDLESS)
        with (alone / "said").open("w") as said:
            train = command(2, Path(name), *settings)
            process = subprocess.Popen(train, cwd=ROOT, env=ENVIRONMENT, stdout=said, stderr=said)
        while not (rows := read(log)) or rows[-1]["step"] < steps:
            assert process.poll() is None, (alone / "said").read_text()
            time.sleep(2)
        process.terminate()
        process.wait()
    return {row["step"]: row["loss"] for row in read(log)}


def draw(samples: list[dict[str, Any]], events: list[dict[str, Any]], file: Path) -> None:
    """Draw steps, memory, open files, processes and files over time; faults are grey lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    began = samples[0]["time"]
    minutes = [(sample["time"] - began) / 60 for sample in samples]
    faults = [(e["time"] - began) / 60 for e in events if "number" in e and "code" not in e]
    figure, axes = plt.subplots(5, 1, figsize=(8, 10), sharex=True, layout="constrained")
    axes[0].plot(minutes, [sample["step"] for sample in samples])
    axes[0].set_ylabel("step")
    titles = {"rss_mb": "memory of the\nlargest, MB", "open_files": "open files of\nthe one with most"}
    titles |= {"processes": "processes", "files": "files"}
    for axis, (kind, title) in zip(axes[1:], titles.items(), strict=True):
        for name in sorted({name for sample in samples for name in sample[kind]}):
            there = [
                (m, _largest(s[kind][name])) for m, s in zip(minutes, samples, strict=True) if name in s[kind]
            ]
            axis.plot(*zip(*there, strict=True), ".", label=name, markersize=4)
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for axis in axes:
        for fault in faults:
            axis.axvline(fault, color="0.85", zorder=0)
    axes[-1].set_xlabel("minutes; a grey line is a fault")
    figure.savefig(file)
    plt.close(figure)
