"""`launch torchrun` on one node: dry run, nothing to launch, and ranks that all fail."""

import subprocess
import sys


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "launch", *arguments], capture_output=True, text=True)


def test_dry_run_prints_the_command():
    done = launch("torchrun", "--dry-run", "--nproc-per-node", "2", "--", "--config", "x.yaml", "name=a b")
    assert done.returncode == 0
    assert done.stdout == "torchrun --nproc-per-node 2 -m pretrain --config x.yaml 'name=a b'\n"


def test_nothing_to_launch_is_refused():
    done = launch("torchrun", "--nproc-per-node", "2")
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing after --") and done.stderr.count("\n") == 1


def test_failure_of_all_ranks_is_one_line_and_its_exit_code():
    done = launch("torchrun", "--nproc-per-node", "2", "--", "--config", "no-such-recipe.yaml")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "no-such-recipe" in line]
    assert len(lines) == 1 and lines[0].startswith("error: --config no-such-recipe.yaml")
    assert "Traceback" not in done.stderr
