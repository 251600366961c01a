"""The CRDs: how a type becomes a structural schema, and what holds of the two that are generated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import ConfigDict, Field

from schema import DEFINITIONS, nodes, whole
from tidegate.api import crds
from tidegate.api.base import Duration, Quantity, Type, amount, rules, seconds

ROOT = Path(__file__).parents[2]


class Inner(Type):
    """Something inside."""

    size: Annotated[int, Field(description="How large.")] = 3
    label: Annotated[str | None, Field(description="What it is called.")] = None


class Outer(Type):
    """Something outside."""

    plain: Annotated[Inner, Field(description="The inside.")]
    optional: Annotated[Inner | None, Field(description="Perhaps an inside.")] = None
    filled: Annotated[Inner, Field(description="An inside with defaults.")] = Inner(size=7)
    many: Annotated[list[Inner], Field(description="Many insides.", max_length=4)] = []  # noqa: RUF012
    by_name: Annotated[dict[str, Inner], Field(description="Insides by name.", max_length=4)] = {}  # noqa: RUF012


def structural(kind: type[Type], *, defaults: bool = True) -> dict[str, Any]:
    raw = kind.model_json_schema(by_alias=True)
    return crds.structural(raw, raw.get("$defs", {}), defaults=defaults)


def keys(node: Any) -> Iterator[str]:
    """Every key of a schema, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from keys(value)
    if isinstance(node, list):
        for value in node:
            yield from keys(value)


# --- from a type to a structural schema ---


def test_references_are_inlined_and_the_fields_own_description_wins() -> None:
    found = structural(Outer)
    assert not {"$ref", "$defs", "allOf", "anyOf", "title"} & set(keys(found))
    assert found["properties"]["plain"]["description"] == "The inside."
    assert found["properties"]["plain"]["properties"]["size"]["type"] == "integer"
    assert found["properties"]["many"]["items"]["description"] == "Something inside."
    assert found["properties"]["byName"]["additionalProperties"]["properties"]["size"]["type"] == "integer"


def test_an_optional_value_is_the_value_and_not_required() -> None:
    found = structural(Outer)
    assert found["properties"]["optional"]["type"] == "object"
    assert found["properties"]["optional"]["description"] == "Perhaps an inside."
    assert found["properties"]["plain"]["properties"]["label"] == {
        "type": "string",
        "description": "What it is called.",
    }
    assert found["required"] == ["plain"]


def test_a_constant_is_an_enum_of_one() -> None:
    class Fixed(Type):
        """A constant."""

        kind: Annotated[Literal["only"], Field(description="Always the same.")]

    assert structural(Fixed)["properties"]["kind"] == {
        "type": "string",
        "enum": ["only"],
        "description": "Always the same.",
    }


def test_exclusive_bounds_are_flags() -> None:
    class Bounds(Type):
        """Bounds."""

        part: Annotated[float, Field(description="A part.", gt=0, lt=1)]
        most: Annotated[float, Field(description="With the bounds themselves.", ge=0, le=1)]

    found = structural(Bounds)["properties"]
    assert found["part"] == {
        "type": "number",
        "description": "A part.",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1,
        "exclusiveMaximum": True,
    }
    assert found["most"] == {"type": "number", "description": "With the bounds themselves.", "minimum": 0, "maximum": 1}


def test_defaults_are_spelled_out_in_the_parent_so_that_it_passes_its_own_rules() -> None:
    found = structural(Outer)["properties"]
    assert found["plain"]["properties"]["size"]["default"] == 3
    assert "default" not in found["plain"], "a required object is not made up"
    assert "default" not in found["optional"], "an optional object is left out"
    assert found["filled"]["default"] == {"size": 3}


def test_nothing_has_no_default() -> None:
    found = structural(Outer)["properties"]
    assert "default" not in found["many"]
    assert "default" not in found["byName"]
    assert "default" not in found["plain"]["properties"]["label"]


def test_status_has_no_defaults() -> None:
    class Whole(Type):
        """A whole object."""

        spec: Annotated[Inner, Field(description="Asked for.")]
        status: Annotated[Outer, Field(description="Seen.")]

    found = structural(Whole)["properties"]
    assert found["spec"]["properties"]["size"]["default"] == 3
    assert "default" not in set(keys(found["status"]))
    assert "default" not in set(keys(structural(Outer, defaults=False)))


@pytest.mark.parametrize("annotation", [int | str, int | str | None, Any, Annotated[Any, Field(max_length=3)]])
def test_what_has_no_structural_schema_is_refused(annotation: Any) -> None:
    class Loose(Type):
        """Loose."""

        value: annotation

    with pytest.raises(ValueError, match="no structural schema"):
        structural(Loose)


def test_int_or_string_and_rules_survive() -> None:
    class Sized(Type):
        """Sized."""

        memory: Annotated[Quantity | None, Field(description="How much.")] = None
        wait: Annotated[Duration, Field(description="How long.")] = "1s"
        model_config = ConfigDict(json_schema_extra=rules(("has(self.memory)", "say how much")))

    found = structural(Sized)
    assert found["properties"]["memory"]["x-kubernetes-int-or-string"] is True
    assert "type" not in found["properties"]["memory"]
    assert found["properties"]["wait"]["pattern"].startswith("^")
    assert found["x-kubernetes-validations"] == [{"rule": "has(self.memory)", "message": "say how much"}]


# --- durations and quantities ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", 30), ("10m", 600), ("1h30m", 5400), ("250ms", 0.25), ("1h1m1s1ms", 3661.001), ("0s", 0)],
)
def test_seconds(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1.5h", "1d", "10 m", "10m "])
def test_seconds_refuses_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (2, "2"),
        ("500m", "0.5"),
        ("40Gi", str(40 * 2**30)),
        ("80G", "80000000000"),
        ("1.5k", "1500"),
        ("1Ei", str(2**60)),
    ],
)
def test_amount(text: int | str, expected: str) -> None:
    assert f"{amount(text).normalize():f}" == expected


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1 Gi", "1gb", "1e3", True])
def test_amount_refuses_what_is_no_quantity(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a quantity such as"):
        amount(text)


# --- the two CRDs ---

EVERYTHING = [(kind, path, node) for kind in DEFINITIONS for path, node in nodes(whole(kind))]
OURS = [(k, p, n) for k, p, n in EVERYTHING if p.split(".")[0] not in ("apiVersion", "kind", "metadata")]


def test_every_property_has_a_description_that_is_a_sentence() -> None:
    properties = [(k, p, n) for k, p, n in OURS if not p.endswith(("[]", "{}"))]
    assert len(properties) > 150
    assert [f"{k}.{p}" for k, p, n in properties if not n.get("description", "").endswith((".", "…"))] == []


def test_every_list_and_map_is_bounded() -> None:
    """CEL rules are charged for the worst case: an unbounded list makes a CRD that the API server refuses."""
    lists = [f"{k}.{p}" for k, p, n in OURS if n.get("type") == "array" and "maxItems" not in n]
    maps = [f"{k}.{p}" for k, p, n in OURS if "additionalProperties" in n and "maxProperties" not in n]
    assert (lists, maps) == ([], [])


def test_every_string_of_a_spec_is_bounded() -> None:
    def bounded(node: dict[str, Any]) -> bool:
        return not (node.get("type") == "string" or "x-kubernetes-int-or-string" in node) or bool(
            {"maxLength", "enum"} & node.keys() or node.get("format") == "date-time"
        )

    specs = [(k, p, n) for k, p, n in OURS if p.startswith("spec")]
    assert [f"{k}.{p}" for k, p, n in specs if not bounded(n)] == []


def test_every_number_of_a_spec_is_bounded() -> None:
    numbers = [(f"{k}.{p}", n) for k, p, n in OURS if p.startswith("spec") and n.get("type") in ("integer", "number")]
    assert numbers
    assert [p for p, n in numbers if not {"minimum", "maximum"} <= n.keys()] == []


def test_every_rule_has_a_message() -> None:
    every = [rule for _, _, node in EVERYTHING for rule in node.get("x-kubernetes-validations", ())]
    assert len(every) > 20
    assert [rule for rule in every if not rule.get("message")] == []


def test_every_list_of_objects_with_a_name_is_a_map() -> None:
    """Two writers of one list then merge by key instead of overwriting each other."""
    keyed = {"name", "id", "type"}
    loose = [
        f"{k}.{p}"
        for k, p, n in OURS
        if n.get("type") == "array"
        and keyed & set(n["items"].get("required", ()))
        and n.get("x-kubernetes-list-type") != "map"
    ]
    assert loose == []


def test_status_is_never_filled_in_by_the_api_server() -> None:
    assert [f"{k}.{p}" for k, p, n in OURS if p.startswith("status") and "default" in n] == []


def test_no_key_that_kubernetes_refuses() -> None:
    names = set(keys([whole(kind) for kind in DEFINITIONS]))
    assert not names & {"$ref", "$defs", "const", "title", "anyOf", "allOf", "discriminator", "patternProperties"}


def test_crds_folder_is_what_the_types_say() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "crds").glob("*.yaml")}
    assert written == crds.files(), "run `make crds`"


def test_files_are_plain_yaml() -> None:
    for text in crds.files().values():
        assert yaml.safe_load(text) in crds.definitions()
        assert "&id" not in text, "no anchors: not every reader follows them"
