"""One command that starts all hosts over ssh: trains, resumes, stops, fails in one line, leaves nothing."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isotorus.errors import exit_code
from launch.__main__ import main
from tests.distributed.runs import losses, rows
from tests.launch.launched import Launched
from tests.launch.network import Network, network


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("network"), 3) as made:
        yield made


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("node1 slots=1\nnode2 slots=1\nnode3 slots=1\n")
    return path


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Return a function that runs the command in this process: its exit code, stdout and stderr."""

    def launch(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["launch", "torchrun", *map(str, arguments)])
        code = exit_code(main)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return launch


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_two_hosts_train_and_save_and_three_resume(nodes: Network, recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    two = ["--hosts", str(nodes.hostfile(1, [1, 2]))]
    secret = {"AWS_SECRET_ACCESS_KEY": "s3cr3t", "OMP_NUM_THREADS": "1"}
    run = Launched(nodes, tmp_path, *two, "--", "--config", str(recipe), "steps=6", **secret)
    run.wait_for(lambda: run.ranks(1) and run.ranks(2))
    everything = [" ".join(p.cmdline()) for i in (1, 2) for p in nodes.processes(i)]
    assert not [command for command in everything if "s3cr3t" in command]
    environments = [p.environ() for i in (1, 2) for p in run.ranks(i)]
    assert {e["AWS_SECRET_ACCESS_KEY"] for e in environments} == {"s3cr3t"}
    assert run.end() == 0, run.said
    assert list(losses(folder)) == [1, 2, 3, 4, 5, 6]
    assert "loss" in run.said  # rank 0 is seen at work
    assert {path.parts[-5] for path in folder.glob("logs/*/*/*/*/stderr.log")} == {"node1", "node2"}

    three = ["--hosts", str(nodes.hostfile())]
    run = Launched(nodes, tmp_path, *three, "--", "--config", str(recipe), "steps=12")
    assert run.end() == 0 and f"continuing {folder} from step_00000006" in run.said, run.said
    assert run.nothing_is_left()
    assert list(losses(folder)) == list(range(1, 13))


LONG = ("steps=100000", "optimizer.final_lr_ratio=1", "checkpoint.every=100000")


@pytest.mark.nightly
def test_a_signal_to_the_one_command_reaches_all_ranks(nodes: Network, recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    hosts = ["--hosts", str(nodes.hostfile(1, [1, 2])), "--", "--config", str(recipe), *LONG]
    stopped = 0
    for number, code in ((signal.SIGTERM, 0), (signal.SIGUSR1, 85), (signal.SIGINT, 130)):
        run = Launched(nodes, tmp_path, *hosts, "stopping.requeue_code=85")
        run.wait_for(lambda before=stopped: any(row["step"] > before + 2 for row in rows(folder)))
        run.process.send_signal(number)
        assert run.end() == code, run.said
        stopped = max(losses(folder))
        assert f"stopped by a signal after {stopped} of 100000 steps" in run.said
        assert (folder / f"checkpoints/step_{stopped:08d}/COMPLETE").exists()
        assert not lines(run.said) and run.nothing_is_left()


@pytest.mark.nightly
def test_no_orphans_where_the_command_is_killed(nodes: Network, recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    hosts = ["--hosts", str(nodes.hostfile(1, [1, 2])), "--", "--config", str(recipe), *LONG]
    run = Launched(nodes, tmp_path, *hosts)
    run.wait_for(lambda: rows(folder))
    os.killpg(run.process.pid, signal.SIGKILL)
    run.wait_for(run.nothing_is_left, alive=False)
    # The ranks have been asked to save.
    assert (folder / f"checkpoints/step_{max(losses(folder)):08d}/COMPLETE").exists()


@pytest.mark.nightly
def test_a_killed_rank_is_named_once_with_its_exit_code(nodes: Network, recipe: Path, tmp_path: Path):
    hosts = ["--hosts", str(nodes.hostfile(1, [1, 2])), "--", "--config", str(recipe), *LONG]
    run = Launched(nodes, tmp_path, *hosts)
    run.wait_for(lambda: rows(tmp_path / "runs/tiny"))
    run.ranks(2)[0].kill()
    assert run.end() == 137, run.said
    (said,) = lines(run.said)
    assert said.startswith("error: rank 1 on node2 was killed (SIGKILL)")
    assert run.nothing_is_left()


@pytest.mark.nightly
def test_what_a_rank_says_is_said_once(nodes: Network, recipe: Path, tmp_path: Path):
    hosts = ["--hosts", str(nodes.hostfile(1, [1, 2])), "--max-restarts", "3"]
    diverges = ("optimizer.lr=1e30", "optimizer.warmup_steps=0", "checkpoint.every=1")
    run = Launched(nodes, tmp_path, *hosts, "--", "--config", str(recipe), *diverges)
    assert run.end() == 2, run.said
    (said,) = lines(run.said)
    assert said.startswith("error: 3 updates in a row were refused")
    assert "continuing" not in run.said and run.nothing_is_left()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--nnodes 2:5", "error: --nnodes 2:5 with the 3 hosts of"),
        ("--rdzv-endpoint=x:1", "error: --rdzv-endpoint=x:1: --hosts decides that"),
        ("--env UNKNOWN", "error: --env UNKNOWN: it is not set here"),
        (
            "-- data.batch_size=2",
            "error: {hosts} has 3 slots for data.batch_size=2; each rank needs at least one image",
        ),
        ("-- nonsense=1", "error: unknown key 'nonsense'"),
    ],
)
def test_refused_before_any_host_is_asked(recipe: Path, hosts: Path, options: str, said: str, here: Here):
    before, _, after = options.partition("-- ")
    code, out, error = here("--hosts", hosts, *before.split(), "--", "--config", recipe, *after.split())
    assert (code, out) == (2, "") and error.startswith(said.format(hosts=hosts)) and error.count("\n") == 1


def test_dry_run_shows_all_and_no_secret(
    recipe: Path, hosts: Path, here: Here, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    options = ["--hosts", hosts, "--include", "node1,node2", "--nnodes", "1:2", "--port", "29477"]
    code, said, _ = here(*options, "--dry-run", "--", "--config", recipe)
    assert code == 0 and "s3cr3t" not in said and "AWS_SECRET_ACCESS_KEY='***'" in said
    for number, node in ((1, "node1"), (0, "node2")):
        assert f"# {node}: ssh " in said and f"is_host={number}," in said
    assert said.count("--nproc-per-node 1") == 2 and said.count("--rdzv-endpoint node1:29477") == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--port 22", "error: host node1: the port to meet at: Address already in use; give another --port"),
        pytest.param(
            "--python /nowhere/python",
            "error: host node1: /nowhere/python -m launch.over_ssh.node in",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_refused_before_anything_starts(
    nodes: Network, recipe: Path, tmp_path: Path, options: str, said: str
):
    hosts = ["--hosts", str(nodes.hostfile()), *options.split()]
    run = Launched(nodes, tmp_path, *hosts, "--", "--config", str(recipe))
    assert run.end() == 2
    assert run.said.startswith(said) and run.said.count("\n") == 1, run.said
    assert not (tmp_path / "runs").exists() and run.nothing_is_left()


@pytest.mark.nightly
def test_a_host_off_the_network_is_named(nodes: Network, recipe: Path, tmp_path: Path):
    nodes.cut(3)
    try:
        run = Launched(nodes, tmp_path, "--hosts", str(nodes.hostfile()), "--", "--config", str(recipe))
        assert run.end() == 2
    finally:
        nodes.join(3)
    assert run.said.startswith("error: host node3: ssh: connect to host node3") and run.said.count("\n") == 1
