"""DeepSpeed's launcher: on this node, and on two hosts over ssh and pdsh."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from isotorus.errors import UserError, exit_code
from launch.__main__ import main
from launch.deepspeed.deepspeed_options import select
from tests.distributed.runs import ENVIRONMENT, ROOT, losses, rows, train
from tests.launch.network import Network, network

SECONDS = 280
pytestmark = pytest.mark.timeout(2 * SECONDS)
LONG = ("steps=100000", "optimizer.final_lr_ratio=1", "checkpoint.every=100000")
ZERO = ("engine.kind=deepspeed", "engine.zero_stage=1")
CPU = {"DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("network"), 2) as made:
        yield made


started: list["Launched"] = []


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    while started:
        started.pop().end_all()


class Launched:
    """The running command, on node 1 or on this machine."""

    def __init__(self, nodes: Network | None, folder: Path, *arguments: str, **environment: str) -> None:
        self.nodes, self._said = nodes, folder / f"said{time.monotonic_ns()}"
        command = [sys.executable, "-m", "launch", "deepspeed", *arguments]
        with self._said.open("w") as file:
            self.process = subprocess.Popen(
                nodes.on(1, *command) if nodes else command,
                cwd=ROOT,
                env=ENVIRONMENT | CPU | environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

        started.append(self)

    def end_all(self) -> None:
        """Kill what a failed test would leave on this machine; processes on nodes end with their network."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self._said.read_text()

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said.splitlines() if "error: " in line]

    def end(self) -> int:
        return self.process.wait(SECONDS)

    def wait_for(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not happened():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def ranks(self) -> dict[int, psutil.Process]:
        """Return the processes that train, by rank, without their loaders of data."""
        if self.nodes:
            processes = [p for i in (1, 2) for p in self.nodes.processes(i)]
        else:
            processes = psutil.Process(self.process.pid).children(recursive=True)
        found = {}
        for process in processes:
            if process.cmdline()[1:4] == ["-u", "-m", "pretrain"]:
                found[int(process.environ()["RANK"])] = process
        return found

    def nothing_is_left(self) -> bool:
        assert self.nodes
        everything = [p for i in (1, 2) for p in self.nodes.processes(i)]
        return not [p for p in everything if p.status() != psutil.STATUS_ZOMBIE]


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Return a function that runs the command in this process: its exit code, stdout and stderr."""

    def launch(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["launch", "deepspeed", *map(str, arguments)])
        code = exit_code(main)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return launch


def test_include_and_exclude_are_deepspeeds():
    devices = {"a": [0, 1, 2], "b": [0, 1]}
    assert select(devices, "a@b:1", keep=True) == {"a": [0, 1, 2], "b": [1]}
    assert select(devices, "b:1,0", keep=True) == {"b": [0, 1]}
    assert select(devices, "a@b:1", keep=False) == {"b": [0]}
    for spec, said in {
        "c": "there is no host 'c', only a, b",
        "a:3": "host a has the slots 0 to 2, not '3'",
        "a:": "host a has the slots 0 to 2, not ''",
        "a@b": "leaves no slot",
    }.items():
        with pytest.raises(UserError, match=said):
            select(devices, spec, keep=False)


@pytest.mark.nightly
def test_one_node_trains_with_zero_1_and_says_which_rank_was_killed(recipe: Path, tmp_path: Path):
    arguments = ["--num-gpus", "2", "--", "--config", str(recipe), *ZERO, "stopping.requeue_code=85", *LONG]
    folder = tmp_path / "runs/tiny"
    run = Launched(None, tmp_path, *arguments)
    run.wait_for(lambda: any(row["step"] > 3 for row in rows(folder)))
    run.process.send_signal(signal.SIGUSR1)
    assert run.end() == 85, run.said
    stopped = max(losses(folder))
    assert (folder / f"checkpoints/step_{stopped:08d}/COMPLETE").exists() and not run.errors

    run = Launched(None, tmp_path, *arguments)
    run.wait_for(lambda: max(losses(folder)) > stopped + 3)
    assert f"continuing {folder} from step_{stopped:08d}" in run.said
    ranks = run.ranks()
    ranks[1].kill()
    assert run.end() == 137, run.said
    assert [line for line in run.errors if "rank 1, on host" in line and line.endswith("ended with signal 9")]
    assert not [rank for rank in ranks.values() if rank.is_running()]


@pytest.mark.nightly
def test_what_ranks_say_alike_is_said_once(recipe: Path, tmp_path: Path):
    run = Launched(None, tmp_path, "--num-gpus", "2", "--", "--config", str(recipe), "data.path=nowhere")
    assert run.end() == 2
    assert len(run.errors) == 1 and run.errors[0].startswith("error: nowhere is not a packed data set"), (
        run.said
    )


@pytest.mark.parametrize(
    ("hosts", "options", "said"),
    [
        ("a slots=2\na slots=2", "", "{hosts}, line 2: host a is in line 1 already"),
        ("a slots=0", "", "{hosts}, line 1: host a has slots=0"),
        ("a slots=2", "--num-gpus 3", "--num-gpus 3: host a has slots=2 in {hosts}"),
        ("a slots=2", "--num-nodes 2", "--num-nodes 2: {hosts} has 1 hosts"),
        ("a slots=2", "--include b", "--include b: there is no host 'b', only a"),
        ("a slots=2", "--include a --num-gpus 1", "--num-nodes and --num-gpus do not go with --include"),
        ("a slots=2", "--master_prot 1", "--master_prot is no option of deepspeed"),
        (
            "a slots=2\nb slots=7",
            "",
            "{hosts} has 9 slots for data.batch_size=8; each rank needs at least one image",
        ),
        ("a slots=2", "--launcher pdsh --ssh ssh4", "--ssh: pdsh has no option for another client"),
    ],
)
def test_refused_before_any_host_is_asked(
    recipe: Path, tmp_path: Path, hosts: str, options: str, said: str, here: Here
):
    file = tmp_path / "hosts"
    file.write_text(hosts)
    code, out, error = here("-H", file, *options.split(), "--", "--config", recipe)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {said.format(hosts=file)}") and error.count("\n") == 1, error


def require(launcher: str) -> None:
    if not shutil.which(launcher):
        pytest.skip(f"{launcher} is missing: apt-get install {launcher}")


def by(launcher: str, nodes: Network, recipe: Path) -> list[str]:
    """Return the arguments that start the recipe on all nodes; skip the test if there is no such launcher."""
    require(launcher)
    return ["--hostfile", str(nodes.hostfile()), "--launcher", launcher, "--", "--config", str(recipe)]


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", ["ssh", "pdsh"])
def test_two_hosts_train_save_stop_and_resume(nodes: Network, recipe: Path, tmp_path: Path, launcher: str):
    arguments = by(launcher, nodes, recipe)
    secret = {"AWS_SECRET_ACCESS_KEY": "s3cr3t", "NCCL_DEBUG": 'a "b" $c'}
    strange = tmp_path / "a [$(HOME)] b"  # for a shell; the recipe itself would put a variable in
    folder = strange / "tiny"
    run = Launched(nodes, tmp_path, *arguments, *ZERO, *LONG, f"runs={strange}", **secret)
    run.wait_for(lambda: any(row["step"] > 3 for row in rows(folder)))
    everything = [" ".join(p.cmdline()) for i in (1, 2) for p in nodes.processes(i)]
    assert not [command for command in everything if "s3cr3t" in command]
    environments = [rank.environ() for rank in run.ranks().values()]
    assert [e["NCCL_DEBUG"] for e in environments] == [secret["NCCL_DEBUG"]] * 2
    carried = [e.get("AWS_SECRET_ACCESS_KEY") for e in environments]
    assert carried == (["s3cr3t"] * 2 if launcher == "ssh" else [None] * 2)
    assert ("not passed on" in run.said and "AWS_SECRET_ACCESS_KEY" in run.said) == (launcher == "pdsh")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 0, run.said
    stopped = max(losses(folder))
    assert (folder / f"checkpoints/step_{stopped:08d}/COMPLETE").exists() and run.nothing_is_left()

    steps = f"steps={stopped + 4}"
    more = (steps, "optimizer.final_lr_ratio=1", "checkpoint.every=100000", f"runs={strange}")
    run = Launched(nodes, tmp_path, *arguments, *ZERO, *more)
    assert run.end() == 0 and f"from step_{stopped:08d}" in run.said, run.said
    assert sorted(losses(folder)) == list(range(1, stopped + 5)) and run.nothing_is_left()


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", ["ssh", "pdsh"])
def test_two_hosts_are_one_and_a_killed_rank_is_named(
    nodes: Network, recipe: Path, tmp_path: Path, launcher: str
):
    folder = tmp_path / "runs/tiny"
    arguments = by(launcher, nodes, recipe)
    run = Launched(nodes, tmp_path, *arguments, "steps=6")
    assert run.end() == 0, run.said
    alone = tmp_path / "alone"
    alone.mkdir()
    assert train(1, recipe, "steps=6", f"runs={alone}").returncode == 0
    assert losses(folder) == pytest.approx(losses(alone / "tiny"), rel=1e-5)

    run = Launched(nodes, tmp_path, *arguments, *LONG)
    run.wait_for(lambda: max(losses(folder)) > 8)
    run.ranks()[1].kill()
    assert run.end() == 137, run.said
    if launcher == "ssh":
        (said,) = run.errors
        assert said.startswith("error: rank 1, on host node2, ended with signal 9; its log is in ")
    assert run.nothing_is_left()


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", ["ssh", "pdsh"])
def test_ranks_save_and_end_when_the_command_is_killed(
    nodes: Network, recipe: Path, tmp_path: Path, launcher: str
):
    folder = tmp_path / "runs/tiny"
    arguments = by(launcher, nodes, recipe)
    run = Launched(nodes, tmp_path, *arguments, *LONG)
    run.wait_for(lambda: max(losses(folder), default=0) > 8)
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + SECONDS
    while not run.nothing_is_left():
        assert time.monotonic() < deadline, run.said
        time.sleep(0.1)
    assert (folder / f"checkpoints/step_{max(losses(folder)):08d}/COMPLETE").exists(), run.said


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--master-port 22", "host node1: the port to meet at: Address already in use; give another --port"),
        ("--python /nowhere/python", "host node1: /nowhere/python -m launch.over_ssh.node in"),
    ],
)
def test_refused_before_anything_starts(
    nodes: Network, recipe: Path, tmp_path: Path, options: str, said: str
):
    arguments = ["--hostfile", str(nodes.hostfile()), *options.split(), "--", "--config", str(recipe)]
    run = Launched(nodes, tmp_path, *arguments)
    assert run.end() == 2
    assert run.said.startswith(f"error: {said}") and run.said.count("\n") == 1, run.said
    assert not (tmp_path / "runs").exists()


@pytest.mark.nightly
def test_hosts_that_are_not_reached_or_not_known(nodes: Network, recipe: Path, tmp_path: Path):
    file = tmp_path / "hosts"
    file.write_text("node1 slots=1\nlocalhost slots=1\n")  # no key of that name is known
    run = Launched(nodes, tmp_path, "-H", str(file), "--", "--config", str(recipe))
    assert run.end() == 2
    assert run.said.startswith("error: host localhost: ") and "ssh-keyscan localhost" in run.said, run.said
    nodes.cut(2)
    try:
        run = Launched(nodes, tmp_path, "-H", str(nodes.hostfile()), "--", "--config", str(recipe))
        assert run.end() == 2
    finally:
        nodes.join(2)
    assert run.said.startswith("error: host node2: ") and run.said.count("\n") == 1, run.said


@pytest.mark.parametrize("launcher", ["ssh", "pdsh"])
def test_dry_run_shows_all_and_no_secret(
    recipe: Path, tmp_path: Path, launcher: str, here: Here, monkeypatch: pytest.MonkeyPatch
):
    require(launcher)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-of-mine")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    options = ["--dry-run", "--master_port", "29477", "--launcher", launcher]
    code, said, _ = here("--num-gpus", "2", *options, "--", "--config", recipe)
    assert code == 0 and "-m deepspeed.launcher.launch --world_info=" in said
    assert "--master_port=29477" in said and "s3cr3t" not in said
    file = tmp_path / "hosts"
    file.write_text("node1 slots=2\nnode2 slots=2\n")
    code, said, error = here("-H", file, "-e", "node2:0", *options, "--", "--config", recipe)
    assert code == 0 and "s3cr3t" not in said + error and "--master_port=29477" in said, said + error
    if launcher == "ssh":
        assert "AWS_SECRET_ACCESS_KEY='***'" in said
        assert "# node1: ssh " in said and "# node2: ssh " in said
        assert [f"--node_rank={i}" in said for i in range(3)] == [True, True, False]
    else:
        assert "AWS_SECRET_ACCESS_KEY" not in said and "AWS_SECRET_ACCESS_KEY" in error
        assert "-m deepspeed.launcher.runner " in said and "--include=node1:0,1@node2:1" in said
        assert "NCCL_DEBUG=INFO\n" in said
