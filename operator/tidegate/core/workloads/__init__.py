"""One workload per model version: what runs its pods, on KServe or on bare Knative.

A workload is built from the version's record alone, so that it never changes once it is there: a change would make
Knative cut a new, unjudged Revision. Replicas are set on the Revisions (core/scaling.py), traffic on the Route.
"""

from __future__ import annotations

from typing import Any

from tidegate.api.modelversion import ModelVersionSpec
from tidegate.core.names import child
from tidegate.core.observed import Object, condition
from tidegate.core.workloads import knative, kserve

KINDS = frozenset({"InferenceService", "Configuration"})


def manifest(deployment: Object, version: ModelVersionSpec) -> dict[str, Any]:
    """The workload of a version."""
    if version.template.backed_by == "Knative":
        return knative.manifest(deployment, version)
    return kserve.manifest(deployment, version)


def kind(version: ModelVersionSpec) -> str:
    """Kind of the version's workload."""
    return "Configuration" if version.template.backed_by == "Knative" else "InferenceService"


def entry(version: ModelVersionSpec) -> str:
    """Name of the Configuration whose Revision the Route sends requests to.

    With a transformer it is the transformer's, which calls its own predictor.
    """
    workload = child(version.deployment, version.id)
    if kind(version) == "Configuration":
        return workload
    return f"{workload}-transformer" if version.template.model.transformer else f"{workload}-predictor"


def configurations(version: ModelVersionSpec) -> frozenset[str]:
    """Names of all Configurations of the version, each with Revisions that have replicas."""
    return frozenset({entry(version), entry(version).replace("-transformer", "-predictor")})


def trouble(workload: Object) -> str:
    """Why the workload is not ready, in its own words; empty if it says nothing.

    KServe knows what went wrong inside a pod (a model that cannot be fetched or loaded) before Knative gives up.
    """
    failure = workload.get("status", {}).get("modelStatus", {}).get("lastFailureInfo") or {}
    if text := failure.get("message"):
        return f"{failure.get('reason', 'Failed')}: {text}"
    ready = condition(workload)
    parts = (ready.get("reason"), ready.get("message"))
    return ": ".join(str(part) for part in parts if part)
