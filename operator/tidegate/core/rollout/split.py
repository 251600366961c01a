"""Whether requests are split as was asked (a sample-ratio test).

Each request goes to the version with probability theta, its requested share, whatever happened before; a share that is
tilted by e^tau in odds is tested against it by the likelihood ratio, which is an e-value of the multinomial. With two
versions, a tilt of one is the opposite tilt of the other, and so the candidate's test says it for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tidegate.core.rollout.evidence import Bools, EProcess, Floats, fill, numbers

TILTS = np.log(np.array([0.5, 0.8, 0.93, 1.07, 1.25, 2.0]))
_PRIOR = [1.0 / 6.0] * 6
THRESHOLD = 1000.0
"""False alarms: at most one in a thousand rollouts."""
_BLOCKS = 3


class SplitCheck:
    """Evidence, for each row, that a version does not get the share of requests that was asked for.

    What is wrong may be mended, so a mismatch lapses: once it is proven the test begins anew, and if twice the requests
    and windows that it took do not prove it again, the split is taken to be right.
    """

    def __init__(self, rows: int) -> None:
        self.process = EProcess(rows, _PRIOR, THRESHOLD, _BLOCKS)
        self.mismatch: Bools = np.zeros(rows, dtype=bool)
        """Proven, and not yet lapsed."""
        self.since: Floats = np.zeros(rows)
        """Requests since the test began."""
        self.took: Floats = np.zeros(rows)
        """Requests that the last proof took, and"""
        self.windows: Floats = np.zeros(rows)
        """windows."""

    def observe(self, on: Bools, share: Floats, n: Floats, total: Floats) -> None:
        """One window: `n` of `total` requests went to the version that should have got `share`, in (0, 1), of them.

        Windows without requests, and those in which nothing was left to chance, say nothing. The caller leaves out
        windows in which the weights changed.
        """
        rows = np.flatnonzero(on & (total > 0.0) & (share > 0.0) & (share < 1.0))
        if not rows.size:
            return
        tilted = np.log1p(share[rows, None] * np.expm1(TILTS))
        self.process.update(rows, n[rows, None] * TILTS - total[rows, None] * tilted)
        self.since[rows] += total[rows]
        proven = rows[self.process.reached(rows)]
        few = (self.since < 2.0 * self.took) | (self.process.count < 2.0 * self.windows)
        self.mismatch[rows] &= few[rows]
        self.mismatch[proven] = True
        self.took[proven], self.windows[proven] = self.since[proven], self.process.count[proven]
        self.since[proven] = 0.0
        self.process.reset(proven)

    def dump(self, row: int) -> dict[str, Any]:
        """State of one row for JSON."""
        return {
            **self.process.dump(row),
            "mismatch": bool(self.mismatch[row]),
            **numbers(row, since=self.since, took=self.took, windows=self.windows),
        }

    def load(self, row: int, state: Mapping[str, Any]) -> None:
        """Goes on from what `dump` wrote."""
        self.process.load(row, state)
        self.mismatch[row] = state["mismatch"]
        fill(row, state, since=self.since, took=self.took, windows=self.windows)
