"""GPUs: as many as ranks, healthy, and free; by nvidia-smi, without a CUDA context."""

import csv
import shutil
import subprocess

from launch.doctor.findings import ByHost, Facts, Finding, Status, alike, ok, skipped, span

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
"""°C, at rest: from about there on GPUs lower their clocks."""
USED = 0.05
"""Share of the memory that may be in use before anything runs."""


def measure() -> Facts:
    """Empty where there is no nvidia-smi; "error" where it does not work."""
    if shutil.which("nvidia-smi") is None:
        return {"gpus": []}
    try:
        gpus = _ask(f"--query-gpu={','.join(_FIELDS)}", _FIELDS)
        busy = _ask("--query-compute-apps=pid,gpu_uuid,name", ("pid", "uuid", "name"))
    except (subprocess.SubprocessError, OSError) as error:
        return {"gpus": [], "error": str(error)}
    return {"gpus": gpus, "processes": busy, "xid": _xid()}


def judge(facts: ByHost, ranks: dict[str, int]) -> list[Finding]:
    """`ranks` of each host."""
    if not any(own["gpus"] or own.get("error") for own in facts.values()):
        return skipped("GPUs", "none on any host: the run would train on CPUs")
    failed: dict[str, tuple[str, str]] = {}
    warned: dict[str, tuple[str, str]] = {}
    for host, own in facts.items():
        found, remedy = _fault(own, ranks[host])
        if found:
            failed[host] = (found, remedy)
            continue
        found, remedy = _worry(own)
        if found:
            warned[host] = (found, remedy)
    findings = alike("GPUs", Status.FAILED, failed) + alike("GPUs", Status.WARNING, warned)
    names = {gpu["name"] for own in facts.values() for gpu in own["gpus"]}
    if len(names) > 1:
        found = f"different GPUs: {', '.join(sorted(names))}; the slowest sets the pace"
        findings.append(Finding("GPUs", Status.WARNING, [], found, "use hosts with equal GPUs"))
    if findings:
        return findings
    count = span((len(own["gpus"]) for own in facts.values()), "{:.0f}".format)
    heat = span(
        (float(gpu["temperature.gpu"]) for own in facts.values() for gpu in own["gpus"]), "{:.0f}".format
    )
    return ok("GPUs", f"{count} × {names.pop()} a host, free, {heat} °C, no errors")


def _fault(own: Facts, ranks: int) -> tuple[str, str]:
    if own.get("error"):
        return f"nvidia-smi: {own['error']}", "reboot it, or leave the host out"
    gpus = own["gpus"]
    if len(gpus) < ranks:
        return f"{len(gpus)} GPUs for {ranks} ranks", "correct its slots, or look why GPUs are missing"
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
    return "", ""


def _worry(own: Facts) -> tuple[str, str]:
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
    return "", ""


def _ask(query: str, fields: tuple[str, ...]) -> list[dict[str, str]]:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(fields, row, strict=True)) for row in rows if row]


def _xid() -> str:
    """The kernel's last word of a GPU's error, where this user may read its log."""
    if shutil.which("dmesg") is None:
        return ""
    said = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace").stdout
    found = [line.strip() for line in said.splitlines() if "NVRM: Xid" in line]
    return found[-1] if found else ""
