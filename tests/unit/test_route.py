"""The one Route: what it asks for, and what can be told from what it says."""

from __future__ import annotations

from typing import Any

import pytest

from tidegate.api.modeldeployment import ModelDeploymentSpec
from tidegate.core import route
from tidegate.core.observed import Target

DEPLOYMENT = {"metadata": {"name": "churn", "namespace": "shop", "uid": "u1"}}
V1, V2 = Target("churn-v1-00001", 100, "v1"), Target("churn-v2-00001", 20, "v2")


def spec(**more: Any) -> ModelDeploymentSpec:
    return ModelDeploymentSpec.model_validate(
        {"model": {"version": "v1", "container": {"image": "registry.test/m"}}} | more
    )


def entries(*parts: Target) -> list[dict[str, Any]]:
    return [{"revisionName": t.revision, "percent": t.percent, "tag": t.tag} for t in parts]


def said(
    asked: list[dict[str, Any]],
    in_force: list[dict[str, Any]] | None = None,
    *,
    ready: str = "True",
    observed: int = 2,
) -> dict[str, Any]:
    """A Route as it stands in the cluster, at generation 2."""
    return {
        "metadata": {"name": "churn", "generation": 2},
        "spec": {"traffic": asked},
        "status": {
            "observedGeneration": observed,
            "conditions": [{"type": "Ready", "status": ready}],
            "traffic": asked if in_force is None else in_force,
        },
    }


def test_a_route_pins_revisions_by_name() -> None:
    made = route.manifest(DEPLOYMENT, spec(), route.split(V1, [V2]))
    assert made["kind"] == "Route"
    assert made["metadata"]["name"] == "churn"
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u1"
    assert made["spec"]["traffic"] == [
        {"revisionName": "churn-v1-00001", "percent": 80, "latestRevision": False, "tag": "v1"},
        {"revisionName": "churn-v2-00001", "percent": 20, "latestRevision": False, "tag": "v2"},
    ]


def test_an_entry_without_a_tag_has_none() -> None:
    (entry,) = route.manifest(DEPLOYMENT, spec(), [Target("r", 100)])["spec"]["traffic"]
    assert entry == {"revisionName": "r", "percent": 100, "latestRevision": False}


def test_visibility() -> None:
    label = "networking.knative.dev/visibility"
    assert label not in route.manifest(DEPLOYMENT, spec(), [V1])["metadata"]["labels"]
    hidden = route.manifest(DEPLOYMENT, spec(visibility="ClusterLocal"), [V1])
    assert hidden["metadata"]["labels"][label] == "cluster-local"


@pytest.mark.parametrize("weight", [0, 1, 50, 100])
def test_percents_sum_to_a_hundred(weight: int) -> None:
    candidate = Target("churn-v2-00001", weight, "v2")
    stable, other = route.split(V1, [candidate])
    assert stable == Target("churn-v1-00001", 100 - weight, "v1")
    assert other == candidate
    assert route.split(Target("churn-v1-00001", 7, "v1")) == (V1,)


SPLIT = route.split(V1, [V2])
OTHER = route.split(V1)


@pytest.mark.parametrize(
    ("found", "settled"),
    [
        (None, False),
        (said(entries(*SPLIT)), True),
        (said(list(reversed(entries(*SPLIT)))), True),
        (said(entries(*SPLIT), ready="Unknown"), False),
        (said(entries(*SPLIT), ready="False"), False),
        (said(entries(*SPLIT), observed=1), False),
        (said(entries(*OTHER)), False),
        (said(entries(*SPLIT), entries(*OTHER)), False),
        (said(entries(*OTHER), entries(*SPLIT)), False),
        ({"metadata": {"generation": 1}, "spec": {}}, False),
    ],
)
def test_settled_is_what_is_asked_for_and_in_force_and_said_about_the_newest_spec(
    found: dict[str, Any] | None, settled: bool
) -> None:
    assert route.settled(found, SPLIT) is settled


@pytest.mark.parametrize(
    ("found", "mentions"),
    [
        (None, False),
        (said(entries(*OTHER)), False),
        (said(entries(*SPLIT)), True),
        (said(entries(*OTHER), entries(*SPLIT)), True),
        (said(entries(*SPLIT), entries(*OTHER)), True),
        (said(entries(*OTHER), ready="False"), True),  # the gateway may be as it was
        (said(entries(*OTHER), ready="Unknown"), True),
        (said(entries(*OTHER), observed=1), True),
    ],
)
def test_a_revision_is_free_to_go_only_when_the_gateway_has_surely_let_go(
    found: dict[str, Any] | None, mentions: bool
) -> None:
    assert route.mentions(found, [V2.revision]) is mentions


def test_mentions_nothing_of_nothing() -> None:
    assert not route.mentions(said(entries(*SPLIT)), [])


def test_what_a_route_says_is_read_with_what_is_missing() -> None:
    assert route.asked(None) == route.in_force(None) == ()
    assert route.in_force({"metadata": {}, "spec": {}, "status": {"traffic": None}}) == ()
    told = {"revisionName": "r", "percent": 5, "tag": "v1", "url": "http://v1-churn.shop.test"}
    assert route.in_force({"metadata": {}, "spec": {}, "status": {"traffic": [told, {"latestRevision": True}]}}) == (
        Target("r", 5, "v1", "http://v1-churn.shop.test"),
        Target("", 0),
    )
