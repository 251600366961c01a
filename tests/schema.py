"""Reading the generated CRDs: what tests ask of every field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tidegate.api import crds

DEFINITIONS: dict[str, dict[str, Any]] = {crd["spec"]["names"]["kind"]: crd for crd in crds.definitions()}


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
