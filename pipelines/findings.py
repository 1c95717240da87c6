"""What is worth knowing of a version, chosen from its numbers: where it loses, whom it serves worse, who is idle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

_NO_BASELINES = ("model", "champion", "best attainable")
_CALIBRATION_OFF = 1.1
_BUSY = 3.0
_DEAD = 0.1
"""Times a fair share of the load from which on an expert dominates, and below which it is idle."""
_COLD_GAP = 0.03

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """A sentence in Markdown, what weight it has beside others, and the picture that shows it."""

    weight: float
    text: str
    picture: str | None = None


def findings(evaluation: Json | None, experts: Json | None, tags: Mapping[str, str]) -> list[Finding]:
    """All that there is to say, of most weight first: what is wrong, what has changed, then what is well.

    Args:
        evaluation, experts: evaluation.json and experts.json of a run, as far as it has them.
        tags: of the run.
    """
    found = [Finding(9, f"**A feature may leak the label**: {tags['leaks']}")] if tags.get("leaks") else []
    if evaluation is not None:
        found += [*_baselines(evaluation), *_segments(evaluation), *_calibration(evaluation), *_cold(evaluation)]
    if experts is not None:
        found += [*_load(experts), *_worth(experts)]
    return sorted(found, key=lambda finding: -finding.weight)


def baselines(evaluation: Json) -> dict[str, Json]:
    """The metrics of the models that a version should beat, by name and task."""
    return {name: of for name, of in evaluation["overall"].items() if name not in _NO_BASELINES}


def is_number(value: object) -> bool:
    """Whether a metric is defined."""
    return isinstance(value, int | float) and isfinite(value)


def signed(value: float, digits: int = 4) -> str:
    """A difference, with its sign."""
    return f"{value:+.{digits}f}"


def _auc(of_model: Json, task: str) -> float:
    value = of_model.get(task, {}).get("auc")
    return float(value) if is_number(value) else float("nan")


def _baselines(evaluation: Json) -> Iterator[Finding]:
    """The baseline that is surest to be better in some task; where none is better, the closest one."""
    own = evaluation["overall"]["model"]
    rivals = [
        (of["auc"] - _auc(own, task), of["auc"] - _number(own[task].get("auc_high"), of["auc"]), name, task, of["auc"])
        for name, tasks in baselines(evaluation).items()
        for task, of in tasks.items()
        if is_number(of.get("auc")) and is_number(_auc(own, task))
    ]
    if not rivals:
        return
    better = [one for one in rivals if one[0] > 0]
    ahead, above, name, task, auc = max(better, key=lambda one: one[1]) if better else max(rivals)
    values = f"on {task}, {name} has AUC {auc:.4f} and this version {_auc(own, task):.4f}"
    if better:
        doubt = ", inside its interval" if above < 0 else ""
        yield Finding(8 + 10 * ahead, f"**Loses to a baseline**: {values}{doubt}.", _by_segment(task))
    else:
        yield Finding(1, f"**Beats every baseline in every task**; closest: {values}.", _by_segment(task))


def _number(value: Any, otherwise: float) -> float:
    return float(value) if is_number(value) else otherwise


def _by_segment(task: str) -> str:
    return f"auc_by_segment/{task}"


def _segments(evaluation: Json) -> Iterator[Finding]:
    """Where the interval of the difference from the champion leaves out 0: the surest loss, the surest gain."""
    differences = [
        (of["auc"]["difference"], of["auc"]["low"], of["auc"]["high"], task, segment)
        for task, segments in evaluation.get("against_champion", {}).items()
        for segment, of in segments.items()
        if segment != "overall" and is_number(of.get("auc", {}).get("difference")) and is_number(of["auc"].get("low"))
    ]
    # Of many segments the surest one, not the one that is furthest off: that is often just small.
    lost, won = min(differences, key=lambda d: d[2], default=None), max(differences, key=lambda d: d[1], default=None)
    is_worse, is_better = lost is not None and lost[2] < 0, won is not None and won[1] > 0
    if lost is not None and is_worse:
        yield Finding(6 - 10 * lost[2], f"**Worse for a segment**: {_difference(*lost)}", _by_segment(lost[3]))
    if won is not None and is_better:
        yield Finding(3 + 10 * won[1], f"**Better for a segment**: {_difference(*won)}", _by_segment(won[3]))
    if differences and not is_worse and not is_better:
        most = max(differences, key=lambda one: abs(one[0]))
        text = f"**No segment is clearly better or worse than with the champion**; the most: {_difference(*most)}"
        yield Finding(0.9, text, _by_segment(most[3]))


def _difference(difference: float, low: float, high: float, task: str, segment: str) -> str:
    return (
        f"{segment}, {task} AUC {signed(difference)} against the champion "
        f"(95 % interval {signed(low)} to {signed(high)})."
    )


def _calibration(evaluation: Json) -> Iterator[Finding]:
    own = evaluation["overall"]["model"]
    found = {task: of.get("calibration") for task, of in own.items()}
    known = {task: value for task, value in found.items() if is_number(value) and value > 0}
    if not known:
        return
    task = max(known, key=lambda name: abs(log(known[name])))
    off = abs(log(known[task]))
    if off > log(_CALIBRATION_OFF):
        much = "too often" if known[task] > 1 else "too rarely"
        times = f"{known[task]:.2f} times as often as it happens"
        yield Finding(4 + off, f"**Calibration is off**: {task} is predicted {much}, {times}.", "calibration")
    else:
        span = f"{min(known.values()):.2f} to {max(known.values()):.2f}"
        text = f"**Calibrated**: tasks are predicted {span} times as often as they happen."
        yield Finding(0.8, text, "calibration")


def _cold(evaluation: Json) -> Iterator[Finding]:
    """Users, or items, that training has not seen, where they are served much worse than the others."""
    gaps = [
        (groups["others"]["auc"] - of["auc"], task, group, of, groups["others"])
        for task, groups in evaluation.get("cold", {}).items()
        for group, of in groups.items()
        if group != "others" and is_number(of.get("auc")) and is_number(groups.get("others", {}).get("auc"))
    ]
    if not gaps:
        return
    gap, task, group, cold, others = max(gaps, key=lambda one: one[0])
    text = (
        f"**{group.capitalize()}**: {task} AUC {cold['auc']:.4f} on {cold['rows']:,.0f} rows, "
        f"{others['auc']:.4f} on the others."
    )
    is_clear = gap > max(_COLD_GAP, 2 * _standard_error(cold))
    yield Finding(2 + 5 * gap if is_clear else 0.5, text)


def _standard_error(of: Json) -> float:
    """Of an AUC, from its counts, after Hanley & McNeil (1982)."""
    auc, positives = of["auc"], of["positives"]
    negatives = of["rows"] - positives
    both_above, both_below = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (both_above - auc**2) + (negatives - 1) * (both_below - auc**2)
    return float((max(variance, 0.0) / (positives * negatives)) ** 0.5)


def _load(experts: Json) -> Iterator[Finding]:
    load = experts.get("union_load", {})
    if len(load) < 2:
        return
    fair, busiest, idlest = 1 / len(load), max(load, key=load.__getitem__), min(load, key=load.__getitem__)
    dead = [name for name, share in load.items() if share < _DEAD * fair]
    if dead:
        yield Finding(5, f"**Idle experts**: {', '.join(dead)}, under a tenth of a fair share each.", "expert_load")
    if load[busiest] > _BUSY * fair:
        text = f"**One expert dominates**: {busiest} has {load[busiest]:.0%} of the load, a fair share is {fair:.0%}."
        yield Finding(4.5, text, "expert_load")
    if not dead and load[busiest] <= _BUSY * fair:
        span = f"{load[idlest]:.1%} to {load[busiest]:.1%} of the load each, {fair:.1%} is fair"
        yield Finding(0.7, f"**All {len(load)} routed experts are used**: {span}.", "expert_load")


def _worth(experts: Json) -> Iterator[Finding]:
    """The expert that a task would be better without for certain; else the one that is missed most."""
    worth = experts.get("knock_out", {})
    rises = [
        (of[task] / worth["loss"][task], name, task, worth["high"][name][task])
        for name, of in worth.get("rise", {}).items()
        for task in of
        if is_number(of[task]) and is_number(worth["loss"][task]) and worth["loss"][task] > 0
    ]
    if not rises:
        return
    harmful = [one for one in rises if is_number(one[3]) and one[3] < 0]
    if harmful:
        rise, name, task, _ = min(harmful)
        yield Finding(
            3, f"**An expert does harm**: without {name}, the loss of {task} falls by {-rise:.2%}.", "knock_out"
        )
    rise, name, task, _ = max(rises)
    yield Finding(0.6, f"**Most missed expert**: without {name}, the loss of {task} rises by {rise:.1%}.", "knock_out")
