"""Check that the MLflow server answers the first rank."""

from typing import TYPE_CHECKING

from isotorus import mlflow_store
from isotorus.secrets import masked_command
from launch.doctor.findings import Facts, Finding, Status, ok, skipped

if TYPE_CHECKING:
    from pretrain.monitoring.config import TrackingConfig


def measure(tracking: "TrackingConfig") -> Facts:
    """Ask the MLflow server for the experiment, without changing anything."""
    uri = tracking.store()
    if not tracking.enabled or "://" not in uri or uri.startswith(("sqlite:", "file:")):
        return {"uri": uri, "asked": False}
    try:
        mlflow_store.connect(uri, timeout=10).get_experiment_by_name(tracking.experiment)
    except Exception as error:  # a server, a proxy or a library can raise anything
        reason = masked_command(mlflow_store.reason(error))
        return {"uri": masked_command(uri), "asked": True, "error": reason}
    return {"uri": masked_command(uri), "asked": True}


def judge(facts: Facts, host: str, enabled: bool) -> list[Finding]:
    """Judge what the first rank of `host` measured; `enabled` is tracking.enabled."""
    if not enabled:
        return skipped("MLflow", "tracking.enabled=false")
    if not facts["asked"]:
        return ok("MLflow", f"{facts['uri']}, written by the first rank alone")
    if "error" in facts:
        denied = any(code in facts["error"] for code in ("401", "403"))
        remedy = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            if denied
            else "start it, or correct tracking.uri; a run trains without it and sends its metrics later"
        )
        text = f"{facts['uri']}: {facts['error']}"
        return [Finding("MLflow", Status.FAILED, [host], text[:400], remedy)]
    return ok("MLflow", f"{facts['uri']} answers {host}")
