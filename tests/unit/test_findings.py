"""From samples to evidence: what is taken in, what is dropped, and what the status says of it."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from tidegate.api.rollout import RolloutSpec, RolloutStatus
from tidegate.core.rollout import findings, guardrails
from tidegate.core.rollout.ask import ask
from tidegate.core.rollout.counts import Reading, Requests, Rewards, Sample
from tidegate.core.rollout.judge import Guard

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
START = NOON.timestamp()


def spec(**rollout: Any) -> RolloutSpec:
    return RolloutSpec.model_validate(rollout)


def at(weight: int, **more: Any) -> RolloutStatus:
    return RolloutStatus(
        candidate="v2-b", stable="v1-a", step=int(weight > 0), weight=weight, since=NOON if weight else None, **more
    )


class Traffic:
    """Users' requests, and a sample of the counters every five seconds."""

    def __init__(self, rollout: RolloutStatus, rollout_spec: RolloutSpec | None = None) -> None:
        self.rollout, self.spec = rollout, rollout_spec or spec()
        self.t = START
        self.stable, self.candidate = Requests(), Requests()
        self.mark = "a"

    def sample(self, **more: Any) -> Sample:
        versions = {"v1-a": self.stable, "v2-b": self.candidate}
        trouble, passing = more.pop("trouble", ""), more.pop("passing", False)
        return Sample(self.t, Reading(self.t, versions, self.mark, trouble, passing), **more)

    def look(self, *, in_force: bool = True, cold: bool = False, **more: Any) -> RolloutStatus:
        self.rollout = findings.observe(self.rollout, self.spec, self.sample(**more), in_force=in_force, cold=cold)
        return self.rollout

    def serve(self, stable: int, candidate: int, errors: int = 0, **more: Any) -> RolloutStatus:
        """Five seconds with so many requests, of which the candidate fails some."""
        self.t += 5
        self.stable = Requests(self.stable.requests + stable, self.stable.errors)
        self.candidate = Requests(self.candidate.requests + candidate, self.candidate.errors + errors)
        return self.look(**more)


def test_each_field_of_a_guardrail_is_what_is_judged_by() -> None:
    given = spec(
        guardrails=[
            {"name": "e", "errors": {"maxRatio": 2, "maxIncrease": "0.25%"}},
            {"name": "l", "latency": {"slowerThan": "250ms", "maxRatio": 1.1, "maxIncrease": "2%"}},
            {"name": "l2", "latency": {}},
            {"name": "r", "reward": {"minDelta": -0.01}},
            {"name": "q", "query": {"promql": "up", "max": 1}},
        ],
        risk={"falseRollback": 0.02, "falsePromotion": 0.1},
    )
    found = guardrails.settings(given)
    assert found.guards == (
        Guard.errors("e", rho=2, delta=0.0025),
        Guard.latency("l", rho=1.1, delta=0.02, edge=250.0),
        Guard.latency("l2", rho=1.25, delta=0.01),
        Guard.reward("r", drop=0.01),
    )
    assert (found.alpha, found.beta) == (0.02, 0.1)
    assert guardrails.settings(spec()).guards == (Guard.errors("errors", rho=1.5, delta=0.005),)


def test_a_sample_is_taken_in_once() -> None:
    traffic = Traffic(at(10))
    traffic.look()
    once = traffic.serve(90, 10, 10)
    assert (once.guardrails[0].candidate.bad, once.guardrails[0].candidate.count) == (10, 10)
    assert traffic.look() == once


def test_the_first_sample_is_where_counting_begins() -> None:
    traffic = Traffic(at(10))
    traffic.candidate = Requests(1000, 1000)
    found = traffic.look()
    assert found.guardrails[0].candidate.count == 0
    assert found.verdict == "Undecided"


def test_a_window_between_two_sets_of_counters_is_dropped() -> None:
    traffic = Traffic(at(10))
    traffic.look()
    traffic.serve(90, 10)
    traffic.mark = "b"
    traffic.serve(90, 10, 10)
    found = traffic.serve(90, 10)
    assert (found.guardrails[0].candidate.bad, found.guardrails[0].candidate.count) == (0, 20)


def test_a_source_that_fails_loses_nothing_and_says_nothing_of_the_candidate() -> None:
    traffic = Traffic(at(10))
    traffic.look()
    traffic.serve(90, 10)
    for _ in range(100):
        found = traffic.serve(90, 10, 10, trouble="the gateway does not answer")
        assert (found.doubt, found.verdict) == ("the gateway does not answer", "Undecided")
        assert findings.evidence(found, spec(), traffic.t).doubt
    found = traffic.serve(90, 10)
    assert found.doubt == ""
    assert found.guardrails[0].candidate.count == 1020, "the counters went on, and the next whole reading has it all"


def test_an_idle_model_is_not_written_down_every_few_seconds() -> None:
    traffic = Traffic(at(10))
    traffic.look()
    traffic.serve(90, 10)
    changes = []
    for _ in range(24):
        before = traffic.rollout
        changes.append(traffic.serve(0, 0) != before)
    assert sum(changes) <= 2, "two minutes, one look a minute"


def test_clean_traffic_is_proven_healthy_and_bad_is_condemned_with_its_numbers() -> None:
    good = Traffic(at(50))
    good.look()
    while good.rollout.verdict != "Healthy":
        good.serve(50, 50)
        assert good.t < START + 900
    assert guardrails.degraded(good.rollout.guardrails) == ""
    assert findings.evidence(good.rollout, good.spec, good.t).weight >= 35

    bad = Traffic(at(10))
    bad.look()
    while bad.rollout.verdict != "Degraded":
        bad.serve(90, 10, 2)
        assert bad.t < START + 300
    assert "errors: " in guardrails.degraded(bad.rollout.guardrails)
    assert "responses failed, stable 0 of " in guardrails.degraded(bad.rollout.guardrails)


def test_no_traffic_is_no_evidence() -> None:
    traffic = Traffic(at(10))
    traffic.look()
    for _ in range(1000):
        found = traffic.serve(0, 0)
    assert found.verdict == "Undecided"
    assert found.guardrails[0].why


def test_each_weight_proves_itself() -> None:
    traffic = Traffic(at(35))
    traffic.look()
    while traffic.rollout.verdict != "Healthy":
        traffic.serve(65, 35)
    assert findings.evidence(traffic.rollout, traffic.spec, traffic.t).healthy
    traffic.rollout = findings.restart(traffic.rollout, traffic.spec)
    assert not findings.evidence(traffic.rollout, traffic.spec, traffic.t).healthy


def test_rewards_are_compared_where_they_are_asked_for() -> None:
    given = spec(guardrails=[{"name": "value", "reward": {"minDelta": -0.03}}])
    traffic = Traffic(at(50), given)
    assert "no source" in traffic.look().doubt

    def rewarded(n: int, stable: float, candidate: float) -> Reading[Rewards]:
        return Reading(
            traffic.t,
            {
                "v1-a": Rewards(n, n * stable, n * stable**2),
                "v2-b": Rewards(n, n * candidate, n * candidate**2),
            },
        )

    for n in range(0, 10000, 100):
        found = traffic.serve(100, 100, rewards=rewarded(n, 0.8, 0.5))
        if found.verdict == "Degraded":
            break
    assert found.verdict == "Degraded"
    assert "mean reward 0.5, stable 0.8" in guardrails.degraded(found.guardrails)


@pytest.mark.parametrize(
    ("bounds", "value", "verdict"),
    [
        ({"max": 0.2}, 0.1, "Healthy"),
        ({"max": 0.2}, 0.3, "Degraded"),
        ({"min": 0.2}, 0.1, "Degraded"),
        ({"min": 0.2, "max": 0.4}, 0.3, "Healthy"),
    ],
)
def test_a_query_is_a_threshold_that_has_to_last(bounds: dict[str, float], value: float, verdict: str) -> None:
    traffic = Traffic(at(10), spec(guardrails=[{"name": "q", "query": {"promql": "up", "for": "30s", **bounds}}]))
    traffic.look(values={"q": value})
    for seconds in range(5, 30, 5):
        assert traffic.serve(90, 10, values={"q": value}).verdict == "Undecided", seconds
    assert traffic.serve(90, 10, values={"q": value}).verdict == verdict
    for missing in ({}, {"q": math.nan}):
        assert traffic.serve(90, 10, values=missing).verdict == "Undecided"
    assert traffic.serve(90, 10, values={"q": value}).verdict == "Undecided", "it has to last anew"


def test_a_budget_that_one_percent_exceeds_is_told_and_may_be_accepted() -> None:
    traffic = Traffic(at(0))
    traffic.look()
    for _ in range(12):
        traffic.serve(5000, 0)
    found = findings.evidence(traffic.rollout, traffic.spec, traffic.t)
    assert found.weight == 0
    assert "1% of 1000 requests/s" in found.short
    assert "risk.beyondBudget" in found.short
    accepted = findings.evidence(traffic.rollout, spec(risk={"beyondBudget": True}), traffic.t)
    assert (accepted.weight, accepted.short) == (1, "")
    rich = findings.evidence(traffic.rollout, spec(risk={"badResponses": 4000}), traffic.t)
    assert (rich.weight, rich.short) == (10, "")


def test_what_was_found_survives_a_restart_whole() -> None:
    """The state goes through JSON at every look; one that is read once and never written would tell otherwise."""
    traffic = Traffic(at(10), spec(guardrails=[{"name": "e", "errors": {}}, {"name": "l", "latency": {}}]))

    def counted(n: int) -> Requests:
        return Requests(n, n // 100, {10.0: n // 2, 100.0: n, math.inf: n})

    for step in range(50):
        traffic.t += 5
        traffic.stable, traffic.candidate = counted(step * 90), counted(step * 10)
        traffic.look()
    again = RolloutStatus.model_validate_json(traffic.rollout.model_dump_json(by_alias=True))
    assert again == traffic.rollout
    state = findings.State.load(again.state)
    assert findings.State.load(state.dump()) == state
    assert len(again.state) < 8000


def test_a_trouble_that_every_change_brings_is_told_once_it_lasts() -> None:
    traffic = Traffic(at(10))
    for _ in range(3):
        traffic.serve(90, 10)
    before = traffic.rollout
    for _ in range(11):
        assert traffic.serve(90, 10, trouble="a change of the Route is coming into force", passing=True) == before
    traffic.serve(90, 10, trouble="a change of the Route is coming into force", passing=True)
    assert traffic.rollout.doubt == "a change of the Route is coming into force"
    traffic.serve(90, 10)
    assert traffic.rollout.doubt == ""
    assert traffic.rollout.guardrails[0].candidate.count == 10 * 15, "the counters tell of what came meanwhile"


def test_a_passing_trouble_at_the_very_beginning_is_told_once_it_lasts() -> None:
    traffic = Traffic(at(0))
    for _ in range(12):
        assert traffic.serve(100, 0, trouble="so", passing=True).doubt == ""
    assert traffic.serve(100, 0, trouble="so", passing=True).doubt == "so"


def test_where_clients_choose_by_user_the_split_is_not_checked() -> None:
    for assignment, doubtful in (("Request", True), ("User", False)):
        traffic = Traffic(at(10), spec(assignment=assignment))
        for _ in range(60):
            traffic.serve(50, 50)
        assert bool(traffic.rollout.doubt) == doubtful


def test_a_wrong_split_that_is_mended_holds_nothing_up_for_ever() -> None:
    traffic = Traffic(at(10))
    for _ in range(20):
        traffic.serve(80, 20)
    assert "not split as asked" in traffic.rollout.doubt
    for _ in range(60):
        traffic.serve(90, 10)
    assert traffic.rollout.doubt == ""


def test_rewards_that_cannot_be_read_are_a_doubt_and_errors_are_judged_all_the_same() -> None:
    guarded = spec(guardrails=[{"name": "errors", "errors": {}}, {"name": "value", "reward": {}}])
    traffic = Traffic(at(10), guarded)
    down = Reading[Rewards](0.0, trouble="the feedback service cannot be read")
    for _ in range(12):
        traffic.serve(90, 10, errors=5, rewards=down)
    assert traffic.rollout.doubt == "the feedback service cannot be read"
    assert traffic.rollout.verdict == "Degraded"


def test_a_clock_that_goes_back_costs_one_window() -> None:
    traffic = Traffic(at(10))
    for _ in range(3):
        traffic.serve(90, 10)
    traffic.t -= 1800
    for _ in range(12):
        traffic.serve(90, 10, errors=5)
    assert traffic.rollout.verdict == "Degraded"


def test_what_is_counted_follows_from_spec_and_status() -> None:
    deployment = {
        "metadata": {"namespace": "shop", "name": "churn"},
        "spec": {
            "model": {"version": "v2", "container": {"image": "m:2"}},
            "rollout": {
                "guardrails": [
                    {"name": "value", "reward": {}},
                    {"name": "drift", "query": {"promql": 'max(drift{r="{candidate}",ns="{namespace}"})', "max": 1}},
                ],
            },
        },
        "status": {
            "rollout": {"candidate": "v2-b", "stable": "v1-a"},
            "versions": [
                {"id": "v1-a", "name": "v1", "role": "Stable", "revision": "churn-v1-a-00001"},
                {"id": "v2-b", "name": "v2", "role": "Candidate", "revision": "churn-v2-b-00001"},
            ],
        },
    }
    found = ask(deployment)
    assert found is not None
    assert found.versions == {"v1-a": "churn-v1-a-00001", "v2-b": "churn-v2-b-00001"}
    assert found.rewards
    assert found.queries == {"drift": 'max(drift{r="churn-v2-b-00001",ns="shop"})'}

    def without(**changes: Any) -> dict[str, Any]:
        return {**deployment, **changes}

    assert ask(without(status={})) is None, "no rollout is on"
    assert ask(without(status={**deployment["status"], "versions": []})) is None, "no Revision is known yet"
    stepwise = {"steps": [{"weight": 10}], "guardrails": []}
    assert ask(without(spec={**deployment["spec"], "rollout": stepwise})) is None, "nothing is judged"


def test_what_a_verdict_will_take_is_said_before_the_candidate_gets_a_request() -> None:
    traffic = Traffic(at(0))
    traffic.look()
    for _ in range(24):
        traffic.serve(100, 0)
    assert traffic.rollout.forecast.startswith(
        "at 20 requests/s and 35%; a version as good as the stable one is proven"
    )
    assert "a doubling of errors (0.0" in traffic.rollout.forecast
    assert "within the 0.5" in traffic.rollout.forecast
    slow = Traffic(at(0), spec(deadline="1m"))
    slow.look()
    for _ in range(24):
        slow.serve(1, 0)
    assert "longer than rollout.deadline" in slow.rollout.forecast
    silent = Traffic(at(0))
    for _ in range(24):
        silent.serve(0, 0)
    assert "no verdict until some come" in silent.rollout.forecast


def test_the_time_that_is_left_is_told_and_about_right() -> None:
    traffic = Traffic(at(35))
    traffic.look()
    while traffic.t < START + 60:
        traffic.serve(65, 35)
    left = traffic.rollout.guardrails[0].seconds_left
    assert left
    end = traffic.t + left
    while traffic.rollout.verdict != "Healthy":
        traffic.serve(65, 35)
    assert 0.5 < (traffic.t - START) / (end - START) < 2
    assert traffic.rollout.guardrails[0].seconds_left is None
