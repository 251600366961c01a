"""Accelerators: from what a model needs to what its pods ask of the scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tidegate.api.base import amount
from tidegate.api.template import Accelerator

_MIB = 1024 * 1024


@dataclass(frozen=True)
class Placement:
    """What an accelerator adds to a pod."""

    resources: dict[str, str] = field(default_factory=dict)
    """Extended resources, to be put in requests and limits alike."""
    pod: dict[str, Any] = field(default_factory=dict)
    """Fields of the pod's spec."""
    flags: tuple[str, ...] = ()
    """Feature flags of Knative without which it refuses those fields."""


def place(accelerator: Accelerator | None) -> Placement:
    """Works out a placement.

    Node labels are those of NVIDIA's GPU feature discovery: `nvidia.com/gpu.product`, `nvidia.com/gpu.memory` (MiB).
    A MIG profile is a resource of its own, `nvidia.com/mig-1g.10gb`.
    """
    if accelerator is None:
        return Placement()
    resource = f"nvidia.com/mig-{accelerator.mig}" if accelerator.mig else accelerator.resource
    wanted: list[dict[str, Any]] = []
    if accelerator.products:
        wanted.append({"key": "nvidia.com/gpu.product", "operator": "In", "values": list(accelerator.products)})
    if accelerator.min_memory is not None:
        least = math.ceil(
            amount(accelerator.min_memory) / _MIB
        )  # Gt is the only comparison there is: at least n is above n-1
        wanted.append({"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": [str(least - 1)]})

    taints = [{"key": accelerator.resource, "operator": "Exists"}]
    taints += [toleration.model_dump(exclude_none=True) for toleration in accelerator.tolerations]
    pod: dict[str, Any] = {"tolerations": taints}
    flags = ["kubernetes.podspec-tolerations"]
    if wanted:
        terms = {"nodeSelectorTerms": [{"matchExpressions": wanted}]}
        pod["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
        flags.append("kubernetes.podspec-affinity")
    if accelerator.runtime_class:
        pod["runtimeClassName"] = accelerator.runtime_class
        flags.append("kubernetes.podspec-runtimeclassname")
    return Placement({resource: str(accelerator.count)}, pod, tuple(flags))


def forbidden(placement: Placement, features: Mapping[str, str]) -> tuple[str, ...]:
    """Feature flags that the placement needs and that Knative does not have on (they are off by default)."""
    return tuple(
        flag for flag in placement.flags if features.get(flag, "disabled").lower() not in ("enabled", "allowed")
    )
