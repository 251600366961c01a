"""The ground that every API type stands on: naming, durations, quantities, and hooks for the CRD generator."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """CEL rules for a type's schema: each pair is an expression and the message shown when it is false."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


def keyed(name: str) -> dict[str, Any]:
    """A list's schema says by this that no two items have the same value in that field."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [name]}


class Type(BaseModel):
    """An immutable piece of API, in camelCase on the wire.

    Fields that this release does not know are ignored, so that an object written for a newer one still reads.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    def wire(self) -> dict[str, Any]:
        """The value as it goes over the wire, without fields that are unset or hold their default.

        Leaving defaults out makes the result independent of whether the API server wrote them in, and keeps the
        hash of a version steady when a later release adds a field.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


_LONGEST = 30 * 24 * 3600.0
"""Longer than any field allows: nobody is to make time itself overflow."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = r"^([0-9]+(ms|s|m|h))+$"

Duration = Annotated[str, Field(pattern=_DURATION, max_length=32)]
"""A length of time such as `30s`, `10m` or `1h30m`."""

Quantity = Annotated[
    int | str,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        }
    ),
]
"""A Kubernetes quantity such as `500m`, `2`, `40Gi`."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
"""The name of another Kubernetes object of the same namespace."""


def seconds(duration: str) -> float:
    """Length of a `Duration` in seconds, 30 days at most; `ValueError` if it is not one."""
    if not re.fullmatch(_DURATION, duration):
        raise ValueError(f"{duration!r} is not a duration such as 30s, 10m or 1h30m")
    total = sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9]+)(ms|s|m|h)", duration))
    return min(total, _LONGEST)


_SUFFIX: dict[str, Decimal] = {"": Decimal(1), "m": Decimal("0.001")} | {
    name: Decimal(base) ** power
    for base, names in ((1000, ("k", "M", "G", "T", "P", "E")), (1024, ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")))
    for power, name in enumerate(names, start=1)
}


def amount(quantity: int | str) -> Decimal:
    """Value of a `Quantity` in its base unit (cores, bytes, pieces); `ValueError` if it is not one."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?", str(quantity))
    if not match:
        raise ValueError(f"{quantity!r} is not a quantity such as 500m, 2 or 40Gi")
    return Decimal(match[1]) * _SUFFIX[match[2] or ""]
