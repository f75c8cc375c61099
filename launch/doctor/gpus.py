"""Check by nvidia-smi that each host has as many GPUs as ranks, and that they are healthy and free."""

import csv
import shutil
import subprocess

from launch.doctor.findings import ByHost, Facts, Finding, Status, grouped, ok, skipped, span

_FIELDS = (
    "index",
    "uuid",
    "name",
    "driver_version",
    "memory.total",
    "memory.used",
    "temperature.gpu",
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.hw_slowdown",
    "clocks_throttle_reasons.hw_thermal_slowdown",
    "clocks_throttle_reasons.sw_thermal_slowdown",
    "clocks_throttle_reasons.hw_power_brake_slowdown",
)
HOT = 85
"""Degrees Celsius at rest. From about this temperature on GPUs lower their clocks."""
USED = 0.05
"""The share of a GPU's memory that may be in use before the run."""


def measure() -> Facts:
    """Return the GPUs and their processes; no GPUs without nvidia-smi; "error" if nvidia-smi fails."""
    if shutil.which("nvidia-smi") is None:
        return {"gpus": []}
    try:
        gpus = _ask(f"--query-gpu={','.join(_FIELDS)}", _FIELDS)
        busy = _ask("--query-compute-apps=pid,gpu_uuid,name", ("pid", "uuid", "name"))
    except (subprocess.SubprocessError, OSError) as error:
        return {"gpus": [], "error": str(error)}
    return {"gpus": gpus, "processes": busy, "xid": _xid()}


def judge(facts: ByHost, ranks: dict[str, int]) -> list[Finding]:
    """Judge the GPUs; `ranks` holds the number of ranks by host."""
    if not any(own["gpus"] or own.get("error") for own in facts.values()):
        return skipped("GPUs", "none on any host: the run would train on CPUs")
    failed: dict[str, tuple[str, str]] = {}
    warned: dict[str, tuple[str, str]] = {}
    for host, own in facts.items():
        if error := _error(own, ranks[host]):
            failed[host] = error
        elif warning := _warning(own):
            warned[host] = warning
    findings = grouped("GPUs", Status.FAILED, failed) + grouped("GPUs", Status.WARNING, warned)
    names = {gpu["name"] for own in facts.values() for gpu in own["gpus"]}
    if len(names) > 1:
        observed = f"different GPUs: {', '.join(sorted(names))}; the slowest sets the pace"
        findings.append(Finding("GPUs", Status.WARNING, [], observed, "use hosts with equal GPUs"))
    if findings:
        return findings
    count = span((len(own["gpus"]) for own in facts.values()), "{:.0f}".format)
    heat = span(
        (float(gpu["temperature.gpu"]) for own in facts.values() for gpu in own["gpus"]), "{:.0f}".format
    )
    return ok("GPUs", f"{count} × {names.pop()} a host, free, {heat} °C, no errors")


def _error(own: Facts, ranks: int) -> tuple[str, str] | None:
    """Return the first reason why a host cannot run, and its remedy."""
    if own.get("error"):
        return f"nvidia-smi: {own['error']}", "reboot it, or leave the host out"
    gpus = own["gpus"]
    if len(gpus) < ranks:
        return f"{len(gpus)} GPUs for {ranks} ranks", "correct its slots, or find out why GPUs are missing"
    for gpu in gpus:
        name = f"GPU {gpu['index']}"
        errors = gpu["ecc.errors.uncorrected.volatile.total"]
        if errors.isdigit() and int(errors):
            return f"{name} has {errors} uncorrected ECC errors", "reset or replace it, or leave the host out"
        used, total = float(gpu["memory.used"]), float(gpu["memory.total"])
        others = [p for p in own["processes"] if p["uuid"] == gpu["uuid"]]
        if others:
            who = ", ".join(f"{p['name']} ({p['pid']})" for p in others)
            return f"{name} is in use by {who}", "end that, or leave the host out"
        if used > USED * total:
            return f"{used / 1024:.1f} of {total / 1024:.1f} GiB of {name} are in use", "find what holds them"
    return None


def _warning(own: Facts) -> tuple[str, str] | None:
    """Return the first reason why a host may be slow or break, and its remedy."""
    for gpu in own["gpus"]:
        name, heat = f"GPU {gpu['index']}", gpu["temperature.gpu"]
        slowed = [field for field in _FIELDS if "throttle" in field and gpu[field] == "Active"]
        if slowed:
            reasons = ", ".join(field.rpartition(".")[2] for field in slowed)
            return f"{name} is throttled ({reasons})", "check cooling and power"
        if heat.isdigit() and int(heat) >= HOT:
            return f"{name} has {heat} °C before anything runs", "check its cooling"
    if own["xid"]:
        return f"the kernel has logged: {own['xid']}", "look the Xid up at docs.nvidia.com; reset the GPU"
    return None


def _ask(query: str, fields: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of an nvidia-smi query, by field."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    smi = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = csv.reader(smi.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(fields, row, strict=True)) for row in rows if row]


def _xid() -> str:
    """Return the last GPU error (Xid) in the kernel's log, or "" if this user may not read it."""
    if shutil.which("dmesg") is None:
        return ""
    log = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace").stdout
    errors = [line.strip() for line in log.splitlines() if "NVRM: Xid" in line]
    return errors[-1] if errors else ""
