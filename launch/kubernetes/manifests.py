"""The Kubernetes manifests of a run: an indexed Job with its Service, a PyTorchJob, or a TrainJob.

All three start the same command in every pod. The pods meet at the DNS name of the first pod, by the c10d
rendezvous of torchrun, so the command needs no variable that an operator sets.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from isotorus.errors import USER_ERROR
from launch.work import TRAIN, Work

PORT = 29400
KEPT = 7 * 24 * 3600
"""Seconds after which a finished Job is deleted."""
MARGIN = 30
"""Seconds between the end of `stopping.grace` and SIGKILL."""
RECIPES = "/etc/isotorus"
"""The folder of the recipe file in a pod."""
LABEL = "app.kubernetes.io/instance"
DIED_TOO_OFTEN = 10
"""How often each pod may fail before the run is given up. A lost node does not count."""

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Pods:
    """The pods of a run, one for each node."""

    name: str
    image: str
    nodes: tuple[int, int]
    """The smallest and the largest number of pods."""
    gpus: int
    """The number of GPUs in each pod. With 0 a pod trains on its CPUs with one rank."""
    arguments: list[str]
    """Arguments of the command `work`."""
    grace: float
    """stopping.grace, in seconds."""
    recipe: str | None = None
    """The text of the recipe file, which `arguments` name as `recipe_path`; None for a packaged recipe."""
    namespace: str | None = None
    cpus: str | None = None
    memory: str | None = None
    volumes: dict[str, str] = field(default_factory=dict)
    """The mount path of each persistent volume claim, by the name of the claim."""
    secrets: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of a Secret's name and the key that becomes an environment variable; "" stands for all keys."""
    env: dict[str, str] = field(default_factory=dict)
    service_account: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    runtime: str = "torch-distributed"
    """The ClusterTrainingRuntime of a TrainJob."""
    work: Work = TRAIN
    """The command. If it is divided into parts, it runs as a Job, because the pods of a Job are numbered."""


def recipe_path(name: str) -> str:
    """Return the path of the run's recipe file in its pods."""
    return f"{RECIPES}/{name}.yaml"


def job(pods: Pods) -> list[Manifest]:
    """Return an indexed Job, and a Service that gives pod 0 the name by which the others find it.

    Exit code 2 fails the Job at once. A pod that was evicted, or whose node was lost, is replaced, and this
    is not counted as a failure. After any other failure the pod is replaced, until there are too many
    failures.
    """
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(pods),
        # Pods need an address before they are ready, or they would wait for one another forever.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {LABEL: pods.name}},
    }
    template = _template(pods, "trainer", _command(pods, f"{pods.name}-0.{pods.name}"))
    template["spec"] |= {"restartPolicy": "Never", "subdomain": pods.name}
    nodes = pods.nodes[1]
    rules = [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [USER_ERROR]},
        },
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    spec = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": DIED_TOO_OFTEN * nodes,
        "podFailurePolicy": {"rules": rules},
        "podReplacementPolicy": "Failed",
        "ttlSecondsAfterFinished": KEPT,
        "template": template,
    }
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(pods), "spec": spec}
    return [*_config_map(pods), service, whole]


def pytorchjob(pods: Pods) -> list[Manifest]:
    """Return a PyTorchJob for Kubeflow's Training Operator, elastic if the number of pods is a range."""
    fewest, most = pods.nodes
    elastic = fewest < most
    first = f"{pods.name}-{'worker' if elastic else 'master'}-0"
    replica = {
        "restartPolicy": "OnFailure",
        # The operator looks for a container of this name.
        "template": _template(pods, "pytorch", _command(pods, first)),
    }
    replica["template"]["spec"]["containers"][0]["ports"] = [  # type: ignore[index]
        {"name": "pytorchjob-port", "containerPort": PORT}
    ]
    shares = {"Worker": most} if elastic else {"Master": 1, "Worker": most - 1}
    spec: Manifest = {
        "nprocPerNode": str(pods.gpus or 1),
        "runPolicy": {
            "backoffLimit": DIED_TOO_OFTEN * most,
            "cleanPodPolicy": "Running",
            "ttlSecondsAfterFinished": KEPT,
        },
        "pytorchReplicaSpecs": {
            kind: {"replicas": count, **replica} for kind, count in shares.items() if count
        },
    }
    if elastic:
        spec["elasticPolicy"] = {
            "minReplicas": fewest,
            "maxReplicas": most,
            "rdzvBackend": "c10d",
            "rdzvHost": first,
            "rdzvPort": PORT,
        }
    whole = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": _metadata(pods), "spec": spec}
    return [*_config_map(pods), whole]


def trainjob(pods: Pods) -> list[Manifest]:
    """Return a TrainJob for Kubeflow's Trainer, on a runtime whose job and container are named `node`.

    Settings for which the trainer has no field become a patch of the runtime's pods. Neither place accepts
    all keys of a Secret at once.
    """
    template = _template(pods, "node", _command(pods, f"{pods.name}-node-0-0.{pods.name}"))
    container = template["spec"]["containers"][0]
    mounts = {"name": "node", "volumeMounts": container["volumeMounts"]}
    patched = template["spec"] | {"containers": [mounts]}
    trainer = {
        "image": pods.image,
        "command": container["command"],
        "env": container["env"],
        "numNodes": pods.nodes[1],
        "resourcesPerNode": container["resources"],
    }
    replicated = {"name": "node", "template": {"spec": {"template": {"spec": patched}}}}
    patch = {
        "manager": "isotorus",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated]}}},
    }
    spec = {"runtimeRef": {"name": pods.runtime}, "trainer": trainer, "runtimePatches": [patch]}
    whole = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(pods),
        "spec": spec,
    }
    return [*_config_map(pods), whole]


KINDS: dict[str, Callable[[Pods], list[Manifest]]] = {
    "job": job,
    "pytorchjob": pytorchjob,
    "trainjob": trainjob,
}


def to_yaml(manifests: list[Manifest]) -> str:
    """Return the manifests as YAML documents that YAML 1.1 and 1.2 read in the same way."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes recipes as blocks, and quotes texts that Go's YAML, unlike PyYAML, reads as numbers (1e3)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    number = re.match(r"[-+.]?\d|[yYnN]$", text)
    style = "|" if "\n" in text else "'" if number else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


def _command(pods: Pods, first: str) -> list[str]:
    """Return the command that each pod runs; `first` is the address of the pod where all meet."""
    fewest, most = pods.nodes
    arguments = [_literal(word) for word in pods.arguments]
    if pods.work.by_parts:
        part = f' --part "$JOB_COMPLETION_INDEX"/{most}' if most > 1 else ""
        line = (
            f"exec python -P -m launch torchrun --standalone --nproc-per-node {pods.gpus or 1} "
            f'{pods.work.name} -- "$@"{part}'
        )
        return ["sh", "-c", _literal(line), "task", *arguments]
    torchrun = {
        "--nnodes": str(most) if fewest == most else f"{fewest}:{most}",
        "--nproc-per-node": str(pods.gpus or 1),
        "--rdzv-backend": "c10d",
        "--rdzv-endpoint": f"{first}:{PORT}",
        "--rdzv-id": pods.name,
        "--max-restarts": "3" if fewest == most else "100",
    }
    options = [word for option in torchrun.items() for word in option]
    named = [] if pods.work is TRAIN else [pods.work.name]
    return ["python", "-P", "-m", "launch", "torchrun", *options, *named, "--", *arguments]


def _literal(text: str) -> str:
    """Escape the text so that it arrives as it is: Kubernetes replaces $(NAME) by a variable and $$ by $."""
    return text.replace("$", "$$")


def _template(pods: Pods, container: str, command: list[str]) -> Manifest:
    """Return the pod template, whose only container has the given name and command."""
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    volumes: list[Manifest] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    for number, (claim, path) in enumerate(pods.volumes.items()):
        mounts.append({"name": f"claim-{number}", "mountPath": path})
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
    if pods.recipe is not None:
        mounts.append({"name": "recipe", "mountPath": RECIPES})
        volumes.append({"name": "recipe", "configMap": {"name": pods.name}})
    trainer: Manifest = {
        "name": container,
        "image": pods.image,
        "command": command,
        "env": _environment(pods),
        "resources": _resources(pods),
        "volumeMounts": mounts,
    }
    if whole := [name for name, key in pods.secrets if not key]:
        trainer["envFrom"] = [{"secretRef": {"name": name}} for name in whole]
    spec: Manifest = {
        "containers": [trainer],
        "volumes": volumes,
        "terminationGracePeriodSeconds": math.ceil(pods.grace) + MARGIN,
    }
    if pods.service_account:
        spec["serviceAccountName"] = pods.service_account
    if pods.node_selector:
        spec["nodeSelector"] = pods.node_selector
    return {"metadata": {"labels": {LABEL: pods.name}}, "spec": spec}


def _environment(pods: Pods) -> list[Manifest]:
    plain: list[Manifest] = [{"name": name, "value": _literal(value)} for name, value in pods.env.items()]
    keys = [(name, key) for name, key in pods.secrets if key]
    return plain + [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}} for name, key in keys
    ]


def _resources(pods: Pods) -> Manifest:
    requests = {name: size for name, size in (("cpu", pods.cpus), ("memory", pods.memory)) if size}
    limits: dict[str, str] = {"memory": pods.memory} if pods.memory else {}
    if pods.gpus:
        limits["nvidia.com/gpu"] = str(pods.gpus)
    return {"requests": requests, "limits": limits}


def _config_map(pods: Pods) -> list[Manifest]:
    """Return a ConfigMap with the recipe file, or an empty list for a packaged recipe."""
    if pods.recipe is None:
        return []
    file = recipe_path(pods.name).removeprefix(f"{RECIPES}/")
    data = {file: pods.recipe}
    return [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(pods), "data": data}]


def _metadata(pods: Pods) -> Manifest:
    where = {"namespace": pods.namespace} if pods.namespace else {}
    return {"name": pods.name, **where, "labels": {LABEL: pods.name}}
