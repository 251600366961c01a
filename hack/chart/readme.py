"""The table of values in the chart's README, from values.yaml and the descriptions in values.schema.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_TABLE = re.compile(r"(?<=<!-- values -->\n).*?(?=<!-- end of values -->)", re.DOTALL)


def rows(values: Mapping[str, Any], schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Name, default and description of each value.

    Raises:
        KeyError: a value has no description.
    """
    for name, default in values.items():
        node = schema["properties"][name]
        if "properties" in node:
            yield from rows(default, node, f"{prefix}{name}.")
        else:
            yield prefix + name, default, node["description"]


def with_table(page: str, chart: Path) -> str:
    """The page with the table as it should be."""
    values = yaml.safe_load((chart / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((chart / "values.schema.json").read_text(encoding="utf-8"))
    lines = ["| value | default | |", "|---|---|---|"]
    lines += [f"| `{name}` | `{json.dumps(default)}` | {words} |" for name, default, words in rows(values, schema)]
    table = "\n".join(lines) + "\n"
    return _TABLE.sub(lambda _: table, page)
