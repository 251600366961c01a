"""Accelerators: from what a model needs to what its pods ask of the scheduler."""

from __future__ import annotations

from typing import Any

import pytest

from tidegate.api.template import Accelerator
from tidegate.core.placement import Placement, forbidden, place

TOLERATIONS, AFFINITY, RUNTIME_CLASS = (
    f"kubernetes.podspec-{part}" for part in ("tolerations", "affinity", "runtimeclassname")
)


def placed(**fields: Any) -> Placement:
    return place(Accelerator.model_validate(fields))


def expressions(placement: Placement) -> list[dict[str, Any]]:
    (term,) = placement.pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    found: list[dict[str, Any]] = term["matchExpressions"]
    return found


def test_no_accelerator_asks_for_nothing() -> None:
    assert place(None) == Placement({}, {}, ())


def test_by_default_one_gpu_on_nodes_that_may_be_tainted_for_it() -> None:
    assert placed() == Placement(
        {"nvidia.com/gpu": "1"}, {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}, (TOLERATIONS,)
    )


def test_all_node_requirements_stand_in_one_term_so_that_all_must_hold() -> None:
    found = expressions(placed(products=["NVIDIA-L4"], minMemory="20G"))
    assert [(e["key"], e["operator"]) for e in found] == [
        ("nvidia.com/gpu.product", "In"),
        ("nvidia.com/gpu.memory", "Gt"),
    ]


@pytest.mark.parametrize(
    ("memory", "mebibytes", "fits"),
    [
        ("40Gi", 40960, True),
        ("40Gi", 40959, False),
        ("80G", 81559, True),  # an H100 with 80 GB as its node is labelled
        ("80Gi", 81559, False),  # and why the field's description says to write 80G
        ("1.5Gi", 1536, True),
        ("1.5Gi", 1535, False),
        (1, 1, True),
    ],
)
def test_min_memory_is_compared_with_the_nodes_label(memory: int | str, mebibytes: int, fits: bool) -> None:
    (found,) = expressions(placed(minMemory=memory))
    assert found["operator"] == "Gt", "Kubernetes has no comparison that includes the bound"
    assert (mebibytes > int(found["values"][0])) is fits


def test_a_mig_profile_is_a_resource_of_its_own_on_nodes_with_the_same_taint() -> None:
    found = placed(mig="1g.10gb", count=2)
    assert found.resources == {"nvidia.com/mig-1g.10gb": "2"}
    assert found.pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]


def test_another_makers_accelerator() -> None:
    found = placed(resource="amd.com/gpu", count=8)
    assert found.resources == {"amd.com/gpu": "8"}
    assert found.pod["tolerations"] == [{"key": "amd.com/gpu", "operator": "Exists"}]


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({}, (TOLERATIONS,)),
        ({"products": ["NVIDIA-L4"]}, (TOLERATIONS, AFFINITY)),
        ({"minMemory": "1Gi"}, (TOLERATIONS, AFFINITY)),
        ({"runtimeClass": "nvidia"}, (TOLERATIONS, RUNTIME_CLASS)),
        ({"minMemory": "1Gi", "runtimeClass": "nvidia"}, (TOLERATIONS, AFFINITY, RUNTIME_CLASS)),
    ],
)
def test_the_flags_that_knative_must_have_on(fields: dict[str, Any], flags: tuple[str, ...]) -> None:
    found = placed(**fields)
    assert found.flags == flags
    assert forbidden(found, {}) == flags, "they are off unless switched on"
    assert forbidden(found, dict.fromkeys(flags, "enabled")) == ()


@pytest.mark.parametrize(
    ("value", "allowed"),
    [("enabled", True), ("Enabled", True), ("allowed", True), ("disabled", False), ("", False), ("true", False)],
)
def test_how_a_flag_is_read(value: str, allowed: bool) -> None:
    assert (forbidden(placed(), {TOLERATIONS: value}) == ()) is allowed


def test_a_flag_of_another_field_does_not_help() -> None:
    assert forbidden(placed(minMemory="1Gi"), {TOLERATIONS: "enabled"}) == (AFFINITY,)
    assert forbidden(Placement(), {}) == ()
