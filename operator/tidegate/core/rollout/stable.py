"""What the stable version does: its present share of bad responses, and how much more it scatters than a coin does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tidegate.core.rollout.evidence import Bools, Floats, fill, numbers

_BLOCK = 5.0  # seconds


class StableModel:
    """Decaying share `pb / pn` and dispersion `dn / dd` of the stable version, for each row.

    It only tells the tests what to bet on: a wrong share makes them slow, never wrong. The dispersion is the exception
    (bursts of errors count as fewer independent ones): it is measured on three blocks in a row, the middle one against
    both of its neighbours, so that a shift which lasts is no noise.
    """

    def __init__(self, rows: int, delta: float) -> None:
        self._delta = delta
        self.pb: Floats = np.full(rows, 0.5)
        self.pn: Floats = np.full(rows, 500.0)
        self.dn: Floats = np.full(rows, 20.0)
        self.dd: Floats = np.full(rows, 20.0)
        # bad responses and all of them: the last whole block, the one before, and the one being filled
        self.b1: Floats = np.zeros(rows)
        self.n1: Floats = np.zeros(rows)
        self.b2: Floats = np.zeros(rows)
        self.n2: Floats = np.zeros(rows)
        self.b: Floats = np.zeros(rows)
        self.n: Floats = np.zeros(rows)
        self.dt: Floats = np.zeros(rows)

    def rate(self) -> Floats:
        """Share of bad responses, by row."""
        return self.pb / self.pn

    def dispersion(self) -> Floats:
        """Variance of the bad responses over that of independent ones, 1 to 50, by row."""
        return np.clip(self.dn / self.dd, 1.0, 50.0)

    def add(self, on: Bools, dt: Floats, b: Floats, n: Floats) -> None:
        """One window of `dt` seconds for the rows that are `on`: `b` of `n` responses were bad."""
        self.dt += np.where(on, dt, 0.0)
        self.b += np.where(on, b, 0.0)
        self.n += np.where(on, n, 0.0)
        rows = np.flatnonzero(on & (self.dt >= _BLOCK) & (self.n >= 1.0))
        if not rows.size:
            return
        b0, n0 = self.b[rows], self.n[rows]
        b1, n1, b2, n2 = self.b1[rows], self.n1[rows], self.b2[rows], self.n2[rows]
        share = self.pb[rows] / self.pn[rows]
        most = incident_limit(n0, share, self._delta, np.clip(self.dn[rows] / self.dd[rows], 1.0, 50.0))
        self.pb[rows] = 0.99 * self.pb[rows] + np.minimum(b0, most)
        self.pn[rows] = 0.99 * self.pn[rows] + n0
        whole = n2 > 0.0
        f2, f0 = n1 / np.where(whole, n2, 1.0), n1 / n0
        mean = b1 / 2.0 + (f2 * b2 + f0 * b0) / 4.0
        unlike = np.minimum((b1 - f2 * b2) ** 2 / (1.0 + f2), (b1 - f0 * b0) ** 2 / (1.0 + f0))
        counts = whole & (mean > 0.0)
        self.dn[rows] = np.where(counts, 0.995 * self.dn[rows] + 2.0 * unlike, self.dn[rows])
        self.dd[rows] = np.where(counts, 0.995 * self.dd[rows] + mean, self.dd[rows])
        self.b2[rows], self.n2[rows], self.b1[rows], self.n1[rows] = b1, n1, b0, n0
        self.b[rows] = self.n[rows] = self.dt[rows] = 0.0

    def _columns(self) -> dict[str, Floats]:
        return {name: getattr(self, name) for name in ("pb", "pn", "dn", "dd", "b1", "n1", "b2", "n2", "b", "n", "dt")}

    def dump(self, row: int) -> dict[str, Any]:
        """State of one row for JSON."""
        return numbers(row, **self._columns())

    def load(self, row: int, state: Mapping[str, Any]) -> None:
        """Goes on from what `dump` wrote."""
        fill(row, state, **self._columns())


def incident_limit(n: Floats, share: Floats, delta: float, dispersion: Floats) -> Floats:
    """More bad responses of the stable version than this among `n`: it is itself in an incident."""
    out: Floats = 3.0 * (n * np.maximum(share, delta) + dispersion)
    return out
