"""Runs one case in a process of its own, so that a hang or a crash costs this case alone."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.report import Report, Setting, read

OURS = ("benchmarks", "data_pipeline", "eval_suite", "finetune", "isotorus", "launch", "pretrain")
# Imported once, by the process that all cases are forked from. It must not touch the GPU.
IMPORTED = ["torch", "timm", "pretrain.train", "pretrain.cost.plan", "benchmarks.on_gpu.runs"]
LOG_CHARACTERS = 3000


def start_server(imported: list[str] = IMPORTED) -> ForkServerContext:
    """Return the context in which cases are started, with the modules that they find imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(imported)
    return context


def run_case(
    context: ForkServerContext, case: str, setting: Setting, seconds: float, folder: Path
) -> dict[str, Any]:
    """Run `case`, the whole name of a `report.Case`, for at most `seconds`; return what it found.

    Besides what it reported there are "seconds", and if it failed "failures" and its "log".
    """
    report, log = folder / f"{case}.jsonl", folder / f"{case}.log"
    process = context.Process(target=_run, args=(case, setting, report, log))
    began = time.monotonic()
    process.start()
    process.join(seconds)
    timed_out = process.is_alive()
    if process.pid is not None and timed_out:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    found = {"seconds": round(time.monotonic() - began, 1)} | read(report)
    failures = found.get("failures", [])
    if timed_out:
        failures = [*failures, f"it did not end within {seconds:.0f} s"]
    elif process.exitcode and process.exitcode < 0:
        failures = [*failures, f"it was ended by {signal.Signals(-process.exitcode).name}"]
    elif process.exitcode and not failures:
        failures = [f"it ended with exit code {process.exitcode}"]
    if failures:
        found |= {"failures": failures, "log": log.read_text(errors="replace")[-LOG_CHARACTERS:]}
    return found


def _run(case: str, setting: Setting, report_file: Path, log: Path) -> None:
    """Run a case in this process, which may be killed at any time; its output goes to `log`."""
    os.setsid()  # a process group of its own, so that what the case starts ends with it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    report = Report(report_file)
    module, _, function = case.rpartition(".")
    try:
        getattr(importlib.import_module(module), function)(setting, report)
    except BaseException as error:
        missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
        if missing and missing.partition(".")[0] not in OURS:
            report.skip(f"{missing} is not installed")
            os._exit(0)
        traceback.print_exc()
        said = str(error).strip().split("\n")[0]
        report.check(False, f"{type(error).__name__}: {said}" if said else type(error).__name__)
        os._exit(1)
    os._exit(0)  # what torch would do at the end takes time, and may wait for the device
