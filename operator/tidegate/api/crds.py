"""The CustomResourceDefinitions, generated from the types.

Pydantic writes JSON Schema; Kubernetes wants structural OpenAPI v3 schemas, a narrower thing. `structural` turns
one into the other: references inlined, optional values unwrapped, exclusive bounds and constants respelled, titles
dropped, nested defaults spelled out.
"""

from __future__ import annotations

from typing import Any

import yaml

from tidegate.api import GROUP, VERSION, modeldeployment, modelversion
from tidegate.api.base import Type

_DROPPED = frozenset(
    {"title", "$defs", "discriminator", "additionalProperties", "const", "exclusiveMinimum", "exclusiveMaximum"}
)
_INT_OR_STRING = "x-kubernetes-int-or-string"


def structural(schema: dict[str, Any], definitions: dict[str, Any], *, defaults: bool) -> dict[str, Any]:
    """The structural form of a JSON Schema node.

    `definitions` are the targets of `#/$defs/` references. With `defaults` false, no default is kept: status must
    not be filled in by the API server. `ValueError` for what has no structural form, such as a union of types.
    """
    if reference := schema.get("$ref"):
        target = definitions[reference.removeprefix("#/$defs/")]
        schema = target | {key: value for key, value in schema.items() if key != "$ref"}
    if union := schema.get("anyOf"):
        some = [member for member in union if member != {"type": "null"}]
        if len(some) != 1:
            raise ValueError(f"a union has no structural schema: {union}")
        outer = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
        return structural(some[0] | outer, definitions, defaults=defaults)

    out = {key: value for key, value in schema.items() if key not in _DROPPED}
    if "const" in schema:
        out["enum"] = [schema["const"]]
    for bound in ("minimum", "maximum"):
        exclusive = "exclusive" + bound.capitalize()
        if exclusive in schema:
            out |= {bound: schema[exclusive], exclusive: True}
    if "type" not in out and _INT_OR_STRING not in out:
        raise ValueError(f"a value of any type has no structural schema: {schema}")

    default = out.pop("default", None)
    if properties := schema.get("properties"):
        out["properties"] = {
            name: structural(child, definitions, defaults=defaults and name != "status")
            for name, child in properties.items()
        }
    if "items" in schema:
        out["items"] = structural(schema["items"], definitions, defaults=defaults)
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        out["additionalProperties"] = structural(values, definitions, defaults=defaults)

    if out.get("type") == "object":
        # The API server fills in a nested default only where the parent is there, and holds the parent's default
        # against the parent's rules as it stands: so it is spelled out.
        default = {n: child["default"] for n, child in out.get("properties", {}).items() if "default" in child}
    if defaults and default not in (None, [], {}) and "default" in schema:
        out["default"] = default
    return out


def schema_of(kind: type[Type]) -> dict[str, Any]:
    """Structural schema of a whole object of that kind."""
    raw = kind.model_json_schema(by_alias=True)
    schema = structural(raw, raw.get("$defs", {}), defaults=True)
    schema["properties"].get("status", {}).pop("default", None)
    schema["properties"] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    } | schema["properties"]
    return schema


def definition(kind: type[Type], plural: str, short: str, columns: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """The CustomResourceDefinition of a namespaced kind with a status subresource."""
    name = kind.__name__
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": plural,
                "singular": name.lower(),
                "shortNames": [short],
                "categories": ["tidegate"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": list(columns),
                    "schema": {"openAPIV3Schema": schema_of(kind)},
                }
            ],
        },
    }


def definitions() -> list[dict[str, Any]]:
    """Every CRD of Tidegate."""
    return [
        definition(modeldeployment.ModelDeployment, "modeldeployments", "mdep", modeldeployment.PRINTER_COLUMNS),
        definition(modelversion.ModelVersion, "modelversions", "mver", modelversion.PRINTER_COLUMNS),
    ]


class _Plain(yaml.SafeDumper):
    """YAML without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Whether a value is written out again wherever it stands: always."""
        return True


def files() -> dict[str, str]:
    """File name to YAML text, as they stand in `crds/` and in the chart."""
    return {
        f"{crd['metadata']['name']}.yaml": "# Generated from operator/tidegate/api by `make crds`. Do not edit.\n"
        + yaml.dump(crd, Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)
        for crd in definitions()
    }
