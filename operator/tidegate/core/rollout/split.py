"""Whether requests are split as was asked (a sample-ratio test).

Each request goes to the version with probability theta, its requested share, whatever happened before; a share that is
tilted by e^tau in odds is tested against it by the likelihood ratio, which is an e-value of the multinomial. With two
versions, a tilt of one is the opposite tilt of the other, and so the candidate's test says it for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tidegate.core.rollout.evidence import Bools, EProcess, Floats

TILTS = np.log(np.array([0.5, 0.8, 0.93, 1.07, 1.25, 2.0]))
_PRIOR = [1.0 / 6.0] * 6
THRESHOLD = 1000.0
"""False alarms: at most one in a thousand rollouts."""
_BLOCKS = 3


class SplitCheck:
    """Evidence, for each row, that a version does not get the share of requests that was asked for."""

    def __init__(self, rows: int) -> None:
        self.process = EProcess(rows, _PRIOR, THRESHOLD, _BLOCKS)
        self.mismatch: Bools = np.zeros(rows, dtype=bool)
        """Proven, at any time."""

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
        self.mismatch[rows] |= self.process.reached(rows)

    def dump(self, row: int) -> dict[str, Any]:
        """State of one row for JSON."""
        return self.process.dump(row) | {"mismatch": bool(self.mismatch[row])}

    def load(self, row: int, state: Mapping[str, Any]) -> None:
        """Goes on from what `dump` wrote."""
        self.process.load(row, state)
        self.mismatch[row] = state["mismatch"]
