"""Every node has to run the same code on the same libraries."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path

import torch

from launch.doctor.findings import ByHost, Facts, Finding, Status, ok

_PACKAGES = ("data_pipeline", "launch", "pretrain")
_MAY_DIFFER = {"driver", "python"}
"""In their last parts only; NCCL and torch have to be equal to the letter."""


def measure(driver: str | None) -> Facts:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None,
        "driver": driver,
        "isotorus": _installed("isotorus"),
        "deepspeed": _installed("deepspeed"),
        "mlflow": _installed("mlflow"),
        "own code": _fingerprint(),
    }


def judge(facts: ByHost) -> list[Finding]:
    findings = []
    names = next(iter(facts.values())).keys()
    for name in names:
        by_value: dict[str | None, list[str]] = {}
        for host, versions in facts.items():
            by_value.setdefault(versions[name], []).append(host)
        if len(by_value) == 1:
            continue
        usual = max(by_value, key=lambda value: len(by_value[value]))
        odd = [host for value, hosts in by_value.items() if value != usual for host in hosts]
        others = ", ".join(str(value) for value in by_value if value != usual)
        status = Status.WARNING if name in _MAY_DIFFER else Status.FAILED
        found = f"{name} {others}; the others have {usual}"
        findings.append(Finding("versions", status, odd, found, f"install {name} {usual} there"))
    shown = next(iter(facts.values()))
    text = ", ".join(f"{name} {value}" for name, value in shown.items() if value)
    return findings or ok("versions", text)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fingerprint() -> str:
    """Of all source files that a run uses."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]
