"""How much traffic the evidence and the budget allow a candidate."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from tidegate.core.rollout import weights
from tidegate.core.rollout.weights import EAGER, RAMPS, STEADY, Ramp


def go(ramp: Ramp, weight: int, **known: float | bool) -> int:
    usual: dict[str, float | bool] = {"excess": 0.01, "rate": 20.0, "held": 60.0, "healthy": False, "incident": False}
    return int(weights.next_weight(ramp, weight, **usual | known))  # type: ignore[arg-type]


def test_no_bad_response_bounds_what_is_expected() -> None:
    # without bad responses the mean of e^(U(1-x)) over x is (e^U - 1) / U
    most = float(weights.excess(0, 1000, 0.0)) * 1000
    assert (exp(most) - 1) / most == pytest.approx(10, rel=1e-4)


def test_the_excess_covers_the_truth_at_every_look() -> None:
    rng = np.random.default_rng(5)
    total = np.arange(1, 41) * 25.0
    bad = rng.binomial(25, 0.04, (2000, 40)).cumsum(axis=1)
    ever_too_low = (weights.excess(bad, total, 0.01) < 0.03).any(axis=1)
    assert ever_too_low.mean() <= 0.1


def test_the_excess_is_a_share_and_all_is_possible_before_the_first_response() -> None:
    assert weights.excess([0, 0, 900], [0, 1e9, 900], [0.0, 0.5, 0.01]) == pytest.approx([1.0, 0.0, 1.0])


@pytest.mark.parametrize(("rate", "first"), [(0.0, 10), (20, 10), (25, 10), (50, 5), (200, 1), (250, 1), (251, 0)])
def test_begins_at_what_half_of_the_budget_allows_a_version_that_always_fails(rate: float, first: int) -> None:
    assert weights.first_weight(EAGER, rate) == first
    assert weights.allowed(0, excess=0.001, rate=rate, held=0, healthy=False, incident=False) == first


def test_a_larger_budget_begins_higher() -> None:
    assert weights.first_weight(EAGER, 251, budget=101) == 1


def test_steps_are_taken_when_they_were_held_for_long_enough() -> None:
    assert [go(EAGER, 10, held=held) for held in (0, 5)] == [10, 35]
    assert [go(STEADY, 10, held=held) for held in (59, 60)] == [10, 25]


def test_what_may_fail_a_quarter_of_all_requests_keeps_its_weight_unless_proven() -> None:
    assert [go(EAGER, 10, rate=0.1, excess=excess) for excess in (0.25, 0.26)] == [35, 10]
    assert go(STEADY, 10, rate=0.1, excess=0.26) == 25
    assert go(EAGER, 10, rate=0.1, excess=0.26, healthy=True) == 35


def test_nothing_moves_in_an_incident() -> None:
    assert go(EAGER, 10, incident=True) == 10
    assert not weights.promotable(EAGER, 35, held=600, healthy=True, incident=True)


def test_the_budget_stops_between_two_steps_where_that_is_worth_a_change() -> None:
    # 50 bad responses in 20 s at 100 requests/s: 2.5% / excess
    assert [go(STEADY, 10, rate=100.0, excess=excess) for excess in (0.11, 0.15, 0.2)] == [22, 16, 10]


def test_proof_lifts_the_budget() -> None:
    assert go(STEADY, 25, rate=10000.0, excess=1.0, healthy=True) == 50


@pytest.mark.parametrize("pace", RAMPS)
def test_more_evidence_or_budget_never_means_less_weight(pace: weights.Pace) -> None:
    ramp, excess = RAMPS[pace], np.geomspace(1, 1e-4, 200)
    for weight in range(ramp.last + 1):
        for rate in (1.0, 40.0, 300.0, 5000.0):
            found = weights.next_weight(
                ramp,
                weight,
                excess=excess,
                rate=rate,
                budget=[[50.0], [100.0], [1000.0]],
                held=60,
                healthy=False,
                incident=False,
            )
            assert (np.diff(found, axis=0) >= 0).all()
            assert weight == 0 or (np.diff(found, axis=1) >= 0).all()
            assert found.min() >= weight
            assert found.max() <= ramp.last


def test_promotion_needs_proof_at_the_last_weight_for_a_minute() -> None:
    found = weights.promotable(
        EAGER, [34, 35, 35, 35], held=[60, 59, 60, 60], healthy=[True, True, True, False], incident=False
    )
    assert found.tolist() == [False, False, True, False]
