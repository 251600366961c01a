"""Two-sided sequential test of a share of bad responses: errors, or responses slower than an edge.

The candidate is allowed as long as its share p_c <= rho * p_s + delta, where p_s is the stable version's share in the
same block. For independent responses of any shares, with 0 < x and 0 <= y,

    E[x^a y^b e^(-delta n_c (x-1))] <= exp{n_c p_c (x-1) + n_s p_s (y-1) - delta n_c (x-1)}

(a of n_c bad for the candidate, b of n_s for the stable version). With y = 1 - rho (n_c/n_s) (x-1) the unknown p_s
cancels, and the exponent is at most 0 for every p_c that is allowed (x > 1: the test of Degraded) or is not (x < 1: of
Healthy). So drift that both share, changing weights and any size of the shares are covered exactly. How close to the
best possible bet x is depends on a guess of p_s; that it is valid does not. Two-sample e-values: Turner, Ly & Grünwald
2024 (arXiv 2106.02693); counts: Lindon & Malek 2022 (arXiv 2011.03567).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate.core.rollout.evidence import Bools, Floats, TwoSided, fill, numbers
from tidegate.core.rollout.guards import Guard
from tidegate.core.rollout.stable import StableModel, incident_limit

DEGRADED_GRID = np.array([1.3, 1.8, 3.0, 6.0, 20.0, 100.0])
"""Alternatives of the test of Degraded: multiples of what is allowed."""
HEALTHY_GRID = np.array([0.0, 0.06, 0.15, 0.3, 0.45, 0.6, 0.8])
"""Alternatives of the test of Healthy beside the stable version's own share."""
DEGRADED_PRIOR = [1.0 / 6.0] * 6
HEALTHY_PRIOR = [0.3, *[0.1] * 7]

CLOSE_AFTER, CLOSE_ANYWAY, DISCARD_AFTER = 5.0, 60.0, 600.0  # seconds
ENOUGH = 20.0  # responses


def degraded_bets(
    rho: float, delta: float, share: Floats, n_c: Floats, n_s: Floats, rates: Floats
) -> tuple[Floats, Floats]:
    """Factors (x, y) of a bad response of the candidate and of the stable version, if the candidate's share is `rates`.

    `share`, `n_c`, `n_s`: shape (rows, 1); `rates`: (rows, alternatives). x >= 1 >= y > 0.
    """
    x = _growth_optimal(rho, delta, share, n_c, n_s, rates)
    most = 1.0 + 0.999 * n_s / (rho * n_c) if rho else np.inf
    x = np.minimum(np.maximum(x, 1.0), most)
    return x, _other(rho, n_c, n_s, x)


def healthy_bets(
    rho: float, delta: float, share: Floats, n_c: Floats, n_s: Floats, rates: Floats
) -> tuple[Floats, Floats]:
    """As `degraded_bets`, for the other side: 0 < x <= 1 <= y."""
    x = np.clip(_growth_optimal(rho, delta, share, n_c, n_s, rates), 1e-9, 1.0)
    return x, _other(rho, n_c, n_s, x)


def _growth_optimal(rho: float, delta: float, share: Floats, n_c: Floats, n_s: Floats, rates: Floats) -> Floats:
    """The bet that grows fastest: against the null distribution that is nearest to the alternative."""
    if not rho:
        return rates / delta
    a = rho * (n_c * rho + n_s)
    b = n_c * rho * (delta - rates) + n_s * (delta - rho * share)
    p0 = (-b + np.sqrt(b * b + 4.0 * a * n_s * share * delta)) / (2.0 * a)
    out: Floats = rates / (rho * p0 + delta)
    return out


def _other(rho: float, n_c: Floats, n_s: Floats, x: Floats) -> Floats:
    """y of the stable version from the x that is really bet, which is what makes the test valid."""
    if not rho:
        return np.ones_like(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        out: Floats = np.where(n_s > 0.0, 1.0 - rho * (n_c / n_s) * (x - 1.0), 1.0)
    return out


def log_e(delta: float, dispersion: Floats, a: Floats, n_c: Floats, b: Floats, x: Floats, y: Floats) -> Floats:
    """Log e-value of one block, by row and alternative; columns of shape (rows, 1), bets of (rows, alternatives)."""
    out: Floats = (a * np.log(x) + b * np.log(y) - delta * n_c * (x - 1.0)) / dispersion
    return out


class BinaryTest(TwoSided):
    """One guardrail over bad responses, for each row: blocks, the stable version's model, evidence and verdicts."""

    def __init__(
        self, guard: Guard, rows: int, degraded_threshold: npt.ArrayLike, healthy_threshold: npt.ArrayLike
    ) -> None:
        super().__init__(rows, (DEGRADED_PRIOR, HEALTHY_PRIOR), (degraded_threshold, healthy_threshold), guard.blocks)
        self.guard = guard
        self.stable = StableModel(rows, guard.delta)
        # the open block; p and phi are frozen as it opens, from what was known before
        self.a: Floats = np.zeros(rows)
        self.b: Floats = np.zeros(rows)
        self.nc: Floats = np.zeros(rows)
        self.ns: Floats = np.zeros(rows)
        self.dt: Floats = np.zeros(rows)
        self.p: Floats = np.zeros(rows)
        self.phi: Floats = np.ones(rows)
        self.skip: Bools = np.zeros(rows, dtype=bool)
        """The open block is not going to be judged."""

    def observe(
        self, on: Bools, dt: Floats, a: Floats, n_c: Floats, b: Floats, n_s: Floats, cold: Bools | None = None
    ) -> None:
        """One window of `dt` seconds for the rows that are `on`: `a` of `n_c` responses of the candidate were bad, and
        `b` of `n_s` of the stable version. `cold` rows had no ready pod of one of them as the window began.

        A block that opens cold is not judged, nor is a cold window within a block: a start is not the candidate's
        fault. Both are known before anything is counted, so leaving them out favours no side.
        """
        opening = on & (self.dt == 0.0)
        self.p = np.where(opening, self.stable.rate(), self.p)
        self.phi = np.where(opening, self.stable.dispersion(), self.phi)
        if cold is not None:
            self.skip = np.where(opening, cold, self.skip)
            on = on & (~cold | self.skip)
        self.dt += np.where(on, dt, 0.0)
        self.a += np.where(on, a, 0.0)
        self.nc += np.where(on, n_c, 0.0)
        self.b += np.where(on, b, 0.0)
        self.ns += np.where(on, n_s, 0.0)
        # never a look at a or b here: when a block ends must not depend on what is judged by it
        enough = (self.ns >= 1.0) & (self.nc + self.ns >= ENOUGH)
        close = on & (self.dt >= CLOSE_AFTER) & (self.nc >= 1.0) & (enough | (self.dt >= CLOSE_ANYWAY))
        self._judge(np.flatnonzero(close & ~self.skip))
        self.discard(close | (self.dt >= DISCARD_AFTER))
        self.stable.add(on if cold is None else on & ~cold, dt, b, n_s)  # last: never used in its own block

    def _judge(self, rows: npt.NDArray[np.intp]) -> None:
        if not rows.size:
            return
        guard = self.guard
        a, b, n_c, n_s = (column[rows, None] for column in (self.a, self.b, self.nc, self.ns))
        share, dispersion = self.p[rows, None], self.phi[rows, None]
        allowed = guard.rho * share + guard.delta

        incident = (b > incident_limit(n_s, share, guard.delta, dispersion))[:, 0]
        self.bad.boost[rows] |= self.incident[rows] & ~incident  # what begins in an incident shows as it ends
        self.incident[rows] = incident

        rates = np.minimum(allowed * DEGRADED_GRID, 0.95)
        x, y = degraded_bets(guard.rho, guard.delta, share, n_c, n_s, rates)
        self.speaks_against(rows, log_e(guard.delta, dispersion, a, n_c, b, x, y))

        # leaving blocks out is valid on this side only, where y >= 1: more bad responses of the stable version never
        # speak against the candidate
        calm = ~incident
        if not calm.all():
            rows, share, allowed, dispersion = rows[calm], share[calm], allowed[calm], dispersion[calm]
            a, b, n_c, n_s = a[calm], b[calm], n_c[calm], n_s[calm]
            if not rows.size:
                return
        rates = np.concatenate([np.minimum(share, allowed), allowed * HEALTHY_GRID], axis=1)
        x, y = healthy_bets(guard.rho, guard.delta, share, n_c, n_s, rates)
        self.speaks_for(rows, log_e(guard.delta, dispersion, a, n_c, b, x, y))

    def weight_changed(self, rows: Bools) -> None:
        """As `TwoSided.weight_changed`; the open block is mixed, and thrown away."""
        super().weight_changed(rows)
        self.discard(rows)

    def discard(self, rows: Bools) -> None:
        """Throws the open blocks of these rows away."""
        for column in (self.a, self.b, self.nc, self.ns, self.dt):
            column[rows] = 0.0
        self.skip[rows] = False

    def _block(self) -> dict[str, Floats]:
        return {name: getattr(self, name) for name in ("a", "b", "nc", "ns", "dt", "p", "phi")}

    def dump(self, row: int) -> dict[str, Any]:
        """State of one row for JSON."""
        return {
            **super().dump(row),
            "stable": self.stable.dump(row),
            "block": numbers(row, **self._block()) | {"skip": bool(self.skip[row])},
            "incident": bool(self.incident[row]),
        }

    def load(self, row: int, state: Mapping[str, Any]) -> None:
        """Goes on from what `dump` wrote."""
        super().load(row, state)
        self.stable.load(row, state["stable"])
        fill(row, state["block"], **self._block())
        self.skip[row] = state["block"]["skip"]
        self.incident[row] = state["incident"]
