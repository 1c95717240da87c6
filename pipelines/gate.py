"""Whether a challenger takes over: what two models say of the same rows, by the rules of `evaluation.gate`.

Statistics alone: no table, no registry, no file. docs/promotion.md says the same in words for users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.config.steps import Gate, GateMetric
from recsys_moe.user_draws import FEWEST_USERS, UserDraws, over_draws

Floats = NDArray[np.floating[Any]]
Mode = Literal["refresh", "challenge"]

OVERALL = "overall"
LOWER_IS_BETTER: tuple[GateMetric, ...] = ("log_loss", "rmse")
CERTAIN = 0.05
"""A guarded metric is certainly worse where its adjusted p is below this."""


@dataclass(frozen=True)
class TaskRows:
    """One task on the rows judged: [rows] labels and what both models say; NaN where that is nothing."""

    kind: Literal["binary", "regression"]
    labels: Floats
    champion: Floats
    challenger: Floats

    @property
    def known(self) -> NDArray[np.bool_]:
        """[rows] whether there is a label and a score of both."""
        return np.isfinite(self.labels) & np.isfinite(self.champion) & np.isfinite(self.challenger)


@dataclass(frozen=True)
class PairedRows:
    """The rows that both models are judged by.

    Attributes:
        users: [rows] whose row it is.
        segments: [rows] the position of each row's segment in `segment_names`.
        tasks: by name.
    """

    users: NDArray[Any]
    segments: NDArray[np.integer[Any]]
    segment_names: Sequence[str]
    tasks: Mapping[str, TaskRows]


@dataclass(frozen=True)
class Line:
    """A metric of both models over all rows or one segment, and how they differ.

    Attributes:
        metric: `click/auc`.
        segment: its name, or `overall`.
        role: what the gate makes of it: `primary`, `guard` (of a metric or a segment) or `reported` only.
        rows: that have a label.
        positives: those of a binary task; None for a regression.
        difference: challenger minus champion; `low` and `high` are its 95 % interval over draws of users.
        p: of a guard: how likely a difference as bad as this, or worse, is without a true one, adjusted after Holm
            (1979) for the number of guards.
        verdict: `better`, `worse` or `even` by the interval; `blocks`; `too few` or `no rows`.
    """

    metric: str
    segment: str
    role: Literal["primary", "guard", "reported"]
    rows: int
    positives: int | None
    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    p: float | None
    verdict: str


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger takes over, and why, in sentences for a person; `table` has all that was compared.

    `mode` is None where the gate was not asked.
    """

    promoted: bool
    mode: Mode | None
    reasons: tuple[str, ...]
    table: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A line, and what decides about it.

    Attributes:
        gain: the difference, positive where the challenger is better; `gain_low` is its lower bound.
        chance: of a gain as low as this by luck alone.
        delta: how much may be lost.
    """

    line: Line
    gain: float
    gain_low: float
    chance: float
    delta: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows.

    Attributes:
        guards: other metrics, and segments, in which the challenger must not be certainly worse.
        reported: those with too little to judge by.
        calibration: the challenger's, by task, where there is enough to judge by.
    """

    primary: Difference
    guards: tuple[Difference, ...]
    reported: tuple[Difference, ...]
    calibration: Mapping[str, float]

    @property
    def table(self) -> tuple[Line, ...]:
        """All that was compared."""
        return tuple(one.line for one in (self.primary, *self.guards, *self.reported))


def compare(gate: Gate, task: str, rows: PairedRows) -> Comparison:
    """Measure both models by the gate's metrics, over all rows and over its segments.

    Args:
        gate: what is measured.
        task: whose metric is the primary one.
        rows: what both models say.
    """
    draws = UserDraws.of(rows.users, gate.draws, gate.seed)
    main = _Contest.of(draws, rows, task, gate.metric)
    enough = main.is_enough(None, gate.min_positives)
    primary = main.compared(OVERALL, None, "primary" if enough else "reported", gate.delta)
    guards, small = list[Difference](), list[Difference]()
    for guard in gate.guards:
        other = _Contest.of(draws, rows, guard.task, guard.metric)
        enough, delta = other.is_enough(None, gate.min_positives), gate.delta if guard.delta is None else guard.delta
        found = other.compared(OVERALL, None, "guard" if enough else "reported", delta)
        (guards if enough else small).append(found)
    for segment, inside in _guarded(gate, rows):
        enough = main.is_enough(inside, gate.min_positives)
        found = main.compared(segment, inside, "guard" if enough else "reported", gate.delta)
        (guards if enough else small).append(found)
    return Comparison(primary, _adjusted(guards), tuple(small), _calibrations(gate, task, rows))


def judge(
    gate: Gate, found: Comparison, mode: Mode, champion: str = "the champion", dead: Sequence[str] = ()
) -> Verdict:
    """Whether the challenger takes over, by all rules of the gate but that its data be newer.

    Args:
        gate: the rules.
        found: how both compare.
        mode: `refresh` or `challenge`.
        champion: how to call it in sentences.
        dead: names of the challenger's routed experts that hardly a row runs.
    """
    checks = [
        _primary_check(gate, found.primary, mode, champion),
        *_guard_checks(found.guards, champion),
        *_calibration_checks(gate, found.calibration),
        (not dead, f"hardly a row runs the routed experts {', '.join(dead)}" if dead else "no routed expert is dead"),
    ]
    failed = tuple(sentence for passed, sentence in checks if not passed)
    return Verdict(not failed, mode, failed or tuple(sentence for _, sentence in checks), found.table)


def support(rows: int, positives: int | None) -> int:
    """How much there is to judge by: rows of a regression, else positives or negatives, whichever are fewer."""
    return rows if positives is None else min(positives, rows - positives)


def metric_of(metric: GateMetric | None, kind: str) -> GateMetric:
    """The metric that is meant where none is written."""
    return metric or ("rmse" if kind == "regression" else "auc")


def _guarded(gate: Gate, rows: PairedRows) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The segments that are guarded, with the mask of their rows."""
    names = list(rows.segment_names)
    for segment in names if gate.segments == "all" else gate.segments:
        inside = rows.segments == (names.index(segment) if segment in names else -1)
        if gate.segments != "all" or inside.any():
            yield segment, inside


@dataclass(frozen=True)
class _Contest:
    """One metric of one task, of both models, ready to be measured over all rows and over segments."""

    draws: UserDraws
    rows: TaskRows
    known: NDArray[np.bool_]
    task: str
    metric: GateMetric
    orders: tuple[NDArray[np.int64], NDArray[np.int64]] | None

    @classmethod
    def of(cls, draws: UserDraws, paired: PairedRows, task: str, metric: GateMetric | None) -> Self:
        """Of a task, and its usual metric where none is named. Scores are sorted once for all segments."""
        rows = paired.tasks[task]
        metric = metric_of(metric, rows.kind)
        champion, challenger = (np.argsort(said, kind="stable") for said in (rows.champion, rows.challenger))
        return cls(draws, rows, rows.known, task, metric, (champion, challenger) if metric == "auc" else None)

    def is_enough(self, inside: NDArray[np.bool_] | None, fewest: int) -> bool:
        """Whether there is enough to judge by: users to draw from, and `fewest` rows of a regression, else positives
        and negatives."""
        where = self._where(inside)
        labels = self.rows.labels[where]
        positives = int((labels > 0.5).sum()) if self.rows.kind == "binary" else None
        return support(len(labels), positives) >= fewest and len(np.unique(self.draws.user[where])) >= FEWEST_USERS

    def compared(
        self,
        segment: str,
        inside: NDArray[np.bool_] | None,
        role: Literal["primary", "guard", "reported"],
        delta: float,
    ) -> Difference:
        """Both models over all rows, or over those `inside` a segment."""
        where = self._where(inside)
        champion, challenger = self._drawn(where)
        difference = challenger - champion
        found = over_draws(difference)
        sign = -1.0 if self.metric in LOWER_IS_BETTER else 1.0
        gain_low = found["low"] if sign > 0 else -found["high"]
        labels = self.rows.labels[where]
        line = Line(
            metric=f"{self.task}/{self.metric}",
            segment=segment,
            role=role,
            rows=len(labels),
            positives=None if self.rows.kind == "regression" else int((labels > 0.5).sum()),
            champion=float(champion[0]),
            challenger=float(challenger[0]),
            difference=found["mean"],
            low=found["low"],
            high=found["high"],
            p=None,
            verdict=_in_a_word(len(labels), role, sign * found["low"], sign * found["high"]),
        )
        return Difference(line, sign * found["mean"], gain_low, _chance(sign * difference), delta)

    def _where(self, inside: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        return self.known if inside is None else self.known & inside

    def _drawn(self, where: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        labels, both = self.rows.labels, (self.rows.champion, self.rows.challenger)
        if self.orders is not None:
            champion, challenger = (
                self.draws.auc(labels, said, where, order) for said, order in zip(both, self.orders, strict=True)
            )
            return champion, challenger
        formulas: dict[str, Callable[..., NDArray[np.float64]]] = {
            "gauc": self.draws.gauc,
            "log_loss": self.draws.log_loss,
            "rmse": self.draws.rmse,
        }
        return formulas[self.metric](labels, both[0], where), formulas[self.metric](labels, both[1], where)


def _in_a_word(rows: int, role: str, one_end: float, other_end: float) -> str:
    """What the interval of a gain says."""
    if role == "reported":
        return "too few" if rows else "no rows"
    if min(one_end, other_end) > 0:
        return "better"
    return "worse" if max(one_end, other_end) < 0 else "even"


def _chance(gain: NDArray[np.float64]) -> float:
    """The chance of a gain as low as this one without a true loss, by its spread over draws.

    The normal law gives it: what a correction for many segments asks about is rarer than 1 in 1,000 draws.
    """
    spread = float(np.nanstd(gain[1:], ddof=1)) if np.isfinite(gain[1:]).sum() > 1 else float("nan")
    if np.isnan(gain[0]) or np.isnan(spread):
        return 1.0
    if spread == 0.0:
        return float(gain[0] >= 0)
    return NormalDist().cdf(float(gain[0]) / spread)


def _adjusted(guards: Sequence[Difference]) -> tuple[Difference, ...]:
    """The guards with p adjusted after Holm (1979), and those that block."""
    order, worst = sorted(range(len(guards)), key=lambda place: guards[place].chance), 0.0
    found = list(guards)
    for rank, place in enumerate(order):
        one = guards[place]
        worst = max(worst, min(1.0, one.chance * (len(guards) - rank)))
        blocks = worst < CERTAIN and one.gain < -one.delta
        verdict = "blocks" if blocks else one.line.verdict
        found[place] = replace(one, line=replace(one.line, p=worst, verdict=verdict))
    return tuple(found)


Check = tuple[bool, str]


def _primary_check(gate: Gate, primary: Difference, mode: Mode, champion: str) -> Check:
    line, words = primary.line, _in_words(primary.line, champion)
    if line.role == "reported":
        of = "rows" if line.positives is None else "positives and as many negatives"
        wanted = f"gate.min_positives wants {gate.min_positives} {of}"
        if support(line.rows, line.positives) >= gate.min_positives:
            wanted = f"the rows are of fewer than {FEWEST_USERS} users, who say nothing of others"
        return False, f"{line.metric} cannot be judged: {wanted}; {words}"
    if mode == "challenge":
        return primary.gain_low > 0, f"{words}; a challenger must be certainly better"
    return primary.gain_low > -gate.delta, f"{words}; a refresh may lose less than {gate.delta:g}, certainly"


def _guard_checks(guards: Sequence[Difference], champion: str) -> list[Check]:
    blocking = [one for one in guards if one.line.verdict == "blocks"]
    if not blocking:
        return [(True, f"none of {len(guards)} guarded metrics and segments is certainly worse")]
    return [
        (False, f"{_in_words(one.line, champion)}; certainly worse, by more than {one.delta:g}") for one in blocking
    ]


def _in_words(line: Line, champion: str) -> str:
    """`click/auc in segment 1 is 0.7411, that of champion 3 0.7400: +0.0011 (-0.0004 to +0.0026)`."""
    where = "" if line.segment == OVERALL else f" in segment {line.segment}"
    values = f"is {line.challenger:.4f}, that of {champion} {line.champion:.4f}"
    return f"{line.metric}{where} {values}: {line.difference:+.4f} ({line.low:+.4f} to {line.high:+.4f})"


def _calibrations(gate: Gate, task: str, rows: PairedRows) -> dict[str, float]:
    """The challenger's predicted over observed of the primary task and of those guarded, where they are binary."""
    found = {}
    for name in dict.fromkeys([task, *(guard.task for guard in gate.guards)]):
        of = rows.tasks[name]
        labels, said = of.labels[of.known], of.challenger[of.known]
        if of.kind == "binary" and labels.sum() >= gate.min_positives:
            found[name] = float(said.sum(dtype=np.float64) / labels.sum(dtype=np.float64))
    return found


def _calibration_checks(gate: Gate, calibration: Mapping[str, float]) -> list[Check]:
    if gate.calibration is None:
        return []
    low, high = gate.calibration
    checks = []
    for task, value in calibration.items():
        inside = low <= value <= high
        words = (
            f"{task}: predicted over observed is {value:.2f}, {'inside' if inside else 'outside'} {low:g} to {high:g}"
        )
        checks.append((inside, words))
    return checks
