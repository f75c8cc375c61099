"""Try everything that only a GPU can show, the most important first, in at most 8 minutes.

    python -m benchmarks.gpu --out gpu.json
    python -m benchmarks.gpu --device cpu --tiny        # anywhere: shows that the script itself works

Each case has a process and a time limit of its own: one that fails, hangs or runs out of memory says so, and
the next one goes on. The JSON file is written anew after each case. The exit code is 1 if any case failed. A
case that a machine cannot do whole is "skipped" with the reason, after the part that it can do.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.on_gpu.process import run_case, start_server
from benchmarks.on_gpu.report import Setting
from isotorus.errors import ArgumentParser, UserError, exit_code
from isotorus.files import atomic
from isotorus.nearest_name import nearest

ROOT = Path(__file__).parents[1]


class Limited(NamedTuple):
    """A case: where it is (module.function in benchmarks/on_gpu), the most seconds for it, what it shows."""

    function: str
    seconds: float
    shows: str


CASES = {
    "syncs": Limited("syncs.syncs", 60, "where the host waits for the device within a real training step"),
    "sigreg": Limited("sigreg.sigreg", 40, "SIGReg in Triton: exact, and its time and memory"),
    "residual_norm": Limited(
        "residual_norm.residual_norm", 40, "residual and norm in Triton: exact, its time"
    ),
    "fp32": Limited("exactness.fp32", 60, "ten fp32 steps on CPU and GPU, by ddp and fsdp, TF32 off and on"),
    "deterministic": Limited("exactness.deterministic", 45, "the same bits twice"),
    "vitg_eager": Limited("vitg.eager", 45, "ViT-g/14 at 16 images: MFU, and memory against `plan`"),
    "vitg_packed": Limited("vitg.packed", 45, "the same, packed"),
    "vitg_compiled": Limited("vitg.compiled", 90, "the same, compiled"),
    "vitg_compiled_packed": Limited("vitg.compiled_packed", 90, "the same, compiled and packed"),
    "packed_attention": Limited("attention.packed", 30, "one call for all sizes, at head dims 64 and 104"),
    "recomputation": Limited("recomputation.recomputation", 90, "equal gradients, compiled or not"),
    "checkpoint": Limited("checkpoints.checkpoint", 45, "how long a save stops training; exact resume"),
    "augmentation": Limited("augmentation.augmentation", 40, "the same pixels on CPU and GPU, and the time"),
    "nan": Limited("faults.nan", 25, "a step with NaN changes nothing"),
    "out_of_memory": Limited("faults.out_of_memory", 45, "a step that does not fit says what needs less"),
    "eigvalsh": Limited("linear_algebra.eigvalsh", 20, "eigenvalues on the device and the host"),
    "winding": Limited("attention.winding", 60, "winding attention by FlexAttention"),
    "fp8": Limited("fp8.fp8", 75, "a step in fp8 against bf16"),
    "doctor": Limited("doctor.doctor", 30, "what the check-up reads of nvidia-smi"),
    "knn_graph": Limited("neighbours.knn_graph", 75, "k-NN graph of 1,000,000 × 768 by FAISS"),
    "no_compiler": Limited("sigreg.no_compiler", 45, "SIGReg on a machine without a C compiler"),
}


def main() -> int:
    given = _parse()
    setting, out = Setting(given.device, given.tiny), Path(given.out)
    # Cases are forked from a process that has to find the same modules.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(":")
    found: dict[str, Any] = {"command": " ".join(sys.argv), "python": platform.python_version(), "cases": {}}
    end = time.monotonic() + 60 * given.minutes
    context = start_server()
    with tempfile.TemporaryDirectory() as folder:
        machine = run_case(
            context, "benchmarks.on_gpu.runs.machine", setting, 60 * given.patience, Path(folder)
        )
        if "failures" in machine:
            raise UserError(f"--device {given.device}: {machine['failures'][0]}; use --device cpu --tiny")
        found["machine"] = machine.get("figures", {})
        for name in given.only:
            left = end - time.monotonic()
            if left < 5:
                case: dict[str, Any] = {"skipped": f"the {given.minutes:g} minutes were over"}
            else:
                limit = min(left, CASES[name].seconds * given.patience)
                case = run_case(
                    context, f"benchmarks.on_gpu.{CASES[name].function}", setting, limit, Path(folder)
                )
            found["cases"][name] = case
            with atomic(out) as file:
                file.write(json.dumps(found, indent=1).encode())
            print(_line(name, case), flush=True)
    return 1 if any("failures" in case for case in found["cases"].values()) else 0


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds on a CPU")
    parser.add_argument("--only", help="names of cases, with commas between; default: all")
    parser.add_argument("--list", action="store_true", help="print the cases and what they show")
    parser.add_argument("--out", default="gpu.json", help="file for the results (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=8, help="of all cases together (default 8)")
    parser.add_argument("--patience", type=float, default=1, help="factor for each case's own time limit")
    given = parser.parse_args()
    if given.list:
        for name, case in CASES.items():
            print(f"{name:22} {case.seconds:3.0f} s  {case.shows}")
        sys.exit(0)
    given.only = [name.strip() for name in given.only.split(",")] if given.only else list(CASES)
    for name in given.only:
        if name not in CASES:
            near = nearest(name, list(CASES))
            raise UserError(
                f"--only {name}: " + (f"did you mean {near}?" if near else "--list shows the cases")
            )
    return given


def _line(name: str, case: dict[str, Any]) -> str:
    """Return a case's result in one line."""
    if "failures" in case:
        return f"{name:22} FAILED  {'; '.join(case['failures'])}"
    figures = ", ".join(f"{key} {_short(x)}" for key, x in case.get("figures", {}).items())
    state = f"skipped: {case['skipped']}" if "skipped" in case else "ok"
    return f"{name:22} {case.get('seconds', 0):5.1f} s  {state}" + (f"  {figures}" if figures else "")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_short(x)}" for key, x in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(exit_code(main))
