"""Manifests against the schemas that Kubernetes and Kubeflow publish; unknown fields fail."""

import re
from typing import Any

import kubeflow.training
import kubernetes_validate
from kubeflow.training import KubeflowOrgV1PyTorchJob
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

OLDEST, NEWEST = "1.31", "1.37"
"""Versions of Kubernetes; podFailurePolicy is stable since the first."""


def check(manifest: dict[str, Any]) -> None:
    """Raise ValidationError (of kubernetes_validate), ValueError or AssertionError if it is not valid."""
    if manifest["kind"] == "TrainJob":
        _check_train_job(manifest)
    elif manifest["kind"] == "PyTorchJob":
        _check_model(manifest, KubeflowOrgV1PyTorchJob, "")
        named = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
        kubernetes_validate.validate(named, NEWEST, strict=True)
        for replica in manifest["spec"]["pytorchReplicaSpecs"].values():
            pod = replica["template"] | {"apiVersion": "v1", "kind": "Pod"}
            kubernetes_validate.validate(pod, NEWEST, strict=True)
    else:
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(manifest, version, strict=True)


def _check_train_job(manifest: dict[str, Any]) -> None:
    """Read a TrainJob and write it again: unknown fields, which its models ignore, are then missing."""
    read = TrainerV1alpha1TrainJob.from_dict(manifest)
    assert read is not None
    assert read.to_dict() == manifest, f"{manifest} is read as {read.to_dict()}"


def _check_model(value: Any, model: type, where: str) -> None:
    """Compare a value with the types that a generated model of Kubeflow declares."""
    types: dict[str, str] = model.openapi_types  # type: ignore[attr-defined]
    names: dict[str, str] = model.attribute_map  # type: ignore[attr-defined]
    declared = {names[field]: kind for field, kind in types.items()}
    unknown = value.keys() - declared.keys()
    assert not unknown, f"{where or model.__name__} has no {sorted(unknown)}"
    for key, given in value.items():
        _check_type(given, declared[key], f"{where}.{key}")
    # The generated constructor asks for what is required.
    model(**{field: value[name] for field, name in names.items() if name in value})


def _check_type(value: Any, kind: str, where: str) -> None:
    if found := re.fullmatch(r"dict\(str, (.*)\)", kind):
        for key, each in value.items():
            _check_type(each, found[1], f"{where}.{key}")
    elif kind in ("int", "str", "bool"):
        assert type(value).__name__ == kind, f"{where}: {value!r} is no {kind}"
    elif kind.startswith("Kubeflow"):
        _check_model(value, getattr(kubeflow.training, kind), where)
