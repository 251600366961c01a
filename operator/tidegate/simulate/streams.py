"""Streams of requests with known faults: many independent rollouts at once, the same requests for every rule.

Each request of a run has a lane, which is a whole percent of the traffic. The candidate at weight w serves the lanes
below w. What a lane has in a window is drawn once, for both versions: its requests, those that are bad whoever serves
them, and those that only one of the two would have spoilt. So two rules that ask for different weights meet the same
requests (common random numbers), and what the candidate spoilt is known request by request.

Arrivals are Poisson; then good and bad ones are independent Poisson counts, and the draws are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

LANES = 100
DAY = 86400.0


@dataclass(frozen=True)
class Traffic:
    """What users send and how often each version fails. Rates of bad responses are shares in [0, 1]."""

    rate: float
    """Requests per second, of both versions together; the mean over a day if `diurnal` is given."""
    base: float
    """Bad rate of the stable version."""
    candidate: float
    """Bad rate of the candidate where its regression shows; `base` is an identical one."""
    slow: float | None = None
    """Share of the stable version's responses that are slower than the edge. None: latency is not looked at."""
    slow_candidate: float | None = None
    """The same of the candidate where its regression shows. None: like the stable version."""
    after: float = 0.0
    """Seconds from the start before which the candidate is like the stable version."""
    above: float = 0.0
    """Weight in percent up to which the candidate is like the stable version: a fault that only load brings out."""
    burst: int = 1
    """Bad responses come in bursts of this many, each within one version. 1: independent of each other."""
    diurnal: float = 0.0
    """Amplitude of the day's course, as a share of `rate`; each run begins at its own time of the day."""
    incident: float = 0.0
    """Share of both versions' good responses that a shared incident spoils while it lasts. 0: no incidents."""
    incident_every: float = 1800.0
    """Mean seconds between the end of an incident and the start of the next, exponential."""
    incident_length: float = 180.0
    """Seconds that an incident lasts."""
    dt: float = 5.0
    """Seconds between two readings of the counters."""

    def __post_init__(self) -> None:
        for name in ("base", "candidate", "incident", "slow", "slow_candidate"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} is a share in [0, 1], not {share:g}")
        for name in ("rate", "dt", "incident_every", "incident_length"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} has to be above 0, not {getattr(self, name):g}")
        if self.burst < 1:
            raise ValueError(f"a burst has at least 1 bad response, not {self.burst}")
        if not 0 <= self.diurnal <= 1:
            raise ValueError(f"diurnal is a share of the rate in [0, 1], not {self.diurnal:g}")


@dataclass(frozen=True)
class Counts:
    """What both versions served in one window: integers, one entry per run."""

    candidate: Ints
    candidate_bad: Ints
    stable: Ints
    stable_bad: Ints
    excess: Ints
    """Bad responses of the candidate, less those that the stable version would have given to the same requests."""
    candidate_slow: Ints
    stable_slow: Ints
    """Responses slower than the edge; zeros if latency is not looked at."""


@dataclass(frozen=True)
class Lanes:
    """What came in one window, as sums over the lanes below each weight: runs x (top + 2), the last of all."""

    requests: Ints
    bad: tuple[Ints, Ints]
    """Bad if the stable version serves them, and if the candidate does and its regression shows."""
    slow: tuple[Ints, Ints] | None
    shown: bool
    """Whether the regression shows yet,"""
    above: float
    """and above which weight."""

    def at(self, weight: Ints) -> Counts:
        """Counts when the candidate of each run has `weight` percent, whole numbers from 0 to the top."""
        rows = np.arange(len(weight))
        mine, everything = self.requests[rows, weight], self.requests[:, -1]
        worse = self.shown & (weight > self.above)

        def split(kinds: tuple[Ints, Ints]) -> tuple[Ints, Ints, Ints]:
            alike, regressed = kinds[0][rows, weight], kinds[1][rows, weight]
            others = kinds[0][:, -1] - alike
            # a burst of bad responses has no more of them than its version has responses
            bad = np.minimum(np.where(worse, regressed, alike), mine)
            return bad, np.minimum(others, everything - mine), bad - np.minimum(alike, mine)

        bad, others, excess = split(self.bad)
        slow, others_slow, _ = split(self.slow) if self.slow else (np.zeros_like(mine),) * 3
        return Counts(mine, bad, everything - mine, others, excess, slow, others_slow)


class Streams:
    """The requests of `runs` independent rollouts, a window at a time."""

    def __init__(self, traffic: Traffic, runs: int, seed: int | np.random.SeedSequence, top: int = 50) -> None:
        """`top`: the largest weight in percent that will be asked for."""
        self.traffic = traffic
        self._rng = np.random.Generator(np.random.SFC64(seed))
        self._width = np.append(np.full(top, 1 / LANES), 1 - top / LANES)
        self._phase = self._rng.uniform(0, 2 * np.pi, runs) if traffic.diurnal else np.zeros(runs)
        self._incident = (
            self._rng.exponential(traffic.incident_every, runs) if traffic.incident else np.full(runs, np.inf)
        )
        """When the incident of each run that comes next, or is on, begins."""
        self._t = 0.0

    def keep(self, rows: Mask) -> None:
        """Goes on with these runs only."""
        self._phase, self._incident = self._phase[rows], self._incident[rows]

    def history(self, seconds: float) -> Iterator[Counts]:
        """What the stable version served in the windows before the rollout, when it had everything; no incidents."""
        traffic = self.traffic
        for i in range(round(seconds / traffic.dt)):
            mean = self._rate(i * traffic.dt - seconds)[:, None] * traffic.dt
            quiet = np.zeros(len(mean))
            lanes = self._lanes(mean, traffic.base + quiet, traffic.base + quiet, shown=False)
            yield lanes.at(np.zeros(len(mean), np.int64))

    def window(self) -> Lanes:
        """The next window."""
        traffic = self.traffic
        mean = self._rate(self._t)[:, None] * (traffic.dt * self._width)
        over = self._t >= self._incident + traffic.incident_length
        if over.any():
            gaps = self._rng.exponential(traffic.incident_every, int(over.sum()))
            self._incident[over] += traffic.incident_length + gaps
        spoilt = np.where(self._t >= self._incident, traffic.incident, 0.0)
        shares = (share + (1 - share) * spoilt for share in (traffic.base, traffic.candidate))
        lanes = self._lanes(mean, *shares, shown=self._t >= traffic.after)
        self._t += traffic.dt
        return lanes

    def _lanes(self, mean: Floats, stable: Floats, candidate: Floats, *, shown: bool) -> Lanes:
        """Draws the requests of a window: `mean` of them by run and lane, bad by the shares of each run."""
        traffic, poisson = self.traffic, self._rng.poisson
        least, most = np.minimum(stable, candidate)[:, None], np.maximum(stable, candidate)[:, None]
        if traffic.burst > 1:
            requests = poisson(mean)
            both, one = (poisson(mean * share / traffic.burst) * traffic.burst for share in (least, most - least))
        else:
            both, one = poisson(mean * least), poisson(mean * (most - least))
            requests = both + one + poisson(mean * (1 - most))
        bad = self._ordered(both, one, traffic.candidate >= traffic.base)
        slow = None
        if traffic.slow is not None:
            regressed = traffic.slow if traffic.slow_candidate is None else traffic.slow_candidate
            low, high = sorted((traffic.slow, regressed))
            both = self._rng.binomial(requests, low)
            one = self._rng.binomial(requests - both, (high - low) / (1 - low) if low < 1 else 0.0)
            slow = self._ordered(both, one, regressed >= traffic.slow)
        return Lanes(_below(requests), bad, slow, shown, traffic.above)

    @staticmethod
    def _ordered(both: Ints, one: Ints, worse: bool) -> tuple[Ints, Ints]:
        fewer, more = _below(both), _below(both + one)
        return (fewer, more) if worse else (more, fewer)

    def _rate(self, t: float) -> Floats:
        course = np.sin(2 * np.pi * t / DAY + self._phase)
        rate: Floats = self.traffic.rate * (1 + self.traffic.diurnal * course)
        return rate


def _below(lanes: Ints) -> Ints:
    """Sums over the lanes below each weight."""
    out = np.zeros((lanes.shape[0], lanes.shape[1] + 1), np.int64)
    np.cumsum(lanes, axis=1, out=out[:, 1:])
    return out
