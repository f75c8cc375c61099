"""The check of a soak finds each fault that it is for."""

from typing import Any

from tests.soak.check import differences, growth, history, left_behind

STEPS = range(200, 230)


def sample(step: int, **changes: Any) -> dict[str, Any]:
    usual = {
        "step": step,
        "processes": {"rank": 2, "loader": 2},
        "rss_mb": {"rank": [800.0, 810.0]},
        "open_files": {"rank": [40, 41]},
        "files": {"/tmp": 3, "run folder, logs": step},
    }
    return usual | changes


def test_each_step_has_to_be_there_once():
    def rows(*steps: int) -> list[dict[str, Any]]:
        return [{"step": step, "loss": 1 / step} for step in steps]

    assert history(rows(1, 2, 3)) == []
    assert history(rows(1, 2, 2, 3)) and history(rows(1, 3)) and history(rows(1, 3, 2))
    undisturbed = {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert differences(rows(1, 2, 3), undisturbed) == []
    (said,) = differences(rows(1, 2, 3), undisturbed | {2: 0.5 * (1 + 2**-52)})
    assert "1 of 3 losses differ, from step 2 on, by 2.2e-16" in said


def test_what_grows_is_named():
    steady = [sample(step) for step in STEPS]
    assert growth(steady) == []  # logs grow by design
    for changes, name in (
        (lambda i: {"rss_mb": {"rank": [800.0 + 10 * (i - 200), 700.0]}}, "rss_mb of rank"),
        (lambda i: {"open_files": {"rank": [i - 160]}}, "open_files of rank"),
        (lambda i: {"processes": {"rank": 2 + (i - 200) // 10, "loader": 2}}, "processes of rank"),
        (lambda i: {"files": {"/tmp": i - 197}}, "files of /tmp"),
    ):
        (said,) = growth([sample(i, **changes(i)) for i in STEPS])
        assert said.startswith(name), said
    # A role that is there now and then, as between a fault and the next start, is compared with itself.
    assert growth([sample(i, processes={"rank": 2, "loader": 2} if i % 2 else {}) for i in STEPS]) == []


def test_processes_that_stay_are_named():
    assert left_behind([{"event": "a piece begins"}]) == []
    assert left_behind([{"event": "processes are left behind", "left": ["python -m pretrain"]}])
