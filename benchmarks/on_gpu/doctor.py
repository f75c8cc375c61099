"""What the check-up reads of the real nvidia-smi, whose output the tests only imitate."""

from benchmarks.on_gpu.report import Report, Setting
from launch.doctor import gpus


def doctor(setting: Setting, report: Report) -> None:
    """Ask nvidia-smi and judge its answer as for a host with one rank."""
    facts = gpus.measure()
    findings = gpus.judge({"here": facts}, {"here": 1})
    report.note(facts=facts, findings=[str(finding) for finding in findings])
    report.check(not facts.get("error"), f"nvidia-smi: {facts.get('error')}")
    if setting.device == "cpu":
        report.skip("the GPU row was made as on a machine without GPUs")
        return
    report.check(bool(facts["gpus"]), "nvidia-smi names no GPU")
    failed = [str(finding) for finding in findings if finding.status.name == "FAILED"]
    report.check(not failed, "; ".join(failed))
