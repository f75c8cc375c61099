"""Count how often each known space gets each verdict at the default settings; continues where it was stopped.

One line of JSON with the measured quantities is appended for each draw. `--publish` applies the present rules
without drawing again. A draw does not depend on the draws before it.
"""

import argparse
import json
import lzma
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from joblib import Parallel, delayed

from eval_suite.geometry import circular, error_rates, known_spaces, verdict

SERIES = 4
"""First part of all seeds; the rules were chosen on other ones."""
SAMPLES = (300, 1_000, 2_000, 5_000)
WIDTHS = (4, 64, 768)
NOISE = (0.0, 0.05, 0.15)
"""Standard deviations of each coordinate; circles, spheres and tori have radius 1."""
TORUS = "flat torus"
OTHERS = [name for name in known_spaces.SPACES if name != TORUS]
DIGITS = 5
"""Significant digits of recorded bars."""

Counts = dict[tuple[str, int, int], Counter[str]]
"""Verdicts by space, samples and width."""


class Draw(NamedTuple):
    """One cloud of the calibration."""

    index: int
    samples: int
    ambient: int
    space: str
    noise: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "file",
        type=Path,
        help="JSON lines, one for each draw; created or continued; may end in .xz to be read",
    )
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds, of 156 draws each")
    parser.add_argument(
        "--samples", type=int, nargs="+", default=SAMPLES, help="only these numbers of samples"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument(
        "--publish", type=Path, metavar="PAGE", help="write table and error rates from the file, draw nothing"
    )
    args = parser.parse_args()
    if args.publish:
        publish(args.file, args.publish)
        return
    drawn_before = {row["index"] for row in rows(args.file)}
    todo = [
        draw for draw in plan(args.rounds) if draw.samples in args.samples and draw.index not in drawn_before
    ]
    cut = args.file.exists() and not args.file.read_text().endswith("\n")
    with args.file.open("a") as file:
        file.write("\n" if cut else "")
        drawn = Parallel(n_jobs=args.jobs, return_as="generator_unordered")(
            delayed(measure)(draw) for draw in todo
        )
        for row in drawn:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def plan(rounds: int) -> list[Draw]:
    """Return the draws of the first `rounds` rounds, those of few samples first in each round.

    A round holds, for each number of samples and width, a torus with each noise and every other space once;
    the noise of the others changes from round to round.
    """
    draws: list[Draw] = []
    for round_ in range(rounds):
        for samples in SAMPLES:
            for place, ambient in enumerate(WIDTHS):
                clouds = [(TORUS, noise) for noise in NOISE]
                clouds += [
                    (space, NOISE[(round_ + place + number) % len(NOISE)])
                    for number, space in enumerate(OTHERS)
                ]
                draws += [
                    Draw(len(draws) + number, samples, ambient, space, noise)
                    for number, (space, noise) in enumerate(clouds)
                ]
    return draws


def measure(draw: Draw) -> dict[str, Any]:
    """Make a draw and return it with its measured quantities, its bars and the coverage of its two loops."""
    x = known_spaces.sample(draw.space, draw.samples, draw.ambient, draw.noise, seed=(SERIES, draw.index, 1))
    evidence = verdict.measure(x, seed=draw.index)
    coverage = None
    if min(numbers[1] for numbers in evidence.homology.betti.values()) >= 2:
        angles = circular.circular_coordinates(evidence.cloud.denoised[evidence.cloud.landmarks]).angles
        coverage = circular.joint_coverage(angles) if angles.shape[1] == 2 else None
    return {
        **draw._asdict(),
        "measured": asdict(evidence.measured),
        "homology": _short(evidence.homology.to_json()),
        "joint_coverage": coverage,
    }


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of `path`; a killed process may have left half a line."""
    if not path.exists():
        return
    packed = path.read_bytes()
    text = (lzma.decompress(packed) if path.suffix == ".xz" else packed).decode()
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def count(path: Path) -> Counts:
    """Return how often each verdict is given by the present rules, by space, samples and width."""
    counts: Counts = defaultdict(Counter)
    for row in rows(path):
        decision = verdict.decide(verdict.Measured(**row["measured"]))
        counts[row["space"], row["samples"], row["ambient"]][decision.name] += 1
    return counts


def publish(path: Path, page: Path) -> None:
    """Write the tables between the marks of `page`, and the error rates that verdicts are printed with."""
    counts = count(path)
    marks = r"(<!-- calibration -->\n).*?(<!-- end -->)"
    text = page.read_text("utf-8")
    page.write_text(
        re.sub(marks, lambda m: m[1] + tables(counts) + "\n" + m[2], text, flags=re.S), encoding="utf-8"
    )
    error_rates.write(rates(counts))


def rates(counts: Counts) -> list[error_rates.ErrorRate]:
    """Return the error rates of all verdicts by samples and width, pooled over noise."""
    found = []
    for samples in SAMPLES:
        for width in WIDTHS:
            for name, space in error_rates.SPACES.items():
                here = counts[space, samples, width]
                others = sum(
                    (counts[other, samples, width] for other in known_spaces.SPACES if other != space),
                    Counter(),
                )
                found.append(
                    error_rates.ErrorRate(
                        name, samples, width, here[name], here.total(), others[name], others.total()
                    )
                )
    return found


def tables(counts: Counts) -> str:
    """Return the verdicts by space, and the torus's hits and false alarms by setting, as Markdown."""
    names = [*verdict.RULES, verdict.GAUSSIAN, verdict.NONE]
    lines = [f"| space | draws | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for space in (TORUS, *OTHERS):
        pooled = sum((counts[space, n, width] for n in SAMPLES for width in WIDTHS), Counter())
        cells = " | ".join(str(pooled[name] or "") for name in names)
        lines.append(f"| {space} | {pooled.total()} | {cells} |")
    header = " | ".join(f"R^{width}" for width in WIDTHS)
    for name in error_rates.SPACES:
        lines += ["", f"{name}: found, and others taken for it", ""]
        lines += [f"| samples | {header} | all, with intervals |", "|---|" + "---|" * (len(WIDTHS) + 1)]
        for n in SAMPLES:
            row = [rate for rate in rates(counts) if rate.name == name and rate.samples == n]
            cells = [f"{rate.found} of {rate.draws}, {rate.wrong} of {rate.others}" for rate in row]
            found, draws, wrong, others = (
                sum(column) for column in zip(*(rate[3:] for rate in row), strict=True)
            )
            cells.append(f"{percent(found, draws)}, {percent(wrong, others)}")
            lines.append(f"| {n:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(hits: int, draws: int) -> str:
    """Write the 95 % interval of a share in percent."""
    low, high = error_rates.interval(hits, draws)
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def _short(value: Any) -> Any:
    """Return JSON data with numbers cut to `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [_short(item) for item in value]
    return {key: _short(item) for key, item in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
