"""Evidence that may be looked at after every request: mixtures of test supermartingales ("e-processes").

An e-value is a bet against a hypothesis at fair odds or worse: if the hypothesis is true, its expectation is at most
1, and so the chance that it *ever* reaches 1/alpha is at most alpha (Ville 1939). Evidence of independent blocks is
multiplied; here everything is a natural logarithm, so it is added.

All classes hold one row for each of many independent rollouts, and do the same arithmetic for all of them at once: the
operator uses one row, a replay or a simulation thousands. `rows` are the indices of those that a call is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]

LN10 = log(10.0)
HEALTHY_BLOCKS = 12
"""Healthy is proven by no fewer blocks than this: at least a minute of them."""


def staked(count: Floats) -> Floats:
    """Share of the reserve that is staked on the block after `count` others."""
    out: Floats = np.where(count == 0.0, 0.5, 1.0 / (2.0 * count + 20.0))
    return out


class EProcess:
    """Evidence against one hypothesis, for each row: a mixture over alternatives and over the time they begin.

    At every block a share of what is still in reserve is staked on each alternative, so that a regression that begins
    late is found as well (E-detectors, Shin, Ramdas & Rinaldo 2023; the reserve keeps it an e-process, of expectation
    at most 1). A block adds at most ln(2 * threshold) / blocks to an alternative, so that no fewer than `blocks` bad
    blocks can prove anything: taking away from an e-value never makes it invalid.
    """

    def __init__(self, rows: int, prior: Sequence[float], threshold: npt.ArrayLike, blocks: int) -> None:
        """`prior` weighs the alternatives and sums to 1; `threshold`, one for all or one a row, is 1 / error rate."""
        self._prior = np.log(np.array(prior, dtype=np.float64))
        self.needed: Floats = np.log(np.broadcast_to(np.asarray(threshold, dtype=np.float64), (rows,)))
        """What `log_e` has to reach, as a natural logarithm, by row."""
        self._cap = (self.needed + log(2.0)) / blocks
        self.mixture: Floats = np.full((rows, len(prior)), -np.inf)
        self.reserve: Floats = np.ones(rows)
        self.count: Floats = np.zeros(rows)
        self.boost: Bools = np.zeros(rows, dtype=bool)
        """The next block gets a larger stake: something has just changed."""

    def update(self, rows: Rows, log_e: Floats) -> None:
        """Takes in one block of each of `rows`. `log_e`: log e-values, shape (len(rows), alternatives)."""
        count = self.count[rows]
        share = np.where(self.boost[rows] & (count > 0.0), 0.25, staked(count))
        stake = self.reserve[rows] * share
        self.reserve[rows] -= stake
        self.mixture[rows] = np.logaddexp(self.mixture[rows], np.log(stake)[:, None]) + np.minimum(
            log_e, self._cap[rows, None]
        )
        self.count[rows] = count + 1.0
        self.boost[rows] = False

    def log_e(self, rows: Rows | slice = slice(None)) -> Floats:
        """Log e-value of each of `rows`, natural; never less than the log of what is in reserve."""
        terms = self.mixture[rows] + self._prior
        reserve = np.log(self.reserve[rows])
        top = np.maximum(terms.max(axis=1), reserve)
        out: Floats = top + np.log(np.exp(terms - top[:, None]).sum(axis=1) + np.exp(reserve - top))
        return out

    def reached(self, rows: Rows | slice = slice(None)) -> Bools:
        """Whether the hypothesis is rejected now, for each of `rows`. The caller remembers that it ever was."""
        out: Bools = self.log_e(rows) >= self.needed[rows]
        return out

    def reset(self, rows: Rows | Bools) -> None:
        """Begins anew."""
        self.mixture[rows] = -np.inf
        self.reserve[rows] = 1.0
        self.count[rows] = 0.0
        self.boost[rows] = False

    def dump(self, row: int) -> dict[str, Any]:
        """State of one row for JSON. Python writes floats so that they are read back bit by bit."""
        return {
            "lM": [None if np.isneginf(value) else float(value) for value in self.mixture[row]],
            "R": float(self.reserve[row]),
            "t": int(self.count[row]),
            "boost": bool(self.boost[row]),
        }

    def load(self, row: int, state: Mapping[str, Any]) -> None:
        """Goes on from what `dump` wrote."""
        self.mixture[row] = [-np.inf if value is None else value for value in state["lM"]]
        self.reserve[row] = state["R"]
        self.count[row] = state["t"]
        self.boost[row] = state["boost"]


class TwoSided:
    """Evidence on both sides of one guardrail, for each row, and the verdicts that it has led to."""

    def __init__(
        self,
        rows: int,
        priors: tuple[Sequence[float], Sequence[float]],
        thresholds: tuple[npt.ArrayLike, npt.ArrayLike],
        blocks: int,
    ) -> None:
        """`priors` and `thresholds` are those of Degraded and of Healthy; `blocks` is that of Degraded."""
        self.bad = EProcess(rows, priors[0], thresholds[0], blocks)
        """Evidence that the candidate is worse than allowed."""
        self.ok = EProcess(rows, priors[1], thresholds[1], HEALTHY_BLOCKS)
        """Evidence that it is allowed, since the weights last changed."""
        self.degraded: Bools = np.zeros(rows, dtype=bool)
        """Worse than allowed has been proven, at any time."""
        self.healthy: Bools = np.zeros(rows, dtype=bool)
        """Allowed has been proven, at any time."""
        self.healthy_here: Bools = np.zeros(rows, dtype=bool)
        """Allowed has been proven since the weights last changed."""
        self.incident: Bools = np.zeros(rows, dtype=bool)
        """In the last block the stable version itself did far worse than it does; only bad responses tell of that."""

    def speaks_against(self, rows: Rows, log_e: Floats) -> None:
        """Takes in one block of each of `rows` on the side of Degraded."""
        self.bad.update(rows, log_e)
        self.degraded[rows] |= self.bad.reached(rows)

    def speaks_for(self, rows: Rows, log_e: Floats) -> None:
        """Takes in one block of each of `rows` on the side of Healthy."""
        self.ok.update(rows, log_e)
        reached = self.ok.reached(rows)
        self.healthy[rows] |= reached
        self.healthy_here[rows] |= reached

    def weight_changed(self, rows: Bools) -> None:
        """The weights of these rows have changed: Healthy has to be proven anew."""
        self.ok.reset(rows)
        self.bad.boost[rows] = True
        self.healthy_here[rows] = False

    def dump(self, row: int) -> dict[str, Any]:
        """State of one row for JSON."""
        flags = {name: bool(getattr(self, name)[row]) for name in _FLAGS}
        return {"bad": self.bad.dump(row), "ok": self.ok.dump(row), **flags}

    def load(self, row: int, state: Mapping[str, Any]) -> None:
        """Goes on from what `dump` wrote."""
        self.bad.load(row, state["bad"])
        self.ok.load(row, state["ok"])
        for name in _FLAGS:
            getattr(self, name)[row] = state[name]


_FLAGS = ("degraded", "healthy", "healthy_here")


def numbers(row: int, **columns: Floats) -> dict[str, float | int]:
    """One row of several columns for JSON, counts as integers."""
    values = {name: float(column[row]) for name, column in columns.items()}
    return {name: int(value) if value.is_integer() else value for name, value in values.items()}


def fill(row: int, state: Mapping[str, Any], **columns: Floats) -> None:
    """Puts what `numbers` wrote back into one row."""
    for name, column in columns.items():
        column[row] = state[name]
