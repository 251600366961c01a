"""Several versions on a goal that is to be as large as possible: which is the best, and where requests should go.

`Contest` compares all versions ("arms") with each other and drops those that are proven worse, until one is left.
`Bandit` sends more requests to those that are probably the best.

Both take the rewards of each arm, numbers in [0, 1]; a share of bad responses is a goal as well (`well`). The two go
together: every test of the contest stays valid whatever the weights are, as long as they depend on the past only and
the open block is thrown away when they change. What does not stay valid when weights follow the rewards are the plain
means: an arm that had bad luck early gets few requests and keeps its low mean, so the means of arms that lost are too
low on average. They are shown as what was seen, and no conclusion is drawn from them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import floor as whole
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate.core.rollout.counts import Requests, Rewards
from tidegate.core.rollout.evidence import LN10, Bools, EProcess, Floats
from tidegate.core.rollout.reward import PRIOR, RewardBlocks

_BLOCKS = 3
_SPREAD, _POINTS = 10.0, 257
"""Standard deviations to either side of a mean, and points among them, that chances are integrated over."""


def well(requests: Requests, slower_than: float | None = None) -> Rewards:
    """Responses as rewards: 1 for each that was no error or, given an edge in milliseconds, that was not slower."""
    if slower_than is None:
        good = requests.requests - requests.errors
        return Rewards(requests.requests, float(good), float(good))
    if slower_than not in requests.latency:
        raise ValueError(f"responses are not counted by {slower_than:g} ms, but by {sorted(requests.latency)}")
    good = requests.latency[slower_than]
    return Rewards(max(requests.latency.values()), float(good), float(good))


class Duels:
    """Pairs of arms, one a row: evidence that the first has a lower mean than the second, and the other way round.

    The empirical Bernstein test of `reward.py` with no drop allowed; with none, its two sides are the two directions.
    """

    def __init__(self, rows: int, threshold: npt.ArrayLike) -> None:
        self.first_worse = EProcess(rows, PRIOR, threshold, _BLOCKS)
        self.second_worse = EProcess(rows, PRIOR, threshold, _BLOCKS)
        self._blocks = RewardBlocks(rows, drop=0.0)

    def observe(
        self, on: Bools, dt: Floats, first: tuple[Floats, Floats, Floats], second: tuple[Floats, Floats, Floats]
    ) -> None:
        """One window of `dt` seconds: (count, sum, sum of squares) of both arms of each row."""
        rows, fell, held = self._blocks.add(on, dt, first, second)
        if rows.size:
            self.first_worse.update(rows, fell)
            self.second_worse.update(rows, held)

    def weight_changed(self) -> None:
        """Throws the open blocks away: how many requests an arm had in them could depend on its rewards in them."""
        self._blocks.clear(np.ones(len(self.first_worse.reserve), dtype=bool))

    def dump(self, row: int) -> dict[str, Any]:
        """State of one row for JSON."""
        return {
            "first": self.first_worse.dump(row),
            "second": self.second_worse.dump(row),
            "block": self._blocks.dump(row),
        }

    def load(self, row: int, state: Mapping[str, Any]) -> None:
        """Goes on from what `dump` wrote."""
        self.first_worse.load(row, state["first"])
        self.second_worse.load(row, state["second"])
        self._blocks.load(row, state["block"])


@dataclass(frozen=True)
class ArmReport:
    """What is known about one arm."""

    name: str
    count: int
    """Rewards so far."""
    mean: float | None
    """Plain mean of them; None before there is any. Of an arm that lost it is too low on average if weights follow
    the rewards."""
    out: str
    """Why it is out: the arm that it is worse than, or what `stop` was told. Empty: it is still in."""
    evidence: float
    """Largest e-value that it is worse than an arm that is still in, as a decimal logarithm; 0 if it is out itself."""
    needed: float
    """At which it is out."""


class Contest:
    """Finds the best of several arms. The chance that the best one is ever dropped is at most `alpha`.

    For each pair i, j the hypothesis "i is at least as good as j" is tested at alpha / (arms - 1), and i is dropped
    when an arm that is still in rejects it. For the best arm, all its arms - 1 hypotheses are true (union bound,
    Ville). Arms that are equally good stay in for ever, but for that chance: there is nothing to be found.
    """

    def __init__(self, arms: Sequence[str], alpha: float = 0.05, state: Mapping[str, Any] | None = None) -> None:
        """`state` is what `dump` wrote; one of other arms is left alone, and the contest begins anew. Under another
        alpha the evidence is the same, and is held against another limit.

        Raises ValueError for fewer than two arms, or a name that comes twice.
        """
        if len(arms) < 2 or len(set(arms)) != len(arms):
            raise ValueError("a contest needs two arms or more, each with its own name")
        if not 0 < alpha < 1:
            raise ValueError("alpha is a probability: it must lie between 0 and 1")
        self.arms, self.alpha = tuple(arms), alpha
        self._pairs = list(combinations(range(len(arms)), 2))
        self._duels = Duels(len(self._pairs), (len(arms) - 1) / alpha)
        self._seen = {arm: Rewards() for arm in arms}
        self._out: dict[str, str] = {}
        """The arm that it is worse than, by arm."""
        self._stopped: dict[str, str] = {}
        """Why it was stopped, by arm."""
        if not state or tuple(state["arms"]) != self.arms:
            return
        for row, pair in enumerate(state["pairs"]):
            self._duels.load(row, pair)
        self._seen = {arm: Rewards(*values) for arm, values in state["seen"].items()}
        self._out, self._stopped = dict(state["out"]), dict(state["stopped"])

    def dump(self) -> dict[str, Any]:
        """The state, for JSON."""
        return {
            "arms": list(self.arms),
            "pairs": [self._duels.dump(row) for row in range(len(self._pairs))],
            "seen": {arm: [seen.count, seen.total, seen.squares] for arm, seen in self._seen.items()},
            "out": self._out,
            "stopped": self._stopped,
        }

    def observe(self, dt: float, rewards: Mapping[str, Rewards]) -> None:
        """Takes in one window of `dt` seconds: the rewards of each arm that came in it; an arm without may be left out.

        Raises ValueError for rewards that cannot lie in [0, 1], or an arm that is not in the contest.
        """
        for arm, new in rewards.items():
            if arm not in self._seen:
                raise ValueError(f"{arm} is none of the arms {', '.join(self.arms)}")
            _check(arm, new)
            seen = self._seen[arm]
            self._seen[arm] = Rewards(seen.count + new.count, seen.total + new.total, seen.squares + new.squares)
        columns = [rewards.get(arm, Rewards()) for arm in self.arms]
        table = np.array([[float(new.count), new.total, new.squares] for new in columns])
        first, second = (tuple(table[[pair[i] for pair in self._pairs]].T) for i in (0, 1))
        rows = len(self._pairs)
        self._duels.observe(np.ones(rows, dtype=bool), np.full(rows, dt), first, second)
        self._drop()

    def weight_changed(self) -> None:
        """The weights have changed: what has been counted since the last whole block belongs to none."""
        self._duels.weight_changed()

    def stop(self, arm: str, why: str) -> None:
        """Takes an arm out for another reason than the goal: a guardrail. It can no longer win or drop others.

        Those that it has dropped are in again, unless it was dropped itself, by one that they are worse than as well:
        to be worse than what nobody may have is no reason to be out.
        """
        if arm not in self._seen:
            raise ValueError(f"{arm} is none of the arms {', '.join(self.arms)}")
        self._stopped.setdefault(arm, why)
        while freed := [a for a, better in self._out.items() if better in self._stopped and better not in self._out]:
            self._out = {worse: better for worse, better in self._out.items() if worse not in freed}

    def _against(self) -> list[tuple[float, str, str]]:
        """(log e-value, arm, the better one) for each ordered pair of arms that are still in, the strongest first."""
        first, second = self._duels.first_worse.log_e(), self._duels.second_worse.log_e()
        alive, out = self.alive, []
        for row, (i, j) in enumerate(self._pairs):
            one, other = self.arms[i], self.arms[j]
            if one in alive and other in alive:
                out += [(float(first[row]), one, other), (float(second[row]), other, one)]
        return sorted(out, key=lambda entry: -entry[0])

    def _drop(self) -> None:
        needed = float(self._duels.first_worse.needed[0])
        while (against := self._against()) and against[0][0] >= needed:
            _, worse, better = against[0]
            self._out[worse] = better

    @property
    def alive(self) -> tuple[str, ...]:
        """Arms that are still in."""
        return tuple(arm for arm in self.arms if arm not in self._out and arm not in self._stopped)

    @property
    def winner(self) -> str | None:
        """The only arm that is still in."""
        return self.alive[0] if len(self.alive) == 1 else None

    def report(self) -> tuple[ArmReport, ...]:
        """What is known about each arm."""
        needed = float(self._duels.first_worse.needed[0]) / LN10
        strongest: dict[str, float] = {}
        for value, arm, _ in self._against():
            strongest.setdefault(arm, value / LN10)
        return tuple(
            ArmReport(
                name=arm,
                count=seen.count,
                mean=seen.total / seen.count if seen.count else None,
                out=self._out.get(arm) or self._stopped.get(arm, ""),
                evidence=strongest.get(arm, 0.0),
                needed=needed,
            )
            for arm, seen in self._seen.items()
        )


class Bandit:
    """Weights that follow the chance of each arm to be the best (Thompson 1933), within limits.

    share = floor + (1 - arms * floor) * P(best), with P from Beta(1 + S, 1 + n - S) for n rewards that sum to S. Old
    rewards fade by half each `half_life`, so that weights follow when another arm becomes the best; the price is that
    they never settle wholly: about `rate * half_life / ln 2` rewards are remembered. Every arm keeps `floor` percent,
    or there would be nothing to learn from, and no weight moves by more than `most` points at once.
    """

    def __init__(
        self,
        arms: Sequence[str],
        *,
        floor: int = 5,
        most: int = 10,
        half_life: float = 6 * 3600.0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """`floor` and `most` in percent, `half_life` in seconds; `state` is what `dump` wrote. An arm that it does not
        know begins with nothing. Raises ValueError for limits that cannot be kept."""
        if len(arms) < 2 or len(set(arms)) != len(arms):
            raise ValueError("a bandit needs two arms or more, each with its own name")
        if not (0 <= floor * len(arms) <= 100 and most >= 1 and half_life > 0):
            raise ValueError(
                f"{len(arms)} arms with a floor of {floor}% each: together they must not exceed 100%; a weight must be "
                "able to move by 1 point at least, and half_life is more than 0 s"
            )
        self.arms, self.floor, self.most, self.half_life = tuple(arms), floor, most, half_life
        known = (state or {}).get("counts", {})
        self._counts: dict[str, tuple[float, float]] = {arm: tuple(known.get(arm, (0.0, 0.0))) for arm in arms}
        """By arm: number and sum of its rewards, faded."""

    def dump(self) -> dict[str, Any]:
        """The state, for JSON."""
        return {"counts": {arm: list(counts) for arm, counts in self._counts.items()}}

    def observe(self, dt: float, rewards: Mapping[str, Rewards]) -> None:
        """Takes in what came in `dt` seconds, by arm. Raises ValueError for rewards that cannot lie in [0, 1]."""
        fade = 0.5 ** (dt / self.half_life)
        for arm, (n, total) in self._counts.items():
            new = rewards.get(arm, Rewards())
            _check(arm, new)
            self._counts[arm] = (n * fade + new.count, total * fade + new.total)

    def best(self, out: Collection[str] = ()) -> dict[str, float]:
        """Chance of each arm that is not `out` to have the largest mean.

        By integration: draws would differ a little each time, and weights that tremble are written for nothing.
        """
        arms = [arm for arm in self.arms if arm not in out]
        counts = [self._counts[arm] for arm in arms]
        chances = _best([1.0 + max(s, 0.0) for _, s in counts], [1.0 + max(n - s, 0.0) for n, s in counts])
        return dict(zip(arms, chances, strict=True))

    def weights(self, now: Mapping[str, int], out: Collection[str] = ()) -> dict[str, int]:
        """Percent for each arm from now on; whole numbers that sum to 100.

        `now`: the present weights, which sum to 100. `out`: arms that get nothing any more, at once; what they had goes
        to the others in proportion, and counts for their limit of movement. Raises ValueError if no arm is left.
        """
        alive = [arm for arm in self.arms if arm not in out]
        if not alive:
            raise ValueError("no arm is left to send requests to")
        had = [float(now.get(arm, 0)) for arm in alive]
        base = rounded([share * 100 / sum(had) for share in had] if sum(had) else [100 / len(alive)] * len(alive))
        best = self.best(out)
        wanted = [self.floor + (100 - len(alive) * self.floor) * best[arm] for arm in alive]
        low = [max(share - self.most, min(self.floor, share + self.most)) for share in base]
        if sum(low) > 100:  # many arms below the floor: it comes before the limit of how fast the others may fall
            low = [min(self.floor, share + self.most) for share in base]
        high = [min(share + self.most, 100) for share in base]
        weights = rounded(_within(wanted, low, high))
        return dict.fromkeys(self.arms, 0) | dict(zip(alive, weights, strict=True))


def impossible(outcomes: Iterable[Rewards]) -> str:
    """Why some of those cannot be sums of numbers in [0, 1]; empty if they can."""
    for new in outcomes:
        slack = 1e-6 * (1 + abs(new.count))
        if not (new.count >= 0 and -slack <= new.squares <= new.total + slack and new.total <= new.count + slack):
            return f"{new.count} rewards sum to {new.total:g}: rewards must lie between 0 and 1"
    return ""


def _check(arm: str, new: Rewards) -> None:
    if said := impossible([new]):
        raise ValueError(f"{arm}: {said}")


def _best(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Chance of each of several independent variables, with distributions Beta(a, b), to be the largest.

    The sum of mass_i(x) * prod_j cdf_j(x) over a grid that is fine where any of them has its mass.
    """
    lines = []
    for x, y in zip(a, b, strict=True):
        mean, spread = x / (x + y), _SPREAD * (x * y / (x + y + 1.0)) ** 0.5 / (x + y)
        lines.append(np.linspace(max(mean - spread, 0.0), min(mean + spread, 1.0), _POINTS))
    edges = np.unique(np.concatenate(lines))
    middle, width = (edges[1:] + edges[:-1]) / 2.0, np.diff(edges)
    high, low = np.log(middle), np.log1p(-middle)
    density = np.array([(x - 1.0) * high + (y - 1.0) * low for x, y in zip(a, b, strict=True)])
    mass = np.exp(density - density.max(axis=1, keepdims=True)) * width
    mass /= mass.sum(axis=1, keepdims=True)
    below = mass.cumsum(axis=1) - mass / 2.0
    won = [float((mass[i] * np.delete(below, i, axis=0).prod(axis=0)).sum()) for i in range(len(mass))]
    return [chance / sum(won) for chance in won]


def _within(wanted: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[float]:
    """What is nearest to `wanted` within the limits and sums to 100: all are shifted alike, those at a limit stay."""

    def shifted(by: float) -> list[float]:
        return [min(max(share + by, least), most) for share, least, most in zip(wanted, low, high, strict=True)]

    down, up = -200.0, 200.0
    for _ in range(100):
        middle = (down + up) / 2
        down, up = (middle, up) if sum(shifted(middle)) < 100 else (down, middle)
    return shifted(up)


def rounded(shares: Iterable[float], total: int = 100) -> list[int]:
    """Whole numbers that sum to `total`, each next to its share, which do as well: the largest remainders are rounded
    up, ties in order."""
    shares = [round(share, 9) for share in shares]
    out = [whole(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: (out[i] - shares[i], i))
    for i in order[: total - sum(out)]:
        out[i] += 1
    return out
