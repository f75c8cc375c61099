"""`launch kubernetes`: its options and their checks; manifests are printed, written to a file or applied."""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from isotorus.errors import UserError, from_os_error
from isotorus.secrets import (
    holds_password,
    holds_registry_password,
    holds_secret,
    masked_command,
    may_be_secret,
)
from launch.kubernetes import manifests
from launch.kubernetes.manifests import Pods, recipe_path
from launch.recipe import Recipe, read_recipe
from launch.work import TRAIN, check_division

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_GRACE = 120.0
"""Seconds that another command than `train` has to end: the default of `stopping.grace`."""
_LONGEST_NAME = 50
"""In characters. Operators append to the name (-worker-12), and the result must fit a DNS label of 63."""


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "kubernetes",
        help="write the manifests of a run on a Kubernetes cluster",
        usage="isotorus launch kubernetes --name NAME --image IMAGE [options] [train] -- --config x.yaml "
        "[k=v …], or eval|embed|finetune -- their arguments",
        description="Prints YAML: an indexed Job with a headless Service, a PyTorchJob or a TrainJob.",
    )
    add = parser.add_argument
    kind = {"dest": "workload", "choices": list(manifests.KINDS), "default": "job"}
    add("--kind", **kind, help="kind of workload; the default, job, needs no operator")  # type: ignore[arg-type]
    add("--name", required=True, type=_name, help="name of the run and of its pods in the cluster")
    add("--namespace", type=_matches(_LABEL, 63), help="namespace; default: kubectl's current one")
    add("--image", required=True, type=_image, help="container image in which isotorus is installed")
    add("--nodes", type=_nodes, default=(1, 1), help="pods (default 1); MIN:MAX for an elastic pytorchjob")
    add("--gpus-per-node", type=_count, default=8, help="default 8; 0 trains on CPUs, one rank in each pod")
    add("--cpus", type=_quantity(r"\d+(\.\d{1,3})?|\d+m", "16 or 500m"), help="for each pod, 16 or 500m")
    memory = _quantity(r"\d+(\.\d+)?([kMGTPE]|[KMGTPE]i)", "200Gi")
    add("--memory", type=memory, help="request and limit of each pod, /dev/shm included, such as 200Gi")
    add("--pvc", action="append", default=[], metavar="CLAIM:/path", help="mount a volume claim; repeatable")
    add("--secret", action="append", default=[], metavar="SECRET[:KEY]", help="make one key or all keys of a "
        "Secret environment variables, for instance for S3 or MLflow; repeatable")  # fmt: skip
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="not for secrets; repeatable")
    dotted = _matches(rf"{_LABEL}(\.{_LABEL})*", 253)
    add("--service-account", type=dotted, help="service account of the pods")
    node = "run only on nodes with this label; repeatable"
    add("--node-selector", action="append", default=[], metavar="LABEL=VALUE", help=node)
    add("--runtime", type=dotted, default="torch-distributed", help="ClusterTrainingRuntime of a trainjob")
    add("--output", type=Path, metavar="FILE", help="write the YAML there instead of printing it")
    add("--apply", action="store_true", help="send the manifests to the cluster by kubectl apply")
    add("--dry-run", action="store_true", help="print what --apply would send")
    parser.set_defaults(start=start, trains=True, passes_options_on=False)


def start(args: argparse.Namespace, options: list[str], arguments: list[str]) -> int:
    """Write the manifests. Raise UserError for options that the cluster or the run would refuse."""
    if args.work is TRAIN:
        recipe = read_recipe(arguments)
        pods = _pods_of_recipe(args, recipe, arguments)
        _check(args.workload, pods, recipe)
    else:
        _check_other(args, arguments)
        pods = _pods(args, arguments, _GRACE, None)
    text = manifests.to_yaml(manifests.KINDS[args.workload](pods))
    if args.apply and not args.dry_run:
        return _apply(text)
    if args.output and not args.dry_run:
        try:
            args.output.write_text(text)
        except OSError as error:
            raise from_os_error(error, f"writing --output {args.output}") from None
    else:
        print(text, end="")
    return 0


def _pods_of_recipe(args: argparse.Namespace, recipe: Recipe, pretrain: list[str]) -> Pods:
    """Return the pods of a training run."""
    own = Path(recipe.path).is_file()
    text = Path(recipe.path).read_text() if own else ""
    if holds_password(text):
        raise UserError(
            f"--config {recipe.path} holds a URL with a password, which the manifest would show; take it "
            "out, also where it is a comment, and use --secret NAME"
        )
    if own:
        pretrain = ["--config", recipe_path(args.name), *recipe.overrides]
    return _pods(args, pretrain, recipe.config.stopping.grace, text if own else None)


def _pods(args: argparse.Namespace, arguments: list[str], grace: float, recipe: str | None) -> Pods:
    """Return the pods that the options describe; `recipe` is the text of a recipe's file."""
    return Pods(
        name=args.name,
        image=args.image,
        nodes=args.nodes,
        gpus=args.gpus_per_node,
        work=args.work,
        arguments=arguments,
        grace=grace,
        recipe=recipe,
        namespace=args.namespace,
        cpus=args.cpus,
        memory=args.memory,
        volumes=_pairs(
            "--pvc", args.pvc, ":", rf"{_LABEL}(\.{_LABEL})*", r"/[^:\x00-\x1f\x7f]+", "CLAIM:/path"
        ),
        secrets=[_secret(text, args.workload) for text in args.secret],
        env=_environment(args.env),
        service_account=args.service_account,
        node_selector=_pairs(
            "--node-selector",
            args.node_selector,
            "=",
            r"[A-Za-z0-9]([-A-Za-z0-9._/]*[A-Za-z0-9])?",
            r"([A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?)?",
            "LABEL=VALUE",
        ),
        runtime=args.runtime,
    )


def _check(kind: str, pods: Pods, recipe: Recipe) -> None:
    """Raise UserError if the pods cannot run the recipe."""
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


def _check_other(args: argparse.Namespace, arguments: list[str]) -> None:
    """Raise UserError for options with which a command other than `train` cannot run in pods."""
    work = args.work
    if work.name == "pack":
        raise UserError(
            "pack on Kubernetes has no last process that publishes the set; start pack --part I/N in pods of "
            "your own, or use launch slurm"
        )
    if args.workload != "job":
        raise UserError(f"{work.name} runs as --kind job, not {args.workload}; leave out --kind")
    if args.nodes[0] < args.nodes[1]:
        raise UserError(f"--nodes {args.nodes[0]}:{args.nodes[1]}: {work.name} takes one number of nodes")
    check_division(work, arguments, args.nodes[1])
    if secret := next((text for text in arguments if holds_secret(text)), None):
        raise UserError(f"{masked_command(secret)} would stand in the manifest; use --secret NAME")
    if not args.pvc:
        raise UserError(
            f"what {work.name} writes would be lost with the pod; mount a claim that holds the runs, --pvc "
            "CLAIM:/path"
        )


def _environment(assignments: list[str]) -> dict[str, str]:
    """Read the values of --env. Raise UserError for a secret."""
    variables = _pairs("--env", assignments, "=", _VARIABLE, r"[\s\S]*", "NAME=VALUE")
    for name, value in variables.items():
        if "\0" in value:
            raise UserError(f"--env {name}=… holds a NUL, which no variable can; take it out")
        if may_be_secret(name) or holds_secret(value):
            raise UserError(
                f"--env {name}=… looks like a secret, which the manifest would show; put it into a Secret "
                f"(kubectl create secret generic NAME --from-env-file FILE) and use --secret NAME"
            )
    return variables


def _secret(text: str, kind: str) -> tuple[str, str]:
    """Read the value of --secret: the name of a Secret, and a key or an empty string for all keys."""
    name, _, key = text.partition(":")
    if not re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", name) or (key and not re.fullmatch(_VARIABLE, key)):
        # The text may hold the value of a secret by mistake, so the error shows no part of it.
        raise UserError(
            "--secret: expected the name of a Secret of Kubernetes, or NAME:KEY, and never a value; create "
            "one with kubectl create secret generic NAME --from-env-file FILE"
        )
    if kind == "trainjob" and not key:
        raise UserError(
            f"--secret {name}: a trainjob takes keys one by one; write --secret {name}:AWS_ACCESS_KEY_ID …"
        )
    return name, key


def _pairs(
    option: str, texts: Iterable[str], separator: str, key: str, value: str, example: str
) -> dict[str, str]:
    """Split the values of an option at the separator; `key` and `value` are patterns of both sides."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, separated, rest = text.partition(separator)
        if not separated or not re.fullmatch(key, name) or not re.fullmatch(value, rest):
            raise UserError(f"{option} {masked_command(text)}: expected {example}")
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
    kubectl = subprocess.run(["kubectl", "apply", "-f", "-"], input=text, capture_output=True, text=True)
    print(kubectl.stdout, end="", file=sys.stdout)
    if kubectl.returncode:
        lines = [line for line in kubectl.stderr.splitlines() if line.strip()]
        raise UserError(f"kubectl apply: {lines[0] if lines else f'code {kubectl.returncode}'}")
    return 0


def _name(text: str) -> str:
    if len(text) > _LONGEST_NAME or not re.fullmatch(rf"(?=[a-z]){_LABEL}", text):
        raise UserError(
            f"--name {text}: expected at most {_LONGEST_NAME} of a-z, 0-9 and -, beginning with a letter and "
            "not ending with - (RFC 1123)"
        )
    return text


def _matches(pattern: str, longest: int) -> Callable[[str], str]:
    """Return an argument type that accepts texts of this pattern and length."""

    def check(text: str) -> str:
        if len(text) > longest or not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(
                f"'{text}' is no name in a cluster; use at most {longest} of a-z, 0-9 and - (RFC 1123)"
            )
        return text

    return check


def _image(text: str) -> str:
    if holds_registry_password(text):
        raise argparse.ArgumentTypeError(
            f"{text.rpartition('@')[2]} with a password, which the manifest would show; put it into a Secret "
            "that the service account names in imagePullSecrets"
        )
    if not re.fullmatch(r"[\w][\w./:@-]*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"'{text}' is no image; expected e.g. registry/isotorus:1.0")
    return text


def _nodes(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text, re.ASCII)
    fewest, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= fewest <= most:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number from 1 on, or MIN:MAX")
    return fewest, most


def _count(text: str) -> int:
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"'{text}': expected a number from 0 on")
    return int(text)


def _quantity(pattern: str, example: str) -> Callable[[str], str]:
    """Return an argument type that accepts positive quantities of this pattern."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII) or not re.search("[1-9]", text):
            raise argparse.ArgumentTypeError(f"'{text}' is no quantity; expected e.g. {example}")
        return text

    return check
