"""What a verdict will take, against rollouts that are simulated."""

from __future__ import annotations

import numpy as np
import pytest

from tidegate.core.rollout.binary import BinaryTest
from tidegate.core.rollout.forecast import time_to_verdict
from tidegate.core.rollout.guards import Guard, Verdict

RUNS = 100


def forecast(rate: float, weight: float, stable: float, candidate: float, guard: Guard | None = None) -> float | None:
    guard = guard or Guard.errors()
    verdict: Verdict = "Degraded" if candidate > guard.rho * stable + guard.delta else "Healthy"
    return time_to_verdict(
        guard,
        verdict,
        threshold=100.0 if verdict == "Degraded" else 20.0,
        candidate_per_s=rate * weight,
        stable_per_s=rate * (1 - weight),
        stable_rate=stable,
        candidate_rate=candidate,
    )


def median(rate: float, weight: float, stable: float, candidate: float) -> float:
    """Of the times that verdicts take in rollouts of constant weight, after ten minutes of history."""
    rng = np.random.default_rng(1)
    test = BinaryTest(Guard.errors(), RUNS, 100.0, 20.0)
    on, dt = np.ones(RUNS, bool), np.full(RUNS, 5.0)
    for _ in range(120):
        n = rng.poisson(rate * 5, RUNS)
        test.stable.add(on, dt, rng.binomial(n, stable).astype(np.float64), n.astype(np.float64))
    for window in range(1, 3000):
        n_c, n_s = rng.poisson(rate * 5 * weight, RUNS), rng.poisson(rate * 5 * (1 - weight), RUNS)
        columns = (rng.binomial(n_c, candidate), n_c, rng.binomial(n_s, stable), n_s)
        test.observe(on, dt, *(column.astype(np.float64) for column in columns))
        if max(test.degraded.sum(), test.healthy.sum()) >= RUNS / 2:
            return window * 5.0
    raise AssertionError("half of the rollouts are undecided after four hours")


@pytest.mark.parametrize(
    ("rate", "weight", "stable", "candidate"),
    [
        (2, 0.35, 0.005, 0.05),
        (2, 0.1, 0.005, 1.0),
        (2, 0.35, 0.001, 0.001),
        (20, 0.1, 0.005, 0.005),
        (20, 0.1, 0.005, 0.025),
        (20, 0.35, 0.02, 0.06),
        (20, 0.35, 0.02, 0.02),
        (200, 0.1, 0.005, 0.005),
        (200, 0.1, 0.001, 0.01),
        (200, 0.35, 0.02, 0.02),
        (200, 0.35, 0.005, 1.0),
    ],
)
def test_a_forecast_is_right_within_half_as_much_again(
    rate: float, weight: float, stable: float, candidate: float
) -> None:
    told = forecast(rate, weight, stable, candidate)
    assert told is not None
    assert 1 / 1.5 <= told / median(rate, weight, stable, candidate) <= 1.5


def test_more_traffic_is_sooner_and_nothing_is_never() -> None:
    times = [forecast(rate, 0.2, 0.005, 0.03) for rate in (1, 10, 100)]
    assert None not in times
    assert times == sorted(times, reverse=True)  # type: ignore[type-var]
    assert forecast(0, 0.2, 0.005, 0.03) is None
    assert forecast(10, 1.0, 0.005, 0.03) is None, "nothing to compare with"
    assert forecast(10, 1.0, 0.0, 0.03, Guard.errors(rho=0.0, delta=0.01)) is not None
    assert forecast(10, 0.2, 0.005, 0.0125) is None, "at the margin itself there is nothing to be found"
    assert forecast(10, 0.2, 0.5, 0.6, Guard.reward()) is None


def test_the_far_end_follows_on_the_near_one() -> None:
    """Where blocks are no longer followed one by one, the time goes on rising as it did."""
    times = [forecast(rate, 0.2, 0.001, 0.01) for rate in np.geomspace(20, 0.5, 60)]
    ratios = np.array(times[1:], dtype=float) / np.array(times[:-1], dtype=float)
    assert ((ratios > 1.0) & (ratios < 1.25)).all()
