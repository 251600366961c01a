"""What holds of the assignment of users for any weights and any user."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.sticky import assign

VERSIONS = [f"v{number}-0000000{number}" for number in range(6)]
USERS = st.text(max_size=40)
WEIGHTS = st.dictionaries(st.sampled_from(VERSIONS), st.integers(0, 100), min_size=1).filter(
    lambda weights: any(weights.values())
)


@given(WEIGHTS, USERS, USERS)
def test_user_gets_a_version_with_weight_and_gets_it_again(weights: dict[str, int], user: str, salt: str) -> None:
    version = assign(weights, user, salt)
    assert weights[version] > 0
    assert assign(dict(weights), user, salt) == version


@given(WEIGHTS, USERS, st.randoms())
def test_order_and_versions_without_weight_do_not_matter(weights: dict[str, int], user: str, random: object) -> None:
    names = list(weights)
    random.shuffle(names)  # type: ignore[attr-defined]
    shuffled = {name: weights[name] for name in names} | {"v9-99999999": 0}
    assert assign(shuffled, user) == assign(weights, user)


@given(WEIGHTS, USERS, st.integers(2, 50))
def test_unit_of_the_weights_does_not_matter(weights: dict[str, int], user: str, factor: int) -> None:
    scaled = {name: weight * 2**factor for name, weight in weights.items()}  # exact, so that rounding has no say
    assert assign(scaled, user) == assign(weights, user)


@given(WEIGHTS, WEIGHTS, USERS)
def test_user_moves_only_to_what_has_grown_by_a_larger_factor(
    before: dict[str, int], after: dict[str, int], user: str
) -> None:
    old, new = assign(before, user), assign(after, user)
    if old != new:
        assert after[new] * before[old] > after.get(old, 0) * before.get(new, 0)


@given(st.lists(st.integers(0, 100), min_size=2, max_size=8), USERS)
def test_candidate_keeps_its_users_as_its_weight_rises(steps: list[int], user: str) -> None:
    had = False
    for weight in sorted(steps):
        has = assign({"v1": 100 - weight, "v2": weight}, user) == "v2"
        assert has or not had
        had = has
