"""How much traffic a candidate may have: as much as the evidence and the budget of bad responses allow.

The rule in words: if the candidate is as bad as the data still allow, fewer than half of the budget's bad responses
happen before Tidegate reacts. So a weight rises as fast as what has been seen rules out how bad a candidate can be;
it is deterministic, and grows with the budget and with the evidence. Weights depend on the past only: whatever the
ramp, every test stays valid.

All functions take one number or one for each of many independent rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Pace = Literal["Eager", "Steady"]

REACT = 20.0
"""Seconds from the first bad response of a version that always fails until it is at zero weight."""
RATE_HALF_LIFE = 30.0
"""Seconds after which a request counts half for the rate of requests."""
BUDGET = 100.0
"""Bad responses that finding out may cost, by default."""
_SURE = log(1 / 0.1)
_POINTS = (np.arange(400) + 0.5) / 400


@dataclass(frozen=True)
class Ramp:
    """Weights that a candidate goes through, and for how long it has each of them at least."""

    steps: tuple[int, ...]
    """Percent, rising. Where the budget asks for it, weights between them as well."""
    hold: float
    """Seconds."""
    doubt: float = 1.0
    """The weight does not rise while the candidate's excess share of bad responses may still be larger than this."""

    @property
    def last(self) -> int:
        """Percent at which a candidate has to prove itself before it is promoted."""
        return self.steps[-1]


STEADY = Ramp((1, 5, 10, 25, 50), 60.0)
"""Begins at 1% and holds each weight for a minute: the least exposure, whatever the budget."""
EAGER = Ramp((10, 35), 5.0, doubt=0.25)
"""Begins with up to 10%, and rises after any block of evidence (5 s) that allows it.

It ends at 35%, near where a comparison costs least: with half of the requests each, the stable version's share of bad
responses is known worse, and a proof of either side takes more responses of the candidate. At 20 requests per second
and 0.5%, 5 times as many are found in 305 s with 53 bad responses, and a healthy version is promoted in 410 s; with a
last weight of 50% it is 280 s, 70 bad responses and 470 s, with 30% 330 s, 50 and 395 s (medians of 3,000 runs).

The doubt keeps the first weight for a version that fails most requests: without it, one that always fails gives 36 bad
responses at 2 requests per second before it is found, with it 11, in the same time.
"""
RAMPS: dict[Pace, Ramp] = {"Eager": EAGER, "Steady": STEADY}
PROMOTE_AFTER = 60.0
"""Seconds that the last weight is held at least."""


@lru_cache(maxsize=65536)
def _most(bad: int) -> float:
    """Upper bound U of the expected number of bad responses when so many were seen, valid at every look with 90%.

    Root of: mean over x in (0, 1) of x^bad e^(U (1 - x)) = 10. For a mean m of independent bad responses, every
    x^bad e^(m (1 - x)) is a supermartingale, and so is their mixture; it ever reaches 10 with a chance of at most
    1/10 (Ville).
    """
    logs = bad * np.log(_POINTS)

    def excess(most: float) -> float:
        terms = logs + most * (1 - _POINTS)
        top = float(terms.max())
        return top + log(float(np.exp(terms - top).mean())) - _SURE

    low, high = float(bad), 2.0 * bad + 10.0
    while excess(high) < 0:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high


def excess(bad: npt.ArrayLike, total: npt.ArrayLike, share: npt.ArrayLike) -> Floats:
    """How much larger than the stable version's the candidate's share of bad responses can still be, 0 to 1.

    `bad` of `total` responses of the candidate were bad so far; `share` is the stable version's. Before anything is
    known it is 1.
    """
    counts, totals, shares = np.broadcast_arrays(
        np.asarray(bad, dtype=np.int64), np.asarray(total, dtype=np.float64), np.asarray(share, dtype=np.float64)
    )
    values, where = np.unique(counts, return_inverse=True)
    most = np.array([_most(int(value)) for value in values])[where].reshape(counts.shape)
    out: Floats = np.where(totals > 0, np.clip(most / np.maximum(totals, 1.0) - shares, 0.0, 1.0), 1.0)
    return out


def affordable(excess: npt.ArrayLike, rate: npt.ArrayLike, budget: npt.ArrayLike = BUDGET) -> Floats:
    """Percent at which half of the budget lasts for the time of a reaction; above 100 where more would be allowed.

    `excess` as by `excess()`; `rate`: requests per second of all versions together.
    """
    with np.errstate(divide="ignore"):
        out: Floats = 100.0 * (np.asarray(budget) / 2.0) / (np.asarray(rate) * REACT * np.asarray(excess))
    return out


def first_weight(ramp: Ramp, rate: npt.ArrayLike, budget: npt.ArrayLike = BUDGET) -> Ints:
    """Percent to begin with, when nothing is known of the candidate; 0 where even 1% may cost too much."""
    out: Ints = np.floor(np.minimum(ramp.steps[0], affordable(1.0, rate, budget))).astype(np.int64)
    return out


def next_weight(
    ramp: Ramp,
    weight: npt.ArrayLike,
    *,
    excess: npt.ArrayLike,
    rate: npt.ArrayLike,
    budget: npt.ArrayLike = BUDGET,
    held: npt.ArrayLike,
    healthy: npt.ArrayLike,
    incident: npt.ArrayLike,
) -> Ints:
    """Percent for the candidate from now on: `weight` or more, at most the ramp's last.

    `held`: seconds since `weight` came in force. `healthy`: proven at this weight; then the budget does not bind.
    `incident`: the stable version is in an incident; then nothing moves. A weight moves to the next step, or as far
    towards it as is allowed if that is at least half as much again, unless the ramp's doubt forbids it.
    """
    now = np.asarray(weight, dtype=np.int64)
    steps = np.array([*ramp.steps, ramp.last], dtype=np.int64)
    step = steps[np.searchsorted(steps[:-1], now, side="right")]
    allowed = np.where(healthy, 100.0, np.minimum(affordable(excess, rate, budget), 100.0))
    wanted = np.minimum(step, np.floor(allowed).astype(np.int64))
    certain = np.asarray(healthy, dtype=bool) | (np.asarray(excess) <= ramp.doubt)
    worthwhile = (wanted > now) & (wanted >= np.minimum(step, 1.5 * now))
    moves = (np.asarray(held) >= ramp.hold) & ~np.asarray(incident, dtype=bool) & certain & worthwhile
    out: Ints = np.where(now > 0, np.where(moves, wanted, now), first_weight(ramp, rate, budget))
    return out


def promotable(
    ramp: Ramp, weight: npt.ArrayLike, *, held: npt.ArrayLike, healthy: npt.ArrayLike, incident: npt.ArrayLike
) -> Bools:
    """Whether a candidate has proven itself at the last weight; the arguments are those of `next_weight`."""
    proven = np.asarray(healthy, dtype=bool) & ~np.asarray(incident, dtype=bool)
    out: Bools = proven & (np.asarray(weight) >= ramp.last) & (np.asarray(held) >= PROMOTE_AFTER)
    return out


def allowed(
    weight: int,
    *,
    excess: float,
    rate: float,
    budget: float = BUDGET,
    held: float,
    healthy: bool,
    incident: bool,
    pace: Pace = "Eager",
) -> int:
    """`next_weight` of one rollout, whose weight is 0 before it begins; 0 where even 1% may cost too much."""
    ramp = RAMPS[pace]
    return int(
        next_weight(
            ramp, weight, excess=excess, rate=rate, budget=budget, held=held, healthy=healthy, incident=incident
        )
    )
