"""Count how often each space of known shape gets each verdict; continues where it was stopped.

A line of JSON with all measured quantities is appended for each draw, so `--table` applies the present rules
without simulating again. Draw i does not depend on the draws before it.
"""

import argparse
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from scipy.stats import beta

from eval_suite.geometry import known_spaces, verdict

SERIES = 3
"""First part of all seeds; the ranges of `verdict.RULES` were chosen on other ones."""
SAMPLES = 1500
LANDMARKS = 120
NULL_DRAWS = 20
NOISE = (0.05, 0.15)
AMBIENT = (8, 64, 768)
TORI = [("flat torus", width) for width in (4, 64, 768)]
OTHERS = [name for name in known_spaces.SPACES if name != "flat torus"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "file", type=Path, help="file of JSON lines, one for each draw; it is created or continued"
    )
    parser.add_argument("--rounds", type=int, default=40, help="number of draws for each row of the table")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument(
        "--table", type=Path, help="write the table into this page, between its marks, and draw nothing"
    )
    args = parser.parse_args()
    if args.table:
        text = args.table.read_text()
        marks = r"(<!-- calibration -->\n).*?(<!-- end -->)"
        args.table.write_text(
            re.sub(marks, lambda m: m[1] + table(args.file) + "\n" + m[2], text, flags=re.S)
        )
        return
    drawn_before = {row["index"] for row in rows(args.file)}
    todo = [index for index in range(args.rounds * len(kinds())) if index not in drawn_before]
    cut = args.file.exists() and not args.file.read_text().endswith("\n")
    with args.file.open("a") as file:
        file.write("\n" if cut else "")
        drawn = Parallel(n_jobs=args.jobs, return_as="generator_unordered")(
            delayed(draw)(index) for index in todo
        )
        for row in drawn:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def kinds() -> list[tuple[str, int | None]]:
    """Return space and ambient dimension of each row of the table; None takes those in `AMBIENT` in turn."""
    return [*TORI, *((name, None) for name in OTHERS)]


def draw(index: int) -> dict[str, Any]:
    """Make draw number `index`; returns its space, noise and measured quantities."""
    round_, kind = divmod(index, len(kinds()))
    space, width = kinds()[kind]
    if width is None:
        # A Gaussian is isotropic only in a space that it fills.
        width = 64 if space == "Gaussian" else AMBIENT[round_ % len(AMBIENT)]
    noise = float(np.random.default_rng((SERIES, index)).uniform(*NOISE))
    x = known_spaces.sample(space, SAMPLES, width, noise, seed=(SERIES, index, 1))
    measured = verdict.measure(x, count=LANDMARKS, draws=NULL_DRAWS, seed=index).measured
    return {"index": index, "space": space, "ambient": width, "noise": noise, "measured": asdict(measured)}


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of `path`; a killed process may have left half a line."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def table(path: Path) -> str:
    """Return the verdicts by space as a Markdown table, with the torus's rates of hits and false alarms."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows(path):
        name = row["space"] + (f" in R^{row['ambient']}" if row["space"] == "flat torus" else "")
        counts[name][verdict.decide(verdict.Measured(**row["measured"])).name] += 1
    names = [*verdict.RULES, verdict.GAUSSIAN, verdict.NONE]
    lines = [f"| space | draws | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    order = [f"{space} in R^{width}" for space, width in TORI] + OTHERS
    for name in order:
        verdicts = counts[name]
        lines.append(f"| {name} | {verdicts.total()} | {' | '.join(str(verdicts[v] or '') for v in names)} |")
    torus, *_ = names
    tori = sum((counts[f"{space} in R^{width}"] for space, width in TORI), Counter())
    others = sum((counts[name] for name in OTHERS), Counter())
    hit, false = tori[torus], others[torus]
    lines += [
        "",
        f"A flat torus is found in {hit} of {tori.total()} draws, {percent(hit, tori.total())}; "
        f"other spaces are taken for one in {false} of {others.total()}, {percent(false, others.total())}.",
    ]
    return "\n".join(lines)


def percent(hits: int, draws: int) -> str:
    """Write a share in percent with its 95 % interval (Clopper & Pearson 1934)."""
    low = beta.ppf(0.025, hits, draws - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, draws - hits) if hits < draws else 1.0
    return f"{100 * hits / max(draws, 1):.1f} % ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    main()
