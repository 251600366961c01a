"""The one Route of a ModelDeployment: weights over pinned Revisions that are Ready now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tidegate.api.modeldeployment import ModelDeploymentSpec
from tidegate.core.observed import Object, Target, condition, name, targets, up_to_date
from tidegate.core.versions import child_metadata

_VISIBILITY = "networking.knative.dev/visibility"


def manifest(deployment: Object, spec: ModelDeploymentSpec, traffic: Iterable[Target]) -> dict[str, Any]:
    """The Route object. A Revision that is not Ready must not be in `traffic`: one would freeze the whole Route."""
    metadata = child_metadata(deployment, name(deployment))
    if spec.visibility == "ClusterLocal":
        metadata["labels"][_VISIBILITY] = "cluster-local"
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Route",
        "metadata": metadata,
        "spec": {
            "traffic": [
                {"revisionName": t.revision, "percent": t.percent, "latestRevision": False}
                | ({"tag": t.tag} if t.tag else {})
                for t in traffic
            ]
        },
    }


def split(stable: Target | None, others: Iterable[Target] = ()) -> tuple[Target, ...]:
    """Traffic of a stable version and of others with some of it. Percents sum to 100; nothing without the former."""
    if stable is None:
        return ()
    rest = tuple(others)
    return (Target(stable.revision, 100 - sum(target.percent for target in rest), stable.tag), *rest)


def asked(route: Object | None) -> tuple[Target, ...]:
    """What the Route's spec asks for."""
    return targets(route["spec"].get("traffic")) if route else ()


def in_force(route: Object | None) -> tuple[Target, ...]:
    """What the Route says the gateway does. It may be older than what it asks for."""
    return targets(route.get("status", {}).get("traffic")) if route else ()


def settled(route: Object | None, traffic: Iterable[Target]) -> bool:
    """Whether the gateway does exactly this, as far as the Route knows."""
    if route is None or not up_to_date(route) or condition(route)["status"] != "True":
        return False
    wanted = {(t.revision, t.percent) for t in traffic}
    return (
        {(t.revision, t.percent) for t in in_force(route)} == wanted == {(t.revision, t.percent) for t in asked(route)}
    )


def mentions(route: Object | None, revisions: Iterable[str]) -> bool:
    """Whether the Route asks for any of the Revisions, or the gateway may still send requests to one.

    A Route that is not Ready leaves the gateway as it was, whatever its status says.
    """
    if route is None:
        return False
    if not up_to_date(route) or condition(route)["status"] != "True":
        return True
    return not {t.revision for t in (*asked(route), *in_force(route))}.isdisjoint(revisions)
