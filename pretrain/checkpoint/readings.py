"""How a run read its data until a start that changed it: what encoder.json keeps of it.

The sample order is a function of these facts and the step, so they say which images a run has seen, also
where the checkpoints of then are gone.
"""

from typing import Any


def readings_before(saved: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the earlier readings of a run that continues the checkpoint `saved`, the oldest first.

    `saved` and `now` are the content of encoder.json, of which `now` needs only the keys of a reading. Each
    reading has the key `step`, the number of steps until which it holds.
    """
    earlier: list[dict[str, Any]] = saved.get("readings_before", [])
    if _order(saved) == _order(now):
        return earlier
    return [*earlier, {"step": saved["step"]} | _reading(saved)]


def _reading(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what determines the images that a run reads, and where its data sets were."""
    keys = ("seed", "data_fingerprint", "images", "channels", "channel_names", "supervised")
    config = {name: facts["config"][name] for name in ("data", "objective")}
    return {key: facts[key] for key in keys if key in facts} | {"config": config}


def _order(facts: dict[str, Any]) -> tuple[Any, ...]:
    """Return what determines the sample order alone."""
    data, labels = facts["config"]["data"], (facts.get("supervised") or {}).get("fingerprint")
    return facts["seed"], facts["data_fingerprint"], data["order"], data["batch_size"], labels
