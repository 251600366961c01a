"""Runs rules on the same streams of requests, and sums up what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tidegate.simulate.rules import Method
from tidegate.simulate.streams import Counts, Floats, Ints, Mask, Streams, Traffic

CHUNK = 2000
"""Runs that are gone through at once; more would not fit into the processor's cache any better."""
HISTORY = 600.0
"""Seconds that the stable version is known for before a rollout begins."""

UNDECIDED, PROMOTED, ROLLED_BACK = 0, 1, 2


@dataclass(frozen=True)
class Result:
    """What one rule did: an entry per run."""

    rule: str
    outcome: Ints
    """UNDECIDED, PROMOTED or ROLLED_BACK."""
    time: Floats
    """Seconds from the start to the decision; to the end of the simulation if there was none."""
    bad: Ints
    """Bad responses that the candidate gave until then."""
    excess: Ints
    """Those of them that the stable version would not have given to the same requests."""


def run(
    traffic: Traffic,
    methods: Sequence[Method],
    *,
    runs: int,
    max_time: float = 7200.0,
    seed: int = 0,
    history: float = HISTORY,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Result]:
    """Simulates `runs` rollouts by each of the rules.

    `max_time` and `history` are in seconds; `progress` is told the share of the runs that are decided now and then.
    The same seed gives the same requests.
    """
    sizes = [min(CHUNK, runs - begin) for begin in range(0, runs, CHUNK)]
    seeds = np.random.SeedSequence(seed).spawn(len(sizes))
    parts: list[list[Result]] = []
    for i, (size, own) in enumerate(zip(sizes, seeds, strict=True)):
        done = sum(sizes[:i]) / runs

        def told(share: float, done: float = done, size: int = size) -> None:
            progress(done + share * size / runs)

        parts.append(_chunk(traffic, methods, size, own, max_time, history, told))
    return [
        Result(results[0].rule, *(np.concatenate([getattr(r, n) for r in results]) for n in _COLUMNS))
        for results in zip(*parts, strict=True)
    ]


_COLUMNS = ("outcome", "time", "bad", "excess")


class _Running:
    """One rule and what has come of its runs so far."""

    def __init__(self, method: Method, runs: int, rate: float) -> None:
        self.name, self.rule = method.name, method.begin(runs, rate)
        self.outcome, self.bad, self.excess = (np.zeros(runs, np.int64) for _ in range(3))
        self.time = np.zeros(runs)

    def on(self) -> Mask:
        undecided: Mask = self.outcome == UNDECIDED
        return undecided

    def observe(self, counts: Counts, dt: float, on: Mask) -> None:
        self.time[on] += dt
        self.bad += counts.candidate_bad
        self.excess += counts.excess
        promoted, rolled_back = self.rule.observe(counts, dt, on)
        self.outcome[on & promoted] = PROMOTED
        self.outcome[on & rolled_back] = ROLLED_BACK


def _chunk(
    traffic: Traffic,
    methods: Sequence[Method],
    runs: int,
    seed: np.random.SeedSequence,
    max_time: float,
    history: float,
    progress: Callable[[float], None],
) -> list[Result]:
    streams = Streams(traffic, runs, seed, max(method.top for method in methods))
    running = [_Running(method, runs, traffic.rate) for method in methods]
    for counts in streams.history(history):
        for one in running:
            one.rule.before(counts, traffic.dt)
    rows = np.arange(runs)  # those that requests are still drawn for
    for _ in range(round(max_time / traffic.dt)):
        ons = [one.on() for one in running]
        alive = np.logical_or.reduce(ons)[rows]
        if not alive.all():
            streams.keep(alive)
            rows = rows[alive]
            progress(1 - len(rows) / runs)
        if not len(rows):
            break
        lanes = streams.window()
        for one, on in zip(running, ons, strict=True):
            if on.any():
                one.observe(_spread(lanes.at(one.rule.weight[rows]), rows, on), traffic.dt, on)
    return [Result(one.name, one.outcome, one.time, one.bad, one.excess) for one in running]


def _spread(counts: Counts, rows: Ints, on: Mask) -> Counts:
    """Counts of `rows` among all runs; zeros for those that are not `on`."""

    def whole(column: Ints) -> Ints:
        out = np.zeros(len(on), np.int64)
        out[rows] = column
        out[~on] = 0
        return out

    return Counts(*(whole(getattr(counts, name)) for name in Counts.__dataclass_fields__))


@dataclass(frozen=True)
class Summary:
    """What came of many runs by one rule. Times are in seconds from the start, or from when the fault shows."""

    rule: str
    runs: int
    promoted: float
    """Share of the runs, without those that were promoted"""
    promoted_before: float
    """before the fault could show."""
    rolled_back: float
    undecided: float
    promotion: tuple[float, float] | None
    """Time to promotion, median and 90th percentile of those that were promoted since then; None if none was."""
    rollback: tuple[float, float] | None
    """Time to rollback, likewise."""
    bad: tuple[float, float, float]
    """Bad responses by the candidate in a run until the decision: mean, median and 90th percentile."""
    excess: tuple[float, float, float]
    """Those of them that the stable version would not have given."""


def summary(result: Result, since: float = 0.0) -> Summary:
    """Sums up. `since`: seconds from the start to when the fault shows."""

    def times(outcome: int) -> tuple[float, float] | None:
        found = result.time[(result.outcome == outcome) & (result.time > since)]
        if not len(found):
            return None
        median, late = np.quantile(found - since, (0.5, 0.9))
        return float(median), float(late)

    def amounts(column: Ints) -> tuple[float, float, float]:
        median, many = np.quantile(column, (0.5, 0.9))
        return float(column.mean()), float(median), float(many)

    def share(outcome: int) -> float:
        return float((result.outcome == outcome).mean())

    before = float(((result.outcome == PROMOTED) & (result.time <= since)).mean())
    return Summary(
        rule=result.rule,
        runs=len(result.outcome),
        promoted=share(PROMOTED) - before,
        promoted_before=before,
        rolled_back=share(ROLLED_BACK),
        undecided=share(UNDECIDED),
        promotion=times(PROMOTED),
        rollback=times(ROLLED_BACK),
        bad=amounts(result.bad),
        excess=amounts(result.excess),
    )
