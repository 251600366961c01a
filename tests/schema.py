"""Reading the generated CRDs: what tests ask of every field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tidegate.api import crds

DEFINITIONS: dict[str, dict[str, Any]] = {crd["spec"]["names"]["kind"]: crd for crd in crds.definitions()}

DEFAULTS: dict[str, Any] = {
    "concurrency": 0,
    "visibility": "Public",
    "scaling": {
        "min": 0,
        "max": 5,
        "metric": "concurrency",
        "target": 10,
        "window": "60s",
        "idle": "30s",
        "initial": 1,
    },
    "rollout": {
        "strategy": "Progressive",
        "risk": {"falseRollback": 0.01, "falsePromotion": 0.05, "badResponses": 100, "beyondBudget": False},
        "baseline": False,
        "assignment": "Request",
        "pace": "Eager",
        "deadline": "6h",
        "onDeadline": "Hold",
        "goal": "reward",
        "promoteWinner": False,
        "bandit": {"floor": 5, "maxChange": 10, "every": "1m", "halfLife": "24h"},
        "paused": False,
        "keepVersions": 3,
    },
}
"""What the API server fills into a spec that has a model alone, as it is documented."""


def whole(kind: str) -> dict[str, Any]:
    """Schema of an object of that kind."""
    found: dict[str, Any] = DEFINITIONS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every value that a schema describes, with its path: `spec.model.env[].name`, `spec.resources.limits{}`."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}".lstrip("."))
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from nodes(node["additionalProperties"], f"{path}{{}}")
