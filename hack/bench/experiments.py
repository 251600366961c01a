"""Tests of several versions side by side, on simulated rewards: `python -m hack.bench.experiments`.

Three versions get rewards of 0 or 1 at 20 requests per second in all, and are looked at every 5 seconds for an hour:
all equal, or one better by so much. Tidegate's contest and its bandit, beside two that everybody has at hand: a z-test
of the best against each of the others at every look (5%, halved for two comparisons), and the same test at one look
fixed beforehand, at the end. All see the same outcomes: each response's fate for each version is drawn before any rule
decides. Writes hack/bench/results/experiments.md.

Ends with 1 if a bound does not hold: the best version is put out in more runs than alpha allows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from tidegate import __version__
from tidegate.core.rollout.arms import Bandit, Contest
from tidegate.core.rollout.counts import Rewards

RESULTS = Path(__file__).parent / "results"
ARMS = ("control", "deep", "wide")
ALPHA, RATE, LOOK = 0.05, 20.0, 5.0
EVERY = 12
"""Looks between two changes of a bandit's weights."""
Z = NormalDist().inv_cdf(1 - ALPHA / 2)


@dataclass(frozen=True)
class Cell:
    """Mean rewards of the three versions."""

    name: str
    means: tuple[float, float, float]

    @property
    def best(self) -> str | None:
        """The one that is to be found; None if there is none."""
        return None if len(set(self.means)) == 1 else ARMS[int(np.argmax(self.means))]


CELLS = (
    Cell("equal, 0.5", (0.5, 0.5, 0.5)),
    Cell("equal, 0.05", (0.05, 0.05, 0.05)),
    Cell("0.05 better of 0.5", (0.5, 0.55, 0.5)),
    Cell("0.02 better of 0.05", (0.05, 0.07, 0.05)),
    Cell("0.2 better of 0.5", (0.5, 0.7, 0.4)),
)


@dataclass
class Outcome:
    """What a rule made of one run."""

    winner: str | None = None
    at: float | None = None
    """Seconds."""
    wrong: bool = False
    """The best version, or, of equal ones, any, was put out."""
    regret: float = 0.0
    """Rewards that were missed, beside giving every request to the best version."""


def looks(rng: np.random.Generator, cell: Cell, count: int) -> Iterator[npt.NDArray[np.float64]]:
    """Outcomes of each look: for each request and version whether it would be liked, shape (requests, 3)."""
    for _ in range(count):
        yield (rng.random((rng.poisson(RATE * LOOK), 3)) < cell.means).astype(float)


def counted(
    fates: npt.NDArray[np.float64], lanes: npt.NDArray[np.float64], weights: dict[str, int]
) -> dict[str, Rewards]:
    """Rewards of each version at its weight; `lanes` are numbers in [0, 100), one a request."""
    out, low = {}, 0.0
    for index, arm in enumerate(ARMS):
        mine = fates[(lanes >= low) & (lanes < low + weights[arm]), index]
        out[arm] = Rewards(len(mine), float(mine.sum()), float(mine.sum()))
        low += weights[arm]
    return out


def regret(cell: Cell, rewards: dict[str, Rewards]) -> float:
    """Expected rewards that one look misses."""
    return sum((max(cell.means) - mean) * rewards[arm].count for arm, mean in zip(ARMS, cell.means, strict=True))


def contest(cell: Cell, rng: np.random.Generator, count: int) -> Outcome:
    """An ABTest: those that are proven worse are out, and the others share their requests."""
    rule, out, even = Contest(ARMS, ALPHA), Outcome(), _even(ARMS)
    for number, fates in enumerate(looks(rng, cell, count), start=1):
        rewards = counted(fates, rng.random(len(fates)) * 100, even)
        out.regret += regret(cell, rewards)
        if out.winner is None:
            before = rule.alive
            rule.observe(LOOK, rewards)
            if rule.alive != before:
                even = _even(rule.alive)
                rule.weight_changed()
            out.winner, out.at = rule.winner, number * LOOK if rule.winner else None
    out.wrong = len(rule.alive) < 3 if cell.best is None else cell.best not in rule.alive
    return out


def bandit(cell: Cell, rng: np.random.Generator, count: int) -> Outcome:
    """A bandit, with the contest's word on which is best."""
    rule, judge, out, weights = Bandit(ARMS), Contest(ARMS, ALPHA), Outcome(), _even(ARMS)
    for number, fates in enumerate(looks(rng, cell, count), start=1):
        rewards = counted(fates, rng.random(len(fates)) * 100, weights)
        out.regret += regret(cell, rewards)
        rule.observe(LOOK, rewards)
        judge.observe(LOOK, rewards)
        if out.winner is None and judge.winner:
            out.winner, out.at = judge.winner, number * LOOK
        if number % EVERY == 0:
            weights = rule.weights(weights)
            judge.weight_changed()
    out.wrong = len(judge.alive) < 3 if cell.best is None else cell.best not in judge.alive
    return out


def z_test(cell: Cell, rng: np.random.Generator, count: int, *, peeking: bool) -> Outcome:
    """The largest mean against each of the others, at every look or at the last alone; the winner gets everything."""
    out, weights = Outcome(), _even(ARMS)
    totals = {arm: Rewards() for arm in ARMS}
    for number, fates in enumerate(looks(rng, cell, count), start=1):
        rewards = counted(fates, rng.random(len(fates)) * 100, weights)
        out.regret += regret(cell, rewards)
        for arm, new in rewards.items():
            totals[arm] = Rewards(totals[arm].count + new.count, totals[arm].total + new.total, 0.0)
        if out.winner is None and number > 6 and (peeking or number == count) and (best := _significant(totals)):
            out.winner, out.at = best, number * LOOK
            weights = dict.fromkeys(ARMS, 0) | {best: 100}
    out.wrong = out.winner is not None and out.winner != cell.best
    return out


def _significant(totals: dict[str, Rewards]) -> str | None:
    means = {arm: seen.total / seen.count for arm, seen in totals.items() if seen.count}
    best = max(means, key=lambda arm: means[arm])
    for arm in means:
        if arm == best:
            continue
        both = (totals[arm], totals[best])
        pooled = sum(seen.total for seen in both) / sum(seen.count for seen in both)
        spread = sqrt(pooled * (1 - pooled) * sum(1 / seen.count for seen in both))
        if not spread or (means[best] - means[arm]) / spread < Z:
            return None
    return best


def _even(arms: tuple[str, ...]) -> dict[str, int]:
    share, more = divmod(100, len(arms))
    return dict.fromkeys(ARMS, 0) | {arm: share + (index < more) for index, arm in enumerate(arms)}


RULES = {
    "Tidegate, ABTest": contest,
    "Tidegate, Bandit": bandit,
    "z-test at every look": lambda cell, rng, count: z_test(cell, rng, count, peeking=True),
    "z-test at the end": lambda cell, rng, count: z_test(cell, rng, count, peeking=False),
}


def row(cell: Cell, rule: str, outcomes: list[Outcome]) -> str:
    """One line of the table."""
    runs = len(outcomes)
    right = sum(cell.best is not None and o.winner == cell.best for o in outcomes)
    times = sorted(o.at for o in outcomes if o.at is not None and o.winner == cell.best)
    when = f"{times[len(times) // 2]:.0f} / {times[int(len(times) * 0.9)]:.0f} s" if times else "-"
    missed = sum(o.regret for o in outcomes) / runs
    found = f"{right / runs:.0%}" if cell.best else "-"
    wrong = sum(o.wrong for o in outcomes) / runs
    return f"| {cell.name} | {rule} | {wrong:.1%} | {found} | {when} | {missed:.0f} |"


def main() -> None:
    """Runs everything and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="runs of each cell and rule (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=1.0, help="how long each lasts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    count, began, lines, broken = int(given.hours * 3600 / LOOK), time.process_time(), [], []
    for cell in CELLS:
        for name, rule in RULES.items():
            outcomes = [rule(cell, np.random.default_rng([given.seed, run]), count) for run in range(given.runs)]
            lines.append(row(cell, name, outcomes))
            print(lines[-1], flush=True)
            wrong, limit = sum(o.wrong for o in outcomes), ALPHA * given.runs
            if name.startswith("Tidegate") and wrong > limit + 3 * sqrt(limit):
                broken.append(f"{cell.name}, {name}: {wrong} of {given.runs} put the best version out")
    took = time.process_time() - began
    page = f"""# Tests of several versions, side by side

Made by `make bench-experiments` with Tidegate {__version__}: {given.runs} runs of each cell and rule,
seed {given.seed}, each {given.hours:g} h at {RATE:g} requests/s with a look every {LOOK:g} s, in
{took:.0f} s of one core.

*Wrong*: the best version was put out or, where all are equal, any was. *Found*: the best one was declared the winner,
and when (median / 90th percentile). *Missed*: rewards that were missed over the whole time, beside giving every request
to the best version, on average. The z-tests hold the best mean against each of the others, at 5% for both together.

| rewards | rule | wrong | found | after | missed |
|---|---|---|---|---|---|
{chr(10).join(lines)}
"""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "experiments.md").write_text(page)
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
