"""The tasks of srun and mpirun become ranks, and nothing else does."""

import os

import pytest

from isotorus import scheduled_ranks
from isotorus.errors import UserError

TORCH = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI", "MV2_", "PALS_", "MPI_")):
            monkeypatch.delenv(name)
    for name in TORCH:  # set first, so that what the product sets is removed again
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def ranks(monkeypatch: pytest.MonkeyPatch, **variables: object) -> tuple[str | None, ...]:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    scheduled_ranks.set_ranks()
    return tuple(os.environ.get(name) for name in TORCH[:5])


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"SLURM_PROCID": 1, "SLURM_STEP_NUM_TASKS": 2, "SLURM_LOCALID": 1, "SLURM_NNODES": 1},
            ("1", "2", "1", "2", "localhost"),
        ),
        (
            {
                "SLURM_PROCID": 5,
                "SLURM_STEP_NUM_TASKS": 6,
                "SLURM_LOCALID": 0,
                "SLURM_NODEID": 3,
                "SLURM_STEP_TASKS_PER_NODE": "2(x2),1(x2)",
                "SLURM_STEP_NODELIST": "gpu[08-11]",
                "PATH": "/nowhere",
            },
            ("5", "6", "0", "1", "gpu08"),
        ),
        (
            {
                "OMPI_COMM_WORLD_RANK": 3,
                "OMPI_COMM_WORLD_SIZE": 4,
                "OMPI_COMM_WORLD_LOCAL_RANK": 3,
                "OMPI_COMM_WORLD_LOCAL_SIZE": 4,
            },
            ("3", "4", "3", "4", "localhost"),
        ),
        ({"PMI_RANK": 1, "PMI_SIZE": 2, "MPI_LOCALNRANKS": 2}, ("1", "2", "1", "2", "localhost")),
        # A batch script, a single task, and a rank of torchrun are left as they are.
        ({"SLURM_PROCID": 0, "SLURM_NTASKS": 8}, (None,) * 5),
        ({"SLURM_PROCID": 0, "SLURM_STEP_NUM_TASKS": 1}, (None,) * 5),
        ({"SLURM_PROCID": 1, "SLURM_STEP_NUM_TASKS": 2, "RANK": 7}, ("7", None, None, None, None)),
    ],
)
def test_tasks_are_ranks(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, object], expected: tuple[str | None, ...]
) -> None:
    assert ranks(monkeypatch, **variables) == expected


def test_all_tasks_of_a_step_meet_at_one_port_and_two_steps_at_two(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = set()
    for step in (0, 1):
        for task in (0, 1):
            monkeypatch.delenv("RANK", raising=False)
            monkeypatch.delenv("MASTER_PORT", raising=False)
            step_id = {"SLURM_JOB_ID": 7, "SLURM_STEP_ID": step, "SLURM_STEP_NUM_TASKS": 2}
            ranks(monkeypatch, SLURM_PROCID=task, SLURM_NNODES=1, **step_id)
            ports.add((step, os.environ["MASTER_PORT"]))
    assert len(ports) == 2 and len({port for _, port in ports}) == 2


def test_tasks_on_unknown_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"OMPI_COMM_WORLD_RANK": 0, "OMPI_COMM_WORLD_SIZE": 4, "OMPI_COMM_WORLD_LOCAL_SIZE": 2}
    with pytest.raises(UserError, match="MASTER_ADDR"):
        ranks(monkeypatch, **variables)


@pytest.mark.parametrize(
    ("listed", "hosts"),
    [
        ("node1", ["node1"]),
        ("node[01-03,7],login", ["node01", "node02", "node03", "node7", "login"]),
        ("a[1-2]-ib,b3", ["a1-ib", "a2-ib", "b3"]),
    ],
)
def test_lists_of_hosts_in_short_form(listed: str, hosts: list[str]) -> None:
    assert scheduled_ranks.expand_hosts(listed) == hosts


def test_ranks_of_torchrun_on_a_node_are_no_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """They inherit the variables of the task that runs torchrun, but share the node's GPUs."""
    for name in ("TORCHELASTIC_RUN_ID", "CROSS_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not scheduled_ranks.is_task()
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert scheduled_ranks.is_task()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert not scheduled_ranks.is_task()


def test_hosts_of_a_step_are_known_without_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert scheduled_ranks.step_hosts() == []
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[2-3]")
    assert scheduled_ranks.step_hosts() == ["node2", "node3"]
