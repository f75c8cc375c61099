"""Manifests of a run on Kubernetes, printed, written to a file, or applied by kubectl."""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from isotorus.errors import UserError, from_os_error
from launch.environment import hidden, masked
from launch.kubernetes import manifests
from launch.kubernetes.manifests import Pods, recipe_path
from launch.recipe import Recipe, read_recipe

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_LONGEST_NAME = 50
"""Characters: with what operators append to it (-worker-12) it has to be a DNS label of 63."""


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "kubernetes",
        help="manifests for a Kubernetes cluster",
        usage="python -m launch kubernetes --name NAME --image IMAGE [options] -- --config x.yaml [k=v …]",
        description="Prints YAML: an indexed Job with a headless Service, a PyTorchJob or a TrainJob.",
    )
    add = parser.add_argument
    kind = {"dest": "workload", "choices": list(manifests.KINDS), "default": "job"}
    add("--kind", **kind, help="default job, which needs no operator")  # type: ignore[arg-type]
    add("--name", required=True, type=_name, help="of the run in the cluster, and of its pods")
    add("--namespace", type=_matches(_LABEL, 63), help="default: kubectl's current one")
    add("--image", required=True, type=_image, help="with isotorus installed in it")
    add("--nodes", type=_nodes, default=(1, 1), help="pods; MIN:MAX for an elastic pytorchjob (default 1)")
    add("--gpus-per-node", type=_count, default=8, help="default 8; 0 trains on CPUs, a rank a pod")
    add("--cpus", type=_quantity(r"\d+(\.\d{1,3})?|\d+m", "16 or 500m"), help="CPUs a pod, 16 or 500m")
    memory = _quantity(r"\d+(\.\d+)?([kMGTPE]|[KMGTPE]i)", "200Gi")
    add("--memory", type=memory, help="of a pod and the most it may use, /dev/shm included, e.g. 200Gi")
    add("--pvc", action="append", default=[], metavar="CLAIM:/path", help="mount a volume claim; repeatable")
    add("--secret", action="append", default=[], metavar="SECRET[:KEY]", help="all keys of a Secret, or one, "
        "as environment variables (of S3, MLflow); repeatable")  # fmt: skip
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable, no secret; repeatable")
    add("--service-account", type=_matches(rf"{_LABEL}(\.{_LABEL})*", 253))
    add("--node-selector", action="append", default=[], metavar="LABEL=VALUE", help="repeatable")
    runtime = _matches(rf"{_LABEL}(\.{_LABEL})*", 253)
    add("--runtime", type=runtime, default="torch-distributed", help="ClusterTrainingRuntime of a trainjob")
    add("--output", type=Path, metavar="FILE", help="write the YAML there instead of printing it")
    add("--apply", action="store_true", help="send it to the cluster by kubectl")
    add("--dry-run", action="store_true", help="print what --apply would send")
    parser.set_defaults(start=start, trains=True, passes_options_on=False)


def start(given: argparse.Namespace, options: list[str], pretrain: list[str]) -> int:
    """Raises UserError for what the cluster, or the run in it, would refuse."""
    recipe = read_recipe(pretrain)
    pods = _pods(given, recipe, pretrain)
    _check(given.workload, pods, recipe)
    text = manifests.to_yaml(manifests.KINDS[given.workload](pods))
    if given.apply and not given.dry_run:
        return _apply(text)
    if given.output and not given.dry_run:
        try:
            given.output.write_text(text)
        except OSError as error:
            raise from_os_error(error, f"writing --output {given.output}") from None
    else:
        print(text, end="")
    return 0


def _pods(given: argparse.Namespace, recipe: Recipe, pretrain: list[str]) -> Pods:
    own = Path(recipe.path).is_file()
    return Pods(
        name=given.name,
        image=given.image,
        nodes=given.nodes,
        gpus=given.gpus_per_node,
        pretrain=["--config", recipe_path(given.name), *recipe.overrides] if own else pretrain,
        grace=recipe.config.stopping.grace,
        recipe=Path(recipe.path).read_text() if own else None,
        namespace=given.namespace,
        cpus=given.cpus,
        memory=given.memory,
        volumes=_pairs("--pvc", given.pvc, ":", rf"{_LABEL}(\.{_LABEL})*", r"/[^:]+", "CLAIM:/path"),
        secrets=[_secret(text, given.workload) for text in given.secret],
        env=_environment(given.env),
        service_account=given.service_account,
        node_selector=_pairs(
            "--node-selector",
            given.node_selector,
            "=",
            r"[A-Za-z0-9]([-A-Za-z0-9._/]*[A-Za-z0-9])?",
            r"([A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?)?",
            "LABEL=VALUE",
        ),
        runtime=given.runtime,
    )


def _check(kind: str, pods: Pods, recipe: Recipe) -> None:
    fewest, most = pods.nodes
    if fewest < most and kind != "pytorchjob":
        raise UserError(f"--nodes {fewest}:{most} is for --kind pytorchjob; a {kind} takes one number")
    batch = recipe.config.data.batch_size
    ranks = most * (pods.gpus or 1)
    if ranks > batch:
        raise UserError(
            f"{most} nodes with {pods.gpus or 1} ranks each are more than the {batch} images of a batch; "
            "use fewer nodes or a larger data.batch_size"
        )
    runs = PurePosixPath(recipe.config.runs)
    if not any(runs.is_relative_to(path) for path in pods.volumes.values()):
        raise UserError(
            f"runs={runs} lies in the pod and would be lost with it; mount a claim that all nodes write to, "
            "--pvc CLAIM:/path, and set runs=/path/runs"
        )


def _environment(given: list[str]) -> dict[str, str]:
    variables = _pairs("--env", given, "=", _VARIABLE, r"[\s\S]*", "NAME=VALUE")
    for name, value in variables.items():
        if hidden(name) or masked(value) != value:
            raise UserError(
                f"--env {name}=… looks like a secret, which the manifest would show; put it into a Secret "
                f"(kubectl create secret generic NAME --from-env-file FILE) and use --secret NAME"
            )
    return variables


def _secret(text: str, kind: str) -> tuple[str, str]:
    name, _, key = text.partition(":")
    if not re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", name) or (key and not re.fullmatch(_VARIABLE, key)):
        raise UserError(f"--secret {masked(text)}: expected the name of a Secret, or NAME:KEY; never a value")
    if kind == "trainjob" and not key:
        raise UserError(
            f"--secret {name}: a trainjob takes keys one by one; write --secret {name}:AWS_ACCESS_KEY_ID …"
        )
    return name, key


def _pairs(
    option: str, given: Iterable[str], between: str, key: str, value: str, like: str
) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        name, found, rest = text.partition(between)
        if not found or not re.fullmatch(key, name) or not re.fullmatch(value, rest):
            raise UserError(f"{option} {masked(text)}: expected {like}")
        if name in pairs:
            raise UserError(f"{option} {name} is given twice; give it once")
        pairs[name] = rest
    return pairs


def _apply(text: str) -> int:
    if shutil.which("kubectl") is None:
        raise UserError(
            "--apply: there is no kubectl on this machine; install it, or write the manifests with "
            "--output FILE and apply them where there is one"
        )
    done = subprocess.run(["kubectl", "apply", "-f", "-"], input=text, capture_output=True, text=True)
    print(done.stdout, end="", file=sys.stdout)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.strip()), f"code {done.returncode}")
        raise UserError(f"kubectl apply: {said}")
    return 0


def _name(text: str) -> str:
    if len(text) > _LONGEST_NAME or not re.fullmatch(rf"(?=[a-z]){_LABEL}", text):
        raise UserError(
            f"--name {text}: expected at most {_LONGEST_NAME} of a-z, 0-9 and -, beginning with a letter and "
            "not ending with - (RFC 1123)"
        )
    return text


def _matches(pattern: str, longest: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        if len(text) > longest or not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(
                f"'{text}' is no name in a cluster; use at most {longest} of a-z, 0-9 and - (RFC 1123)"
            )
        return text

    return check


def _image(text: str) -> str:
    if not re.fullmatch(r"[\w][\w./:@-]*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"'{text}' is no image; expected e.g. registry/isotorus:1.0")
    return text


def _nodes(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text, re.ASCII)
    fewest, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= fewest <= most:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number from 1 on, or MIN:MAX")
    return fewest, most


def _count(text: str) -> int:
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"'{text}': expected a number from 0 on")
    return int(text)


def _quantity(pattern: str, like: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII) or not re.search("[1-9]", text):
            raise argparse.ArgumentTypeError(f"'{text}' is no quantity; expected e.g. {like}")
        return text

    return check
