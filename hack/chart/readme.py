"""What is generated in the chart's README: values, by values.yaml and values.schema.json, and alerts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from . import alerts

_TABLE = re.compile(r"(?<=<!-- values -->\n).*?(?=<!-- end of values -->)", re.DOTALL)
_ALERTS = re.compile(r"(?<=<!-- alerts -->\n).*?(?=<!-- end of alerts -->)", re.DOTALL)


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


def with_tables(page: str, chart: Path) -> str:
    """The page with its tables as they should be."""
    values = yaml.safe_load((chart / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((chart / "values.schema.json").read_text(encoding="utf-8"))
    lines = ["| value | default | |", "|---|---|---|"]
    lines += [f"| `{name}` | `{json.dumps(default)}` | {words} |" for name, default, words in rows(values, schema)]
    page = _TABLE.sub(lambda _: "\n".join(lines) + "\n", page)
    rules = ["| alert | after | severity | such as |", "|---|---|---|---|"]
    rules += [
        f"| [`{alert.name}`](../../{alert.runbook}) | {alert.lasts or 'at once'} | {alert.severity} | {alert.example} |"
        for alert in (*alerts.OPERATOR, *alerts.FEEDBACK)
    ]
    return _ALERTS.sub(lambda _: "\n".join(rules) + "\n", page)
