"""Two-sided sequential test of a mean reward in [0, 1], without assuming anything of its distribution.

For independent rewards of one version, sum S of n with squares Q, any centre m that is known before the block and any
0 <= l < 1, E exp{l (S - n mu) - psi(l) V} <= 1 with psi(l) = -ln(1-l) - l and V = Q - 2mS + n m^2 (the empirical
Bernstein bound of Fan, Grama & Liu 2015; Howard et al. 2021, arXiv 1810.08240; Waudby-Smith & Ramdas 2024, arXiv
2010.09686); so too for -S. Betting l_c and l_s with n_c l_c = n_s l_s cancels whatever drift both versions share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate.core.rollout.binary import CLOSE_AFTER, DISCARD_AFTER
from tidegate.core.rollout.evidence import Bools, Floats, Rows, TwoSided, fill, numbers
from tidegate.core.rollout.guards import Guard

BETS = np.array([0.03, 0.1, 0.2, 0.4, 0.7])
PRIOR = [0.2] * 5


def log_e(
    drop: float,
    c: tuple[Floats, Floats, Floats],
    s: tuple[Floats, Floats, Floats],
    centre_c: Floats,
    centre_s: Floats,
) -> tuple[Floats, Floats]:
    """Log e-values of one block that the candidate's mean fell by more than `drop`, and that it did not.

    `c` and `s` are (count, sum, sum of squares) of candidate and stable version, all of shape (rows, 1); the results
    have shape (rows, len(BETS)).
    """
    (n_c, sum_c, squares_c), (n_s, sum_s, squares_s) = c, s
    l_c, l_s = BETS * n_s / (n_c + n_s), BETS * n_c / (n_c + n_s)
    spread = _psi(l_c) * (squares_c - 2.0 * centre_c * sum_c + n_c * centre_c**2)
    spread = spread + _psi(l_s) * (squares_s - 2.0 * centre_s * sum_s + n_s * centre_s**2)
    fall = n_c * l_c * (sum_s / n_s - sum_c / n_c - drop)
    return fall - spread, -fall - spread


def _psi(bet: Floats) -> Floats:
    out: Floats = -np.log1p(-bet) - bet
    return out


class RewardBlocks:
    """Blocks of two versions' rewards, for each row, and what each version's mean was before."""

    def __init__(self, rows: int, drop: float) -> None:
        self.drop = drop
        # count, sum and squares of the open block: of the candidate, then of the stable version
        self.nc: Floats = np.zeros(rows)
        self.sc: Floats = np.zeros(rows)
        self.qc: Floats = np.zeros(rows)
        self.ns: Floats = np.zeros(rows)
        self.ss: Floats = np.zeros(rows)
        self.qs: Floats = np.zeros(rows)
        self.dt: Floats = np.zeros(rows)
        # weight and sum of the earlier blocks, whose mean is the centre
        self.wc: Floats = np.ones(rows)
        self.mc: Floats = np.full(rows, 0.5)
        self.ws: Floats = np.ones(rows)
        self.ms: Floats = np.full(rows, 0.5)

    def add(
        self, on: Bools, dt: Floats, c: tuple[Floats, Floats, Floats], s: tuple[Floats, Floats, Floats]
    ) -> tuple[Rows, Floats, Floats]:
        """One window of `dt` seconds for the rows that are `on`: (count, sum, sum of squares) of the candidate's and of
        the stable version's rewards. Returns the rows whose block is complete, and its `log_e`, each (rows, bets)."""
        self.dt += np.where(on, dt, 0.0)
        for column, value in zip((self.nc, self.sc, self.qc, self.ns, self.ss, self.qs), (*c, *s), strict=True):
            column += np.where(on, value, 0.0)
        close = on & (self.dt >= CLOSE_AFTER) & (self.nc >= 1.0) & (self.ns >= 1.0)
        rows = np.flatnonzero(close)
        n_c, s_c, q_c = (column[rows] for column in (self.nc, self.sc, self.qc))
        n_s, s_s, q_s = (column[rows] for column in (self.ns, self.ss, self.qs))
        fell, held = log_e(
            self.drop,
            (n_c[:, None], s_c[:, None], q_c[:, None]),
            (n_s[:, None], s_s[:, None], q_s[:, None]),
            (self.mc[rows] / self.wc[rows])[:, None],
            (self.ms[rows] / self.ws[rows])[:, None],
        )
        self.wc[rows] += n_c
        self.mc[rows] += s_c
        self.ws[rows] += n_s
        self.ms[rows] += s_s
        self.clear(close | (self.dt >= DISCARD_AFTER))
        return rows, fell, held

    def clear(self, rows: Bools) -> None:
        """Throws the open blocks of these rows away."""
        for column in (self.nc, self.sc, self.qc, self.ns, self.ss, self.qs, self.dt):
            column[rows] = 0.0

    def _columns(self) -> dict[str, Floats]:
        names = ("nc", "sc", "qc", "ns", "ss", "qs", "dt", "wc", "mc", "ws", "ms")
        return {name: getattr(self, name) for name in names}

    def dump(self, row: int) -> dict[str, Any]:
        """State of one row for JSON."""
        return numbers(row, **self._columns())

    def load(self, row: int, state: Mapping[str, Any]) -> None:
        """Goes on from what `dump` wrote."""
        fill(row, state, **self._columns())


class RewardTest(TwoSided):
    """The guardrail over rewards, for each row: blocks, both versions' means so far, evidence and verdicts."""

    def __init__(
        self, guard: Guard, rows: int, degraded_threshold: npt.ArrayLike, healthy_threshold: npt.ArrayLike
    ) -> None:
        super().__init__(rows, (PRIOR, PRIOR), (degraded_threshold, healthy_threshold), guard.blocks)
        self.guard = guard
        self._blocks = RewardBlocks(rows, guard.drop)

    def observe(
        self, on: Bools, dt: Floats, c: tuple[Floats, Floats, Floats], s: tuple[Floats, Floats, Floats]
    ) -> None:
        """One window of `dt` seconds for the rows that are `on`: (count, sum, sum of squares) of the candidate's and
        of the stable version's rewards."""
        rows, fell, held = self._blocks.add(on, dt, c, s)
        if rows.size:
            self.speaks_against(rows, fell)
            self.speaks_for(rows, held)

    def weight_changed(self, rows: Bools) -> None:
        """As `TwoSided.weight_changed`; the open block is mixed, and thrown away."""
        super().weight_changed(rows)
        self.discard(rows)

    def discard(self, rows: Bools) -> None:
        """Throws the open blocks of these rows away."""
        self._blocks.clear(rows)

    def dump(self, row: int) -> dict[str, Any]:
        """State of one row for JSON."""
        return {**super().dump(row), "block": self._blocks.dump(row)}

    def load(self, row: int, state: Mapping[str, Any]) -> None:
        """Goes on from what `dump` wrote."""
        super().load(row, state)
        self._blocks.load(row, state["block"])
