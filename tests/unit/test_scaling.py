"""Replicas: annotations of the Revisions, and a candidate's share before each step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.api.modeldeployment import Scaling
from tidegate.core.scaling import autoscaling, replicas_for

DEFAULT = {
    "min-scale": "0",
    "max-scale": "5",
    "metric": "concurrency",
    "target": "10",
    "window": "60s",
    "scale-to-zero-pod-retention-period": "30s",
}


def annotated(floor: int = 0, **fields: Any) -> dict[str, str]:
    found = autoscaling(Scaling.model_validate(fields), floor)
    return {key.removeprefix("autoscaling.knative.dev/"): value for key, value in found.items()}


def test_defaults() -> None:
    assert annotated() == DEFAULT


@pytest.mark.parametrize(
    ("fields", "floor", "changed"),
    [
        ({"min": 2}, 2, {"min-scale": "2"}),  # core/decide.py hands min in as the floor of a version with traffic
        ({"max": 9}, 0, {"max-scale": "9"}),
        ({"metric": "rps"}, 0, {"metric": "rps"}),
        ({"target": 50}, 0, {"target": "50"}),
        ({"window": "2m"}, 0, {"window": "120s"}),
        ({"idle": "1h"}, 0, {"scale-to-zero-pod-retention-period": "3600s"}),
        ({"idle": "0s"}, 0, {"scale-to-zero-pod-retention-period": "0s"}),
    ],
)
def test_each_field_is_an_annotation(fields: dict[str, Any], floor: int, changed: dict[str, str]) -> None:
    assert annotated(floor, **fields) == DEFAULT | changed


@pytest.mark.parametrize(("window", "written"), [("6500ms", "7s"), ("1m500ms", "61s"), ("6s", "6s")])
def test_parts_of_seconds_are_rounded_up(window: str, written: str) -> None:
    assert annotated(window=window)["window"] == written


def test_a_version_with_no_traffic_keeps_no_replica_whatever_min_says() -> None:
    assert annotated(0, min=3)["min-scale"] == "0"


def test_a_floor_above_max_raises_it() -> None:
    """A stable version that had more replicas when its rollout began keeps them: Knative refuses min above max."""
    found = annotated(8, max=5)
    assert (found["min-scale"], found["max-scale"]) == ("8", "8")


@pytest.mark.parametrize(
    ("weight", "stable", "fields", "needed"),
    [
        (10, 0, {}, 1),  # a stable version at zero: the first replica all the same
        (10, 10, {}, 1),
        (11, 10, {}, 2),
        (50, 3, {}, 2),
        (100, 4, {}, 4),
        (0, 4, {}, 1),
        (10, 10, {"initial": 3}, 3),
        (100, 10, {"initial": 3}, 5),  # no more than max
        (100, 10, {"max": 12}, 10),
    ],
)
def test_a_candidate_gets_its_share_of_the_replicas_first(
    weight: int, stable: int, fields: dict[str, Any], needed: int
) -> None:
    assert replicas_for(weight, stable, Scaling.model_validate(fields)) == needed


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 1000), st.integers(1, 20), st.integers(0, 50))
def test_more_weight_never_needs_fewer_replicas(one: int, other: int, stable: int, initial: int, more: int) -> None:
    scaling = Scaling(initial=initial, max=initial + more)
    low, high = sorted((one, other))
    assert initial <= replicas_for(low, stable, scaling) <= replicas_for(high, stable, scaling) <= scaling.max
