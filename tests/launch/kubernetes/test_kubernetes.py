"""Manifests: valid by the published schemas, run for real, and one line for what cannot work."""

import copy
import itertools
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from isotorus.errors import exit_code
from launch import __main__ as launcher
from tests.distributed.runs import ENVIRONMENT, losses
from tests.launch.kubernetes_schemas import check

OPTIONS = {
    "job": ["--nodes", "2", "--secret", "storage", "--secret", "mlflow:MLFLOW_TRACKING_PASSWORD"],
    "pytorchjob": ["--kind", "pytorchjob", "--nodes", "2", "--secret", "storage"],
    "elastic": ["--kind", "pytorchjob", "--nodes", "1:2", "--secret", "storage"],
    "trainjob": ["--kind", "trainjob", "--nodes", "2", "--secret", "storage:AWS_SECRET_ACCESS_KEY"],
}
COMMON = ["--namespace", "research", "--cpus", "8", "--memory", "64Gi", "--service-account", "trainer"]
COMMON += ["--node-selector", "pool=gpu", "--env", "MLFLOW_TRACKING_URI=http://mlflow:5000"]


def launch(*options: str, image: str = "isotorus:1", pretrain: list[Any]) -> int:
    """Run `python -m launch kubernetes` in this process; return its exit code."""
    sys.argv = ["launch", "kubernetes", "--name", "cells", "--image", image, *options]
    sys.argv += ["--", *map(str, pretrain)] if pretrain else []
    return exit_code(launcher.main)


@pytest.fixture(autouse=True)
def arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [])


@pytest.fixture
def pods(recipe: Path) -> list[str]:
    """The options of a claim that holds the runs, on CPUs."""
    return ["--gpus-per-node", "0", "--pvc", f"data:{recipe.parent}"]


def manifests(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.err == ""
    return list(yaml.safe_load_all(captured.out))


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("gpus", ["0", "4"])
def test_valid_by_the_schemas(kind: str, gpus: str, recipe: Path, pods: list[str], capsys: Any):
    options = [*OPTIONS[kind], *COMMON, *pods, "--gpus-per-node", gpus]
    assert launch(*options, pretrain=["--config", recipe]) == 0
    for manifest in manifests(capsys):
        check(manifest)
        assert manifest["metadata"]["namespace"] == "research"


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_schemas_refuse_what_they_do_not_know(kind: str, recipe: Path, pods: list[str], capsys: Any):
    launch(*OPTIONS[kind], *COMMON, *pods, pretrain=["--config", recipe])
    *_, whole = manifests(capsys)
    for number in range(len(_sections(whole))):
        damaged = copy.deepcopy(whole)
        section = _sections(damaged)[number]
        if _is_free(section):
            continue
        section["notAField"] = 1
        with pytest.raises(Exception, match=r"notAField"):
            check(damaged)


def _sections(value: Any) -> list[dict[str, Any]]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    below = list(itertools.chain.from_iterable(map(_sections, parts)))
    return [value, *below] if isinstance(value, dict) else below


def test_numbers_that_are_text_stay_text(recipe: Path, pods: list[str], capsys: Any):
    """Go's YAML reads 1e3 as a number, which PyYAML does not; a manifest with it would be refused."""
    launch(*pods, "--env", "A=1e3", "--env", "B=0o7", "--env", "C=true", pretrain=["--config", recipe])
    printed = capsys.readouterr().out
    assert all(f"value: '{text}'" in printed for text in ("1e3", "0o7", "true"))


def _is_free(section: dict[str, Any]) -> bool:
    """Return whether users choose the keys of a section: labels, quantities, replicas."""
    return any("/" in key or key in ("cpu", "memory", "pool", "Worker", "Master") for key in section) or (
        section == {}
    )


def test_two_pods_of_a_job_train_one_run(recipe: Path, pods: list[str], tmp_path: Path, capsys: Any):
    """Run the command of the manifest in its environment, with the pod's name replaced by an address."""
    options = ["--nodes", "2", *pods, "--env", "GREETING=$(HOME)"]
    launch(*options, pretrain=["--config", recipe, "encoder.weights=null"])
    config_map, service, job = manifests(capsys)
    template = job["spec"]["template"]
    container = template["spec"]["containers"][0]
    first = f"{job['metadata']['name']}-0.{template['spec']['subdomain']}"
    assert service["metadata"]["name"] == template["spec"]["subdomain"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert template["spec"]["terminationGracePeriodSeconds"] > 120  # stopping.grace

    mounted = tmp_path / "etc"
    mounted.mkdir()
    for name, text in config_map["data"].items():
        (mounted / name).write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    here = {f"{first}:29400": f"127.0.0.1:{port}", "/etc/isotorus": str(mounted), "$$(": "$("}
    nodes = []
    for index in range(2):
        command = container["command"]
        for given, replaced in here.items():
            command = [word.replace(given, replaced) for word in command]
        assert command[0] == "python"
        environment = {each["name"]: each["value"].replace("$$(", "$(") for each in container["env"]}
        assert environment == {"GREETING": "$(HOME)"}
        nodes.append(
            subprocess.Popen(
                [sys.executable, *command[1:]],
                env=ENVIRONMENT | environment | {"JOB_COMPLETION_INDEX": str(index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [node.communicate(timeout=280)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert list(losses(recipe.parent / "runs/tiny")) == list(range(1, 13))


def test_exit_code_of_bad_input_fails_the_job(recipe: Path, pods: list[str], capsys: Any):
    """podFailurePolicy fails the job for the exit code of bad input, and not for a disruption."""
    bad = launch(*pods, pretrain=["--config", "nowhere"])
    capsys.readouterr()
    launch(*pods, pretrain=["--config", recipe])
    fail, ignore = manifests(capsys)[-1]["spec"]["podFailurePolicy"]["rules"]
    assert fail["action"] == "FailJob" and fail["onExitCodes"]["values"] == [bad]
    assert ignore["action"] == "Ignore" and ignore["onPodConditions"][0]["type"] == "DisruptionTarget"


def test_packaged_recipes_need_no_config_map(capsys: Any, pods: list[str], recipe: Path):
    runs = f"runs={recipe.parent}/runs"
    assert launch(*pods, pretrain=["--config", "quickstart", runs]) == 0
    found = manifests(capsys)
    assert [manifest["kind"] for manifest in found] == ["Service", "Job"]
    command = found[1]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[-3:] == ["--config", "quickstart", runs]


REFUSED = {
    "no node": (["--nodes", "0"], "'0': expected a number from 1 on"),
    "fewer than the fewest": (["--nodes", "3:2"], "'3:2': expected a number from 1 on, or MIN:MAX"),
    "elastic job": (["--nodes", "1:2"], "--nodes 1:2 is for --kind pytorchjob"),
    "more ranks than the batch": (["--gpus-per-node", "16"], "are more than the 8 images of a batch"),
    "name": (["--name", "Cells_1"], "--name Cells_1: expected at most 50 of a-z, 0-9 and -"),
    "name with a digit first": (["--name", "1st"], "--name 1st: expected"),
    "long name": (["--name", "x" * 51], "expected at most 50"),
    "namespace": (["--namespace", "a.b"], "'a.b' is no name in a cluster"),
    "megabytes": (["--memory", "64GB"], "'64GB' is no quantity; expected e.g. 200Gi"),
    "millibytes": (["--memory", "512m"], "'512m' is no quantity"),
    "no memory": (["--memory", "0Gi"], "'0Gi' is no quantity"),
    "cpus": (["--cpus", "two"], "'two' is no quantity; expected e.g. 16 or 500m"),
    "claim without a path": (["--pvc", "data"], "--pvc data: expected CLAIM:/path"),
    "relative path": (["--pvc", "data:shards"], "--pvc data:shards: expected CLAIM:/path"),
    "secret by its name": (["--env", "AWS_SECRET_ACCESS_KEY=abc123"], "--env AWS_SECRET_ACCESS_KEY=…"),
    "password in a URL": (["--env", "MLFLOW_TRACKING_URI=http://me:abc123@host"], "use --secret NAME"),
    "value of a secret": (["--secret", "KEY=abc123"], "expected the name of a Secret"),
    "value after a name": (["--secret", "s:abc123=1"], "expected the name of a Secret"),
    "variable twice": (["--env", "A=1", "--env", "A=2"], "--env A is given twice"),
    "variable": (["--env", "1A=1"], "--env 1A=1: expected NAME=VALUE"),
    "trainjob's secret": (["--kind", "trainjob", "--secret", "s3"], "a trainjob takes keys one by one"),
    "image": (["--image", "my image"], "'my image' is no image"),
    "option": (["--gpu", "1", "--wrong", "1"], "--wrong is no option of kubernetes"),
    "output": (["--output", "/nowhere/x.yaml"], "writing --output /nowhere/x.yaml: No such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str, recipe: Path, pods: list[str], capsys: Any):
    options, expected = REFUSED[case]
    assert launch(*pods, *options, pretrain=["--config", recipe]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert expected in captured.err
    assert "abc123" not in captured.err


def test_what_would_be_lost_or_shown_is_refused(recipe: Path, pods: list[str], capsys: Any):
    assert launch("--gpus-per-node", "1", pretrain=["--config", recipe]) == 2
    assert "would be lost with it; mount a claim" in capsys.readouterr().err
    uri = "tracking.uri=http://me:abc123@host:5000"
    assert launch(*pods, pretrain=["--config", recipe, uri]) == 2
    error = capsys.readouterr().err
    assert "tracking.uri holds a URL with a password" in error and "abc123" not in error
    assert launch(*pods, pretrain=["--config", recipe, "step=3"]) == 2
    assert "unknown key 'step'" in capsys.readouterr().err
    assert launch(*pods, pretrain=[]) == 2
    assert "nothing after --" in capsys.readouterr().err


def test_apply_hands_kubectl_what_dry_run_prints(
    recipe: Path, pods: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("cat", "sh"):
        (tools / tool).symlink_to(Path(shutil.which(tool) or ""))
    monkeypatch.setenv("PATH", str(tools))
    options = [*pods, "--apply"]
    assert launch(*options, "--dry-run", pretrain=["--config", recipe]) == 0
    printed = capsys.readouterr().out
    assert launch(*options, pretrain=["--config", recipe]) == 2
    assert "there is no kubectl on this machine" in capsys.readouterr().err

    kubectl = tools / "kubectl"
    kubectl.write_text(
        f'#!{tools}/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/given\necho created\n'
    )
    kubectl.chmod(0o755)
    assert launch(*options, pretrain=["--config", recipe]) == 0
    assert capsys.readouterr().out == "created\n"
    assert (tmp_path / "given").read_text() == printed
    assert (tmp_path / "arguments").read_text() == "apply -f -\n"

    kubectl.write_text(f"#!{tools}/sh\necho 'error: no cluster' >&2\nexit 1\n")
    assert launch(*options, pretrain=["--config", recipe]) == 2
    assert capsys.readouterr().err == "error: kubectl apply: error: no cluster\n"


def test_output_is_what_is_printed(recipe: Path, pods: list[str], tmp_path: Path, capsys: Any):
    launch(*pods, pretrain=["--config", recipe])
    printed = capsys.readouterr().out
    assert launch(*pods, "--output", str(tmp_path / "run.yaml"), pretrain=["--config", recipe]) == 0
    assert (tmp_path / "run.yaml").read_text() == printed


def test_an_evaluation_in_numbered_pods(pods: list[str], tmp_path: Path, capsys: Any):
    """Each pod evaluates its part; the shell of the pod gets the arguments as they were given."""
    options = ["--nodes", "2", *COMMON, *pods, "eval"]
    assert launch(*options, pretrain=["runs/a $HOME", "--train", "t", "--val", "v"]) == 0
    found = manifests(capsys)
    for manifest in found:
        check(manifest)
    (job,) = (each for each in found if each["kind"] == "Job")
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    shell = [word.replace("$$", "$") for word in command]  # as Kubernetes does
    shell[2] = shell[2].replace("exec python", "printf '%s\\n'")
    done = subprocess.run(
        shell, env={"JOB_COMPLETION_INDEX": "1"}, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    assert words[words.index("eval") :] == [
        "eval",
        "--",
        "runs/a $HOME",
        *["--train", "t", "--val", "v", "--part", "1/2"],
    ]
    assert words[:7] == ["-P", "-m", "launch", "torchrun", "--standalone", "--nproc-per-node", "1"]


@pytest.mark.parametrize(
    ("options", "arguments", "said"),
    [
        (["pack"], ["a", "b"], "no last process"),
        (["--kind", "trainjob", "eval"], ["runs/a"], "runs as --kind job"),
        (["--nodes", "2", "eval"], ["runs/a", "--watch"], "--watch runs on one node"),
        (["eval"], ["runs/a", "--mlflow=http://u:secret@host"], "use --secret NAME"),
    ],
)
def test_other_work_that_cannot_run_in_pods(
    options: list[str], arguments: list[str], said: str, pods: list[str], capsys: Any
):
    assert launch(*pods, *options, pretrain=arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and "u:secret" not in error


def test_results_that_would_be_lost_with_the_pod_are_refused(capsys: Any):
    assert launch("embed", pretrain=["runs/a", "s", "--out", "v.parquet"]) == 2
    assert "lost with the pod" in capsys.readouterr().err
