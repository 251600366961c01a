"""How long a verdict will take, if both versions go on as they do."""

from __future__ import annotations

from math import ceil, erf, exp, log, pi, sqrt

import numpy as np

from tidegate.core.rollout.binary import (
    CLOSE_AFTER,
    CLOSE_ANYWAY,
    DEGRADED_GRID,
    DEGRADED_PRIOR,
    ENOUGH,
    HEALTHY_GRID,
    HEALTHY_PRIOR,
    degraded_bets,
    healthy_bets,
)
from tidegate.core.rollout.evidence import HEALTHY_BLOCKS, Floats, staked
from tidegate.core.rollout.guards import Guard, Verdict

_MOST = 1_000  # steps that are followed
_LUCK = 0.5
"""By so much the logarithm of a mixture is larger on average than its parts' averages say: it goes by what happened
(half of a chi-squared variable with one degree of freedom)."""


def time_to_verdict(
    guard: Guard,
    verdict: Verdict,
    *,
    threshold: float,
    candidate_per_s: float,
    stable_per_s: float,
    stable_rate: float,
    candidate_rate: float,
) -> float | None:
    """Seconds that a verdict on a binary guardrail takes, from no evidence at all; about the median of many rollouts.

    `threshold`: e-value that proves it. The rates are requests per second of both versions, and their shares of bad
    responses. None if it never comes: there is nothing to be found, or nothing to find it with.

    Each alternative of the mixture grows by its expected log e-value a block (Kelly 1956; Breiman 1961), less what the
    cap takes away when bad responses are taken as normally distributed; the mixture over alternatives and starting
    times is then summed as it stands.
    """
    if candidate_per_s <= 0 or (guard.rho and stable_per_s <= 0) or guard.kind == "reward":
        return None
    block = _block(candidate_per_s, candidate_per_s + stable_per_s)
    n_c, n_s = np.array([[candidate_per_s * block]]), np.array([[stable_per_s * block]])
    share = np.array([[max(stable_rate, 1e-4)]])
    allowed = guard.rho * share + guard.delta
    if verdict == "Degraded":
        x, y = degraded_bets(guard.rho, guard.delta, share, n_c, n_s, np.minimum(allowed * DEGRADED_GRID, 0.95))
        prior, least = np.array(DEGRADED_PRIOR), guard.blocks
    else:
        rates = np.concatenate([np.minimum(share, allowed), allowed * HEALTHY_GRID], axis=1)
        x, y = healthy_bets(guard.rho, guard.delta, share, n_c, n_s, rates)
        prior, least = np.array(HEALTHY_PRIOR), HEALTHY_BLOCKS
    bad, stable_bad = n_c * candidate_rate, n_s * stable_rate
    mean = (bad * np.log(x) + stable_bad * np.log(y) - guard.delta * n_c * (x - 1.0))[0]
    spread = np.sqrt(bad * np.log(x) ** 2 + stable_bad * np.log(y) ** 2)[0]
    growth = _capped(mean, spread, log(2.0 * threshold) / least)
    blocks = _blocks(growth, prior, max(log(threshold) - _LUCK, 0.0))
    return None if blocks is None else block * max(blocks, least)


def _block(candidate: float, both: float) -> float:
    """Seconds that a block lasts on average, at so many requests per second, if they are counted every 5 seconds."""
    filled = ENOUGH / both
    # until enough have come, and then half the time between two counts
    least = CLOSE_AFTER if filled < 0.75 * CLOSE_AFTER else min(filled + CLOSE_AFTER / 2.0, CLOSE_ANYWAY)
    return least + exp(-candidate * least) / candidate  # it waits for a request of the candidate


def _capped(mean: Floats, spread: Floats, cap: float) -> Floats:
    """E min(Z, cap) of a normal variable Z."""
    out = []
    for m, s in zip(mean, spread, strict=True):
        if s <= 0.0:
            out.append(min(m, cap))
            continue
        d = (cap - m) / s
        over = s * (exp(-d * d / 2.0) / sqrt(2.0 * pi) - d * (1.0 - erf(d / sqrt(2.0))) / 2.0)
        out.append(m - max(over, 0.0))
    return np.array(out)


def _blocks(growth: Floats, prior: Floats, needed: float) -> float | None:
    """Blocks until the mixture of processes that grow so by block reaches `needed`; None if it does not."""
    fastest = float(growth.max())
    if fastest <= 1e-9:
        return None
    # where it takes longer, steps of several blocks are close enough
    step = max(1.0, 3.0 * needed / fastest / _MOST)
    growth = growth * step
    count = np.arange(ceil(3.0 * needed / (fastest * step)) + 200, dtype=np.float64)
    share = staked(count)
    left = np.cumprod(1.0 - share)
    stake = np.concatenate([[1.0], left[:-1]]) * share
    # log of what all stakes until then have come to, by alternative: stake s grows from its own block on
    total = np.logaddexp.accumulate(np.log(stake)[:, None] - growth * count[:, None]) + growth * (count + 1.0)[:, None]
    value = np.logaddexp(np.logaddexp.reduce(np.log(prior) + total, axis=1), np.log(left))
    reached = np.flatnonzero(value >= needed)
    return step * (float(reached[0]) + 1.0) if reached.size else None
