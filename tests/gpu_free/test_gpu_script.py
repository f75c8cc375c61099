"""`benchmarks/gpu.py` works before there is a GPU: its cases run on a CPU, and none takes others with it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import gpu
from benchmarks.on_gpu.process import run_case, start_server
from benchmarks.on_gpu.report import Setting

ROOT = Path(__file__).parents[2]
QUICK = "sigreg,fp32,vitg_packed,packed_attention,eigvalsh"
TINY = ["--device", "cpu", "--tiny", "--patience", "10", "--minutes", "60"]


def script(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--out", str(folder / "gpu.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "names", [QUICK, pytest.param(",".join(gpu.CASES), marks=pytest.mark.nightly)], ids=["quick", "all"]
)
def test_cases_run_on_a_cpu(names: str, tmp_path: Path):
    done = script(*TINY, "--only", names, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["cases"]) == names.split(",") and found["machine"]["torch"]
    for name, case in found["cases"].items():
        assert "failures" not in case and "seconds" in case, name
        assert case.get("figures"), f"{name} found nothing"


def ended(process: int, seconds: float = 10) -> bool:
    """Return whether a killed process has ended, or ends soon; one that nobody has waited for yet has."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def test_a_case_costs_no_other(tmp_path: Path):
    context, setting = start_server([]), Setting("cpu", True)

    def run(name: str, seconds: float = 100) -> dict:
        found = run_case(context, f"tests.gpu_free.cases.{name}", setting, seconds, tmp_path)
        return {key: x for key, x in found.items() if key != "seconds"}

    assert run("ends") == {"figures": {"answer": 1}}
    hung = run("hangs", 5)
    child = hung.pop("figures")["child"]
    assert hung == {"failures": ["it did not end within 5 s"], "log": "now it hangs\n"}
    assert ended(child)
    assert run("dies")["failures"] == ["it was ended by SIGSEGV"]
    errs = run("errs")
    assert errs["failures"] == ["one is not more than two", "ValueError: the first line"]
    assert "and more" in errs["log"]
    assert run("lacks_a_library") == {"skipped": "no_such_library is not installed"}
    assert run("lacks_our_own")["failures"] == [
        "ModuleNotFoundError: No module named 'pretrain.no_such_module'"
    ]
    assert run("ends") == {"figures": {"answer": 1}}


def test_wrong_arguments_are_one_line(tmp_path: Path):
    listed = script("--list", folder=tmp_path)
    assert listed.returncode == 0 and [line.split()[0] for line in listed.stdout.splitlines()] == list(
        gpu.CASES
    )
    wrong = script(*TINY, "--only", "sigrag", folder=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr == "error: --only sigrag: did you mean sigreg?\n"
