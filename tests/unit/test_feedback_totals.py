"""The counters of the feedback service: what is credited, what is not, and what makes room."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tidegate.feedback.items import Item, Refusal, Where
from tidegate.feedback.limits import Limits
from tidegate.feedback.totals import Counter, Outcome, Totals

CHURN, FRAUD = Where("shop", "churn"), Where("bank", "fraud")
V1, V2, V3 = "v1-00000001", "v2-00000002", "v3-00000003"
DAY = 86_400
NOW = 1000 * DAY


def send(totals: Totals, *items: Item, now: int = NOW) -> list[Outcome]:
    commit, outcomes = totals.judge(items, now)
    totals.apply(commit)
    return outcomes


def refused(outcome: Outcome) -> bool:
    return isinstance(outcome, Refusal) and outcome.status == 422


def test_rewards_are_credited_to_the_version_that_served() -> None:
    totals = Totals("m", Limits())
    told = send(totals, Item(CHURN, V1, 0.5), Item(CHURN, V2, 1.0), Item(FRAUD, V1, 0.25), Item(CHURN, V1, 0.25))
    assert told == ["credited"] * 4
    assert totals.of(CHURN) == {V1: Counter(2, 0.75, 0.3125, NOW), V2: Counter(1, 1.0, 1.0, NOW)}
    assert totals.of(FRAUD) == {V1: Counter(1, 0.25, 0.0625, NOW)}
    assert totals.of(Where("shop", "other")) == {}


def test_judging_changes_nothing() -> None:
    totals = Totals("m", Limits())
    totals.judge([Item(CHURN, V1, 0.5, 7)], NOW)
    assert list(totals) == []
    assert send(totals, Item(CHURN, V1, 0.5, 7)) == ["credited"]


def test_id_counts_once_in_a_batch_and_later_and_in_its_deployment_only() -> None:
    totals = Totals("m", Limits())
    assert send(totals, Item(CHURN, V1, 1, 7), Item(CHURN, V2, 0, 7), Item(FRAUD, V1, 1, 7)) == [
        "credited",
        "duplicate",
        "credited",
    ]
    assert send(totals, Item(CHURN, V1, 1, 7), Item(CHURN, V1, 1)) == ["duplicate", "credited"]
    assert totals.of(CHURN)[V1].count == 2


def test_ids_beyond_the_bound_are_forgotten_oldest_first() -> None:
    totals = Totals("m", Limits(ids=2))
    send(totals, *(Item(CHURN, V1, 1, key) for key in (1, 2, 3)))
    assert send(totals, Item(CHURN, V1, 1, 2), Item(CHURN, V1, 1, 3)) == ["duplicate", "duplicate"]
    assert send(totals, Item(CHURN, V1, 1, 1)) == ["credited"]


def test_no_more_versions_or_deployments_than_the_limits() -> None:
    totals = Totals("m", Limits(deployments=1, versions=2))
    told = send(
        totals, Item(CHURN, V1, 1), Item(CHURN, V2, 1), Item(CHURN, V3, 1), Item(FRAUD, V1, 1), Item(CHURN, V1, 1)
    )
    assert [refused(outcome) for outcome in told] == [False, False, True, True, False]
    assert [refused(outcome) for outcome in send(totals, Item(CHURN, V3, 1), Item(FRAUD, V1, 1))] == [True, True]
    assert totals.of(CHURN).keys() == {V1, V2}


def test_what_has_been_idle_for_long_makes_room_and_what_is_in_use_does_not() -> None:
    limits = Limits(deployments=1, versions=2, forget_after=30 * DAY)
    totals = Totals("m", limits)
    send(totals, Item(CHURN, V1, 1), now=NOW)
    send(totals, Item(CHURN, V2, 1), now=NOW + 10 * DAY)
    assert refused(send(totals, Item(CHURN, V3, 1), now=NOW + 30 * DAY - 1)[0])
    assert send(totals, Item(CHURN, V3, 1), now=NOW + 30 * DAY) == ["credited"]
    assert totals.of(CHURN).keys() == {V2, V3}
    assert refused(send(totals, Item(FRAUD, V1, 1), now=NOW + 50 * DAY)[0])
    assert send(totals, Item(FRAUD, V1, 1), now=NOW + 60 * DAY) == ["credited"]
    assert [where for where, _ in totals] == [FRAUD]


def test_what_is_credited_in_a_batch_makes_no_room_in_it() -> None:
    totals = Totals("m", Limits(deployments=1, versions=1))
    send(totals, Item(CHURN, V1, 1))
    late = NOW + 90 * DAY
    told = send(totals, Item(CHURN, V1, 1), Item(CHURN, V2, 1), Item(FRAUD, V1, 1), now=late)
    assert [refused(outcome) for outcome in told] == [False, True, True]
    assert totals.of(CHURN) == {V1: Counter(2, 2.0, 2.0, late)}


def test_forgotten_deployment_loses_its_ids_and_may_come_back_in_the_same_batch() -> None:
    totals = Totals("m", Limits(deployments=1))
    send(totals, Item(CHURN, V1, 1, 7))
    late = NOW + 90 * DAY
    told = send(totals, Item(FRAUD, V1, 1), Item(CHURN, V1, 1, 7), now=late)
    assert told[0] == "credited"
    assert refused(told[1]), "not a duplicate: it is not known any more, and there is no room for it"


ITEMS = st.builds(
    Item,
    st.sampled_from([CHURN, FRAUD, Where("shop", "other")]),
    st.sampled_from([V1, V2, V3]),
    st.floats(0, 1),
    st.none() | st.integers(0, 9),
)
BATCHES = st.lists(st.tuples(st.integers(0, 40 * DAY), st.lists(ITEMS, max_size=6)), max_size=12)


@given(BATCHES, st.integers(0, 12))
def test_a_restart_at_any_point_changes_nothing(batches: list[tuple[int, list[Item]]], at: int) -> None:
    limits = Limits(deployments=2, versions=2, ids=4)
    whole = Totals("m", limits)
    restarted = Totals("m", limits)
    now = NOW
    for number, (pause, items) in enumerate(batches):
        now += pause
        if number == at:
            restarted = Totals.load(json.loads(json.dumps(restarted.dump())), limits)
        assert send(whole, *items, now=now) == send(restarted, *items, now=now)
        assert whole.dump() == restarted.dump()
        assert len(list(whole)) <= 2
        assert all(len(versions) <= 2 for _, versions in whole)


@given(BATCHES)
def test_every_credited_item_is_counted_once(batches: list[tuple[int, list[Item]]]) -> None:
    totals, credited = Totals("m", Limits()), 0
    for _, items in batches:
        credited += send(totals, *items).count("credited")
    assert sum(counter.count for _, versions in totals for counter in versions.values()) == credited
