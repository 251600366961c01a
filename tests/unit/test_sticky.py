"""The version that a user keeps."""

from __future__ import annotations

import pytest
from scipy import stats

from tidegate.core.sticky import Choice, assign, choose

USERS = [f"user-{number}" for number in range(100_000)]


def counts(weights: dict[str, int], salt: str = "") -> dict[str, int]:
    found = dict.fromkeys(weights, 0)
    for user in USERS:
        found[assign(weights, user, salt)] += 1
    return found


@pytest.mark.parametrize(
    "weights",
    [
        {"v1-1a2b3c4d": 90, "v2-5e6f7a8b": 10},
        {"v1-1a2b3c4d": 99, "v2-5e6f7a8b": 1},
        {"v1-1a2b3c4d": 60, "v2-5e6f7a8b": 30, "v3-0c1d2e3f": 10},
    ],
    ids=str,
)
def test_ten_percent_is_ten_percent(weights: dict[str, int]) -> None:
    """A chi-square test with fixed users: a fair split would be refused once in a hundred choices of users."""
    found = counts(weights)
    total = sum(weights.values())
    expected = [len(USERS) * weight / total for weight in weights.values()]
    assert stats.chisquare(list(found.values()), expected).pvalue > 0.01, found


@pytest.mark.parametrize("second", [{"v1": 90, "v2": 10}, {"v2": 90, "v3": 10}], ids=["same versions", "next rollout"])
def test_users_of_one_experiment_are_not_those_of_another(second: dict[str, int]) -> None:
    """Whoever was among the first once is so again as often as anybody: tested by their two-by-two table."""
    first, last = {"v1": 90, "v2": 10}, max(second)
    table = [[0, 0], [0, 0]]
    for user in USERS[:30_000]:
        table[assign(first, user, "one") == "v2"][assign(second, user, "two") == last] += 1
    assert stats.chi2_contingency(table).pvalue > 0.01, table


def test_each_rollout_is_a_draw_of_its_own() -> None:
    weights = {"v1": 90, "v2": 10}
    versions = [{"id": name, "weight": weight} for name, weight in weights.items()]
    for user in USERS[:200]:
        assert choose({"candidate": "v2", "versions": versions}, user).version == assign(weights, user, "v2")
        assert choose({"candidate": "v2", "versions": versions}, user, "own").version == assign(weights, user, "own")
        assert choose({"versions": versions}, user).version == assign(weights, user)


def test_a_rollout_moves_no_more_users_than_it_needs() -> None:
    before, after = {"v1": 95, "v2": 5}, {"v1": 75, "v2": 25}
    moved = 0
    for user in USERS[:20_000]:
        old, new = assign(before, user), assign(after, user)
        assert old == new or (old, new) == ("v1", "v2")
        moved += old != new
    assert stats.binomtest(moved, 20_000, 0.2).pvalue > 0.01, moved


def test_what_clients_in_other_languages_must_get_too() -> None:
    weights = {"v1-1a2b3c4d": 70, "v2-5e6f7a8b": 20, "v3-0c1d2e3f": 10}
    got = {user: assign(weights, user, "churn")[:2] for user in ("ada", "édouard", "", "user-0", "user-4", "user-5")}
    assert got == {"ada": "v1", "édouard": "v1", "": "v1", "user-0": "v2", "user-4": "v3", "user-5": "v1"}


@pytest.mark.parametrize("weights", [{}, {"v1": 0}, {"v1": 0, "v2": 0}])
def test_nobody_can_be_assigned_where_nothing_has_weight(weights: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no version has a weight above zero"):
        assign(weights, "ada")


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        assign({"v1": 101, "v2": -1}, "ada")


STATUS = {
    "url": "http://churn.shop.example.com:8080",
    "versions": [
        {"id": "v1-1a2b3c4d", "name": "v1", "role": "Stable", "weight": 0},
        {
            "id": "v2-5e6f7a8b",
            "name": "v2",
            "role": "Candidate",
            "weight": 100,
            "url": "http://v2-churn.shop.example.com:8080",
        },
        {"id": "v0-00000000", "name": "v0", "role": "Kept"},
    ],
}


def test_choice_by_status_has_url_and_header() -> None:
    chosen = choose(STATUS, "ada")
    assert chosen == Choice("v2-5e6f7a8b", "http://v2-churn.shop.example.com:8080", {"Knative-Serving-Tag": "v2"})


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("http://churn.shop.example.com", None),
        ("http://churn.shop.example.com", "http://churn.v2.shop.example.com"),
        (None, "http://v2-churn.shop.example.com"),
    ],
)
def test_no_header_where_the_tag_cannot_be_told(url: str | None, own: str | None) -> None:
    version = {"id": "v2-5e6f7a8b", "weight": 100} | ({"url": own} if own else {})
    status = {"versions": [version]} | ({"url": url} if url else {})
    assert choose(status, "ada") == Choice("v2-5e6f7a8b", own, {})


def test_status_without_traffic_says_so() -> None:
    with pytest.raises(ValueError, match="wait until one has"):
        choose({}, "ada")
