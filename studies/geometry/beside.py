"""Score an encoder that others trained: `python -m studies.geometry.beside FOLDER NAME GIVEN`.

GIVEN is a timm model folder that `studies.geometry.peer` wrote, or a file of features (.npz) that
`studies.geometry.generic` wrote. It is measured as our runs are, on test, and becomes a line of results.jsonl
with NAME as its objective. A file settings.json in the folder says its seed and its CPU time.
"""

import json
import sys
from pathlib import Path
from typing import Any

from isotorus.errors import UserError, exit_code
from studies.geometry import measured
from studies.geometry.study import RESULTS, rows
from studies.running import add_row


def main() -> int:
    """Add the row, if it is not there."""
    if len(sys.argv) != 4:
        raise UserError(
            "expected the study's folder, a name for the tables, and a model folder or an .npz file"
        )
    folder, objective, given = Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3]).resolve()
    file = given / "settings.json"
    settings: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    row = {"name": f"{objective}-{given.stem}", "objective": objective, "stage": "test"}
    row |= {"seed": settings.get("seed"), "images": None, "cpu_seconds": settings.get("cpu_seconds")}
    if (row["name"], "test") in {(each["name"], each["stage"]) for each in rows()}:
        print(f"{RESULTS} has {row['name']} already")
        return 0
    out = folder / "evaluations" / row["name"]
    sets = measured.shards(test=True) if given.is_dir() else []
    log = measured.log_of(folder, row["name"])
    try:
        measured.command(folder, log, "eval_suite", str(given), *sets, *measured.options(out, test=True))
    except measured.Failed as error:
        raise UserError(f"{error}; see {log}") from None
    results = json.loads((out / "results.json").read_text())
    add_row(RESULTS, row | {"settings": settings} | measured.numbers(results))
    print(f"{RESULTS} has {row['name']}; python -m studies.geometry.tables prints it")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
