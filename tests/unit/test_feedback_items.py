"""What clients of the feedback service send: items, or words that say what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.feedback.items import BadRequest, Item, Refusal, Where, item, read
from tidegate.feedback.limits import Limits

LIMITS = Limits(batch=3, id_length=8)
GOOD = {"deployment": "shop/churn", "version": "v2-1a2b3c4d", "reward": 0.25}
WHERE = Where("shop", "churn")


def body(content: Any) -> bytes:
    return json.dumps(content).encode()


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def test_one_item() -> None:
    assert read(body(GOOD), LIMITS) == (False, [Item(WHERE, "v2-1a2b3c4d", 0.25)])


@pytest.mark.parametrize(
    "named",
    [
        {"deployment": "shop/churn"},
        {"deployment": "churn", "namespace": "shop"},
        {"deployment": "shop/churn", "namespace": "shop"},
    ],
    ids=str,
)
def test_both_ways_to_name_a_deployment(named: dict[str, str]) -> None:
    assert item(without("deployment") | named, LIMITS) == Item(WHERE, "v2-1a2b3c4d", 0.25)


@pytest.mark.parametrize("reward", [0, 1, 0.0, 1.0, 1e-300, -0.0])
def test_rewards_at_the_ends(reward: float) -> None:
    read_item = item(GOOD | {"reward": reward}, LIMITS)
    assert isinstance(read_item, Item)
    assert read_item.reward == reward
    assert type(read_item.reward) is float


def test_same_id_is_the_same_key_and_another_is_another() -> None:
    keys = [item(GOOD | {"id": id_}, LIMITS) for id_ in ("a", "a", "b", "\ud800", "ä")]
    found = [each.key for each in keys if isinstance(each, Item)]
    assert found[0] == found[1]
    assert len(set(found)) == 4
    assert all(key is not None and 0 <= key < 2**64 for key in found)


@pytest.mark.parametrize(
    "reward", [-0.001, 1.001, 10**400, True, False, "0.5", None, [0.5], {}], ids=lambda r: str(r)[:9]
)
def test_reward_that_is_none(reward: Any) -> None:
    assert item(GOOD | {"reward": reward}, LIMITS) == Refusal(
        "reward must be a number from 0 to 1: scale what you measure to that range"
    )


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_are_not_json(constant: str) -> None:
    with pytest.raises(BadRequest, match=f"{constant} is no number of JSON"):
        read(body(GOOD).replace(b"0.25", constant.encode()), LIMITS)


def test_number_beyond_all_is_infinite_and_refused() -> None:
    _, (refused,) = read(body(GOOD).replace(b"0.25", b"1e999"), LIMITS)
    assert isinstance(refused, Refusal)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": "v2"}, "not the name in the spec"),
        ({"version": "v2-1A2B3C4D"}, "header Tidegate-Version"),
        ({"version": "v2-1a2b3c4d\n"}, "version must be the id"),
        ({"version": "a" * 10_000}, "version must be the id"),
        ({"version": 2}, "version must be the id"),
        ({"deployment": "churn"}, 'write deployment as "NAMESPACE/NAME"'),
        ({"deployment": "/churn"}, 'write deployment as "NAMESPACE/NAME"'),
        ({"deployment": "a/b/churn"}, 'write deployment as "NAMESPACE/NAME"'),
        ({"deployment": "shop/"}, "no ModelDeployment has such a name"),
        ({"deployment": "shop/Churn"}, "no ModelDeployment has such a name"),
        ({"deployment": "shop/" + "a" * 37}, "at most 36"),
        ({"deployment": None}, "deployment must be a string"),
        ({"namespace": 7}, "deployment must be a string"),
        ({"namespace": "other"}, "name two namespaces"),
        ({"id": ""}, "id must be a string of 1 to 8 characters"),
        ({"id": "123456789"}, "id must be a string of 1 to 8 characters"),
        ({"id": 12}, "id must be a string of 1 to 8 characters"),
        ({"rewrad": 1}, 'there is no field "rewrad"'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_item_that_is_none_says_what_to_do(change: dict[str, Any], told: str) -> None:
    refused = item(GOOD | change, LIMITS)
    assert isinstance(refused, Refusal)
    assert refused.status == 400
    assert told in refused.error
    assert len(refused.error) < 300, "what was sent does not come back at any length"


@pytest.mark.parametrize("name", ["deployment", "version", "reward"])
def test_field_that_is_missing(name: str) -> None:
    refused = item(without(name), LIMITS)
    assert isinstance(refused, Refusal)
    assert name in refused.error


def test_batch_keeps_its_order_and_each_item_stands_alone() -> None:
    batch, items = read(body({"items": [GOOD, 7, GOOD | {"reward": 1}]}), LIMITS)
    assert batch
    assert [type(each) for each in items] == [Item, Refusal, Item]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"reward": ' + b"9" * 100_000 + b"}", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"items": {}}', "a list with at least one item"),
        (b'{"items": []}', "a list with at least one item"),
        (b'{"items": [1, 2, 3, 4]}', "4 items are too many for one request: send at most 3"),
        (b'{"items": [1], "namespace": "shop"}', "beside items there must be nothing"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_request_that_is_none(sent: bytes, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        read(sent, LIMITS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "id", "namespace"]), inner),
)


@given(JSON)
def test_whatever_is_sent_becomes_a_sound_item_or_a_refusal(content: Any) -> None:
    for candidate in (content, *({**GOOD, name: content} for name in (*GOOD, "id", "namespace"))):
        found = item(candidate, LIMITS)
        assert isinstance(found, Refusal) or 0 <= found.reward <= 1
