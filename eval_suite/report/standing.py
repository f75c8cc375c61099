"""Where the pretrained encoder stands among its baselines, decided against the best of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from eval_suite.metrics import AVERAGED, METHODS, SCORES, headlines
from eval_suite.report.names import HEADS, is_untrained
from eval_suite.results import dig

Outcome = Literal["ahead", "ahead of untrained", "unclear", "behind"]
Results = Mapping[str, Any]


class Lead(NamedTuple):
    """By how much the pretrained encoder is better than one baseline, in units of the score."""

    baseline: str
    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 if the pretrained encoder is better beyond noise, −1 if it is worse beyond noise, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True)
class Standing:
    """The comparison by one method and one score. `best` is the lead over the baseline that scores best."""

    method: str
    score: str
    best: Lead
    untrained: Lead | None
    """The lead over the best of the untrained initialisations; None if none has the score."""
    without: tuple[str, ...]
    """Baselines that do not have the score."""

    @property
    def outcome(self) -> Outcome:
        """Decide among four outcomes; "ahead of untrained" means that another baseline is not beaten."""
        if self.best.sign > 0:
            return "ahead"
        if self.untrained is not None and self.untrained.sign > 0:
            return "ahead of untrained"
        return "behind" if self.best.sign < 0 else "unclear"

    @property
    def smallest(self) -> float | None:
        """Half the width of the interval: smaller effects are not detectable. None without an interval."""
        width = self.best.high - self.best.low
        return width / 2 if math.isfinite(width) else None


def standings(results: Results) -> list[Standing]:
    """Return the standing by each summarised method that can compare; the first one decides.

    Methods come in the order of `metrics.METHODS`, so that the linear probe is the first. The score is the
    deciding one of the kind of targets; it needs no threshold and detects smaller differences than others.
    """
    decisive = [score for score in headlines(results.get("kind")) if SCORES[score].decides]
    summarised = [name for name, method in METHODS.items() if method.summarised]
    found = (_standing(results, method, score) for method in summarised for score in decisive)
    return [standing for standing in found if standing is not None]


def baselines(results: Results) -> list[str]:
    """Return the names of the representations that the pretrained encoder is compared with."""
    return [name for name in results["representations"] if name != "pretrained" and name not in HEADS]


def leaders(results: Results, path: str) -> set[str]:
    """Return which representations are best in the score at `path`, such as probe/auroc, or level with it.

    Two representations are level if the paired interval of their difference holds 0; only differences to the
    pretrained encoder have one. Any other representation is level if it lies within the interval of the best.
    """
    score = path.rpartition("/")[2]
    values = {name: dig(of, path) for name, of in results["representations"].items()}
    sign = _sign(score)
    have = {name: sign * value for name, value in values.items() if value is not None}
    if not have:
        return set()
    best = max(have, key=lambda name: have[name])

    def level(name: str) -> bool:
        if have[name] == have[best]:
            return True
        if "pretrained" in (name, best):
            found = lead(results, path, best if name == "pretrained" else name)
            return found is not None and math.isfinite(found.high - found.low) and found.sign == 0
        low, high = _bounds(dig(results["representations"][best], f"{path}_interval"))
        return math.isfinite(high - low) and low <= values[name] <= high

    return {name for name in have if level(name)}


def lead(results: Results, path: str, baseline: str) -> Lead | None:
    """Return the lead over one baseline in the score at `path`; None if one of the two has no score.

    Its interval is the paired one. If the results have none, the intervals of the two scores are combined as
    if they were independent: the squares of half widths are added (Newcombe 1998, method 10).
    """
    ours, theirs = (dig(results["representations"][name], path) for name in ("pretrained", baseline))
    if ours is None or theirs is None:
        return None
    paired = dig(results.get("differences", {}), f"{baseline}/{path}")
    if paired is not None and paired.get("value") is not None:
        value, (low, high) = paired["value"], _bounds(paired.get("interval"))
    else:
        of = results["representations"]
        a, b = (_bounds(dig(of[name], f"{path}_interval")) for name in ("pretrained", baseline))
        value = ours - theirs
        low = value - math.hypot(ours - a[0], b[1] - theirs)
        high = value + math.hypot(a[1] - ours, theirs - b[0])
    if _sign(path.rpartition("/")[2]) < 0:
        return Lead(baseline, -value, -high, -low)
    return Lead(baseline, value, low, high)


def _standing(results: Results, method: str, score: str) -> Standing | None:
    """Compare by one method and score; None if the pretrained encoder or all baselines lack it.

    Averaged weights come from the same pretraining, so they do not tell whether it helps.
    """
    named = [name for name in baselines(results) if name != AVERAGED]
    leads = [found for name in named if (found := lead(results, f"{method}/{score}", name)) is not None]
    if not leads:
        return None
    compared = {found.baseline for found in leads}
    untrained = [found for found in leads if is_untrained(found.baseline)]
    return Standing(
        method,
        score,
        # The best baseline is the one over which the lead is smallest.
        min(leads, key=lambda found: found.value),
        min(untrained, key=lambda found: found.value, default=None),
        tuple(name for name in named if name not in compared),
    )


def _sign(score: str) -> int:
    return 1 if score not in SCORES or SCORES[score].higher_is_better else -1


def _bounds(interval: Any) -> tuple[float, float]:
    """Return the ends of an interval; infinite ones where there is no interval."""
    if not interval or None in interval:
        return -math.inf, math.inf
    return float(interval[0]), float(interval[1])
